#include "models/import_vit.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <span>

#include "aft/config/model_config.h"
#include "aft/error.h"
#include "aft/io/safetensors.h"
#include "config/architecture.h"
#include "io/tensor_problems.h"

namespace aft {
namespace {

using Shape = std::vector<int64_t>;

std::string text(const Shape& shape) {
  std::string out;
  for (const int64_t extent : shape) out += (out.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + out + "]";
}

/// The file's tensors, by timm's names.
class Source {
 public:
  explicit Source(const std::filesystem::path& path) : path_(path), file_(path) {}

  [[nodiscard]] const std::map<std::string, TensorEntry>& tensors() const { return file_.tensors(); }
  [[nodiscard]] bool has(const std::string& name) const { return tensors().contains(name); }

  /// The shape of a tensor without which nothing is known of the model.
  [[nodiscard]] const Shape& shape(const std::string& name, size_t dimensions) const {
    const auto found = tensors().find(name);
    if (found == tensors().end()) fail("no tensor " + name);
    if (found->second.shape.size() != dimensions) fail(name + " of shape " + text(found->second.shape));
    for (const int64_t extent : found->second.shape) {
      if (extent < 1) fail(name + " of shape " + text(found->second.shape));
    }
    return found->second.shape;
  }

  [[nodiscard]] std::vector<float> read(const std::string& name) const {
    const TensorEntry& entry = tensors().at(name);
    std::vector<std::byte> bytes(entry.bytes);
    file_.read(entry, bytes.data());
    if (entry.dtype == "F32") return convert<float>(bytes, [](float x) { return x; });
    if (entry.dtype == "F64") return convert<double>(bytes, [](double x) { return static_cast<float>(x); });
    if (entry.dtype == "BF16") {
      return convert<uint16_t>(bytes, [](uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); });
    }
    return convert<uint16_t>(bytes, half);
  }

  [[noreturn]] void fail(const std::string& got) const {
    throw Error(path_.string() + ": expected a vision transformer with timm's names, got " + got);
  }

 private:
  template <typename T, typename Function>
  static std::vector<float> convert(std::span<const std::byte> bytes, const Function& function) {
    std::vector<float> values(bytes.size() / sizeof(T));
    for (size_t i = 0; i < values.size(); ++i) {
      T value;
      std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
      values[i] = function(value);
    }
    return values;
  }

  /// IEEE binary16.
  static float half(uint16_t x) {
    const int exponent = (x >> 10) & 31;
    const int fraction = x & 1023;
    float value =
        std::ldexp(static_cast<float>(exponent == 0 ? fraction : fraction + 1024), exponent == 0 ? -24 : exponent - 25);
    if (exponent == 31) value = fraction == 0 ? INFINITY : NAN;
    return (x & 0x8000) != 0 ? -value : value;
  }

  std::filesystem::path path_;
  SafetensorsFile file_;
};

/// The number in "blocks.12.norm1.weight".
std::optional<int64_t> layer_of(const std::string& name) {
  constexpr std::string_view kPrefix = "blocks.";
  constexpr size_t kMostDigits = 5;
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const size_t end = name.find('.', kPrefix.size());
  if (end == std::string::npos || end == kPrefix.size() || end - kPrefix.size() > kMostDigits) return std::nullopt;
  int64_t layer = 0;
  for (size_t i = kPrefix.size(); i < end; ++i) {
    if (name[i] < '0' || name[i] > '9') return std::nullopt;
    layer = 10 * layer + (name[i] - '0');
  }
  return layer;
}

/// What the shapes say, and the options.
ModelConfig config_of(const Source& source, const ImportOptions& options) {
  const Shape& patch = source.shape("patch_embed.proj.weight", 4);  // [d, colours, rows, columns]
  const Shape& position = source.shape("pos_embed", 3);             // [1, positions, d]
  ModelConfig config;
  config.model = "classifier";
  config.channels = patch[0];
  config.colors = patch[1];
  config.patch = patch[2];
  config.class_token = source.has("cls_token");
  config.mlp_channels = source.shape("blocks.0.mlp.fc1.bias", 1)[0];
  config.layers = 0;
  for (const auto& [name, entry] : source.tensors()) {
    if (const auto layer = layer_of(name)) config.layers = std::max(config.layers, *layer + 1);
  }
  if (config.layers > static_cast<int64_t>(source.tensors().size())) {
    source.fail("a block " + std::to_string(config.layers - 1) + " among only " +
                std::to_string(source.tensors().size()) + " tensors");
  }
  const int64_t places = position[1] - (config.class_token ? 1 : 0);
  const auto side = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(places))));
  if (places < 1 || side * side != places) {
    source.fail("pos_embed of " + std::to_string(position[1]) + " positions, which is no square grid" +
                (config.class_token ? " and a class token" : ""));
  }
  config.height = config.width = side * config.patch;
  config.classes = source.has("head.weight") ? source.shape("head.weight", 2)[0] : 0;
  // 1 stands for "there is": the values come from the file.
  config.layer_scale = source.has("blocks.0.ls1.gamma") ? 1 : 0;
  config.norm_eps = options.norm_eps;
  config.mean = options.mean;
  config.deviation = options.deviation;
  config.resampling = options.resampling;
  config.crop = options.crop;
  config.class_names = options.class_names;
  config.mixer.name = "attention";
  constexpr int64_t kHeadWidth = 64;
  config.mixer.heads = options.heads > 0 ? options.heads : std::max<int64_t>(1, config.channels / kHeadWidth);
  validate(config);
  return config;
}

