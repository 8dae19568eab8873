#include <aft/torch.h>

// The first position sees only itself: y[0] = v[0] / 2 under the gate sigmoid(0), whatever its key.
int main() {
  const auto q = torch::zeros({1, 5, 4}), k = torch::randn({1, 5, 4}), v = torch::randn({1, 5, 4});
  const auto y = aft::simple(q, k, v);
  return torch::allclose(y.select(1, 0), v.select(1, 0) / 2) ? 0 : 1;
}
