// Checks of the grid operator: no arithmetic here.

#include "aft/ops/grid.h"

#include <string>

#include "ops/common/for_each_element.h"
#include "ops/common/require.h"
#include "ops/grid/check.h"

namespace aft::ops::grid {
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
template <typename E>
void check_inputs(const GridInputs<E>& in) {
  check_shape(in.shape);
  if (in.shape.gate != Gate::kNone) require_data(in.q, in.shape, "q");
  require_data(in.k, in.shape, "k");
  require_data(in.v, in.shape, "v");
  require(in.kernel != nullptr || in.shape.batch * in.shape.time() * in.shape.channels == 0,
          "kernel: expected weights, got null");
}

}  // namespace

template <typename E>
void check_sizes(const GridForward<E>& p) {
  check_inputs(p.in);
  require_data(p.y, p.in.shape, "y");
}

template <typename E>
void check_sizes(const GridBackward<E>& p) {
  check_inputs(p.in);
  require_data(p.grad_y, p.in.shape, "grad_y");
  if (p.in.shape.gate != Gate::kNone) require_data(p.grad_q, p.in.shape, "grad_q");
  require_data(p.grad_k, p.in.shape, "grad_k");
  require_data(p.grad_v, p.in.shape, "grad_v");
}

#define AFT_INSTANTIATE(E)                             \
  template void check_sizes<E>(const GridForward<E>&); \
  template void check_sizes<E>(const GridBackward<E>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::grid
