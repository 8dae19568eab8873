#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "aft/error.h"
#include "aft/runtime/classifier.h"
#include "aft/runtime/model_file.h"
#include "commands.h"
#include "common/figure.h"
#include "common/options.h"
#include "common/output.h"
#include "common/progress.h"
#include "config/architecture.h"
#include "data/resized_images.h"
#include "figures/attention_statistics.h"
#include "figures/panels.h"
#include "figures/position_weights.h"
#include "image/crop.h"
#include "image/read_picture.h"
#include "io/write_file.h"

// attention-maps, position-bias and locality: what classifiers learned about distance on the grid of patches. Each
// writes a picture, and its numbers as JSON beside it.

namespace aft::app {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int64_t kEverySecond = 2;  // layer is shown, as in the paper's figure
constexpr int64_t kMostHeads = 16;   // of a layer are shown
constexpr float kLargestRadius = 4096;

struct GridArguments {
  std::string weights;
  std::string images;
  std::string out;
  bool force = false;
  bool all = false;
  int64_t size = 0;
  int64_t every = 1;
  int64_t threads = 0;
  float radius = 3;
};

fs::path json_of(const fs::path& png) { return fs::path(png).replace_extension(".json"); }

void require_new_figure(const GridArguments& arguments) {
  require_new("--out", arguments.out, arguments.force);
  if (json_of(arguments.out) == arguments.out) {
    throw Error("--out: expected the name of a PNG file, got " + arguments.out + ", the name of its numbers");
  }
  require_new("--out", json_of(arguments.out), arguments.force);
}

void write_numbers(const GridArguments& arguments, const Json& json) {
  const std::string text = json.dump() + "\n";
  write_file_atomically(json_of(arguments.out), text.data(), text.size());
  say_written(arguments.out);
  say_written(json_of(arguments.out));
}

/// All JPEG and PNG files below the folder, sorted by path.
std::vector<fs::path> pictures_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(folder, error); !error && it != fs::recursive_directory_iterator();
       it.increment(error)) {
    if (is_named_as_picture(it->path()) && it->is_regular_file()) files.push_back(it->path());
  }
  if (error) throw Error("--images: " + folder.string() + ": " + error.message() + "; expected a folder of images");
  std::sort(files.begin(), files.end());
  return files;
}

/// Every `every`-th image of a folder, as the model sees it: of a data set in CIFAR-10's or MNIST's form those of test,
/// else of all files below it.
class Pictures {
 public:
  Pictures(const fs::path& folder, int64_t every, const ModelConfig& config)
      : view_({{config.height, config.width, config.colors}, resampling_named(config.resampling), config.crop}),
        every_(every) {
    if (is_data_set(folder)) {
      set_ = load_any_images(folder, view_);
      if (set_->shape() != view_.shape) set_ = std::make_unique<ResizedImages>(std::move(set_), view_);
      split_ = set_->size(Split::kTest) > 0 ? Split::kTest : Split::kTrain;
    } else {
      files_ = pictures_in(folder);
    }
    if (count() == 0) throw Error("--images: expected JPEG or PNG files in " + folder.string() + ", found none");
  }

  [[nodiscard]] int64_t count() const {
    const int64_t all = set_ ? set_->size(split_) : std::ssize(files_);
    return (all + every_ - 1) / every_;
  }

  [[nodiscard]] Picture operator[](int64_t i) const {
    if (!set_) {
      const Picture whole = with_channels(read_picture(files_[static_cast<size_t>(i * every_)]), view_.shape.channels);
      return fit_for_evaluation(whole, view_.shape.height, view_.shape.width, view_.crop, view_.resampling);
    }
    Picture picture = {view_.shape, std::vector<uint8_t>(static_cast<size_t>(view_.shape.bytes()))};
    set_->read(split_, i * every_, std::nullopt, picture.values);
    return picture;
  }

 private:
  ImageView view_;
  int64_t every_;
  std::vector<fs::path> files_;
  std::unique_ptr<ImageSet> set_;
  Split split_ = Split::kTest;
};

struct Attention {
  AttentionStatistics statistics;
  ModelConfig config;
};

