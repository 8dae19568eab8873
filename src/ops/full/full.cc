// Checks of the dense operator: no arithmetic here.

#include "aft/ops/full.h"

#include <algorithm>
#include <string>

#include "ops/common/for_each_element.h"
#include "ops/common/require.h"
#include "ops/full/check.h"

namespace aft::ops {
namespace {

void check_shape(const FullShape& s) {
  require(s.batch >= 0, "batch: expected at least 0" + got(s.batch));
  require(s.targets >= 0, "targets: expected at least 0" + got(s.targets));
  require(s.sources >= 0, "sources: expected at least 0" + got(s.sources));
  require_heads(s.channels, s.heads, s.key_channels);
  require(!s.causal || s.sources == s.targets,
          "sources: expected targets = " + std::to_string(s.targets) + " when causal" + got(s.sources));
  require(s.capacity >= 0, "capacity: expected at least 0" + got(s.capacity));
}

template <typename T>
void require_data(const Rows<T>& rows, int64_t elements, const char* name) {
  require(rows.data != nullptr || elements == 0, std::string(name) + ": expected a tensor, got null");
}

template <typename T>
void check_weights(const PairWeights<T>& w, const FullShape& s, int64_t rows, int64_t columns) {
  if (s.batch == 0 || rows == 0 || columns == 0) return;
  require(w.width >= 0, "weights: expected a width of at least 0" + got(w.width));
  require(w.u == nullptr || s.heads == 1 || (w.u_head_stride == 0) == (w.v_head_stride == 0),
          "weights: expected both factors to be shared by all heads or neither, got one of each");
  require(w.rows >= rows, "weights: expected a row for every target up to " + std::to_string(rows) + got(w.rows) +
                              " rows; use a larger table or a shorter sequence");
  require(w.columns >= columns, "weights: expected a column for every source up to " + std::to_string(columns) +
                                    got(w.columns) + " columns; use a larger table or a shorter sequence");
  require(w.table != nullptr || (w.u != nullptr && w.v != nullptr),
          "weights: expected a matrix or both factors, got null");
}

// Gradients of the weights that there are, in their sizes; shared only where the weights are.
template <typename T>
void check_weight_gradients(const PairWeights<T>& g, const PairWeights<const T>& w, const FullShape& s) {
  if (g.table == nullptr && g.u == nullptr && g.v == nullptr) return;
  require((g.table != nullptr) == (w.table != nullptr) && (g.table == nullptr || (g.u == nullptr && g.v == nullptr)),
          "grad_weights: expected a matrix or factors as the weights are, got the other");
  require(g.rows == w.rows && g.columns == w.columns && (g.table != nullptr || g.width == w.width),
          "grad_weights: expected the sizes of the weights, " + std::to_string(w.rows) + " x " +
              std::to_string(w.columns) + got(g.rows) + " x " + std::to_string(g.columns) +
              (g.table != nullptr ? std::string()
                                  : ", " + std::to_string(g.width) + " wide, not " + std::to_string(w.width)));
  const auto shared = [&](int64_t gradient, int64_t weights, int64_t many) {
    return many > 1 && gradient == 0 && weights != 0;
  };
  require(!shared(g.batch_stride, w.batch_stride, s.batch) && !shared(g.head_stride, w.head_stride, s.heads) &&
              !shared(g.u_head_stride, w.u_head_stride, s.heads) && !shared(g.v_head_stride, w.v_head_stride, s.heads),
          "grad_weights: expected a matrix for each that the weights have, got a shared one");
}

template <typename T>
void check_state(const State<T>& state, const FullShape& s, int64_t added, const char* name) {
  if (state.position == nullptr) return;
  require(s.causal, std::string(name) + ": only a causal operator has a state; drop it or set causal");
  if (s.batch * s.channels == 0) return;
  require(state.max != nullptr && state.den != nullptr && state.num != nullptr,
          std::string(name) + ": expected max, den and num, got null");
  require(s.capacity == 0 || (state.ring_key != nullptr && state.ring_value != nullptr),
          std::string(name) + ": expected a ring of " + std::to_string(s.capacity) + " keys and values, got null");
  require(added <= s.capacity, std::string(name) + ": expected a ring of at least " + std::to_string(added) +
                                   " positions" + got(s.capacity) + "; make the state with more");
}

// Positions that the weights must reach: the largest end of any sequence.
int64_t check_positions(const int64_t* position, const FullShape& s) {
  if (position == nullptr) return s.targets;
  int64_t end = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    require(position[b] >= 0, "state.position: expected at least 0" + got(position[b]));
    require(position[b] <= s.capacity - s.targets, "state.position: expected room for " + std::to_string(s.targets) +
                                                       " more in a ring of " + std::to_string(s.capacity) +
                                                       got(position[b]) + " (batch row " + std::to_string(b) +
                                                       "); make the state with more, or start anew");
    end = std::max(end, position[b] + s.targets);
  }
  return end;
}

// Length of the longest sequence.
int64_t check_packed(const int64_t* cu, const FullShape& s, bool state) {
  require(!state, "cu_seqlens: expected none with a state; drop one of the two");
  require(s.targets == s.sources, "cu_seqlens: expected as many sources as targets" + got(s.sources));
  require(cu[0] == 0, "cu_seqlens: expected 0 first" + got(cu[0]));
  int64_t longest = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    require(cu[b + 1] >= cu[b], "cu_seqlens: expected no element below the one before" + got(cu[b + 1]));
    longest = std::max(longest, cu[b + 1] - cu[b]);
  }
  require(cu[s.batch] == s.targets,
          "cu_seqlens: expected the number of tokens, " + std::to_string(s.targets) + ", last" + got(cu[s.batch]));
  return longest;
}

