#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "data/images.h"

// Folders of JPEG and PNG files, a folder for each class.

namespace aft {

/// What is done about a file that cannot be read while a run goes on.
enum class Broken { kStop, kSkip };

/// Images in files, decoded each time they are read, and resized so that the centre fills `shape`
/// (fit_for_evaluation(), crop_fraction 1); or, where they are augmented by a random crop, that of the whole picture.
/// Files are those named .jpg, .jpeg or .png, in either case, anywhere below the folder of their class; names that
/// begin with a dot are skipped.
class ImageFolder : public ImageSet {
 public:
  /// `folder` holds train/CLASS/..., and perhaps val/CLASS/... (or valid) and test/CLASS/...; or else the folders of
  /// the classes themselves, which are train. Classes are those of train, in order of their names. Without val,
  /// `holdout` images of train are valid, -1: a tenth of them; each class gives its share, chosen by a hash of the
  /// files' names, and keeps at least one for train. Throws aft::Error, naming the folder, if it is none, has fewer
  /// than two classes, a class without images, or one in val or test that train lacks; and for a `holdout` that leaves
  /// a class without, or beside a folder val.
  ImageFolder(const std::filesystem::path& folder, const ImageView& view, int64_t holdout, Augmentation augmentation,
              Broken broken);

  [[nodiscard]] int64_t size(Split split) const override;
  [[nodiscard]] int64_t bytes(Split split, int64_t index) const override;
  /// With Broken::kSkip, in place of a file that cannot be read comes the next of the split that can, with its label.
  Label read(Split split, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const override;
  [[nodiscard]] std::vector<std::string> skipped() const override;
  /// Of names, sizes and labels of the files, not of what is in them.
  [[nodiscard]] uint64_t checksum(Split split) const override;

 private:
  struct File {
    std::string name;  // below the folder
    int64_t bytes = 0;
    int64_t label = 0;
  };
  using Files = std::vector<File>;

  [[nodiscard]] Files files_of(const std::filesystem::path& root) const;
  void hold_out(int64_t holdout);
  [[nodiscard]] const Files& files(Split split) const { return files_[static_cast<size_t>(split)]; }
  void load(const File& file, std::optional<uint64_t> draw, std::span<uint8_t> out) const;
  void note(const File& file, const std::string& problem) const;

  std::filesystem::path folder_;
  ImageView view_;
  Augmentation augmentation_;
  Broken broken_;
  Files files_[3];  // by Split
  mutable std::mutex mutex_;
  mutable std::set<std::string> broken_names_;
  mutable std::vector<std::string> skipped_;
};

/// Whether the folder holds other folders, as that of an ImageFolder does.
bool has_folders(const std::filesystem::path& folder);

}  // namespace aft
