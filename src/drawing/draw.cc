#include "drawing/draw.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "aft/error.h"
#include "aft/runtime/session.h"
#include "config/architecture.h"
#include "numbers/mix.h"

namespace aft {
namespace {

constexpr uint8_t kGrey = 128;

void require_positive(const char* name, int64_t value) {
  if (value < 1) throw Error(std::string(name) + ": expected at least 1, got " + std::to_string(value));
}

/// The shape that all of the models draw.
ImageShape shape_of_all(std::span<const runtime::Model> models) {
  if (models.empty()) throw Error("models: expected at least one, got none");
  const ImageShape shape = shape_of(models.front());
  for (const runtime::Model& model : models) {
    if (shape_of(model) != shape) {
      throw Error("models: expected all to draw " + text_of(shape) + ", as the first, got one of " +
                  text_of(shape_of(model)) + "; draw them apart");
    }
  }
  return shape;
}

/// `wanted` by each of the models, one after the other.
std::vector<std::vector<Picture>> draw_by_each(std::span<const runtime::Model> models,
                                               const std::shared_ptr<runtime::ThreadPool>& pool,
                                               std::span<const Wanted> wanted, const FigureOptions& options,
                                               const DrawProgress& progress) {
  std::vector<std::vector<Picture>> drawn;
  int64_t before = 0;
  for (const runtime::Model& model : models) {
    drawn.push_back(draw_images(model, pool, wanted, options.batch, options.sampler, [&](int64_t done) {
      if (progress) progress(before + done);
    }));
    before += values_of(model, std::ssize(wanted));
  }
  return drawn;
}

}  // namespace

uint64_t nth_seed(uint64_t seed, uint64_t i) { return mix(mix(seed) + i); }

ImageShape shape_of(const runtime::Model& model) {
  model.require("pixel_lm", "sample");
  const ModelConfig& config = model.config();
  return {config.height, config.width, config.colors};
}

int64_t values_of(const runtime::Model& model, int64_t images) { return images * shape_of(model).bytes(); }

std::vector<Picture> draw_images(const runtime::Model& model, const std::shared_ptr<runtime::ThreadPool>& pool,
                                 std::span<const Wanted> wanted, int64_t batch, const runtime::SamplerOptions& options,
                                 const DrawProgress& progress) {
  const ImageShape shape = shape_of(model);
  require_positive("batch", batch);
  const int64_t given = wanted.empty() ? 0 : std::ssize(wanted.front().given);
  for (const Wanted& one : wanted) {
    if (std::ssize(one.given) != given || given > shape.bytes()) {
      throw Error("given: expected as many values for each image, at most " + std::to_string(shape.bytes()) + ", got " +
                  std::to_string(given) + " and " + std::to_string(one.given.size()));
    }
  }
  const auto vocabulary = static_cast<size_t>(model.config().vocabulary);
  std::vector<Picture> pictures(wanted.size(), plain_picture(shape, 0));
  int64_t done = 0;
  for (size_t first = 0; first < wanted.size(); first += static_cast<size_t>(batch)) {
    const size_t count = std::min(wanted.size() - first, static_cast<size_t>(batch));
    runtime::Session session(model, pool, static_cast<int64_t>(count));
    std::vector<runtime::Sampler> samplers;
    for (size_t i = 0; i < count; ++i) {
      runtime::SamplerOptions own = options;
      own.seed = wanted[first + i].seed;
      samplers.emplace_back(own);
    }
    std::vector<uint8_t> values(count);  // at one position
    // Given values are read one by one too: in a pass of many the bits would depend on the batch.
    std::span<const float> logits = session.start();
    for (int64_t t = 0; t < shape.bytes(); ++t) {
      const auto at = static_cast<size_t>(t);
      pool->run(static_cast<int64_t>(count), [&](int64_t image) {
        const auto i = static_cast<size_t>(image);
        values[i] =
            t < given ? wanted[first + i].given[at] : samplers[i].draw(logits.subspan(i * vocabulary, vocabulary));
        pictures[first + i].values[at] = values[i];
      });
      if (t + 1 < shape.bytes()) logits = session.step(values);
      done += static_cast<int64_t>(count);
      if (progress) progress(done);
    }
  }
  return pictures;
}

Picture draw_samples(std::span<const runtime::Model> models, const std::shared_ptr<runtime::ThreadPool>& pool,
                     const FigureOptions& options, const DrawProgress& progress) {
  const ImageShape shape = shape_of_all(models);
  require_positive("count", options.count);
  const int64_t columns = options.columns > 0
                              ? std::min(options.columns, options.count)
                              : static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(options.count))));
  std::vector<Wanted> wanted;
  for (int64_t i = 0; i < options.count; ++i) {
    wanted.push_back({nth_seed(options.sampler.seed, static_cast<uint64_t>(i)), {}});
  }
  std::vector<Picture> pictures;
  for (std::vector<Picture>& drawn : draw_by_each(models, pool, wanted, options, progress)) {
    // The row before may not be full.
    while (std::ssize(pictures) % columns != 0) pictures.push_back(plain_picture(shape, UINT8_MAX));
    for (Picture& picture : drawn) pictures.push_back(std::move(picture));
  }
  return grid(pictures, columns);
}

Picture draw_completions(std::span<const runtime::Model> models, const std::shared_ptr<runtime::ThreadPool>& pool,
                         std::span<const Picture> originals, const FigureOptions& options,
                         const DrawProgress& progress) {
  const ImageShape shape = shape_of_all(models);
  require_positive("count", options.count);
  if (originals.empty()) throw Error("originals: expected at least one image to complete, got none");
  for (const Picture& original : originals) {
    if (original.shape != shape) {
      throw Error("originals: expected images of " + text_of(shape) + ", as the model draws, got " +
                  text_of(original.shape));
    }
  }
  const auto half = static_cast<size_t>(shape.height / 2 * shape.width * shape.channels);
  std::vector<Wanted> wanted;
  for (size_t i = 0; i < originals.size(); ++i) {
    for (int64_t k = 0; k < options.count; ++k) {
      wanted.push_back({nth_seed(nth_seed(options.sampler.seed, i), static_cast<uint64_t>(k)),
                        std::span(originals[i].values).first(half)});
    }
  }
  const auto drawn = draw_by_each(models, pool, wanted, options, progress);
  std::vector<Picture> pictures;
  for (size_t i = 0; i < originals.size(); ++i) {
    Picture upper = plain_picture(shape, kGrey);
    std::copy_n(originals[i].values.begin(), half, upper.values.begin());
    pictures.push_back(std::move(upper));
    for (const std::vector<Picture>& by_one : drawn) {
      const auto begin = by_one.begin() + static_cast<int64_t>(i) * options.count;
      pictures.insert(pictures.end(), begin, begin + options.count);
    }
    pictures.push_back(originals[i]);
  }
  return grid(pictures, std::ssize(pictures) / std::ssize(originals));
}

}  // namespace aft
