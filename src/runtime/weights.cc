#include "runtime/weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <string>
#include <vector>

#include "aft/ops/local_bias.h"
#include "config/architecture.h"
#include "runtime/conv_kernels.h"

namespace aft::runtime {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

bool windowed(const ModelConfig& config) {
  return (config.mixer.name == "aft_local" && config.mixer.window > 0) || config.mixer.name == "aft_conv1d";
}

/// A window past the context sees no more than the context: positions never leave it.
int64_t window_left(const ModelConfig& config) {
  return windowed(config) ? std::min(config.mixer.window, positions(config)) - 1 : 0;
}

int64_t rows_of_band(const ModelConfig& config) {
  if (!windowed(config)) return 0;
  return config.mixer.name == "aft_conv1d" ? config.mixer.heads : positions(config);
}

int64_t band_floats(const ModelConfig& config) { return rows_of_band(config) * (window_left(config) + 1); }

/// What the band is made of: the file has it, a token does not read it. aft_full has no band and reads its factors.
bool makes_band(const ModelConfig& config, const std::string& name) {
  if (config.mixer.name == "aft_full") return false;
  for (const char* end : {".mixer.u", ".mixer.v", ".mixer.weight", ".mixer.gamma", ".mixer.beta"}) {
    if (name.ends_with(end)) return true;
  }
  return false;
}

int64_t memory_floats(const ModelFile& file) {
  int64_t floats = file.config().layers * WeightMemory::padded(band_floats(file.config()));
  for (const auto& [name, tensor] : file.tensors()) {
    if (!makes_band(file.config(), name))
      floats += WeightMemory::padded(static_cast<int64_t>(tensor.bytes / sizeof(float)));
  }
  return floats;
}

/// Of each kernel of aft_conv1d the last left + 1 weights, which is all that a sequence of the context can see.
void make_kernels(const ModelFile& file, const std::string& mixer, int64_t left, float* band) {
  const int64_t s = file.config().mixer.window;
  const std::vector<float> kernels = conv_kernels(file, mixer);
  for (int64_t h = 0; h < file.config().mixer.heads; ++h, band += left + 1) {
    std::copy_n(kernels.begin() + (h + 1) * s - 1 - left, left + 1, band);
  }
}

/// Reads tensors of the file into the memory in the order in which a token reads them.
class Reader {
 public:
  Reader(const ModelFile& file, WeightMemory& memory, ThreadPool& pool) : file_(file), memory_(memory), pool_(pool) {}

  const float* tensor(const std::string& name, int64_t floats) {
    constexpr int64_t kPiece = 1 << 20;
    float* to = memory_.take(floats);
    pool_.run((floats + kPiece - 1) / kPiece, [&](int64_t i) {
      const int64_t begin = i * kPiece;
      file_.read(name, begin, std::min(kPiece, floats - begin), to + begin);
    });
    return to;
  }
  Norm norm(const std::string& name, int64_t channels) {
    const float* weight = tensor(name + ".weight", channels);
    return {weight, tensor(name + ".bias", channels)};
  }
  Linear linear(const std::string& name, int64_t outputs, int64_t inputs) {
    const float* weight = tensor(name + ".weight", outputs * inputs);
    return {outputs, inputs, weight, tensor(name + ".bias", outputs)};
  }

 private:
  const ModelFile& file_;
  WeightMemory& memory_;
  ThreadPool& pool_;
};

}  // namespace

WeightMemory::WeightMemory(int64_t floats) {
  // One huge page more, to start at the boundary of one.
  bytes_ = (static_cast<size_t>(floats) * sizeof(float) + kHugePage - 1) / kHugePage * kHugePage + kHugePage;
  base_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base_ == MAP_FAILED) throw std::bad_alloc();
  const uintptr_t start = (reinterpret_cast<uintptr_t>(base_) + kHugePage - 1) / kHugePage * kHugePage;
  ::madvise(reinterpret_cast<void*>(start), bytes_ - kHugePage, MADV_HUGEPAGE);  // a wish: small pages are right too
  next_ = reinterpret_cast<float*>(start);
}

WeightMemory::~WeightMemory() { ::munmap(base_, bytes_); }

float* WeightMemory::take(int64_t floats) {
  float* taken = next_;
  next_ += padded(floats);
  return taken;
}

Weights::Weights(const ModelFile& file, ThreadPool& pool)
    : config(file.config()),
      parameters(file.parameters()),
      left(window_left(config)),
      has_band(windowed(config)),
      heads(config.mixer.name == "aft_conv1d" ? config.mixer.heads : 1),
      band_rows(rows_of_band(config)),
      memory_(memory_floats(file)) {
  const int64_t d = config.channels;
  Reader from(file, memory_, pool);
  token = from.tensor("embedding.token.weight", token_rows(config) * d);
  position = from.tensor("embedding.position.weight", positions(config) * d);
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    Block block;
    block.mixer_norm = from.norm(name + "mixer_norm", d);
    block.qkv = from.linear(name + "mixer.qkv", qkv_channels(config), d);
    if (has_band) {
      float* band = memory_.take(band_floats(config));
      block.band = band;
      if (config.mixer.name == "aft_conv1d") {
        make_kernels(file, name + "mixer.", left, band);
      } else {
        const ops::LocalBiasShape shape = {
            .heads = 1, .rows = positions(config), .width = config.mixer.factor_channels, .left = left, .right = 0};
        const std::vector<float> u = file.read(name + "mixer.u");
        const std::vector<float> v = file.read(name + "mixer.v");
        ops::local_bias_forward(ops::LocalBiasForward<float>{.in = {shape, u.data(), v.data()}, .band = band},
                                {pool.parallel()});
      }
    }
    if (config.mixer.name == "aft_full") {
      block.u = from.tensor(name + "mixer.u", positions(config) * config.mixer.factor_channels);
      block.v = from.tensor(name + "mixer.v", positions(config) * config.mixer.factor_channels);
    }
    block.output = from.linear(name + "mixer.output", d, d);
    block.mlp_norm = from.norm(name + "mlp_norm", d);
    block.up = from.linear(name + "mlp.up", config.mlp_channels, d);
    block.down = from.linear(name + "mlp.down", d, config.mlp_channels);
    blocks.push_back(block);
  }
  norm = from.norm("norm", d);
  head = {config.vocabulary, d, from.tensor("head.weight", config.vocabulary * d), nullptr};
}

}  // namespace aft::runtime
