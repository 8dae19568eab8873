#include <aft/config/model_config.h>
#include <aft/error.h>
#include <aft/io/safetensors.h>
#include <aft/ops/device.h>
#include <aft/ops/window.h>

bool missing_file_is_refused() {
  try {
    const aft::SafetensorsFile file("no such file");
    return false;
  } catch (const aft::Error&) {
    return true;
  }
}

// One position that sees only itself: y = v, whatever its key. Nothing to run a kernel on is no error.
int main() {
  const float k = 3, v = 2;
  float y = 0;
  aft::ops::WindowForward<float> p;
  p.in.shape = {.batch = 1, .time = 1, .channels = 1, .key_channels = 1, .gate = aft::ops::Gate::kNone};
  p.in.k = {&k, 1, 1}, p.in.v = {&v, 1, 1}, p.y = {&y, 1, 1};
  aft::ops::window_forward(p);
  if (!missing_file_is_refused()) return 1;
  if (aft::ops::cuda_architectures().empty() && !aft::ops::cuda_devices().empty()) return 1;
  return y == 2 && aft::model_config_from_json(aft::to_json({})).layers == aft::ModelConfig{}.layers ? 0 : 1;
}
