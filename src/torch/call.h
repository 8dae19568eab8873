#pragma once

#include <array>

#include "aft/torch.h"
#include "operator.h"

// What the operators of queries, keys and values are called with, and those that others here call: the windowed
// operator, which simple, local and conv1d are fronts of, and conv2d.

namespace aft::dispatch {

struct Call {
  OptionalTensor q;  // [batch, time, channels]; none with gate "none"
  Tensor k, v;       // [batch, time, channels or heads], [batch, time, channels]
  std::string_view gate = "sigmoid";
  OptionalTensor key_mask;  // bool [batch, time], false leaves a source out
  Tensor out;               // of the form .out: where y is written
};

struct SequenceCall : Call {
  bool causal = true;
  int64_t heads = 1;
  OptionalTensor cu_seqlens;       // int64 [N + 1], packs N sequences into q, k, v [1, total, channels]
  TensorList state;                // the six tensors of a state, or none
  std::vector<Tensor> state_copy;  // what `state` lists where what was given has gaps
};

struct WindowCall : SequenceCall {
  OptionalTensor band;  // [heads, rows, J], a row a position; [heads, J], one row for all; none, no window
  std::string_view band_name = "band";  // in messages
};

struct Conv2dCall : Call {
  Tensor kernel;           // [heads, s, s]
  c10::SymDimVector grid;  // [height, width]
};

/// What a backward is handed beside its forward's inputs, and where it writes. Gradients are absent where their input
/// is or, of weights, where they are not wanted.
struct Gradients {
  Tensor grad_y, saved;
  TensorList grad_state;  // of those tensors of the state after that have one
  bool weights_gradient = true;
  OptionalTensor grad_q, grad_k, grad_v;
};
struct WindowBackwardCall : WindowCall, Gradients {
  OptionalTensor grad_band;
};
struct Conv2dBackwardCall : Conv2dCall, Gradients {
  OptionalTensor grad_kernel;
};

struct Q : Argument<"Tensor? q", &Call::q> {};
struct K : Argument<"Tensor k", &Call::k> {};
struct V : Argument<"Tensor v", &Call::v> {};
struct GateName : Argument<"str gate=\"sigmoid\"", &Call::gate> {};
struct KeyMask : Argument<"Tensor? key_mask=None", &Call::key_mask> {};
struct Out : Argument<"Tensor(a!) out", &Call::out> {};
struct Causal : Argument<"bool causal=True", &SequenceCall::causal> {};
struct Heads : Argument<"int heads=1", &SequenceCall::heads> {};
struct CuSeqlens : Argument<"Tensor? cu_seqlens=None", &SequenceCall::cu_seqlens> {};
struct StateBefore : Argument<"Tensor[] state", &SequenceCall::state> {};
struct StateIfAny : Argument<"Tensor[]? state=None", &SequenceCall::state> {};
struct StateWritten : Argument<"Tensor(a!)[] state", &SequenceCall::state> {};
struct Band : Argument<"Tensor? band", &WindowCall::band> {};
struct BandIfAny : Argument<"Tensor? band=None", &WindowCall::band> {};
struct Grid : Argument<"SymInt[2] grid", &Conv2dCall::grid> {};
struct Kernel2d : Argument<"Tensor kernel", &Conv2dCall::kernel> {};

struct GradY : Argument<"Tensor grad_y", &Gradients::grad_y> {};
struct Saved : Argument<"Tensor saved", &Gradients::saved> {};
struct GradState : Argument<"Tensor[]? grad_state=None", &Gradients::grad_state> {};
struct WeightsGradient : Argument<"bool weights_gradient=True", &Gradients::weights_gradient> {};
struct GradQ : Argument<"Tensor(a!)? grad_q", &Gradients::grad_q> {};
struct GradK : Argument<"Tensor(b!) grad_k", &Gradients::grad_k> {};
struct GradV : Argument<"Tensor(c!) grad_v", &Gradients::grad_v> {};
struct GradBand : Argument<"Tensor(d!)? grad_band", &WindowBackwardCall::grad_band> {};
struct GradKernel : Argument<"Tensor(d!)? grad_kernel", &Conv2dBackwardCall::grad_kernel> {};

using Qkv = Join<Q, K, V>;
using Written = Join<GradQ, GradK, GradV>;
using Sources = Join<KeyMask, CuSeqlens>;
using Options = Join<GateName, Heads, Sources>;
using Windowed = Join<Qkv, BandIfAny, ByName, Causal, Options>;
using WindowedGradient = Join<GradY, Qkv, Band, Saved>;
using OnGrid = Join<Qkv, Kernel2d, Grid, ByName, KeyMask, GateName>;

/// y, what is saved for the backward, and the state after: none without one before.
using Forward = std::tuple<Tensor, Tensor, std::vector<Tensor>>;
using ReturnsForward = Returns<Forward, "(Tensor y, Tensor saved, Tensor[] state)">;
using YAndState = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using ReturnsYAndState = Returns<YAndState,
                                 "(Tensor y, Tensor position, Tensor max, Tensor den, Tensor num, "
                                 "Tensor ring_key, Tensor ring_value)">;

/// States of aft/torch.h as the operators take and give them.
inline std::array<Tensor, 6> tensors_of(const State& s) {
  return {s.position, s.max, s.den, s.num, s.ring_key, s.ring_value};
}
inline std::tuple<Tensor, State> split(const YAndState& results) {
  const auto& [y, position, max, den, num, ring_key, ring_value] = results;
  return {y, {position, max, den, num, ring_key, ring_value}};
}

struct Window : Operator<WindowCall, "window", ReturnsTensor, Windowed> {};
struct WindowForward : Operator<WindowCall, "window_forward", ReturnsForward,
                                Join<Qkv, BandIfAny, StateIfAny, ByName, Causal, Options>> {};
struct WindowBackwardOut : Operator<WindowBackwardCall, "window_backward.out", ReturnsNothing,
                                    Join<WindowedGradient, ByName, Causal, Options, Written, GradBand>> {};

struct Conv2d : Operator<Conv2dCall, "conv2d", ReturnsTensor, OnGrid> {};
struct Conv2dBackwardOut
    : Operator<Conv2dBackwardCall, "conv2d_backward.out", ReturnsNothing, Join<GradY, OnGrid, Written, GradKernel>> {};

}  // namespace aft::dispatch
