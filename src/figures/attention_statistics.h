#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "aft/runtime/classifier.h"
#include "aft/runtime/thread_pool.h"
#include "figures/grid_statistics.h"
#include "image/picture.h"

namespace aft {

/// Averages over images of what the heads of a vision transformer look at.
struct AttentionStatistics {
  GridSize grid = {};
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t images = 0;
  /// By layer, then head: the mean of the attention map between patches [T, T], of a softmax over all positions, from
  /// which the class token was dropped afterwards.
  std::vector<std::vector<double>> maps;
  /// By layer, then head: share_within() the radius, of each image's map.
  std::vector<double> shares;
};

/// Of `images` images, image i given by `picture(i)` in the classifier's size; `done(i)` is told after each. Throws
/// aft::Error for a classifier whose mixer is not attention.
AttentionStatistics attention_statistics(const runtime::Classifier& classifier, int64_t images, double radius,
                                         const std::function<Picture(int64_t)>& picture, runtime::ThreadPool& pool,
                                         const std::function<void(int64_t)>& done = {});

}  // namespace aft