Attention attention_of(const GridArguments& arguments) {
  if (arguments.images.empty()) throw Error("--images: expected a folder of images for a model with attention");
  runtime::ThreadPool pool(arguments.threads);
  const auto classifier = runtime::Classifier::load(arguments.weights, pool, arguments.size);
  const Pictures pictures(arguments.images, arguments.every, classifier.config());
  const int64_t count = pictures.count();
  WorkProgress progress("images", count);
  auto statistics = attention_statistics(
      classifier, count, arguments.radius, [&](int64_t i) { return pictures[i]; }, pool,
      [&](int64_t done) { progress.done(done); });
  progress.finish();
  return {std::move(statistics), classifier.config()};
}

std::string title_of(int64_t layer, int64_t head) {
  return "layer " + std::to_string(layer) + ", head " + std::to_string(head);
}

bool is_shown(const GridArguments& arguments, int64_t layer, int64_t head) {
  return arguments.all || (layer % kEverySecond == 0 && head < kMostHeads);
}

void draw_attention_maps(const GridArguments& arguments) {
  require_new_figure(arguments);
  const auto [statistics, config] = attention_of(arguments);
  const auto [rows, columns] = statistics.grid;
  std::vector<Panel> panels;
  Json maps = Json::array();
  for (int64_t layer = 0; layer < statistics.layers; ++layer) {
    for (int64_t head = 0; head < statistics.heads; ++head) {
      const auto& mean = statistics.maps[static_cast<size_t>(layer * statistics.heads + head)];
      std::vector<double> map = relative_map(mean, statistics.grid);
      maps.push_back({{"layer", layer}, {"head", head}, {"map", map}});
      if (!is_shown(arguments, layer, head)) continue;
      panels.push_back({title_of(layer, head), 2 * rows - 1, 2 * columns - 1, std::move(map)});
    }
  }
  draw_panels(panels, std::min(statistics.heads, arguments.all ? statistics.heads : kMostHeads),
              "Attention by offset of the patch looked at, mean over " + std::to_string(statistics.images) + " images",
              Colours::kFromZero, arguments.out);
  write_numbers(arguments, {{"figure", "attention-maps"},
                            {"model", arguments.weights},
                            {"images", statistics.images},
                            {"size", {config.height, config.width}},
                            {"grid", statistics.grid},
                            {"rows", 2 * rows - 1},
                            {"columns", 2 * columns - 1},
                            {"maps", maps}});
}

void draw_position_bias(const GridArguments& arguments) {
  require_new_figure(arguments);
  const std::vector<PositionWeights> biases = position_weights(arguments.weights);
  const bool kernels = biases.front().is_kernel;
  std::vector<Panel> panels;
  Json list = Json::array();
  int64_t across = 0;
  for (const PositionWeights& one : biases) {
    list.push_back({{"layer", one.layer}, {"head", one.head}, {"w", one.w}});
    if (!is_shown(arguments, one.layer, one.head)) continue;
    Panel panel = {title_of(one.layer, one.head), one.rows, one.columns, one.w};
    if (kernels) {
      for (double& value : panel.values) value = std::expm1(value);
    }
    across = std::max(across, one.head + 1);
    panels.push_back(std::move(panel));
  }
  draw_panels(panels, across > 1 ? across : std::min<int64_t>(std::ssize(panels), 6),
              kernels ? "e^w - 1 by offset from the target" : "w by target (row) and source (column)",
              Colours::kAroundZero, arguments.out);
  write_numbers(arguments, {{"figure", "position-bias"},
                            {"model", arguments.weights},
                            {"kind", kernels ? "kernels" : "matrices"},
                            {"rows", biases.front().rows},
                            {"columns", biases.front().columns},
                            {"biases", list}});
}

/// By layer, then head.
struct Locality {
  int64_t layers = 0;
  int64_t heads = 0;
  GridSize grid = {};
  std::vector<double> shares;
};

