#pragma once

#include <cstdint>

#include "aft/ops/device.h"
#include "aft/ops/operands.h"
#include "aft/ops/state.h"

// The windowed operator: AFT-simple, AFT-local and AFT-conv 1-D (Zhai et al. 2021, Eq. 4-6) are one kernel.
//
//   y[t,c] = gate(q[t,c]) * N/D     N = sum_t' e^(k[t',c] + w_h[t,t']) v[t',c]     D = sum_t' e^(k[t',c] + w_h[t,t'])
//
// with w_h[t,t'] = band[h, t, j] for t' = t - left + j inside the window [t - left, t + right] and 0 (not -inf) outside
// it: connectivity stays global. Without a band every source has w = 0: AFT-simple. Causal: only t' <= t.
// Tensors are of E: float, double, BFloat16 or Float16; weights, sums and the state of Accumulate<E>, in which all is
// computed: 16-bit results are rounded once, when stored. Every offset is an int64 count of elements.

namespace aft::ops {

/// Weights w: [H, rows, left + 1 + right], element (h, t, j) is data[h*head_stride + t*row_stride + j], j counting
/// sources upward: t' = t - left + j. Rows are indexed by absolute position. Entries whose t' lies outside the
/// sequence are ignored and get zero gradient. -inf forbids a pair.
template <typename T>
struct Band {
  T* data = nullptr;
  int64_t head_stride = 0;
  int64_t row_stride = 0;  // 0: every position shares one row (conv1d)
  int64_t rows = 0;        // length of the table; going past it throws (any length when row_stride is 0)
};

struct WindowShape {
  int64_t batch = 0;         // B; sequences, if packed
  int64_t time = 0;          // T; tokens of all sequences together, if packed
  int64_t channels = 0;      // d
  int64_t heads = 1;         // H, divides d; channel c belongs to head c / (d / H)
  int64_t key_channels = 0;  // d, or H: one key per head
  bool causal = true;
  bool packed = false;    // sequences lie one after another: cu_seqlens says where
  bool has_band = false;  // false: simple, left = right = 0
  int64_t left = 0;       // reach of the window to earlier sources, >= 0
  int64_t right = 0;      // reach to later sources, >= 0; 0 if causal
  Gate gate = Gate::kSigmoid;
};

/// What every pass reads.
template <typename E>
struct WindowInputs {
  WindowShape shape;
  Rows<const E> q;   // [B, T, d]; unused with Gate::kNone
  Rows<const E> k;   // [B, T, K]
  Rows<const E> v;   // [B, T, d]
  KeyMask key_mask;  // [B, T]
  // Packed: sequence b is rows [cu_seqlens[b], cu_seqlens[b + 1]) of the time axis, from 0 to T without gaps; batch
  // strides are not used, states and the rows of the band count per sequence. Null: B sequences of T.
  const int64_t* cu_seqlens = nullptr;  // [B + 1]
  int64_t longest = 0;                  // packed: no sequence is longer; T will do
  Band<const Accumulate<E>> band;
  State<const Accumulate<E>> initial_state;  // position null: neutral. Causal only
};

template <typename E>
struct WindowForward {
  WindowInputs<E> in;
  Rows<E> y;                         // [B, T, d], must not overlap an input
  State<Accumulate<E>> final_state;  // position null: not wanted. May be the initial state itself. Causal only
  Accumulate<E>* saved = nullptr;    // window_saved_size() elements for the backward, or null: not wanted
};

template <typename E>
struct WindowBackward {
  WindowInputs<E> in;                    // as in the forward
  const Accumulate<E>* saved = nullptr;  // what the forward wrote there
  Rows<const E> grad_y;                  // [B, T, d]
  StateGrad<const Accumulate<E>> grad_final_state;
  Rows<E> grad_q, grad_k, grad_v;               // overwritten; grad_q unused with Gate::kNone
  Band<Accumulate<E>> grad_band;                // overwritten, all rows of the table; data null: not wanted
  StateGrad<Accumulate<E>> grad_initial_state;  // overwritten; ring slots that held no source get 0
};

/// One position per batch row, the state edited in place. in.shape.time is ignored; rows are read at t = 0, and of the
/// band the rows of these positions alone. The initial state, mask and packing of the inputs are not used: a position
/// to be left out has k = -inf.
template <typename E>
struct WindowStep {
  WindowInputs<E> in;
  Rows<E> y;
  State<Accumulate<E>> state;
};

/// Elements of Accumulate<E> that the forward hands to the backward: the running sums at chunk boundaries, a few per
/// cent of a tensor (0 where the backward needs nothing). Of packed sequences as of one of all tokens.
int64_t window_saved_size(const WindowShape& shape);
/// The same for callers whose sizes are symbols: causal, it is 3 d sequences max(0, ceil(T / chunk) - 1), where the
/// chunk is of the window's reach alone.
int64_t window_chunk(const WindowShape& shape);

/// Bytes of device memory that a pass takes on CUDA (Cuda::workspace).
template <typename E>
int64_t window_workspace(const WindowShape& shape, Pass pass);

/// All throw aft::Error on a bad shape or a missing pointer and, on the CPU, on a position past the table or cu_seqlens
/// that do not fit, before anything is written.
/// Results do not depend on the number of threads or on the other sequences, bit for bit: a sequence is the same alone,
/// in a batch, and packed.
template <typename E>
void window_forward(const WindowForward<E>& p, const Cpu& cpu = {});
template <typename E>
void window_backward(const WindowBackward<E>& p, const Cpu& cpu = {});
template <typename E>
void window_step(const WindowStep<E>& p, const Cpu& cpu = {});
template <typename E>
void window_forward(const WindowForward<E>& p, const Cuda& cuda);
template <typename E>
void window_backward(const WindowBackward<E>& p, const Cuda& cuda);
template <typename E>
void window_step(const WindowStep<E>& p, const Cuda& cuda);

/// Writes the neutral state of `shape`.
template <typename T>
void window_state_init(const WindowShape& shape, const State<T>& state, const Cpu& cpu = {});
template <typename T>
void window_state_init(const WindowShape& shape, const State<T>& state, const Cuda& cuda);

/// The same mathematics straight from the equation in the accumulation type T (double, or long double as truth for
/// double): slow, obvious, and separate from the kernels. `saved` is not used.
template <typename T>
void window_forward_reference(const WindowForward<T>& p);
template <typename T>
void window_backward_reference(const WindowBackward<T>& p);
template <typename T>
void window_step_reference(const WindowStep<T>& p);

}  // namespace aft::ops
