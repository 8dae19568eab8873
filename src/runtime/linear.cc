#include "runtime/linear.h"

#include <algorithm>

#include "runtime/kernels.h"
#include "runtime/matrix.h"

namespace aft::runtime {
namespace {

constexpr int64_t kFewRows = 4;     // up to here the weights are read once and multiply each row in turn
constexpr int64_t kShareStep = 16;  // a cache line of outputs
constexpr int64_t kTile = 256;      // rows and outputs of a matrix product, whatever the number of threads
constexpr int64_t kNormRows = 16;

void apply_one_by_one(const Linear& linear, const float* in, int64_t rows, After after, float* out, ThreadPool& pool) {
  // One unbroken share a thread: smaller pieces in turns read the weights at two thirds of the speed.
  const int64_t share =
      ((linear.outputs + pool.threads() - 1) / pool.threads() + kShareStep - 1) / kShareStep * kShareStep;
  pool.run((linear.outputs + share - 1) / share, [&](int64_t i) {
    const int64_t last = std::min((i + 1) * share, linear.outputs);
    // Several rows: by pieces of the weights that the later rows find in the cache.
    const int64_t piece = rows == 1 ? share : kShareStep;
    for (int64_t begin = i * share; begin < last; begin += piece) {
      const int64_t count = std::min(piece, last - begin);
      const float* weight = linear.weight + begin * linear.inputs;
      const float* bias = linear.bias == nullptr ? nullptr : linear.bias + begin;
      for (int64_t row = 0; row < rows; ++row) {
        float* y = out + row * linear.outputs + begin;
        kernels::matvec(weight, count, linear.inputs, linear.inputs, in + row * linear.inputs, bias,
                        after == After::kAddToOld, y);
        if (after == After::kGelu) kernels::gelu(nullptr, count, y);
      }
    }
  });
}

void apply_in_tiles(const Linear& linear, const float* in, int64_t rows, After after, float* out, ThreadPool& pool) {
  prepare_products(pool.threads());
  const int64_t across = (linear.outputs + kTile - 1) / kTile;
  const int64_t down = (rows + kTile - 1) / kTile;
  pool.run(across * down, [&](int64_t i) {
    const int64_t row = (i % down) * kTile;
    const int64_t column = (i / down) * kTile;
    const int64_t m = std::min(kTile, rows - row);
    const int64_t n = std::min(kTile, linear.outputs - column);
    float* tile = out + row * linear.outputs + column;
    multiply_transposed({in + row * linear.inputs, linear.inputs},
                        {linear.weight + column * linear.inputs, linear.inputs}, m, n, linear.inputs,
                        after == After::kAddToOld ? 1.0F : 0.0F, {tile, linear.outputs});
    const float* bias = linear.bias == nullptr ? nullptr : linear.bias + column;
    for (int64_t r = 0; r < m; ++r) {
      float* y = tile + r * linear.outputs;
      if (after == After::kGelu) {
        kernels::gelu(bias, n, y);
      } else if (bias != nullptr) {
        kernels::add(bias, n, y);
      }
    }
  });
}

}  // namespace

void apply(const Linear& linear, const float* in, int64_t rows, Rows how, After after, float* out, ThreadPool& pool) {
  if (how == Rows::kOneByOne || rows <= kFewRows) {
    apply_one_by_one(linear, in, rows, after, out, pool);
  } else {
    apply_in_tiles(linear, in, rows, after, out, pool);
  }
}

void apply(const Norm& norm, const float* in, int64_t rows, int64_t channels, float* out, ThreadPool& pool) {
  pool.run((rows + kNormRows - 1) / kNormRows, [&](int64_t i) {
    for (int64_t row = i * kNormRows; row < std::min(rows, (i + 1) * kNormRows); ++row) {
      kernels::layer_norm(in + row * channels, norm.weight, norm.bias, norm.eps, channels, out + row * channels);
    }
  });
}

}  // namespace aft::runtime
