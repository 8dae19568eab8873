#include "runtime/mixer/whole.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "aft/error.h"
#include "aft/ops/full.h"
#include "aft/ops/grid.h"
#include "aft/ops/local_bias.h"
#include "aft/ops/window.h"
#include "config/architecture.h"
#include "runtime/conv_kernels.h"
#include "runtime/kernels.h"
#include "runtime/mixer/mixer.h"

namespace aft::runtime {
namespace {

/// Where a mixer's tensors are, and what they are to become.
struct Source {
  const ModelConfig& config;
  const ModelFile& file;
  const std::string& name;
  ThreadPool& pool;

  /// A table of places, as a model of this config has it.
  [[nodiscard]] std::vector<float> places(const std::string& tensor) const {
    for (const TensorPiece& piece : model_pieces(config)) {
      if (piece.name == name + tensor) return file.values(config, piece);
    }
    throw Error("the tensor " + name + tensor + " is missing");
  }
};

/// Queries, keys and values of one projection.
template <typename Inputs>
void set_qkv(const ModelConfig& config, const float* qkv, Inputs& in) {
  const int64_t width = qkv_channels(config);
  const int64_t query = query_channels(config);
  const auto part = [&](int64_t offset) {
    return ops::Rows<const float>{qkv + offset, positions(config) * width, width};
  };
  if (query > 0) in.q = part(0);
  in.k = part(query);
  in.v = part(query + key_channels(config));
}

ops::Rows<float> output_of(const ModelConfig& config, float* y) {
  return {y, positions(config) * config.channels, config.channels};
}

/// Softmax attention, a row of one head at a time.
class Attention final : public WholeMixer {
 public:
  explicit Attention(const Source& source) : config_(source.config) {}

  void forward(const float* qkv, float* y, ThreadPool& pool, const SeeRow& see) const override {
    const int64_t time = positions(config_);
    const int64_t d = config_.channels;
    const int64_t heads = config_.mixer.heads;
    const int64_t width = d / heads;
    const float scale = 1 / std::sqrt(static_cast<float>(width));
    pool.run(heads * time, [&](int64_t i) {
      const int64_t head = i / time;
      const int64_t t = i % time;
      const float* const query = qkv + t * 3 * d + head * width;
      const float* const keys = qkv + d + head * width;
      thread_local std::vector<float> scores;
      scores.resize(static_cast<size_t>(time));
      kernels::matvec(keys, time, width, 3 * d, query, nullptr, false, scores.data());
      kernels::softmax(scale, time, scores.data());
      if (see) see(head, t, scores);
      kernels::weighted_sum(keys + d, time, width, 3 * d, scores.data(), y + t * d + head * width);
    });
  }

 private:
  ModelConfig config_;
};

/// AFT-simple, AFT-local and AFT-conv 1-D.
class Window final : public WholeMixer {
 public:
  explicit Window(const Source& source) : config_(source.config) {
    const MixerConfig& mixer = config_.mixer;
    shape_.batch = 1;
    shape_.time = positions(config_);
    shape_.channels = config_.channels;
    shape_.key_channels = key_channels(config_);
    shape_.causal = false;
    shape_.gate = gate_of(config_);
    shape_.has_band = mixer.name == "aft_conv1d" || (mixer.name == "aft_local" && mixer.window > 0);
    if (!shape_.has_band) return;
    if (mixer.name == "aft_conv1d") {
      shape_.heads = mixer.heads;
      shape_.left = shape_.right = (mixer.window - 1) / 2;
      band_ = conv_kernels(source.file, source.name);
      rows_ = {band_.data(), mixer.window, 0, shape_.time};
      return;
    }
    shape_.left = shape_.right = mixer.window - 1;
    const int64_t span = 2 * mixer.window - 1;
    const std::vector<float> u = source.places("u");
    const std::vector<float> v = source.places("v");
    band_.resize(static_cast<size_t>(shape_.time * span));
    const ops::LocalBiasShape bias = {
        .heads = 1, .rows = shape_.time, .width = mixer.factor_channels, .left = shape_.left, .right = shape_.right};
    ops::local_bias_forward(ops::LocalBiasForward<float>{.in = {bias, u.data(), v.data()}, .band = band_.data()},
                            {source.pool.parallel()});
    rows_ = {band_.data(), 0, span, shape_.time};
  }

  void forward(const float* qkv, float* y, ThreadPool& pool, const SeeRow& /*see*/) const override {
    ops::WindowForward<float> call;
    call.in.shape = shape_;
    call.in.band = rows_;
    set_qkv(config_, qkv, call.in);
    call.y = output_of(config_, y);
    ops::window_forward(call, {pool.parallel()});
  }

