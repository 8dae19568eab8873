#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "aft/config/model_config.h"
#include "aft/io/safetensors.h"

namespace aft {
struct TensorPiece;
}

namespace aft::runtime {

/// `path` if it is a file; in a run folder its model.safetensors or, before the first validation wrote one, its
/// checkpoint.safetensors. Throws aft::Error for a folder with neither.
std::filesystem::path find_model(const std::filesystem::path& path);

/// Whether the name matches one of the patterns, in which * stands for any characters.
bool matches_any(const std::string& name, const std::vector<std::string>& patterns);

/// The weights of a model file or of a trainer's checkpoint, of which it is their averages if the run keeps them.
/// Checked: format, version, config, and every tensor's name, type and shape. Missing, extra and mis-shaped tensors are
/// reported together. No weight is read before read().
class ModelFile {
 public:
  /// `path`: a model file, a checkpoint or a run folder.
  explicit ModelFile(const std::filesystem::path& path);

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Whether it is a checkpoint, which holds more than the weights.
  [[nodiscard]] bool is_checkpoint() const { return is_checkpoint_; }
  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const std::string& library_version() const { return library_version_; }
  /// Of the model's config: 1 or 2.
  [[nodiscard]] int64_t format_version() const { return format_version_; }
  [[nodiscard]] int64_t parameters() const { return parameters_; }
  /// By their names in a model file: f32, dense.
  [[nodiscard]] const std::map<std::string, TensorEntry>& tensors() const { return tensors_; }
  /// Throws aft::Error unless a model of `config` can take these weights: every tensor is there with its shape, and no
  /// other; all that is missing, extra or mis-shaped is reported together. A projection to queries, keys and values
  /// counts as three ("blocks.0.mixer.key.weight"), so that another mixer's may be taken in part. Names that match a
  /// pattern of `skip`, or whose tensor does, may be anything; a pattern that matches no name is an error. A longer
  /// context than that of the file is allowed: its tables of positions have the first rows. So is another grid of
  /// patches, whose tables are interpolated.
  void check_fits(const ModelConfig& config, const std::vector<std::string>& skip = {}) const;
  /// What a model of `config`, which fits, has in this piece: the file's values, of a table of places those for the
  /// grid of `config` (bicubic, with antialiasing), of a table of positions the rows that the file has.
  [[nodiscard]] std::vector<float> values(const ModelConfig& config, const TensorPiece& piece) const;
  /// Reads `count` numbers of a tensor of the model, from its `begin`-th on. Several threads may read at once.
  void read(const std::string& name, int64_t begin, int64_t count, float* to) const;
  /// All of it.
  [[nodiscard]] std::vector<float> read(const std::string& name) const;

 private:
  void check_tensors() const;

  std::filesystem::path path_;
  SafetensorsFile file_;
  std::map<std::string, TensorEntry> tensors_;
  ModelConfig config_;
  std::string library_version_;
  int64_t format_version_ = 0;
  int64_t parameters_ = 0;
  bool is_checkpoint_ = false;
};

}  // namespace aft::runtime
