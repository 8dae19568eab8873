#pragma once

#include <cstdint>

#include "aft/ops/device.h"
#include "aft/ops/operands.h"

// The grid operator: AFT-conv 2-D (Zhai et al. 2021, section 3.2 on an image), every source seen by every target.
//
//   y[t,c] = gate(q[t,c]) * N/D     N = sum_t' e^(k[t',c] + w_h[t,t']) v[t',c]     D = sum_t' e^(k[t',c] + w_h[t,t'])
//
// Positions lie row by row on a grid, t = row * width + column. With (dy, dx) = source - target and r = (s - 1) / 2,
// w_h[t,t'] = kernel[h, r + dy, r + dx] where |dy| <= r and |dx| <= r, and 0 (not -inf) outside: connectivity stays
// global. E is the element type of the tensors; sums and the kernel are in Accumulate<E>. Every offset is an int64
// count of elements.

namespace aft::ops {

struct GridShape {
  int64_t batch = 0;         // B
  int64_t height = 0;        // rows of the grid
  int64_t width = 0;         // columns of the grid
  int64_t channels = 0;      // d
  int64_t heads = 1;         // H, divides d; channel c belongs to head c / (d / H). H = d: a kernel per channel
  int64_t key_channels = 0;  // K = d, or H: one key per head
  int64_t kernel = 1;        // s, odd; may be larger than the grid
  Gate gate = Gate::kSigmoid;

  constexpr int64_t time() const { return height * width; }  // T
};

/// What both passes read.
template <typename E>
struct GridInputs {
  GridShape shape;
  Rows<const E> q;                        // [B, T, d]; unused with Gate::kNone
  Rows<const E> k;                        // [B, T, K]
  Rows<const E> v;                        // [B, T, d]
  KeyMask key_mask;                       // [B, T]
  const Accumulate<E>* kernel = nullptr;  // [H, s, s], dense. -inf forbids a pair
};

template <typename E>
struct GridForward {
  GridInputs<E> in;
  Rows<E> y;  // [B, T, d], must not overlap an input
};

template <typename E>
struct GridBackward {
  GridInputs<E> in;                      // as in the forward
  Rows<const E> grad_y;                  // [B, T, d]
  Rows<E> grad_q, grad_k, grad_v;        // overwritten; grad_q unused with Gate::kNone
  Accumulate<E>* grad_kernel = nullptr;  // [H, s, s], overwritten; null: not wanted. What meets no pair gets 0
};

/// Bytes of device memory that a pass takes on CUDA (Cuda::workspace).
template <typename E>
int64_t grid_workspace(const GridShape& shape, Pass pass);

/// Both throw aft::Error on a bad shape or a missing pointer, before anything is written. The backward recomputes the
/// forward and needs nothing saved. Results do not depend on the number of threads or on the other batch rows, bit for
/// bit. A row with nothing to see gives 0 and has no gradient.
template <typename E>
void grid_forward(const GridForward<E>& p, const Cpu& cpu = {});
template <typename E>
void grid_backward(const GridBackward<E>& p, const Cpu& cpu = {});
template <typename E>
void grid_forward(const GridForward<E>& p, const Cuda& cuda);
template <typename E>
void grid_backward(const GridBackward<E>& p, const Cuda& cuda);

/// The same mathematics straight from the equation in E (double, or long double as truth for double): slow, obvious,
/// and separate from the kernels.
template <typename E>
void grid_forward_reference(const GridForward<E>& p);
template <typename E>
void grid_backward_reference(const GridBackward<E>& p);

}  // namespace aft::ops
