#include "train/task.h"

#include <numbers>
#include <utility>

#include "aft/error.h"
#include "aft/runtime/evaluate.h"
#include "config/architecture.h"
#include "data/images.h"
#include "data/mixing.h"
#include "data/resized_images.h"
#include "data/text.h"

namespace aft {
namespace {

double bits(const Score& score) { return score.nats / static_cast<double>(score.targets) / std::numbers::ln2; }
double top_1(const Score& score) { return static_cast<double>(score.correct) / static_cast<double>(score.targets); }
double top_5(const Score& score) { return static_cast<double>(score.correct_5) / static_cast<double>(score.targets); }

// Text: every byte from those before it in its window.

void require_measurable(const DataConfig& data, const Bytes& split, const char* name, const ModelConfig& model) {
  if (split.size() == 0 || runtime::predicted_bytes(split.size(), model.context) > 0) return;
  throw Error((data.path.empty() ? "data." + std::string(name) : "data.split") + ": expected " + name +
              " data of at least 2 bytes in a window, so that one is predicted; got " + std::to_string(split.size()) +
              " bytes and model.context = " + std::to_string(model.context) +
              "; give more data or none, or a longer context");
}

std::unique_ptr<DataSet> load_text(const DataConfig& data, const ModelConfig& model) {
  DataSplits splits = load_splits(data);
  require_measurable(data, splits.valid, "valid", model);
  require_measurable(data, splits.test, "test", model);
  return std::make_unique<TextData>(std::move(splits), model.context);
}

Sample text_sample(const ModelConfig& /*model*/, const Batch& batch) {
  const auto windows = batch.bytes.to(torch::kInt64);
  const int64_t time = windows.size(1) - 1;
  return {windows.narrow(1, 0, time), windows.narrow(1, 1, time), {}};
}

int64_t text_tokens(const ModelConfig& model) { return model.context; }

// Images.

std::unique_ptr<DataSet> load_pictures(const DataConfig& data, const ModelConfig& model) {
  const ImageView view = {{model.height, model.width, model.colors}, resampling_named(model.resampling), model.crop};
  auto images = load_images(data, view);
  if (images->shape() != view.shape) {
    if (model.model != "classifier") {
      throw Error("data.path: expected images of " + text_of(view.shape) +
                  ", as model.height, model.width and model.colors " + "say, got " + text_of(images->shape()) + " in " +
                  data.path);
    }
    images = std::make_unique<ResizedImages>(std::move(images), view);
  }
  if (model.model == "classifier" && images->classes() > model.classes) {
    throw Error("model.classes: expected at least the " + std::to_string(images->classes()) + " classes of " +
                data.path + ", got " + std::to_string(model.classes));
  }
  if (data.mixup == 0 && data.cutmix == 0) return images;
  return std::make_unique<MixedImages>(std::move(images), Mixing{data.mixup, data.cutmix, data.mix_probability});
}

/// Every value from those before it; the start token stands before the first.
Sample pixel_sample(const ModelConfig& model, const Batch& batch) {
  const auto values = batch.bytes.to(torch::kInt64);
  const auto start = torch::full({values.size(0), 1}, model.vocabulary, values.options());
  return {torch::cat({start, values.narrow(1, 0, values.size(1) - 1)}, 1), values, {}};
}

/// Values in [0, 1], freed of the model's mean and divided by its deviation.
Sample picture_sample(const ModelConfig& model, const Batch& batch) {
  const auto images = batch.bytes.view({batch.bytes.size(0), model.height, model.width, model.colors});
  auto values = images.to(torch::kFloat32);
  for (int64_t c = 0; c < model.colors; ++c) {
    const auto of = [&](const std::vector<double>& list) {
      return list[list.size() == 1 ? 0 : static_cast<size_t>(c)];
    };
    const double deviation = of(model.deviation);
    values.select(3, c).mul_(1 / (255 * deviation)).sub_(of(model.mean) / deviation);
  }
  return {values, batch.labels, batch.mixed};
}

int64_t one(const ModelConfig& /*model*/) { return 1; }

struct OfModel {
  const char* model;
  Task task;
};

const std::vector<OfModel>& tasks() {
  static const std::vector<OfModel> list = {
      {"byte_lm", {"byte_lm", "bytes", false, {{"bits_per_byte", bits, true}}, load_text, text_sample, text_tokens}},
      {"pixel_lm",
       {"pixel_lm", "values", false, {{"bits_per_dimension", bits, true}}, load_pictures, pixel_sample, positions}},
      {"classifier",
       {"classify",
        "images",
        true,
        {{"top_1", top_1, false}, {"top_5", top_5, false}},
        load_pictures,
        picture_sample,
        one}},
  };
  return list;
}

}  // namespace

Score& Score::operator+=(const Score& other) {
  nats += other.nats;
  targets += other.targets;
  correct += other.correct;
  correct_5 += other.correct_5;
  return *this;
}

const Task& task_of(const ModelConfig& model) {
  for (const OfModel& entry : tasks()) {
    if (model.model == entry.model) return entry.task;
  }
  throw Error("model.model: no task trains a " + model.model);
}

MetricValues metrics_of(const Task& task, const Score& score) {
  MetricValues values;
  for (const MetricKind& kind : task.metrics) values.emplace_back(kind.name, kind.of(score));
  return values;
}

bool is_better(const Task& task, double value, double than) {
  return task.metrics.front().lower_is_better ? value < than : value > than;
}

}  // namespace aft
