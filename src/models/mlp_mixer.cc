#include "models/mlp_mixer.h"

#include <sstream>

#include "aft/error.h"
#include "models/mixer_parts.h"

namespace aft {

MlpMixerImpl::MlpMixerImpl(int64_t positions_, int64_t hidden_) : positions(positions_), hidden(hidden_) {
  check_positive("MlpMixer", "positions", positions);
  check_positive("MlpMixer", "hidden", hidden);
  reset();
}

void MlpMixerImpl::reset() {
  up = register_module("up", torch::nn::Linear(positions, hidden));
  down = register_module("down", torch::nn::Linear(hidden, positions));
}

torch::Tensor MlpMixerImpl::forward(const torch::Tensor& x) {
  if (x.dim() != 3 || x.size(1) != positions) {
    std::ostringstream text;
    text << "MlpMixer: x: expected [batch, positions = " << positions << ", channels], got " << x.sizes()
         << "; cut or pad it, or make the mixer with other positions";
    throw Error(text.str());
  }
  return down(torch::gelu(up(x.transpose(1, 2)))).transpose(1, 2);
}

}  // namespace aft
