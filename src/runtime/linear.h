#pragma once

#include <cstdint>

#include "aft/runtime/thread_pool.h"
#include "runtime/weights.h"

namespace aft::runtime {

/// What happens to the product of a linear layer before it is stored.
enum class After : int32_t {
  kNothing,
  kGelu,      // y = gelu(W x + b)
  kAddToOld,  // y += W x + b: the residual
};

/// How rows are multiplied.
enum class Rows {
  kAsIsFastest,  // a few vector by vector, bound by reading the weights; many in tiles as matrix products
  kOneByOne,     // vector by vector: the bits of a row do not depend on the others or on how many there are
};

/// in [rows, inputs], out [rows, outputs], both dense and apart.
void apply(const Linear& linear, const float* in, int64_t rows, Rows how, After after, float* out, ThreadPool& pool);

/// out [rows, d] = norm(in [rows, d]).
void apply(const Norm& norm, const float* in, int64_t rows, int64_t channels, float* out, ThreadPool& pool);

}  // namespace aft::runtime