template <typename Params>
void check_sequences(const Params& p) {
  const FullShape& s = p.shape;
  const bool state = p.initial_state.position != nullptr;
  if (p.cu_seqlens != nullptr) {
    const int64_t longest = check_packed(p.cu_seqlens, s, state);
    check_weights(p.weights, s, longest, longest);
    return;
  }
  check_state(p.initial_state, s, 0, "initial_state");
  const int64_t end = check_positions(p.initial_state.position, s);
  check_weights(p.weights, s, end, s.causal ? end : s.sources);
}

}  // namespace

template <typename E>
void check_forward(const FullForward<E>& p) {
  const FullShape& s = p.shape;
  check_shape(s);
  if (s.gate != Gate::kNone) require_data(p.q, s.batch * s.targets * s.channels, "q");
  require_data(p.k, s.batch * s.sources * s.channels, "k");
  require_data(p.v, s.batch * s.sources * s.channels, "v");
  require_data(p.y, s.batch * s.targets * s.channels, "y");
  check_sequences(p);
  require(p.final_state.position == nullptr || p.cu_seqlens == nullptr,
          "final_state: expected none with cu_seqlens; drop one of the two");
  check_state(p.final_state, s, s.targets, "final_state");
}

template <typename E>
void check_backward(const FullBackward<E>& p) {
  const FullShape& s = p.shape;
  check_shape(s);
  const int64_t target_elements = s.batch * s.targets * s.channels;
  const int64_t source_elements = s.batch * s.sources * s.channels;
  if (s.gate != Gate::kNone) {
    require_data(p.q, target_elements, "q");
    require_data(p.grad_q, target_elements, "grad_q");
  }
  require_data(p.k, source_elements, "k");
  require_data(p.v, source_elements, "v");
  require_data(p.grad_y, target_elements, "grad_y");
  require_data(p.grad_k, source_elements, "grad_k");
  require_data(p.grad_v, source_elements, "grad_v");
  require(p.saved != nullptr || target_elements == 0, "saved: expected what the forward saved, got null");
  check_sequences(p);
  check_weight_gradients(p.grad_weights, p.weights, s);
}

template <typename E>
void check_step(const FullStep<E>& p) {
  FullShape s = p.shape;
  s.targets = s.sources = 1;
  check_shape(s);
  require(s.causal, "causal: expected true, a step has no other form");
  require(p.state.position != nullptr || s.batch == 0, "state: expected one, got null");
  if (s.gate != Gate::kNone) require_data(p.q, s.batch * s.channels, "q");
  require_data(p.k, s.batch * s.channels, "k");
  require_data(p.v, s.batch * s.channels, "v");
  require_data(p.y, s.batch * s.channels, "y");
  check_state(p.state, s, 1, "state");
  const int64_t end = check_positions(p.state.position, s);
  check_weights(p.weights, s, end, end);
}

int64_t full_saved_size(const FullShape& s, bool packed) { return 3 * (packed ? 1 : s.batch) * s.targets * s.channels; }

#define AFT_INSTANTIATE(E)                                 \
  template void check_forward<E>(const FullForward<E>&);   \
  template void check_backward<E>(const FullBackward<E>&); \
  template void check_step<E>(const FullStep<E>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