/// timm's name of a tensor of ours.
std::string timm_name(std::string name) {
  static const std::pair<const char*, const char*> kNames[] = {{"embedding.patch.", "patch_embed.proj."},
                                                               {"embedding.class", "cls_token"},
                                                               {"embedding.position.weight", "pos_embed"},
                                                               {".mixer_norm.", ".norm1."},
                                                               {".mixer.qkv.", ".attn.qkv."},
                                                               {".mixer.output.", ".attn.proj."},
                                                               {".mixer_scale", ".ls1.gamma"},
                                                               {".mlp_norm.", ".norm2."},
                                                               {".mlp.up.", ".mlp.fc1."},
                                                               {".mlp.down.", ".mlp.fc2."},
                                                               {".mlp_scale", ".ls2.gamma"}};
  for (const auto& [ours, timms] : kNames) {
    const size_t at = name.find(ours);
    if (at != std::string::npos) return name.replace(at, std::strlen(ours), timms);
  }
  return name;  // norm and head
}

/// timm's shape of a tensor of ours.
Shape timm_shape(const TensorSpec& spec, const ModelConfig& config) {
  if (spec.name == "embedding.patch.weight") return {config.channels, config.colors, config.patch, config.patch};
  if (spec.name == "embedding.class") return {1, 1, config.channels};
  if (spec.name == "embedding.position.weight") return {1, spec.shape[0], spec.shape[1]};
  return spec.shape;
}

void check(const Source& source, const ModelConfig& config) {
  TensorProblems problems;
  std::set<std::string> known;
  for (const TensorSpec& spec : model_tensors(config)) {
    const std::string name = timm_name(spec.name);
    known.insert(name);
    const auto found = source.tensors().find(name);
    if (found == source.tensors().end()) {
      problems.add(name + " is missing");
      continue;
    }
    const auto& [dtype, shape, offset, bytes] = found->second;
    const Shape expected = timm_shape(spec, config);
    if (shape != expected) problems.add(name + " has shape " + text(shape) + ", expected " + text(expected));
    if (dtype != "F32" && dtype != "F64" && dtype != "F16" && dtype != "BF16") {
      problems.add(name + " has type " + dtype + ", expected F32, F64, F16 or BF16");
    }
  }
  for (const auto& [name, entry] : source.tensors()) {
    if (!known.contains(name)) problems.add(name + " is not of a model that can be imported");
  }
  if (problems.any()) source.fail(problems.list());
}

/// [d, colours, rows, columns] -> [d, rows, columns, colours].
std::vector<float> colours_last(const std::vector<float>& values, const ModelConfig& config) {
  const int64_t pixels = config.patch * config.patch;
  std::vector<float> out(values.size());
  for (int64_t d = 0; d < config.channels; ++d) {
    for (int64_t c = 0; c < config.colors; ++c) {
      for (int64_t p = 0; p < pixels; ++p) {
        out[static_cast<size_t>((d * pixels + p) * config.colors + c)] =
            values[static_cast<size_t>((d * config.colors + c) * pixels + p)];
      }
    }
  }
  return out;
}

}  // namespace

void import_vit(const std::filesystem::path& from, const std::filesystem::path& to, const ImportOptions& options) {
  const Source source(from);
  const ModelConfig config = config_of(source, options);
  check(source, config);
  std::map<std::string, std::vector<float>> values;
  std::map<std::string, TensorView> views;
  for (const TensorSpec& spec : model_tensors(config)) {
    std::vector<float>& tensor = values[spec.name] = source.read(timm_name(spec.name));
    if (spec.name == "embedding.patch.weight") tensor = colours_last(tensor, config);
    views[spec.name] = {"F32", spec.shape, reinterpret_cast<const std::byte*>(tensor.data()),
                        tensor.size() * sizeof(float)};
  }
  write_safetensors(to, views, model_metadata(config));
}

}  // namespace aft
