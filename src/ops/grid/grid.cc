// Checks of the grid operator: no arithmetic here.

#include "aft/ops/grid.h"

#include <string>

#include "ops/common/for_each_element.h"
#include "ops/common/require.h"
#include "ops/grid/check.h"

namespace aft::ops {
namespace {

void check_shape(const GridShape& s) {
  require(s.batch >= 0, "batch: expected at least 0" + got(s.batch));
  require(s.height >= 0, "height: expected at least 0" + got(s.height));
  require(s.width >= 0, "width: expected at least 0" + got(s.width));
  int64_t positions = 0;
  require(
      !__builtin_mul_overflow(s.height, s.width, &positions),
      "height, width: expected a grid of fewer than 2^63 positions" + got(s.height) + " x " + std::to_string(s.width));
  require_heads(s.channels, s.heads, s.key_channels);
  require(s.kernel >= 1 && s.kernel % 2 == 1, "kernel: expected an odd size, so that it has a centre" + got(s.kernel) +
                                                  "; use " + std::to_string(s.kernel < 1 ? 1 : s.kernel + 1));
}

template <typename E>
void require_data(const Rows<E>& rows, const GridShape& s, const char* name) {
  require(rows.data != nullptr || s.batch * s.time() * s.channels == 0,
          std::string(name) + ": expected a tensor, got null");
}

// What forward and backward are both handed.
template <typename Params>
void check_inputs(const Params& p) {
  check_shape(p.shape);
  if (p.shape.gate != Gate::kNone) require_data(p.q, p.shape, "q");
  require_data(p.k, p.shape, "k");
  require_data(p.v, p.shape, "v");
  require(p.kernel_data != nullptr || p.shape.batch * p.shape.time() * p.shape.channels == 0,
          "kernel_data: expected weights, got null");
}

}  // namespace

template <typename E>
void check_grid_forward(const GridForward<E>& p) {
  check_inputs(p);
  require_data(p.y, p.shape, "y");
}

template <typename E>
void check_grid_backward(const GridBackward<E>& p) {
  check_inputs(p);
  require_data(p.grad_y, p.shape, "grad_y");
  if (p.shape.gate != Gate::kNone) require_data(p.grad_q, p.shape, "grad_q");
  require_data(p.grad_k, p.shape, "grad_k");
  require_data(p.grad_v, p.shape, "grad_v");
}

#define AFT_INSTANTIATE(E)                                    \
  template void check_grid_forward<E>(const GridForward<E>&); \
  template void check_grid_backward<E>(const GridBackward<E>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
