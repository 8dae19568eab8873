// write_seeds FOLDER: in a folder for each fuzzer, a valid model file of each mixer, recipes, a metric, files of data,
// pictures.

#include <lzma.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../data/gzip.h"
#include "../image/png_bytes.h"
#include "aft/error.h"
#include "aft/io/safetensors.h"
#include "config/architecture.h"
#include "io/write_file.h"
#include "train/metrics.h"
#include "train/train.h"

namespace {

namespace fs = std::filesystem;

void write_text(const fs::path& path, const std::string& text) {
  aft::write_file_atomically(path, text.data(), text.size());
}

/// As small as a model can be: every width 1.
void write_model(const fs::path& path, const aft::ModelConfig& config) {
  const std::vector<float> weights(static_cast<size_t>(config.vocabulary), 0.5F);
  std::map<std::string, aft::TensorView> tensors;
  for (const aft::TensorSpec& spec : aft::model_tensors(config)) {
    size_t count = 1;
    for (const int64_t extent : spec.shape) count *= static_cast<size_t>(extent);
    tensors[spec.name] = {"F32", spec.shape, reinterpret_cast<const std::byte*>(weights.data()), count * sizeof(float)};
  }
  aft::write_safetensors(
      path, tensors,
      {{"format", "aft"}, {"format_version", "2"}, {"library_version", "0"}, {"config", aft::to_json(config)}});
}

std::string xz(const std::string& text, lzma_check check) {
  std::string out(1024, '\0');
  size_t size = 0;
  if (lzma_easy_buffer_encode(0, check, nullptr, reinterpret_cast<const uint8_t*>(text.data()), text.size(),
                              reinterpret_cast<uint8_t*>(out.data()), &size, out.size()) != LZMA_OK) {
    throw aft::Error("write_seeds: xz failed");
  }
  out.resize(size);
  return out;
}

/// Each way that xz checks what it holds, with little memory.
void write_xz(const fs::path& folder) {
  std::string both;
  for (const lzma_check check : {LZMA_CHECK_NONE, LZMA_CHECK_CRC32, LZMA_CHECK_CRC64, LZMA_CHECK_SHA256}) {
    const std::string out = xz("To be, or not to be, that is the question", check);
    both += out + std::string(4, '\0');
    write_text(folder / std::to_string(check), out);
  }
  write_text(folder / "several", both);
}

/// Two images of 2 x 3 and two labels, plain and packed.
void write_idx(const fs::path& folder) {
  const std::string images("\0\0\x08\3\0\0\0\2\0\0\0\2\0\0\0\3abcdefghijkl", 28);
  const std::string labels("\0\0\x08\1\0\0\0\2\4\7", 10);
  for (const auto& [name, bytes] : {std::pair("images", images), std::pair("labels", labels)}) {
    write_text(folder / name, bytes);
    write_text(folder / (std::string(name) + ".gz"), aft::gzip(bytes));
    write_text(folder / (std::string(name) + ".xz"), xz(bytes, LZMA_CHECK_CRC32));
  }
}

void write_cifar10(const fs::path& folder) {
  std::string record(1, '\7');
  for (int i = 0; i < 3072; ++i) record += static_cast<char>(i);
  write_text(folder / "one", record);
  write_text(folder / "two", record + record);
  write_text(folder / "packed", xz(record, LZMA_CHECK_CRC32));
}

/// A row or two of each kind, and one of seven passes.
void write_png(const fs::path& folder) {
  using aft::test::chunk;
  const auto zeros = [](size_t count) { return std::string(count, '\0'); };
  write_text(folder / "grey", aft::test::png({3, 2}, zeros(8)));
  write_text(folder / "bits", aft::test::png({9, 1, 1}, zeros(3)));
  write_text(folder / "wide", aft::test::png({2, 1, 16, 2}, zeros(13)));
  write_text(folder / "alpha", aft::test::png({2, 1, 8, 6}, zeros(9)));
  write_text(folder / "grey_alpha", aft::test::png({2, 1, 16, 4}, zeros(9)));
  write_text(folder / "palette",
             aft::test::png({5, 1, 2, 3}, zeros(3), chunk("PLTE", "abcdefghi") + chunk("tRNS", "xy")));
  // A text that says to have 512 MiB: no memory is taken for it.
  write_text(folder / "text", aft::test::png({1, 1}, zeros(2), aft::test::big_endian(1 << 29) + "zTXt" + zeros(9)));
  write_text(folder / "passes", aft::test::png({3, 3, 8, 0, true}, zeros(15)));
  write_text(folder / "key",
             aft::test::png({1, 1, 8, 2}, zeros(4), chunk("tRNS", zeros(6)) + chunk("gAMA", "\1\2\3\4")));
}

void write_jpeg(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(AFT_PICTURES)) {
    if (entry.path().extension() == ".jpg") {
      fs::copy_file(entry, folder / entry.path().filename(), fs::copy_options::overwrite_existing);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const fs::path models = fs::path(argv[1]) / "model_file";
  const fs::path recipes = fs::path(argv[1]) / "recipe";
  const fs::path metrics = fs::path(argv[1]) / "metrics";
  const fs::path xz_files = fs::path(argv[1]) / "xz";
  const fs::path idx = fs::path(argv[1]) / "idx";
  const fs::path cifar10 = fs::path(argv[1]) / "cifar10";
  const fs::path png = fs::path(argv[1]) / "png";
  const fs::path jpeg = fs::path(argv[1]) / "jpeg";
  for (const auto& folder : {models, recipes, metrics, xz_files, idx, cifar10, png, jpeg})
    fs::create_directories(folder);
  aft::Recipe recipe;
  recipe.data.path = "text.xz";
  for (const char* mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    aft::ModelConfig config;
    config.mixer.name = mixer;
    config.layers = config.channels = config.mlp_channels = config.context = 1;
    config.mixer.heads = config.mixer.window = config.mixer.factor_channels = 1;
    write_model(models / mixer, config);
    write_text(models / (std::string(mixer) + ".json"), aft::to_json(config));
    recipe.model = config;
    write_text(recipes / mixer, aft::to_toml(recipe));
  }
  aft::ModelConfig classifier;
  classifier.model = "classifier";
  classifier.layers = classifier.channels = classifier.mlp_channels = classifier.colors = classifier.patch = 1;
  classifier.height = classifier.width = classifier.classes = 2;
  classifier.class_token = true;
  classifier.layer_scale = 1;
  classifier.class_names = {"a", "b"};
  classifier.mixer.name = "aft_full";
  classifier.mixer.factor_channels = 1;
  write_model(models / "classifier", classifier);
  write_text(models / "header", R"({"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"__metadata__":{"x":"y"}})" +
                                    std::string(9, '\0'));
  write_text(recipes / "override", "train.lr=1e-3");
  write_text(metrics / "line",
             aft::to_json_line({10, "train", 1.75, {{"bits_per_byte", 2.5}}, 1000, 1234.5, 1e-3, 0.25}));
  write_xz(xz_files);
  write_idx(idx);
  write_cifar10(cifar10);
  write_png(png);
  write_jpeg(jpeg);
}
