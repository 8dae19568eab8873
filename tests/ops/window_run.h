#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "aft/ops/window.h"
#include "tests/ops/window_cases.h"

// Runs of the windowed operator as dense numbers in, dense numbers out: through the kernels (strided views inside
// larger buffers filled with NaN) or through the reference.

namespace aft::ops::test {

/// A State with its memory. Empty position: no state.
template <typename T>
struct StateData {
  std::vector<int64_t> position;
  std::vector<T> max, den, num, ring_key, ring_value;
};

/// All arrays dense, [B, T, width] and [H, rows, span] as in aft/ops/window.h. Tensors of E are kept as the numbers
/// they hold.
template <typename E>
struct WindowInputs {
  using T = Accumulate<E>;
  WindowShape shape;
  std::vector<T> q, k, v, grad_y;
  std::vector<T> band;
  int64_t band_rows = 0;  // rows stored; 1 with shared_row
  bool shared_row = false;
  StateData<T> initial;             // position empty: neutral
  std::vector<uint8_t> key_mask;    // [tokens]; empty: none
  std::vector<int64_t> cu_seqlens;  // empty: not packed
  bool has_final = false;           // the final state and its gradient are wanted
  StateData<T> grad_final;          // den, num, ring_key, ring_value

  bool packed() const { return shape.packed; }
  int64_t tokens() const { return packed() ? shape.time : shape.batch * shape.time; }
  int64_t time_of(int64_t b) const { return packed() ? cu_seqlens[b + 1] - cu_seqlens[b] : shape.time; }
  int64_t tokens_before(int64_t b) const { return packed() ? cu_seqlens[b] : b * shape.time; }
};

enum Output {
  kY,
  kFinalDen,
  kFinalNum,
  kGradQ,
  kGradK,
  kGradV,
  kGradBand,
  kGradInitialDen,
  kGradInitialNum,
  kGradInitialRingKey,
  kGradInitialRingValue,
  kOutputs
};
/// Whether a tensor of elements, not of their accumulation type.
inline bool is_tensor(int output) { return output == kY || output == kGradQ || output == kGradK || output == kGradV; }
constexpr std::array<const char*, kOutputs> kOutputNames = {"y",
                                                            "final_state.den",
                                                            "final_state.num",
                                                            "grad_q",
                                                            "grad_k",
                                                            "grad_v",
                                                            "grad_band",
                                                            "grad_initial_state.den",
                                                            "grad_initial_state.num",
                                                            "grad_initial_state.ring_key",
                                                            "grad_initial_state.ring_value"};

template <typename E>
struct WindowOutputs {
  using T = Accumulate<E>;
  std::array<std::vector<T>, kOutputs> of;  // dense; empty where not wanted
  // The exact part of the final state. Ring slots that never held a source are 0 here.
  std::vector<int64_t> position;
  std::vector<T> max, ring_key, ring_value;
};

struct RunOptions {
  ParallelFor parallel = {};
  RedoCount* redone = nullptr;
  bool backward = true;
  bool grad_band = true;     // false: the band's gradient is not wanted
  bool alias_state = false;  // final_state is the initial state's own memory
  int64_t shift = 1;         // elements between the start of the buffers and the first row
};

/// Inputs of the case's class, rounded to E. Keys keep clear of the points where
/// round(k log2 e) could differ between precisions, so that the maximum of a state is one exact number.
template <typename E>
WindowInputs<E> make_inputs(const WindowCase& c);

template <typename R, typename E>
WindowInputs<R> convert(const WindowInputs<E>& in);

/// Forward and backward through the kernels. Fails the test if anything between the rows of an output was written.
template <typename E>
WindowOutputs<E> run_kernel(const WindowInputs<E>& in, const RunOptions& options = {});

/// The same through the step, position by position. Forward only.
template <typename E>
WindowOutputs<E> run_steps(const WindowInputs<E>& in, const RunOptions& options = {});

/// R: double or long double.
template <typename R>
WindowOutputs<R> run_reference(const WindowInputs<R>& in, bool backward = true);

/// Positions [begin, end) of every row, starting from `state`. The band stays whole, rows are indexed absolutely.
template <typename E>
WindowInputs<E> slice_time(const WindowInputs<E>& in, int64_t begin, int64_t end,
                           const StateData<Accumulate<E>>& state);

/// Sequence b alone, not packed.
template <typename E>
WindowInputs<E> slice_batch(const WindowInputs<E>& in, int64_t b);

/// The state that `out` ended in.
template <typename E>
StateData<Accumulate<E>> final_state(const WindowOutputs<E>& out);

/// True if ring slot `slot` holds a source when the row stands at `position`.
inline bool slot_holds_source(int64_t position, int64_t left, int64_t slot) { return slot < left && slot < position; }

/// Number of key channels' head for channel c, and the key channel it reads.
inline int64_t key_channel(const WindowShape& s, int64_t c) {
  return s.key_channels == s.channels ? c : c / (s.channels / s.heads);
}

}  // namespace aft::ops::test
