#include <cmath>
#include <sstream>
#include <utility>

#include "aft/error.h"
#include "data/augmentation.h"
#include "data/data.h"
#include "data/mixing.h"

namespace aft {
namespace {

void require_bytes(const Bytes& bytes, const std::string& key, const std::string& from) {
  if (bytes.size() == 0) throw Error(key + ": expected at least one byte, " + from + " holds none; give more data");
}

std::string joined(const std::vector<double>& fractions) {
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < fractions.size(); ++i) text << (i ? ", " : "") << fractions[i];
  text << "]";
  return text.str();
}

void validate_bytes(const DataConfig& config) {
  const DataConfig none;
  const auto refuse = [](const char* key, const auto& got) {
    std::ostringstream text;
    text << std::boolalpha << got;
    throw Error(std::string("data.") + key +
                ": expected nothing with data.format = \"bytes\", which has no images, got " + text.str() +
                "; remove it");
  };
  if (config.holdout != none.holdout) refuse("holdout", config.holdout);
  if (config.flip != none.flip) refuse("flip", config.flip);
  if (config.jitter != none.jitter) refuse("jitter", config.jitter);
  if (!config.crop_scale.empty()) refuse("crop_scale", joined(config.crop_scale));
  if (config.rand_augment != none.rand_augment) refuse("rand_augment", config.rand_augment);
  if (config.magnitude != none.magnitude) refuse("magnitude", config.magnitude);
  if (config.magnitude_deviation != none.magnitude_deviation) {
    refuse("magnitude_deviation", config.magnitude_deviation);
  }
  if (config.erase != none.erase) refuse("erase", config.erase);
  if (config.mixup != none.mixup) refuse("mixup", config.mixup);
  if (config.cutmix != none.cutmix) refuse("cutmix", config.cutmix);
  if (config.mix_probability != none.mix_probability) refuse("mix_probability", config.mix_probability);
  if (config.broken != none.broken) refuse("broken", config.broken);
  const bool files = !config.train.empty() || !config.valid.empty() || !config.test.empty();
  if (config.path.empty() && config.train.empty()) {
    throw Error("data.path: expected a file or folder (or data.train for a split by files), got nothing");
  }
  if (!config.path.empty() && files) {
    throw Error("data.path: expected either data.path with data.split or data.train/valid/test, got both; remove one");
  }
  if (!config.path.empty()) {
    double sum = 0;
    bool good = config.split.size() == 3;
    for (const double fraction : config.split) {
      good = good && std::isfinite(fraction) && fraction >= 0;
      sum += fraction;
    }
    if (!good || std::abs(sum - 1) > 1e-6 || config.split[0] <= 0) {
      throw Error(
          "data.split: expected three fractions (train, valid, test), none negative, train above 0, sum 1, got " +
          joined(config.split));
    }
  }
}

void validate_images(const DataConfig& config) {
  const std::string with = " with data.format = \"" + config.format + "\"";
  for (const auto& [key, value] :
       {std::pair("train", &config.train), std::pair("valid", &config.valid), std::pair("test", &config.test)}) {
    if (value->empty()) continue;
    throw Error(std::string("data.") + key + ": expected nothing" + with + ", got " + *value +
                "; give the folder of all files as data.path");
  }
  if (config.path.empty()) throw Error("data.path: expected a folder" + with + ", got nothing");
  if (config.split != DataConfig{}.split) {
    throw Error("data.split: expected nothing" + with +
                ", whose files say what is for training and what for testing, got " + joined(config.split) +
                "; remove it, data.holdout is how many training images are for validation");
  }
  if (config.holdout < -1) {
    throw Error("data.holdout: expected a number of images, or -1 for that of the format, got " +
                std::to_string(config.holdout));
  }
  require_augmentation(augmentation_of(config));
  validate(Mixing{config.mixup, config.cutmix, config.mix_probability});
  if (config.format != "folder" && config.broken != DataConfig{}.broken) {
    throw Error("data.broken: expected nothing" + with + ", which is read before the run begins, got " + config.broken +
                "; remove it");
  }
  if (config.broken != "stop" && config.broken != "skip") {
    throw Error("data.broken: expected \"stop\" or \"skip\", got \"" + config.broken + "\"");
  }
}

}  // namespace

void validate(const DataConfig& config) {
  if (config.format == "bytes") return validate_bytes(config);
  for (const char* images : {"cifar10", "idx", "folder"}) {
    if (config.format == images) return validate_images(config);
  }
  throw Error("data.format: expected \"bytes\", \"cifar10\", \"idx\" or \"folder\", got \"" + config.format + "\"");
}

DataSplits load_splits(const DataConfig& config) {
  validate(config);
  if (config.format != "bytes") {
    throw Error("data.format: expected \"bytes\", which can be split anywhere, got \"" + config.format + "\"");
  }
  DataSplits splits;
  if (config.path.empty()) {
    require_bytes(splits.train = Bytes::load(config.train), "data.train", config.train);
    if (!config.valid.empty()) require_bytes(splits.valid = Bytes::load(config.valid), "data.valid", config.valid);
    if (!config.test.empty()) require_bytes(splits.test = Bytes::load(config.test), "data.test", config.test);
    return splits;
  }
  const Bytes all = Bytes::load(config.path);
  const auto boundary = [&](double fraction) {
    // A fraction such as 0.9 is not exact; the small push keeps 0.9 of 10 bytes at 9.
    return std::min(all.size(), static_cast<int64_t>(std::floor(fraction * static_cast<double>(all.size()) + 1e-6)));
  };
  const int64_t test_begin = config.split[2] == 0 ? all.size() : boundary(config.split[0] + config.split[1]);
  const int64_t valid_begin = config.split[1] == 0 ? test_begin : boundary(config.split[0]);
  splits.train = all.slice(0, valid_begin);
  splits.valid = all.slice(valid_begin, test_begin - valid_begin);
  splits.test = all.slice(test_begin, all.size() - test_begin);
  require_bytes(splits.train, "data.split", "the train part of " + config.path);
  if (config.split[1] > 0) require_bytes(splits.valid, "data.split", "the valid part of " + config.path);
  if (config.split[2] > 0) require_bytes(splits.test, "data.split", "the test part of " + config.path);
  return splits;
}

}  // namespace aft
