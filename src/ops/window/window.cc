// Checks, sizes and the neutral state of the windowed operator: no arithmetic on tensors here.

#include "aft/ops/window.h"

#include <algorithm>
#include <limits>
#include <string>

#include "ops/common/for_each_element.h"
#include "ops/common/require.h"
#include "ops/window/check.h"
#include "ops/window/plan.h"

namespace aft::ops {
namespace window {
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

template <typename T>
void require_rows(const Band<const T>& band, int64_t position, const Sequence& sequence) {
  require(position <= band.rows - sequence.time,
          "band: expected a row for every position up to " + std::to_string(position + sequence.time) + " (position " +
              std::to_string(position) + " + time " + std::to_string(sequence.time) + ", sequence " +
              std::to_string(sequence.index) + ")" + got(band.rows) +
              " rows; use a longer table or a shorter sequence");
}

template <typename T>
void require_state(const State<T>& state, const WindowShape& s, const char* name) {
  if (state.position == nullptr) return;
  require(s.causal, std::string(name) + ": only a causal operator has a state; drop it or set causal");
  if (s.batch * s.channels == 0) return;
  require(state.max != nullptr && state.den != nullptr && state.num != nullptr,
          std::string(name) + ": expected max, den and num, got null");
  require(s.left == 0 || (state.ring_key != nullptr && state.ring_value != nullptr),
          std::string(name) + ": expected a ring of " + std::to_string(s.left) + " keys and values, got null");
}

template <typename E>
bool has_table(const WindowInputs<E>& in) {
  const WindowShape& s = in.shape;
  return s.has_band && s.batch > 0 && s.time > 0 && in.band.row_stride != 0;
}

template <typename E>
void check_inputs(const WindowInputs<E>& in) {
  const WindowShape& s = in.shape;
  check_shape(s);
  require(s.packed == (in.cu_seqlens != nullptr),
          std::string("cu_seqlens: expected ") +
              (s.packed ? "an array because packed is set, got null" : "null because packed is not set, got an array"));
  require(!s.packed || in.longest >= 0, "longest: expected at least 0" + got(in.longest));
  if (s.gate != Gate::kNone) require_data(in.q, s, "q");
  require_data(in.k, s, "k");
  require_data(in.v, s, "v");
  require_state(in.initial_state, s, "initial_state");
  if (!s.has_band || s.batch == 0 || s.time == 0) return;
  require(in.band.data != nullptr, "band: expected weights because has_band is set, got null");
  if (has_table(in) && !s.packed && in.initial_state.position == nullptr) {
    require_rows(in.band, 0, {.index = 0, .row = 0, .first = 0, .time = s.time, .boundary = 0});
  }
}

void check_packing(const int64_t* cu_seqlens, const WindowShape& s, int64_t longest) {
  require(cu_seqlens[0] == 0, "cu_seqlens[0]: expected 0" + got(cu_seqlens[0]));
  int64_t end = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    require(cu_seqlens[b] <= cu_seqlens[b + 1], "cu_seqlens[" + std::to_string(b + 1) +
                                                    "]: expected at least the one before, " +
                                                    std::to_string(cu_seqlens[b]) + got(cu_seqlens[b + 1]));
    end = std::max(end, cu_seqlens[b + 1] - cu_seqlens[b]);
  }
  require(cu_seqlens[s.batch] == s.time, "cu_seqlens[" + std::to_string(s.batch) + "]: expected all " +
                                             std::to_string(s.time) + " tokens" + got(cu_seqlens[s.batch]));
  require(end <= longest,
          "cu_seqlens: expected sequences of at most longest = " + std::to_string(longest) + " tokens" + got(end));
}

}  // namespace

template <typename E>
void check_sizes(const WindowForward<E>& p) {
  check_inputs(p.in);
  require_data(p.y, p.in.shape, "y");
  require_state(p.final_state, p.in.shape, "final_state");
}

template <typename E>
void check_sizes(const WindowBackward<E>& p) {
  check_inputs(p.in);
  const WindowShape& s = p.in.shape;
  if (s.gate != Gate::kNone) require_data(p.grad_q, s, "grad_q");
  require_data(p.grad_y, s, "grad_y");
  require_data(p.grad_k, s, "grad_k");
  require_data(p.grad_v, s, "grad_v");
  require(p.saved != nullptr || s.time == 0 || window_saved_size(s) == 0,
          "saved: expected what the forward saved, got null; run the forward with saved set");
  require(s.causal || (p.grad_final_state.den == nullptr && p.grad_final_state.num == nullptr),
          "grad_final_state: only a causal operator has a state; drop it or set causal");
  require(p.grad_band.data == nullptr || (p.grad_band.row_stride == 0) == (p.in.band.row_stride == 0),
          "grad_band: expected a row for each that the band has, got one of the two with a row that all share");
  require(p.grad_band.data == nullptr || p.grad_band.row_stride == 0 || p.grad_band.rows == p.in.band.rows,
          "grad_band: expected as many rows as the band, " + std::to_string(p.in.band.rows) + got(p.grad_band.rows));
}

template <typename E>
void check_sizes(const WindowStep<E>& p) {
  const WindowShape& s = p.in.shape;
  require(s.causal, "causal: expected true for a step, got false; only a causal operator has a state");
  require(p.state.position != nullptr || s.batch == 0, "state: expected a state, got null");
  require_state(p.state, s, "state");
  check_inputs(p.in);
  require_data(p.y, s, "y");
}

template <typename E>
void check_values(const WindowInputs<E>& in) {
  const WindowShape& s = in.shape;
  if (s.packed) check_packing(in.cu_seqlens, s, in.longest);
  const int64_t* position = in.initial_state.position;
  for (int64_t b = 0; b < s.batch && position != nullptr; ++b) {
    require(position[b] >= 0, "state.position: expected at least 0" + got(position[b]));
    require(position[b] <= kLastPosition, "state.position: expected at most 2^62" + got(position[b]));
  }
  if (!has_table(in)) return;
  for_each_sequence(s, in.cu_seqlens, [&](const Sequence& sequence) {
    require_rows(in.band, position == nullptr ? 0 : position[sequence.index], sequence);
  });
}

#define AFT_INSTANTIATE(E)                                \
  template void check_sizes<E>(const WindowForward<E>&);  \
  template void check_sizes<E>(const WindowBackward<E>&); \
  template void check_sizes<E>(const WindowStep<E>&);     \
  template void check_values<E>(const WindowInputs<E>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace window

int64_t window_saved_size(const WindowShape& s) {
  return s.causal ? (s.packed ? 1 : s.batch) * window::chunk_boundaries(s, s.time) * 3 * s.channels : 0;
}

int64_t window_chunk(const WindowShape& s) { return window::chunk_rows(s); }

template <typename T>
void window_state_init(const WindowShape& s, const State<T>& state, const Cpu& /*cpu*/) {
  std::fill_n(state.position, s.batch, int64_t{0});
  std::fill_n(state.max, s.batch * s.key_channels, std::numeric_limits<T>::lowest());
  std::fill_n(state.den, s.batch * s.key_channels, T(0));
  std::fill_n(state.num, s.batch * s.channels, T(0));
  if (s.left == 0) return;
  std::fill_n(state.ring_key, s.batch * s.left * s.key_channels, T(0));
  std::fill_n(state.ring_value, s.batch * s.left * s.channels, T(0));
}

template void window_state_init<float>(const WindowShape&, const State<float>&, const Cpu&);
template void window_state_init<double>(const WindowShape&, const State<double>&, const Cpu&);

}  // namespace aft::ops