 private:
  ModelConfig config_;
  ops::WindowShape shape_;
  std::vector<float> band_;
  ops::Band<const float> rows_;
};

/// AFT-full, and AFT-conv 2-D without global connectivity.
class Full final : public WholeMixer {
 public:
  explicit Full(const Source& source) : config_(source.config) {
    const MixerConfig& mixer = config_.mixer;
    const int64_t time = positions(config_);
    shape_.batch = 1;
    shape_.targets = shape_.sources = time;
    shape_.channels = config_.channels;
    shape_.key_channels = key_channels(config_);
    shape_.causal = false;
    shape_.gate = gate_of(config_);
    weights_.rows = weights_.columns = time;
    if (mixer.name == "aft_full") {
      u_ = source.places("u");
      v_ = source.places("v");
      weights_.u = u_.data();
      weights_.v = v_.data();
      weights_.width = mixer.factor_channels;
      return;
    }
    shape_.heads = mixer.heads;
    table_ = spread(conv_kernels(source.file, source.name));
    weights_.table = table_.data();
    weights_.head_stride = time * time;
    weights_.row_stride = time;
  }

  void forward(const float* qkv, float* y, ThreadPool& pool, const SeeRow& /*see*/) const override {
    ops::FullForward<float> call;
    call.in.shape = shape_;
    call.in.weights = weights_;
    set_qkv(config_, qkv, call.in);
    call.y = output_of(config_, y);
    ops::full_forward(call, {pool.parallel()});
  }

 private:
  /// Kernels [H, s, s] to the weights of all pairs [H, T, T], -inf where the kernel does not reach.
  [[nodiscard]] std::vector<float> spread(const std::vector<float>& kernels) const {
    const auto [rows, columns] = patch_grid(config_);
    const int64_t time = rows * columns;
    const int64_t s = config_.mixer.window;
    const int64_t reach = s / 2;
    std::vector<float> table(static_cast<size_t>(config_.mixer.heads * time * time),
                             -std::numeric_limits<float>::infinity());
    for (int64_t h = 0; h < config_.mixer.heads; ++h) {
      for (int64_t t = 0; t < time; ++t) {
        for (int64_t y = std::max<int64_t>(0, t / columns - reach); y <= std::min(rows - 1, t / columns + reach); ++y) {
          for (int64_t x = std::max<int64_t>(0, t % columns - reach); x <= std::min(columns - 1, t % columns + reach);
               ++x) {
            table[static_cast<size_t>((h * time + t) * time + y * columns + x)] =
                kernels[static_cast<size_t>((h * s + y - t / columns + reach) * s + x - t % columns + reach)];
          }
        }
      }
    }
    return table;
  }

  ModelConfig config_;
  ops::FullShape shape_;
  std::vector<float> u_, v_, table_;
  ops::PairWeights<const float> weights_;
};

/// AFT-conv 2-D.
class Grid final : public WholeMixer {
 public:
  explicit Grid(const Source& source) : config_(source.config), kernels_(conv_kernels(source.file, source.name)) {
    shape_.batch = 1;
    shape_.height = patch_grid(config_)[0];
    shape_.width = patch_grid(config_)[1];
    shape_.channels = config_.channels;
    shape_.heads = config_.mixer.heads;
    shape_.key_channels = key_channels(config_);
    shape_.kernel = config_.mixer.window;
    shape_.gate = gate_of(config_);
  }

  void forward(const float* qkv, float* y, ThreadPool& pool, const SeeRow& /*see*/) const override {
    ops::GridForward<float> call;
    call.in.shape = shape_;
    call.in.kernel = kernels_.data();
    set_qkv(config_, qkv, call.in);
    call.y = output_of(config_, y);
    ops::grid_forward(call, {pool.parallel()});
  }

 private:
  ModelConfig config_;
  ops::GridShape shape_;
  std::vector<float> kernels_;
};

template <typename T>
std::unique_ptr<WholeMixer> make(const Source& source) {
  return std::make_unique<T>(source);
}

std::unique_ptr<WholeMixer> make_conv2d(const Source& source) {
  return source.config.mixer.global ? make<Grid>(source) : make<Full>(source);
}

struct Entry {
  const char* name;
  std::unique_ptr<WholeMixer> (*make)(const Source& source);
};

// A new mixer is one line here.
constexpr Entry kMixers[] = {
    {"aft_simple", make<Window>}, {"aft_local", make<Window>}, {"aft_conv1d", make<Window>},
    {"aft_conv2d", make_conv2d},  {"aft_full", make<Full>},    {"attention", make<Attention>},
};

}  // namespace

void require_whole_mixer(const ModelConfig& config, const std::string& where) { find_mixer(kMixers, config, where); }

std::unique_ptr<WholeMixer> make_whole_mixer(const ModelConfig& config, const ModelFile& file, const std::string& name,
                                             ThreadPool& pool) {
  return find_mixer(kMixers, config, "mixer").make({config, file, name, pool});
}

}  // namespace aft::runtime
