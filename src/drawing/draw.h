#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "aft/runtime/model.h"
#include "aft/runtime/sampler.h"
#include "aft/runtime/thread_pool.h"
#include "image/picture.h"

// Images drawn by a pixel_lm, value by value: row by row, the channels of a pixel beside each other.

namespace aft {

/// An image to draw.
struct Wanted {
  uint64_t seed = 0;               // of its random numbers
  std::span<const uint8_t> given;  // its first values
};

/// The seed of the i-th of the images that go by one seed.
uint64_t nth_seed(uint64_t seed, uint64_t i);

/// What is drawn into a figure, and how.
struct FigureOptions {
  int64_t count = 16;   // images a model; of completions, for each original
  int64_t columns = 0;  // of a grid of samples; 0: as many as rows, or one more
  int64_t batch = 16;   // images drawn side by side: a matter of time and memory alone
  runtime::SamplerOptions sampler;
};

/// Is told how many values have been drawn or read so far.
using DrawProgress = std::function<void(int64_t)>;

/// Draws the images, `batch` of them side by side. All have as many given values, which stay as they are. The seed of
/// `sampler` is not used. An image depends on the model, its Wanted and the sampler's options alone, to the last bit.
/// Throws aft::Error for a model that is no pixel_lm, options out of range, or given values that differ in number or
/// are more than an image has.
std::vector<Picture> draw_images(const runtime::Model& model, const std::shared_ptr<runtime::ThreadPool>& pool,
                                 std::span<const Wanted> wanted, int64_t batch, const runtime::SamplerOptions& sampler,
                                 const DrawProgress& progress = {});

/// The shape of what the model draws. Throws aft::Error for a model that is no pixel_lm.
ImageShape shape_of(const runtime::Model& model);

/// Values that a figure of so many images takes: what progress counts up to.
int64_t values_of(const runtime::Model& model, int64_t images);

/// A grid of `count` images by each of the models, in rows of their own. Image i of any model has nth_seed(seed, i).
/// Throws as draw_images(), and unless the models draw one shape.
Picture draw_samples(std::span<const runtime::Model> models, const std::shared_ptr<runtime::ThreadPool>& pool,
                     const FigureOptions& options, const DrawProgress& progress = {});

/// A row for each original: its upper half over grey, `count` completions of that by each of the models, and itself.
/// Of an odd number of rows the middle one is not given. Completion k of original i has nth_seed(nth_seed(seed, i), k).
/// Throws as draw_samples(), and unless the originals have the shape that the models draw.
Picture draw_completions(std::span<const runtime::Model> models, const std::shared_ptr<runtime::ThreadPool>& pool,
                         std::span<const Picture> originals, const FigureOptions& options,
                         const DrawProgress& progress = {});

}  // namespace aft
