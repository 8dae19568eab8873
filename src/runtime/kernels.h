#pragma once

#include <cstdint>

// The arithmetic around the operators, on f32 rows, for every SIMD target; each call runs on the caller's thread.
// Arrays are dense and need no alignment. What a function returns does not depend on where its arrays lie.

namespace aft::runtime::kernels {

/// y[r] = bias[r] + sum_c w[r * stride + c] x[c] for r in [0, rows), added to what y holds if `add_to_y`.
/// bias null: none.
void matvec(const float* w, int64_t rows, int64_t columns, int64_t stride, const float* x, const float* bias,
            bool add_to_y, float* y);

/// y = (x - mean) / sqrt(variance + eps) * weight + bias, biased variance over the n elements.
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y);

/// x += bias.
void add(const float* bias, int64_t n, float* x);

/// x = gelu(x + bias), the exact form x Phi(x): error at most 2e-7 max(1, |x|). bias null: none.
void gelu(const float* bias, int64_t n, float* x);

/// x = e^(scale (x - max)) / sum, scale > 0; n >= 1.
void softmax(float scale, int64_t n, float* x);

/// y[c] = sum_i weights[i] values[i * stride + c] for c in [0, columns).
void weighted_sum(const float* values, int64_t rows, int64_t columns, int64_t stride, const float* weights, float* y);

/// The sum of n elements by wide loads: what reading memory costs and nothing else.
float stream_sum(const float* x, int64_t n);

/// Name of the SIMD target in use, such as "AVX3".
const char* target_name();

}  // namespace aft::runtime::kernels
