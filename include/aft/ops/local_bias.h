#pragma once

#include <cstdint>

#include "aft/ops/device.h"

// Factors of AFT-local to the band of weights: band[h, t, j] = u[h, t] . v[h, t - left + j], 0 where t - left + j lies
// outside [0, rows) (Zhai et al. 2021, section 3.1: w_{t,t'} = u_t^T v_t'). Nothing of size T x T is formed.

namespace aft::ops {

struct LocalBiasShape {
  int64_t heads = 1;  // H
  int64_t rows = 0;   // T, positions of the table
  int64_t width = 0;  // d', width of the factors
  int64_t left = 0;
  int64_t right = 0;

  constexpr int64_t columns() const { return left + 1 + right; }  // J
};

/// What both passes read. All arrays are dense.
template <typename T>
struct LocalBiasInputs {
  LocalBiasShape shape;
  const T* u = nullptr;  // [H, rows, width]
  const T* v = nullptr;  // [H, rows, width]
};

template <typename T>
struct LocalBiasForward {
  LocalBiasInputs<T> in;
  T* band = nullptr;  // [H, rows, J]
};

template <typename T>
struct LocalBiasBackward {
  LocalBiasInputs<T> in;
  const T* grad_band = nullptr;            // [H, rows, J]; entries outside the sequence are ignored
  T *grad_u = nullptr, *grad_v = nullptr;  // [H, rows, width], overwritten; each may be null: not wanted
};

/// All throw aft::Error on sizes that make no sense or a missing pointer, before anything is written. On CUDA they take
/// no workspace.
template <typename T>
void local_bias_forward(const LocalBiasForward<T>& p, const Cpu& cpu = {});
template <typename T>
void local_bias_backward(const LocalBiasBackward<T>& p, const Cpu& cpu = {});
template <typename T>
void local_bias_forward(const LocalBiasForward<T>& p, const Cuda& cuda);
template <typename T>
void local_bias_backward(const LocalBiasBackward<T>& p, const Cuda& cuda);

/// Straight from the equation, in T (double, or long double as truth for double).
template <typename T>
void local_bias_forward_reference(const LocalBiasForward<T>& p);
template <typename T>
void local_bias_backward_reference(const LocalBiasBackward<T>& p);

}  // namespace aft::ops
