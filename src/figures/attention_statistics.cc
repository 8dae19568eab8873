#include "figures/attention_statistics.h"

#include "aft/error.h"
#include "config/architecture.h"

namespace aft {

AttentionStatistics attention_statistics(const runtime::Classifier& classifier, int64_t images, double radius,
                                         const std::function<Picture(int64_t)>& picture, runtime::ThreadPool& pool,
                                         const std::function<void(int64_t)>& done) {
  const ModelConfig& config = classifier.config();
  if (config.mixer.name != "attention") {
    throw Error("weights: expected a model whose mixer is attention, got one of " + config.mixer.name +
                "; figure position-bias shows AFT's biases");
  }
  AttentionStatistics result;
  result.grid = patch_grid(config);
  result.layers = config.layers;
  result.heads = config.mixer.heads;
  const int64_t first = config.class_token ? 1 : 0;
  const int64_t places = positions(config) - first;
  const auto size = static_cast<size_t>(places * places);
  const auto panels = static_cast<size_t>(result.layers * result.heads);
  result.maps.assign(panels, std::vector<double>(size));
  result.shares.assign(panels, 0);
  std::vector<std::vector<double>> maps(panels, std::vector<double>(size));  // of one image
  const auto see = [&](int64_t layer, int64_t head, int64_t target, std::span<const float> weights) {
    if (target < first) return;
    auto& map = maps[static_cast<size_t>(layer * result.heads + head)];
    for (int64_t s = 0; s < places; ++s) {
      map[static_cast<size_t>((target - first) * places + s)] = weights[static_cast<size_t>(first + s)];
    }
  };
  for (int64_t i = 0; i < images; ++i) {
    classifier.classify(picture(i).values, pool, see);
    pool.run(static_cast<int64_t>(panels), [&](int64_t panel) {
      const auto& map = maps[static_cast<size_t>(panel)];
      auto& sum = result.maps[static_cast<size_t>(panel)];
      for (size_t k = 0; k < size; ++k) sum[k] += map[k] / static_cast<double>(images);
      result.shares[static_cast<size_t>(panel)] += share_within(map, result.grid, radius) / static_cast<double>(images);
    });
    ++result.images;
    if (done) done(result.images);
  }
  return result;
}

}  // namespace aft
