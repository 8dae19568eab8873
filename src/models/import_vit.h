#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace aft {

/// What a file of weights does not say. The defaults are those of most vision transformers trained on ImageNet.
struct ImportOptions {
  int64_t heads = 0;       // of attention; 0: as many as make them 64 channels wide
  double norm_eps = 1e-6;  // of the layer norms
  std::vector<double> mean = {0.485, 0.456, 0.406};
  std::vector<double> deviation = {0.229, 0.224, 0.225};
  std::string resampling = "bicubic";
  double crop = 0.9;
  std::vector<std::string> class_names;
};

/// Writes a vision transformer (Dosovitskiy et al. 2021) that lies in a safetensors file under timm's names
/// ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", ...) as our model file: a classifier whose mixer is
/// attention, with or without class token, LayerScale and head, for images of the size that its table of positions was
/// made for. Tensors may be F32, F64, F16 or BF16. Throws aft::Error, with all tensors that are missing, extra or
/// mis-shaped in one report, and writes nothing, for any other file.
void import_vit(const std::filesystem::path& from, const std::filesystem::path& to, const ImportOptions& options = {});

}  // namespace aft
