// Checks of the dense operator: no arithmetic here.

#include "aft/ops/full.h"

#include <algorithm>
#include <string>

#include "ops/common/for_each_element.h"
#include "ops/common/require.h"
#include "ops/full/check.h"

namespace aft::ops {
namespace full {
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

// Weights for the targets up to `rows` and the sources up to `columns`.
template <typename T>
void require_positions(const PairWeights<const T>& w, int64_t rows, int64_t columns) {
  if (rows == 0 || columns == 0) return;
  require(w.rows >= rows, "weights: expected a row for every target up to " + std::to_string(rows) + got(w.rows) +
                              " rows; use a larger table or a shorter sequence");
  require(w.columns >= columns, "weights: expected a column for every source up to " + std::to_string(columns) +
                                    got(w.columns) + " columns; use a larger table or a shorter sequence");
  require(w.table != nullptr || (w.u != nullptr && w.v != nullptr),
          "weights: expected a matrix or both factors, got null");
}

template <typename T>
void require_weights(const PairWeights<const T>& w, const FullShape& s) {
  require(w.width >= 0, "weights: expected a width of at least 0" + got(w.width));
  require(w.u == nullptr || s.heads == 1 || (w.u_head_stride == 0) == (w.v_head_stride == 0),
          "weights: expected both factors to be shared by all heads or neither, got one of each");
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
void require_state(const State<T>& state, const FullShape& s, int64_t added, const char* name) {
  if (state.position == nullptr) return;
  require(s.causal, std::string(name) + ": only a causal operator has a state; drop it or set causal");
  require(!s.packed, std::string(name) + ": expected none with cu_seqlens; drop one of the two");
  if (s.batch * s.channels == 0) return;
  require(state.max != nullptr && state.den != nullptr && state.num != nullptr,
          std::string(name) + ": expected max, den and num, got null");
  require(s.capacity == 0 || (state.ring_key != nullptr && state.ring_value != nullptr),
          std::string(name) + ": expected a ring of " + std::to_string(s.capacity) + " keys and values, got null");
  require(added <= s.capacity, std::string(name) + ": expected a ring of at least " + std::to_string(added) +
                                   " positions" + got(s.capacity) + "; make the state with more");
}

template <typename E>
void check_inputs(const FullInputs<E>& in) {
  const FullShape& s = in.shape;
  check_shape(s);
  require(s.packed == (in.cu_seqlens != nullptr),
          std::string("cu_seqlens: expected ") +
              (s.packed ? "an array because packed is set, got null" : "null because packed is not set, got an array"));
  require(!s.packed || s.targets == s.sources, "cu_seqlens: expected as many sources as targets" + got(s.sources));
  require(!s.packed || in.longest >= 0, "longest: expected at least 0" + got(in.longest));
  if (s.gate != Gate::kNone) require_data(in.q, s.batch * s.targets * s.channels, "q");
  require_data(in.k, s.batch * s.sources * s.channels, "k");
  require_data(in.v, s.batch * s.sources * s.channels, "v");
  require_state(in.initial_state, s, 0, "initial_state");
  if (s.batch == 0 || s.targets == 0 || s.sources == 0) return;
  require_weights(in.weights, s);
  if (!s.packed && in.initial_state.position == nullptr) require_positions(in.weights, s.targets, s.sources);
}

// Positions that the weights must reach: the largest end of any sequence.
int64_t check_positions(const int64_t* position, const FullShape& s) {
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
int64_t check_packing(const int64_t* cu, const FullShape& s, int64_t longest) {
  require(cu[0] == 0, "cu_seqlens: expected 0 first" + got(cu[0]));
  int64_t end = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    require(cu[b + 1] >= cu[b], "cu_seqlens: expected no element below the one before" + got(cu[b + 1]));
    end = std::max(end, cu[b + 1] - cu[b]);
  }
  require(cu[s.batch] == s.targets,
          "cu_seqlens: expected the number of tokens, " + std::to_string(s.targets) + ", last" + got(cu[s.batch]));
  require(end <= longest,
          "cu_seqlens: expected sequences of at most longest = " + std::to_string(longest) + " tokens" + got(end));
  return end;
}

}  // namespace

template <typename E>
void check_sizes(const FullForward<E>& p) {
  const FullShape& s = p.in.shape;
  check_inputs(p.in);
  require_data(p.y, s.batch * s.targets * s.channels, "y");
  require_state(p.final_state, s, s.targets, "final_state");
}

template <typename E>
void check_sizes(const FullBackward<E>& p) {
  const FullShape& s = p.in.shape;
  check_inputs(p.in);
  const int64_t target_elements = s.batch * s.targets * s.channels;
  const int64_t source_elements = s.batch * s.sources * s.channels;
  if (s.gate != Gate::kNone) require_data(p.grad_q, target_elements, "grad_q");
  require_data(p.grad_y, target_elements, "grad_y");
  require_data(p.grad_k, source_elements, "grad_k");
  require_data(p.grad_v, source_elements, "grad_v");
  require(p.saved != nullptr || target_elements == 0, "saved: expected what the forward saved, got null");
  check_weight_gradients(p.grad_weights, p.in.weights, s);
}

template <typename E>
void check_sizes(const FullStep<E>& p) {
  const FullShape& s = p.in.shape;
  require(s.causal, "causal: expected true, a step has no other form");
  require(p.state.position != nullptr || s.batch == 0, "state: expected one, got null");
  require_state(p.state, s, 1, "state");
  check_inputs(p.in);
  require_data(p.y, s.batch * s.channels, "y");
}

template <typename E>
void check_values(const FullInputs<E>& in) {
  const FullShape& s = in.shape;
  if (s.packed) {
    const int64_t end = check_packing(in.cu_seqlens, s, in.longest);
    require_positions(in.weights, end, end);
  } else if (in.initial_state.position != nullptr) {
    const int64_t end = check_positions(in.initial_state.position, s);
    require_positions(in.weights, end, end);
  }
}

#define AFT_INSTANTIATE(E)                              \
  template void check_sizes<E>(const FullForward<E>&);  \
  template void check_sizes<E>(const FullBackward<E>&); \
  template void check_sizes<E>(const FullStep<E>&);     \
  template void check_values<E>(const FullInputs<E>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace full

int64_t full_saved_size(const FullShape& s) { return 3 * (s.packed ? 1 : s.batch) * s.targets * s.channels; }

}  // namespace aft::ops
