#pragma once

#include <filesystem>
#include <string>

#include "train/train.h"

namespace aft {

/// The files of a run and who may write them.
class RunFolder {
 public:
  explicit RunFolder(std::filesystem::path folder) : folder_(std::move(folder)) {}
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return folder_; }
  [[nodiscard]] std::filesystem::path recipe() const { return folder_ / "recipe.toml"; }
  [[nodiscard]] std::filesystem::path metrics() const { return folder_ / "metrics.jsonl"; }
  [[nodiscard]] std::filesystem::path checkpoint() const { return folder_ / "checkpoint.safetensors"; }
  [[nodiscard]] std::filesystem::path model() const { return folder_ / "model.safetensors"; }
  [[nodiscard]] std::filesystem::path plot() const { return folder_ / "loss.png"; }

  /// Throws aft::Error if the folder holds something and neither `resume` nor `force` says what to do with it, or if
  /// `resume` would begin anew where a model is trained.
  void check(bool resume, bool force) const;

  /// Throws aft::Error if the run's recipe.toml would replace `recipe_file`, the user's own, by another text.
  void require_not(const std::filesystem::path& recipe_file, const std::string& toml) const;

  /// Makes the folder and takes its lock, which ends with the process. Throws aft::Error if another process trains
  /// there.
  void open();

  /// Removes the files of an earlier run, the checkpoint first, and no other file.
  void clear() const;

 private:
  std::filesystem::path folder_;
  int lock_ = -1;
};

/// Throws aft::Error if `now` differs from the recipe `saved` with the checkpoint in anything but lengths, intervals,
/// threads, the device, the model it began with, and where things lie: the data are compared by their bytes.
void check_same_run(const Recipe& saved, const Recipe& now);

}  // namespace aft
