#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>

#include "aft/config/model_config.h"
#include "aft/runtime/thread_pool.h"

namespace aft::runtime {

struct Weights;

/// The weights of a model in memory, f32, shared by all its sessions and never changed. Cheap to copy.
class Model {
 public:
  /// `path`: a model file or a run folder. Throws aft::Error for a file that is missing, truncated, corrupted or
  /// foreign, and for a model or mixer that only the trainer runs. The file is not needed afterwards.
  static Model load(const std::filesystem::path& path, ThreadPool& pool);

  /// Throws aft::Error that names the model unless it is one of this name; `for_what` says what needs it.
  void require(std::string_view model, std::string_view for_what) const;

  [[nodiscard]] const ModelConfig& config() const;
  [[nodiscard]] int64_t parameters() const;
  /// Bytes of weights that decoding one token reads.
  [[nodiscard]] int64_t weight_bytes_per_token() const;
  /// Parameters that multiply every token: all matrices of the blocks (the head is applied where logits are asked for).
  [[nodiscard]] int64_t matrix_parameters() const;
  /// For sessions.
  [[nodiscard]] const std::shared_ptr<const Weights>& weights() const { return weights_; }

 private:
  std::shared_ptr<const Weights> weights_;
};

}  // namespace aft::runtime