Locality locality_of(const GridArguments& arguments) {
  const ModelConfig config = runtime::ModelFile(arguments.weights).config();
  if (config.model != "classifier") throw Error("--weights: expected a classifier, got a " + config.model);
  if (config.mixer.name == "attention") {
    const auto found = attention_of(arguments).statistics;
    return {found.layers, found.heads, found.grid, found.shares};
  }
  Locality result = {config.layers, 0, patch_grid(config), {}};
  for (const PositionWeights& one : position_weights(arguments.weights)) {
    result.shares.push_back(share_within(pair_weights(one, config), result.grid, arguments.radius));
    result.heads = std::max(result.heads, one.head + 1);
  }
  return result;
}

void draw_locality(const GridArguments& arguments) {
  require_new_figure(arguments);
  const Locality found = locality_of(arguments);
  const double uniform = uniform_share_within(found.grid, arguments.radius);
  Json heads = Json::array();
  std::string lines;
  for (int64_t layer = 0; layer < found.layers; ++layer) {
    double sum = 0;
    lines += "layer " + std::to_string(layer) + ":";
    for (int64_t head = 0; head < found.heads; ++head) {
      const double share = found.shares[static_cast<size_t>(layer * found.heads + head)];
      char text[32];
      std::snprintf(text, sizeof text, " %.3f", share);
      if (head < kMostHeads) lines += text;
      sum += share;
      heads.push_back({{"layer", layer}, {"head", head}, {"share", share}});
    }
    char text[32];
    std::snprintf(text, sizeof text, "; mean %.3f\n", sum / static_cast<double>(found.heads));
    lines += text;
  }
  char text[64];
  std::snprintf(text, sizeof text, "of uniform weights: %.3f\n", uniform);
  write_out(lines + text);
  draw_panels({{"share of the weight within " + std::to_string(arguments.radius).substr(0, 4) + " patches",
                found.layers, found.heads, found.shares}},
              1, "layers down, heads across", Colours::kFromZero, arguments.out);
  write_numbers(arguments, {{"figure", "locality"},
                            {"model", arguments.weights},
                            {"radius", arguments.radius},
                            {"grid", found.grid},
                            {"uniform", uniform},
                            {"heads", heads}});
}

void add_weights(CLI::App& command, GridArguments& arguments, const std::string& help) {
  add_text(command, "--weights", arguments.weights, help)->required();
  add_out(command, arguments.out, arguments.force, "PNG file to write; its numbers go beside it, as .json");
}

void add_images(CLI::App& command, GridArguments& arguments) {
  add_text(command, "--images", arguments.images,
           "folder of JPEG or PNG files, also in folders of it, or of a data set (CIFAR-10 binary, IDX)");
  add_integer(command, "--every", arguments.every, 1, 1 << 20, "take every N-th image, sorted by path");
  add_integer(command, "--size", arguments.size, 0, 4096, "pixels on a side; 0: those the model was trained on");
  add_threads(command, arguments.threads);
}

}  // namespace

void add_grid_figures(CLI::App& figure) {
  const auto arguments = std::make_shared<GridArguments>();
  CLI::App* maps = figure.add_subcommand("attention-maps", "where the heads of a vision transformer look, by offset");
  add_weights(*maps, *arguments, "model file or run folder, of a classifier with attention");
  add_images(*maps, *arguments);
  maps->add_flag("--all", arguments->all, "every layer and head; default: every second layer");
  maps->callback([arguments] { draw_attention_maps(*arguments); });

  CLI::App* bias = figure.add_subcommand("position-bias", "the learned position biases of an AFT model");
  add_weights(*bias, *arguments, "model file or run folder, of a model with position biases");
  bias->add_flag("--all", arguments->all, "every layer and head; default: every second layer, 16 heads");
  bias->callback([arguments] { draw_position_bias(*arguments); });

  CLI::App* locality = figure.add_subcommand("locality", "the share of each head's weight that lies near the target");
  add_weights(*locality, *arguments, "model file or run folder, of a classifier with attention or AFT's biases");
  add_images(*locality, *arguments);
  add_number(*locality, "--radius", arguments->radius, {0, kLargestRadius, false}, "how near, in patches");
  locality->callback([arguments] { draw_locality(*arguments); });
}

}  // namespace aft::app
