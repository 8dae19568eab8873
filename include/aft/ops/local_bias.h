#pragma once

#include <cstdint>

#include "aft/ops/parallel.h"

// Factors of AFT-local to the band of weights: band[h, t, j] = u[h, t] . v[h, t - left + j], 0 where t - left + j lies
// outside [0, rows) (Zhai et al. 2021, section 3.1: w_{t,t'} = u_t^T v_t'). Nothing of size T x T is formed.

namespace aft::ops {

struct LocalBiasShape {
  int64_t heads = 1;  // H
  int64_t rows = 0;   // T, positions of the table
  int64_t width = 0;  // d', width of the factors
  int64_t left = 0;
  int64_t right = 0;
};

/// All arrays dense: u, v [H, rows, width], band [H, rows, left + 1 + right].
template <typename T>
void local_bias_forward(const LocalBiasShape& shape, const T* u, const T* v, T* band, const ParallelFor& parallel = {});

/// grad_u, grad_v overwritten (each may be null: not wanted). Entries of grad_band outside the sequence are ignored.
template <typename T>
void local_bias_backward(const LocalBiasShape& shape, const T* u, const T* v, const T* grad_band, T* grad_u, T* grad_v,
                         const ParallelFor& parallel = {});

template <typename T>
void local_bias_forward_reference(const LocalBiasShape& shape, const T* u, const T* v, T* band);
template <typename T>
void local_bias_backward_reference(const LocalBiasShape& shape, const T* u, const T* v, const T* grad_band, T* grad_u,
                                   T* grad_v);

}  // namespace aft::ops
