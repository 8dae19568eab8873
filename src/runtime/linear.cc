#include "runtime/linear.h"

#include <algorithm>

#include "runtime/kernels.h"
#include "runtime/matrix.h"

namespace aft::runtime {
namespace {

constexpr int64_t kFewRows = 4;  // up to here the weights are read once and multiply each row in turn
constexpr int64_t kPiece = 64;   // outputs of one piece at most
constexpr int64_t kTile = 256;   // rows and outputs of a matrix product, whatever the number of threads
constexpr int64_t kNormRows = 16;

void apply_to_few(const Linear& linear, const float* in, int64_t rows, After after, float* out, ThreadPool& pool) {
  // Four pieces a thread, so that one that is held up does not hold up all.
  const int64_t share = (linear.outputs + 4 * pool.threads() - 1) / (4 * pool.threads());
  const int64_t piece = std::clamp<int64_t>((share + 7) / 8 * 8, 8, kPiece);
  pool.run((linear.outputs + piece - 1) / piece, [&](int64_t i) {
    const int64_t begin = i * piece;
    const int64_t count = std::min(piece, linear.outputs - begin);
    const float* weight = linear.weight + begin * linear.inputs;
    const float* bias = linear.bias == nullptr ? nullptr : linear.bias + begin;
    for (int64_t row = 0; row < rows; ++row) {
      const float* x = in + row * linear.inputs;
      float* y = out + row * linear.outputs + begin;
      if (after == After::kAddToOld) {
        float product[kPiece];
        kernels::matvec(weight, count, linear.inputs, linear.inputs, x, bias, product);
        kernels::add(product, count, y);
      } else {
        kernels::matvec(weight, count, linear.inputs, linear.inputs, x, bias, y);
        if (after == After::kGelu) kernels::gelu(nullptr, count, y);
      }
    }
  });
}

void apply_to_many(const Linear& linear, const float* in, int64_t rows, After after, float* out, ThreadPool& pool) {
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

void apply(const Linear& linear, const float* in, int64_t rows, After after, float* out, ThreadPool& pool) {
  if (rows <= kFewRows) {
    apply_to_few(linear, in, rows, after, out, pool);
  } else {
    apply_to_many(linear, in, rows, after, out, pool);
  }
}

void apply(const Norm& norm, const float* in, int64_t rows, int64_t channels, float* out, ThreadPool& pool) {
  pool.run((rows + kNormRows - 1) / kNormRows, [&](int64_t i) {
    for (int64_t row = i * kNormRows; row < std::min(rows, (i + 1) * kNormRows); ++row) {
      kernels::layer_norm(in + row * channels, norm.weight, norm.bias, channels, out + row * channels);
    }
  });
}

}  // namespace aft::runtime
