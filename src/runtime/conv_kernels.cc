#include "runtime/conv_kernels.h"

#include <cmath>

namespace aft::runtime {
std::vector<float> conv_kernels(const ModelFile& file, const std::string& mixer) {
  std::vector<float> kernels = file.read(mixer + "weight");
  if (!file.config().mixer.reparameterised) return kernels;
  const std::vector<float> gamma = file.read(mixer + "gamma");
  const std::vector<float> beta = file.read(mixer + "beta");
  const size_t size = kernels.size() / gamma.size();
  for (size_t h = 0; h < gamma.size(); ++h) {
    float* const weight = kernels.data() + h * size;
    double mean = 0;
    for (size_t j = 0; j < size; ++j) mean += static_cast<double>(weight[j]) / static_cast<double>(size);
    double variance = 0;
    for (size_t j = 0; j < size; ++j) variance += (weight[j] - mean) * (weight[j] - mean) / static_cast<double>(size);
    const double scale = gamma[h] / std::sqrt(variance + 1e-5);
    for (size_t j = 0; j < size; ++j) weight[j] = static_cast<float>(scale * (weight[j] - mean) + beta[h]);
  }
  return kernels;
}

}  // namespace aft::runtime
