#pragma once

#include <cstdint>

namespace aft::runtime {

/// A row-major matrix; `stride` floats from one row to the next.
template <typename T>
struct Matrix {
  T* data = nullptr;
  int64_t stride = 0;
};

// Matrix products on the caller's thread alone: the pool does the splitting, so that what follows a product can be done
// while it is in the cache. Sizes and strides stay below 2^31.

/// Makes ready for products on so many threads at once; to be called before them. Throws std::bad_alloc if their memory
/// is not to be had: inside a product OpenBLAS would try again without end.
void prepare_products(int64_t threads);

/// c [m, n] = a [m, k] b [n, k]^T + beta c.
void multiply_transposed(Matrix<const float> a, Matrix<const float> b, int64_t m, int64_t n, int64_t k, float beta,
                         Matrix<float> c);

/// c [m, n] = a [m, k] b [k, n].
void multiply(Matrix<const float> a, Matrix<const float> b, int64_t m, int64_t n, int64_t k, Matrix<float> c);

}  // namespace aft::runtime
