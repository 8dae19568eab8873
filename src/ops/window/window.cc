// Checks and the neutral state of the windowed operator: no arithmetic here.

#include "aft/ops/window.h"

#include <algorithm>
#include <limits>
#include <string>

#include "ops/common/for_each_element.h"
#include "ops/common/require.h"
#include "ops/window/check.h"
#include "ops/window/plan.h"

namespace aft::ops {
namespace {

// Beyond any sequence, and safe to add up.
constexpr int64_t kLastPosition = int64_t{1} << 62;

void check_shape(const WindowShape& s) {
  require(s.batch >= 0, "batch: expected at least 0" + got(s.batch));
  require(s.time >= 0, "time: expected at least 0" + got(s.time));
  require_heads(s.channels, s.heads, s.key_channels);
  require_reach(s.left, "left");
  require_reach(s.right, "right");
  require(!s.causal || s.right == 0, "right: expected 0 when causal" + got(s.right));
  require(s.has_band || (s.left == 0 && s.right == 0),
          "left, right: expected 0 without a band" + got(s.left + s.right));
}

template <typename E>
void require_data(const Rows<E>& rows, const WindowShape& s, const char* name) {
  require(rows.data != nullptr || s.time == 0 || s.batch * s.channels == 0,
          std::string(name) + ": expected a tensor, got null");
}

void check_packing(const int64_t* cu_seqlens, const WindowShape& s) {
  if (cu_seqlens == nullptr) return;
  require(cu_seqlens[0] == 0, "cu_seqlens[0]: expected 0" + got(cu_seqlens[0]));
  for (int64_t b = 0; b < s.batch; ++b) {
    require(cu_seqlens[b] <= cu_seqlens[b + 1], "cu_seqlens[" + std::to_string(b + 1) +
                                                    "]: expected at least the one before, " +
                                                    std::to_string(cu_seqlens[b]) + got(cu_seqlens[b + 1]));
  }
  require(cu_seqlens[s.batch] == s.time, "cu_seqlens[" + std::to_string(s.batch) + "]: expected all " +
                                             std::to_string(s.time) + " tokens" + got(cu_seqlens[s.batch]));
}

template <typename T>
void check_band(const Band<const T>& band, const WindowShape& s, const int64_t* cu_seqlens, const int64_t* positions) {
  if (!s.has_band || s.batch == 0 || s.time == 0) return;
  require(band.data != nullptr, "band: expected weights because has_band is set, got null");
  if (band.row_stride == 0) return;
  for_each_sequence(s, cu_seqlens, [&](const Sequence& sequence) {
    const int64_t position = positions == nullptr ? 0 : positions[sequence.index];
    require(position <= band.rows - sequence.time,
            "band: expected a row for every position up to " + std::to_string(position + sequence.time) +
                " (position " + std::to_string(position) + " + time " + std::to_string(sequence.time) + ", sequence " +
                std::to_string(sequence.index) + ")" + got(band.rows) +
                " rows; use a longer table or a shorter sequence");
  });
}

template <typename T>
void check_state(const State<T>& state, const WindowShape& s, const char* name) {
  if (state.position == nullptr) return;
  require(s.causal, std::string(name) + ": only a causal operator has a state; drop it or set causal");
  if (s.batch * s.channels == 0) return;
  require(state.max != nullptr && state.den != nullptr && state.num != nullptr,
          std::string(name) + ": expected max, den and num, got null");
  require(s.left == 0 || (state.ring_key != nullptr && state.ring_value != nullptr),
          std::string(name) + ": expected a ring of " + std::to_string(s.left) + " keys and values, got null");
}

void check_positions(const int64_t* position, int64_t batch) {
  if (position == nullptr) return;
  for (int64_t b = 0; b < batch; ++b) {
    require(position[b] >= 0, "state.position: expected at least 0" + got(position[b]));
    require(position[b] <= kLastPosition, "state.position: expected at most 2^62" + got(position[b]));
  }
}

}  // namespace

template <typename E>
void check_forward(const WindowForward<E>& p) {
  check_shape(p.shape);
  check_packing(p.cu_seqlens, p.shape);
  if (p.shape.gate != Gate::kNone) require_data(p.q, p.shape, "q");
  require_data(p.k, p.shape, "k");
  require_data(p.v, p.shape, "v");
  require_data(p.y, p.shape, "y");
  check_state(p.initial_state, p.shape, "initial_state");
  check_state(p.final_state, p.shape, "final_state");
  check_positions(p.initial_state.position, p.shape.batch);
  check_band(p.band, p.shape, p.cu_seqlens, p.initial_state.position);
}

template <typename E>
void check_backward(const WindowBackward<E>& p) {
  check_shape(p.shape);
  check_packing(p.cu_seqlens, p.shape);
  if (p.shape.gate != Gate::kNone) {
    require_data(p.q, p.shape, "q");
    require_data(p.grad_q, p.shape, "grad_q");
  }
  require_data(p.k, p.shape, "k");
  require_data(p.v, p.shape, "v");
  require_data(p.grad_y, p.shape, "grad_y");
  require_data(p.grad_k, p.shape, "grad_k");
  require_data(p.grad_v, p.shape, "grad_v");
  check_state(p.initial_state, p.shape, "initial_state");
  check_positions(p.initial_state.position, p.shape.batch);
  check_band(p.band, p.shape, p.cu_seqlens, p.initial_state.position);
  require(p.saved != nullptr || p.shape.time == 0 || window_saved_size(p.shape, p.cu_seqlens) == 0,
          "saved: expected what the forward saved, got null; run the forward with saved set");
  require(p.shape.causal || (p.grad_final_state.den == nullptr && p.grad_final_state.num == nullptr),
          "grad_final_state: only a causal operator has a state; drop it or set causal");
  require(p.grad_band.data == nullptr || (p.grad_band.row_stride == 0) == (p.band.row_stride == 0),
          "grad_band: expected a row for each that the band has, got one of the two with a row that all share");
  require(p.grad_band.data == nullptr || p.grad_band.row_stride == 0 || p.grad_band.rows == p.band.rows,
          "grad_band: expected as many rows as the band, " + std::to_string(p.band.rows) + got(p.grad_band.rows));
}

template <typename E>
void check_step(const WindowStep<E>& p) {
  WindowShape s = p.shape;
  s.time = 1;
  check_shape(s);
  require(s.causal, "causal: expected true for a step, got false; only a causal operator has a state");
  if (s.gate != Gate::kNone) require_data(p.q, s, "q");
  require_data(p.k, s, "k");
  require_data(p.v, s, "v");
  require_data(p.y, s, "y");
  require(p.state.position != nullptr || s.batch == 0, "state: expected a state, got null");
  check_state(p.state, s, "state");
  check_positions(p.state.position, s.batch);
  check_band(p.band, s, nullptr, p.state.position);
}

template <typename T>
void window_state_init(const WindowShape& s, State<T> state) {
  std::fill_n(state.position, s.batch, int64_t{0});
  std::fill_n(state.max, s.batch * s.key_channels, std::numeric_limits<T>::lowest());
  std::fill_n(state.den, s.batch * s.key_channels, T(0));
  std::fill_n(state.num, s.batch * s.channels, T(0));
  if (s.left == 0) return;
  std::fill_n(state.ring_key, s.batch * s.left * s.key_channels, T(0));
  std::fill_n(state.ring_value, s.batch * s.left * s.channels, T(0));
}

template void window_state_init<float>(const WindowShape&, State<float>);
template void window_state_init<double>(const WindowShape&, State<double>);
#define AFT_INSTANTIATE(E)                                   \
  template void check_forward<E>(const WindowForward<E>&);   \
  template void check_backward<E>(const WindowBackward<E>&); \
  template void check_step<E>(const WindowStep<E>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
