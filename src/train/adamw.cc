#include "train/adamw.h"

#include <cmath>

namespace aft {

template <typename T>
void adamw_update(const AdamWStep& step, int64_t count, const T* gradient, T* weight, T* first_moment,
                  T* second_moment) {
  const double correction1 = 1 - std::pow(step.beta1, static_cast<double>(step.step));
  const double correction2 = 1 - std::pow(step.beta2, static_cast<double>(step.step));
  const T scale = static_cast<T>(step.gradient_scale);
  const T keep1 = static_cast<T>(step.beta1);
  const T keep2 = static_cast<T>(step.beta2);
  const T take1 = static_cast<T>(1 - step.beta1);
  const T take2 = static_cast<T>(1 - step.beta2);
  const T decay = static_cast<T>(1 - step.lr * step.weight_decay);
  const T rate = static_cast<T>(step.lr / correction1);
  const T spread = static_cast<T>(1 / std::sqrt(correction2));
  const T eps = static_cast<T>(step.eps);
  for (int64_t i = 0; i < count; ++i) {
    const T g = gradient[i] * scale;
    const T m = keep1 * first_moment[i] + take1 * g;
    const T v = keep2 * second_moment[i] + take2 * g * g;
    first_moment[i] = m;
    second_moment[i] = v;
    weight[i] = weight[i] * decay - rate * m / (std::sqrt(v) * spread + eps);
  }
}

template void adamw_update(const AdamWStep&, int64_t, const float*, float*, float*, float*);
template void adamw_update(const AdamWStep&, int64_t, const double*, double*, double*, double*);

}  // namespace aft
