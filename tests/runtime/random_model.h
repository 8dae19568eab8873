#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "aft/config/model_config.h"

namespace aft::test {

/// Name to shape of every tensor of the model.
std::map<std::string, std::vector<int64_t>> shapes_of(const ModelConfig& config);

/// Weights by name, as in a model file.
using Tensors = std::map<std::string, std::vector<float>>;

/// Random weights that make layers, positions and past bytes all matter.
Tensors random_tensors(const ModelConfig& config, uint64_t seed);

void write_model(const std::filesystem::path& path, const ModelConfig& config, const Tensors& tensors);

/// A config of awkward sizes: no width is a multiple of a vector.
ModelConfig small_config(const std::string& mixer);

/// The same for images of 5 x 3 pixels.
ModelConfig small_pixel_config(const std::string& mixer, int64_t colors);

}  // namespace aft::test
