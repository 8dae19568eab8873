#include "data/image_folder.h"

#include <lzma.h>

#include <algorithm>
#include <array>
#include <optional>
#include <system_error>
#include <utility>

#include "aft/error.h"
#include "image/crop.h"
#include "image/read_picture.h"
#include "numbers/mix.h"

namespace aft {
namespace {

namespace fs = std::filesystem;

bool is_hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

bool is_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

[[noreturn]] void fail(const fs::path& path, const std::error_code& error) {
  throw_errno(path.string() + ": cannot be read", error.value());
}

/// In order of their names.
std::vector<std::string> folders_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (!is_hidden(it->path()) && is_folder(it->path())) names.push_back(it->path().filename().string());
  }
  if (error) fail(folder, error);
  std::sort(names.begin(), names.end());
  return names;
}

uint64_t hash_of(const std::string& text) {
  return mix(lzma_crc64(reinterpret_cast<const uint8_t*>(text.data()), text.size(), 0));
}

uint64_t add_number(int64_t number, uint64_t sum) {
  std::array<uint8_t, 8> bytes{};
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(static_cast<uint64_t>(number) >> (8 * i));
  return lzma_crc64(bytes.data(), bytes.size(), sum);
}

/// How many of `holdout` images each class of so many gives: its share, and less than all.
std::vector<int64_t> shares(const std::vector<int64_t>& counts, int64_t holdout) {
  int64_t all = 0;
  for (const int64_t count : counts) all += count;
  std::vector<int64_t> given;
  for (const int64_t count : counts) given.push_back(std::min(holdout * count / all, count - 1));
  for (int64_t left = holdout; left > 0; --left) {
    int64_t sum = 0;
    for (const int64_t number : given) sum += number;
    if (sum == holdout) break;
    // To the class that is furthest below its share, the first of several.
    std::optional<size_t> next;
    for (size_t c = 0; c < counts.size(); ++c) {
      const auto lack = [&](size_t i) { return holdout * counts[i] - given[i] * all; };
      if (given[c] < counts[c] - 1 && (!next || lack(c) > lack(*next))) next = c;
    }
    ++given[next.value()];
  }
  return given;
}

}  // namespace

bool has_folders(const fs::path& folder) { return is_folder(folder) && !folders_in(folder).empty(); }

ImageFolder::ImageFolder(const fs::path& folder, const ImageView& view, int64_t holdout, Augmentation augmentation,
                         Broken broken)
    : ImageSet(view.shape), folder_(folder), view_(view), augmentation_(augmentation), broken_(broken) {
  require_augmentation(augmentation);
  const std::string of = folder.string();
  if (!is_folder(folder)) throw Error("data.path: expected a folder of images, a folder a class, got " + of);
  const bool has_train = is_folder(folder / "train");
  const bool has_val = is_folder(folder / "val");
  const bool has_valid = is_folder(folder / "valid");
  const bool has_test = is_folder(folder / "test");
  if (has_val && has_valid) throw Error(of + ": expected one of val and valid, got both; rename one of them");
  if (!has_train && (has_val || has_valid)) {
    throw Error(of + ": expected a folder train beside that for validation, got none");
  }
  const fs::path train = has_train ? folder / "train" : folder;
  std::vector<std::string> classes = folders_in(train);
  if (classes.size() < 2) {
    throw Error(train.string() + ": expected a folder for each of at least two classes, got " +
                (classes.empty() ? "none" : "that of " + classes.front() + " alone"));
  }
  set_classes(std::move(classes));
  files_[static_cast<size_t>(Split::kTrain)] = files_of(train);
  if (has_train && has_test) files_[static_cast<size_t>(Split::kTest)] = files_of(folder / "test");
  if (has_val || has_valid) {
    if (holdout > 0) {
      throw Error("data.holdout: expected nothing, as " + of + " has a folder for validation, got " +
                  std::to_string(holdout) + "; remove it");
    }
    files_[static_cast<size_t>(Split::kValid)] = files_of(folder / (has_val ? "val" : "valid"));
  } else {
    hold_out(holdout);
  }
}

