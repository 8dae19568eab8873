#include "runtime/matrix.h"

#include <cblas.h>

namespace aft::runtime {
namespace {

void sgemm(CBLAS_TRANSPOSE transpose_b, Matrix<const float> a, Matrix<const float> b, int64_t m, int64_t n, int64_t k,
           float beta, Matrix<float> c) {
  // BLAS threads beside the pool's would fight for the cores.
  static const bool single = (openblas_set_num_threads(1), true);
  static_cast<void>(single);
  const auto size = [](int64_t value) { return static_cast<blasint>(value); };
  cblas_sgemm(CblasRowMajor, CblasNoTrans, transpose_b, size(m), size(n), size(k), 1.0F, a.data, size(a.stride), b.data,
              size(b.stride), beta, c.data, size(c.stride));
}

}  // namespace

void multiply_transposed(Matrix<const float> a, Matrix<const float> b, int64_t m, int64_t n, int64_t k, float beta,
                         Matrix<float> c) {
  sgemm(CblasTrans, a, b, m, n, k, beta, c);
}

void multiply(Matrix<const float> a, Matrix<const float> b, int64_t m, int64_t n, int64_t k, Matrix<float> c) {
  sgemm(CblasNoTrans, a, b, m, n, k, 0.0F, c);
}

}  // namespace aft::runtime
