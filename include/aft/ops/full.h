#pragma once

#include <cstdint>

#include "aft/ops/device.h"
#include "aft/ops/operands.h"
#include "aft/ops/state.h"

// The dense operator: AFT-full (Zhai et al. 2021, Eq. 2-3). Every pair of positions has a weight of its own.
//
//   y[t,c] = gate(q[t,c]) * N/D     N = sum_t' e^(k[t',c] + w_h[t,t']) v[t',c]     D = sum_t' e^(k[t',c] + w_h[t,t'])
//
// Causal: only t' <= t. E is the element type of the tensors, T = Accumulate<E> that of weights, states and sums. Every
// offset is an int64 count of elements.

namespace aft::ops {

/// Weights w, by one of two ways. Rows and columns are indexed by absolute position.
/// - a matrix: element (b, h, t, t') is table[b*batch_stride + h*head_stride + t*row_stride + t']. A stride of 0 shares
///   it between batch rows or heads. -inf forbids a pair.
/// - factors: w = u_t . v_t', u [H or 1, rows, width] and v [H or 1, columns, width], dense; head_stride 0 shares them.
template <typename T>
struct PairWeights {
  T* table = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;
  T* u = nullptr;  // factors where not null
  T* v = nullptr;
  int64_t width = 0;
  int64_t u_head_stride = 0;
  int64_t v_head_stride = 0;
  int64_t rows = 0;     // targets that there are weights for; going past them throws
  int64_t columns = 0;  // sources that there are weights for
};

struct FullShape {
  int64_t batch = 0;         // B; sequences, if packed
  int64_t targets = 0;       // Tq; tokens of all sequences together, if packed
  int64_t sources = 0;       // Tk; Tq if causal
  int64_t channels = 0;      // d
  int64_t heads = 1;         // H, divides d; channel c belongs to head c / (d / H)
  int64_t key_channels = 0;  // d, or H: one key per head
  bool causal = true;
  bool packed = false;  // sequences lie one after another: cu_seqlens says where
  Gate gate = Gate::kSigmoid;
  int64_t capacity = 0;  // positions that the ring of a state holds (its `left`); 0: no state. Causal only
};

/// What every pass reads.
template <typename E>
struct FullInputs {
  using T = Accumulate<E>;
  FullShape shape;
  Rows<const E> q;   // [B, Tq, d]; unused with Gate::kNone
  Rows<const E> k;   // [B, Tk, K]
  Rows<const E> v;   // [B, Tk, d]
  KeyMask key_mask;  // [B, Tk]
  // Packed: sequence b is rows [cu_seqlens[b], cu_seqlens[b + 1]) of q, k, v and y, whose batch strides are not used,
  // and begins at position 0 of the weights. Null: B sequences. Only with Tq = Tk, and without a state.
  const int64_t* cu_seqlens = nullptr;  // [B + 1]
  int64_t longest = 0;                  // packed: no sequence is longer; Tq will do
  PairWeights<const T> weights;
  State<const T> initial_state;  // position null: neutral. Its ring holds the sources before the first of k
};

template <typename E>
struct FullForward {
  using T = Accumulate<E>;
  FullInputs<E> in;
  Rows<E> y;             // [B, Tq, d], must not overlap an input
  State<T> final_state;  // position null: not wanted. May be the initial state itself
  T* saved = nullptr;    // full_saved_size() elements for the backward, or null: not wanted
};

template <typename E>
struct FullBackward {
  using T = Accumulate<E>;
  FullInputs<E> in;          // as in the forward
  const T* saved = nullptr;  // what the forward wrote there
  Rows<const E> grad_y;      // [B, Tq, d]
  StateGrad<const T> grad_final_state;
  Rows<E> grad_q, grad_k, grad_v;   // overwritten; grad_q unused with Gate::kNone
  PairWeights<T> grad_weights;      // overwritten, all of it; the same way as weights, its members null: not wanted
  StateGrad<T> grad_initial_state;  // overwritten; ring slots that held no source get 0
};

/// One position per batch row, the state edited in place. Targets and sources of the shape are ignored; rows are read
/// at t = 0. The initial state, mask and packing of the inputs are not used.
template <typename E>
struct FullStep {
  FullInputs<E> in;
  Rows<E> y;
  State<Accumulate<E>> state;
};

/// Elements of T that the forward hands to the backward: D as mantissa and exponent, and N/D.
int64_t full_saved_size(const FullShape& shape);

/// Bytes of device memory that a pass takes on CUDA (Cuda::workspace).
template <typename E>
int64_t full_workspace(const FullShape& shape, Pass pass);

/// All throw aft::Error on a bad shape or a missing pointer and, on the CPU, on a position past the weights or the
/// state's ring or cu_seqlens that do not fit, before anything is written.
/// Results do not depend on the number of threads or on the other batch rows, bit for bit. Workspace: one copy of
/// [e^k, e^k v] forward, two backward; nothing of size Tq x Tk.
template <typename E>
void full_forward(const FullForward<E>& p, const Cpu& cpu = {});
template <typename E>
void full_backward(const FullBackward<E>& p, const Cpu& cpu = {});
template <typename E>
void full_step(const FullStep<E>& p, const Cpu& cpu = {});
template <typename E>
void full_forward(const FullForward<E>& p, const Cuda& cuda);
template <typename E>
void full_backward(const FullBackward<E>& p, const Cuda& cuda);
template <typename E>
void full_step(const FullStep<E>& p, const Cuda& cuda);

/// The same mathematics straight from the equation in T (double, or long double as truth for double): slow, obvious,
/// and separate from the kernels. `saved` is not used.
template <typename T>
void full_forward_reference(const FullForward<T>& p);
template <typename T>
void full_backward_reference(const FullBackward<T>& p);

}  // namespace aft::ops
