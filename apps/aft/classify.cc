#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "aft/runtime/classifier.h"
#include "commands.h"
#include "common/options.h"
#include "image/crop.h"
#include "image/read_picture.h"
#include "output.h"

namespace aft::app {
namespace {

struct ClassifyOptions {
  std::string model;
  std::vector<std::string> images;
  int64_t size = 0;
  int64_t top = 5;
  int64_t threads = 0;
  bool json = false;
};

/// The picture as the model sees it.
Picture seen(const std::string& path, const ModelConfig& config) {
  const Picture picture = with_channels(read_picture(path), config.colors);
  return fit_for_evaluation(picture, config.height, config.width, config.crop, resampling_named(config.resampling));
}

std::vector<double> softmax(const std::vector<float>& logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p(logits.size());
  std::transform(logits.begin(), logits.end(), p.begin(), [&](float x) { return std::exp(x - most); });
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= sum;
  return p;
}

std::string name_of(const ModelConfig& config, size_t label) {
  return config.class_names.empty() ? "class " + std::to_string(label) : config.class_names[label];
}

/// The labels of the most probable classes, the first first.
std::vector<size_t> best_of(const std::vector<double>& probabilities, int64_t count) {
  std::vector<size_t> labels(probabilities.size());
  std::iota(labels.begin(), labels.end(), 0);
  const auto middle = labels.begin() + std::min(count, static_cast<int64_t>(labels.size()));
  std::partial_sort(labels.begin(), middle, labels.end(), [&](size_t a, size_t b) {
    return probabilities[a] != probabilities[b] ? probabilities[a] > probabilities[b] : a < b;
  });
  labels.erase(middle, labels.end());
  return labels;
}

void run_classify(const ClassifyOptions& options) {
  runtime::ThreadPool pool(options.threads);
  const auto classifier = runtime::Classifier::load(options.model, pool, options.size);
  const ModelConfig& config = classifier.config();
  for (const std::string& path : options.images) {
    const Picture picture = seen(path, config);
    const auto began = std::chrono::steady_clock::now();
    const std::vector<float> logits = classifier.classify(picture.values, pool);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    if (config.classes == 0) {
      write_json({{"file", path}, {"features", logits}, {"seconds", seconds}});
      continue;
    }
    const std::vector<double> probabilities = softmax(logits);
    const std::vector<size_t> best = best_of(probabilities, options.top);
    if (options.json) {
      auto list = nlohmann::ordered_json::array();
      for (const size_t label : best) {
        list.push_back({{"label", label}, {"name", name_of(config, label)}, {"probability", probabilities[label]}});
      }
      write_json({{"file", path}, {"best", list}, {"logits", logits}, {"seconds", seconds}});
      continue;
    }
    std::string text = path + "\n";
    for (const size_t label : best)
      text += "  " + fixed(100 * probabilities[label], 1) + " %  " + name_of(config, label) + "\n";
    write_out(text);
  }
}

}  // namespace

void add_classify(CLI::App& app) {
  const auto options = std::make_shared<ClassifyOptions>();
  CLI::App* command = app.add_subcommand("classify", "Say what images show, by a classifier");
  add_text(*command, "MODEL", options->model, "A model file or a run folder, of a classifier")->required();
  add_texts(*command, "IMAGE", options->images, "JPEG or PNG files")->required();
  add_integer(*command, "--size", options->size, 0, 4096,
              "Pixels on a side that images are brought to; 0: those that the model was trained on");
  add_integer(*command, "--top", options->top, 1, 1 << 20, "Classes to name, the most probable first");
  add_threads(*command, options->threads);
  command->add_flag("--json", options->json, "A line of JSON for each image, with all logits");
  command->footer(
      "Of a model without a head a line of JSON with its features is written for each image.\n"
      "Example:\n  aft classify runs/fashion-aft-conv boot.png");
  command->callback([options] { run_classify(*options); });
}

}  // namespace aft::app
