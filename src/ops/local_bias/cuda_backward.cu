// Backward of local_bias on a CUDA device: one thread an element of a gradient. Cost and layout: README.md.

#include <cstdint>

#include "aft/ops/local_bias.h"
#include "ops/common/cuda/launch.cuh"
#include "ops/local_bias/banded_product.h"
#include "ops/local_bias/check.h"

namespace aft::ops {
namespace local_bias {
namespace {

template <typename T, bool of_u>
__global__ void write_product(LocalBiasBackward<T> p) {
  const LocalBiasShape& s = p.in.shape;
  const int64_t index = cuda::thread_index();
  if (index >= s.heads * s.rows * s.width) return;
  const int64_t c = index % s.width, i = index / s.width % s.rows, head = index / s.width / s.rows;
  const BandedProduct<T> product = of_u ? product_of_u(p, head) : product_of_v(p, head);
  T sum = 0;
#pragma unroll 4
  for (int64_t partner = product.begin(i), end = product.end(i); partner < end; ++partner) {
    sum = fma(product.coefficient(i, partner), product.partners[partner * s.width + c], sum);
  }
  product.out[i * s.width + c] = sum;
}

}  // namespace
}  // namespace local_bias

template <typename T>
void local_bias_backward(const LocalBiasBackward<T>& p, const Cuda& cuda) {
  using namespace local_bias;
  check_sizes(p);
  constexpr const char* kName = "local_bias_backward";
  const int64_t size = p.in.shape.heads * p.in.shape.rows * p.in.shape.width;
  if (p.grad_u != nullptr) cuda::launch(cuda, kName, size, write_product<T, true>, p);
  if (p.grad_v != nullptr) cuda::launch(cuda, kName, size, write_product<T, false>, p);
}

template void local_bias_backward<float>(const LocalBiasBackward<float>&, const Cuda&);
template void local_bias_backward<double>(const LocalBiasBackward<double>&, const Cuda&);

}  // namespace aft::ops
