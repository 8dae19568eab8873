#pragma once

#include <cstdint>
#include <vector>

#include "aft/config/model_config.h"
#include "aft/runtime/model_file.h"
#include "aft/runtime/thread_pool.h"

namespace aft::runtime {

/// f32 memory in huge pages where the system gives them, cleared, 64-byte aligned. Reading weights is what a token
/// costs, and it is faster from here than from the small pages of a mapped file.
class WeightMemory {
 public:
  explicit WeightMemory(int64_t floats);
  ~WeightMemory();
  WeightMemory(const WeightMemory&) = delete;
  WeightMemory& operator=(const WeightMemory&) = delete;

  /// The next `floats`, which must be left.
  float* take(int64_t floats);
  /// What take() uses up for `floats`.
  static int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }

 private:
  void* base_ = nullptr;
  size_t bytes_ = 0;
  float* next_ = nullptr;
};

/// y = W x + b.
struct Linear {
  int64_t outputs = 0;
  int64_t inputs = 0;
  const float* weight = nullptr;  // [outputs, inputs]
  const float* bias = nullptr;    // [outputs]; null: none
};

struct Norm {
  const float* weight = nullptr;  // [d]
  const float* bias = nullptr;    // [d]
  float eps = 1e-5F;
};

struct Block {
  Norm mixer_norm;
  Linear qkv;
  Linear output;
  const float* band = nullptr;  // with a window: [band_rows, left + 1]
  const float* u = nullptr;     // aft_full: factors of the weights, [T, d']
  const float* v = nullptr;
  Norm mlp_norm;
  Linear up;
  Linear down;
};

struct Weights {
  Weights(const ModelFile& file, ThreadPool& pool);

  ModelConfig config;
  int64_t parameters = 0;
  int64_t left = 0;  // reach of the window
  bool has_band = false;
  int64_t heads = 1;                // that share keys or weights
  int64_t band_rows = 0;            // aft_local: T, a row a position; aft_conv1d: H, a row a head
  const float* token = nullptr;     // [token rows, d]
  const float* position = nullptr;  // [T, d]
  std::vector<Block> blocks;
  Norm norm;
  Linear head;

 private:
  WeightMemory memory_;
};

}  // namespace aft::runtime
