#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "aft/config/model_config.h"
#include "aft/runtime/thread_pool.h"

namespace aft::runtime {

/// Is shown the weights [T] that a target of one layer and head of attention gives to all positions, by several threads
/// at once.
using SeeAttention = std::function<void(int64_t layer, int64_t head, int64_t target, std::span<const float> weights)>;

/// An image classifier, its weights in memory, f32. Cheap to copy; a call changes nothing, so several threads may call.
class Classifier {
 public:
  /// `path`: a model file or a run folder. side > 0: for images of side x side pixels instead of the model's size; its
  /// tables of places are interpolated. Throws aft::Error for a file that is missing, truncated, corrupted or foreign,
  /// for a model that is no classifier or whose mixer only the trainer runs, and a side that does not fit the patches.
  static Classifier load(const std::filesystem::path& path, ThreadPool& pool, int64_t side = 0);

  /// With the size of images that it is for now.
  [[nodiscard]] const ModelConfig& config() const;

  /// Logits [classes] of an image uint8 [height, width, colors], or features [d] of a model without a head. Throws
  /// aft::Error for another number of values.
  [[nodiscard]] std::vector<float> classify(std::span<const uint8_t> image, ThreadPool& pool) const {
    return classify(image, pool, {});
  }
  /// `see` is shown the weights of every row of attention; of another mixer none.
  std::vector<float> classify(std::span<const uint8_t> image, ThreadPool& pool, const SeeAttention& see) const;

 private:
  struct Parts;
  std::shared_ptr<const Parts> parts_;
};

}  // namespace aft::runtime