ImageFolder::Files ImageFolder::files_of(const fs::path& root) const {
  Files files;
  for (const std::string& name : folders_in(root)) {
    const auto found = std::lower_bound(class_names().begin(), class_names().end(), name);
    if (found == class_names().end() || *found != name) {
      throw Error((root / name).string() + ": expected a class that train has too, got another; rename the folder");
    }
    const size_t before = files.size();
    std::error_code error;
    for (fs::recursive_directory_iterator it(root / name, error), end; !error && it != end; it.increment(error)) {
      const fs::path& path = it->path();
      std::error_code ignored;
      if (is_hidden(path)) {
        it.disable_recursion_pending();
      } else if (is_named_as_picture(path) && !is_folder(path)) {
        const auto bytes = static_cast<int64_t>(fs::file_size(path, ignored));  // -1 of a link to nothing
        files.push_back({path.lexically_relative(folder_).generic_string(), bytes, found - class_names().begin()});
      }
    }
    if (error) fail(root / name, error);
    if (files.size() == before) {
      throw Error((root / name).string() +
                  ": expected images (.jpg, .jpeg or .png) of the class, got none; add some, " +
                  "or remove the folder");
    }
    std::sort(files.begin() + static_cast<std::ptrdiff_t>(before), files.end(),
              [](const File& a, const File& b) { return a.name < b.name; });
  }
  if (files.empty()) throw Error(root.string() + ": expected a folder for each class, got none");
  return files;
}

void ImageFolder::hold_out(int64_t holdout) {
  Files& train = files_[static_cast<size_t>(Split::kTrain)];
  const int64_t count = std::ssize(train);
  const int64_t most = count - classes();
  if (holdout == -1) holdout = std::min(std::max<int64_t>(1, count / 10), most);
  if (holdout > most) {
    throw Error("data.holdout: expected at most " + std::to_string(most) + " of the " + std::to_string(count) +
                " training images, so that each class keeps one, got " + std::to_string(holdout));
  }
  std::vector<int64_t> counts(static_cast<size_t>(classes()));
  for (const File& file : train) ++counts[static_cast<size_t>(file.label)];
  const std::vector<int64_t> given = shares(counts, holdout);
  Files kept;
  Files& valid = files_[static_cast<size_t>(Split::kValid)];
  for (auto begin = train.begin(); begin != train.end();) {
    const auto label = static_cast<size_t>(begin->label);
    const auto end = begin + counts[label];
    std::vector<std::pair<uint64_t, std::string>> order;
    for (auto file = begin; file != end; ++file) order.emplace_back(hash_of(file->name), file->name);
    std::sort(order.begin(), order.end());
    std::set<std::string> chosen;
    for (int64_t i = 0; i < given[label]; ++i) chosen.insert(order[static_cast<size_t>(i)].second);
    for (; begin != end; ++begin) (chosen.contains(begin->name) ? valid : kept).push_back(std::move(*begin));
  }
  train = std::move(kept);
}

int64_t ImageFolder::size(Split split) const { return std::ssize(files(split)); }

int64_t ImageFolder::bytes(Split split, int64_t index) const {
  require_index(split, index);
  return shape().bytes();
}

void ImageFolder::load(const File& file, std::optional<uint64_t> draw, std::span<uint8_t> out) const {
  Picture picture = with_channels(read_picture(folder_ / file.name), shape().channels);
  const bool whole = draw && augmentation_.crop;  // then the crop is of all that is there
  if (!whole) picture = fit_for_evaluation(picture, shape().height, shape().width, view_.crop, view_.resampling);
  if (draw) picture = augmented(std::move(picture), view_, augmentation_, *draw);
  std::copy(picture.values.begin(), picture.values.end(), out.begin());
}

void ImageFolder::note(const File& file, const std::string& problem) const {
  const std::lock_guard lock(mutex_);
  if (broken_names_.insert(file.name).second) skipped_.push_back(problem);
}

Label ImageFolder::read(Split split, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const {
  require_room(split, index, out.size());
  const Files& all = files(split);
  for (int64_t next = index;;) {
    const File& file = all[static_cast<size_t>(next)];
    try {
      load(file, draw, out);
      return {.first = file.label};
    } catch (const SystemError&) {
      throw;  // no fault of the file's
    } catch (const Error& error) {
      if (broken_ == Broken::kStop) {
        throw Error(std::string(error.what()) + "; or set data.broken = \"skip\", which takes another image instead");
      }
      note(file, error.what());
    }
    next = (next + 1) % std::ssize(all);
    if (next == index) {
      throw Error(folder_.string() + ": expected an image of " + name_of(split) + " that can be read, got none");
    }
  }
}

std::vector<std::string> ImageFolder::skipped() const {
  const std::lock_guard lock(mutex_);
  return skipped_;
}

uint64_t ImageFolder::checksum(Split split) const {
  uint64_t sum = 0;
  for (const File& file : files(split)) {
    sum = lzma_crc64(reinterpret_cast<const uint8_t*>(file.name.c_str()), file.name.size() + 1, sum);
    sum = add_number(file.label, add_number(file.bytes, sum));
  }
  return sum;
}

}  // namespace aft
