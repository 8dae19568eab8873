// The whole family in plain torch operations, dense over every pair of positions: differentiable as often as wanted.
// What tells the variants apart is the weights w alone; local_weights and conv2d_weights spell those of a window out.

#include <torch/library.h>
#include <torch/types.h>

#include <limits>

#include "aft/torch.h"
#include "arguments.h"
#include "register.h"
#include "version_check.h"

namespace aft {
namespace dispatch {
namespace {

using c10::SymInt;

constexpr double kNothing = -std::numeric_limits<double>::infinity();

struct DenseSizes {
  SymInt batch, targets, sources, channels, heads, key_channels;
  ops::Gate gate = ops::Gate::kSigmoid;
};

struct ReferenceCall : SequenceCall {
  OptionalTensor w;  // [targets, sources], with [heads,] or [batch, heads,] before
};
struct LocalWeightsCall {
  Tensor bias;
  SymInt time;
  int64_t left = 0, right = 0;
};
struct Conv2dWeightsCall {
  Tensor kernel;
  c10::SymDimVector grid;
};

struct Reference
    : Operator<ReferenceCall, "reference", ReturnsTensor,
               Join<Qkv, Argument<"Tensor? w=None", &ReferenceCall::w>, ByName, Causal, GateName, Heads, KeyMask>> {};
struct LocalWeights
    : Operator<LocalWeightsCall, "local_weights", ReturnsTensor,
               Join<Argument<"Tensor bias", &LocalWeightsCall::bias>, Argument<"SymInt time", &LocalWeightsCall::time>,
                    Argument<"int left", &LocalWeightsCall::left>, Argument<"int right=0", &LocalWeightsCall::right>>> {
};
struct Conv2dWeights : Operator<Conv2dWeightsCall, "conv2d_weights", ReturnsTensor,
                                Join<Argument<"Tensor kernel", &Conv2dWeightsCall::kernel>,
                                     Argument<"SymInt[2] grid", &Conv2dWeightsCall::grid>>> {};

void check_reference_dtype(std::string_view name, const Tensor& t) {
  if (!t.defined()) fail("aft::reference: ", name, " must be a tensor, got none: pass one");
  if (!t.is_floating_point()) {
    fail("aft::reference: ", name, " must hold floating point numbers, got ", t.scalar_type(),
         ": convert it with .to()");
  }
}

DenseSizes check_reference(std::string_view op, const ReferenceCall& c) {
  const auto& [q, k, v, w] = std::tie(c.q, c.k, c.v, c.w);
  check_torch_version();
  DenseSizes s;
  s.gate = gate_from_name(op, c.gate);
  check_reference_dtype("v", v);
  if (v.dim() != 3) {
    refuse(op, "v must have three dimensions [batch, time, channels], got shape ", sizes_of(v),
           ": add the missing ones with unsqueeze()");
  }
  s.batch = v.sym_size(0);
  s.sources = v.sym_size(1);
  s.channels = v.sym_size(2);

  s.heads = c.heads;
  s.targets = s.sources;
  if (w.has_value()) {
    check_reference_dtype("w", *w);
    if (w->dim() < 2 || w->dim() > 4) {
      refuse(op, "w must have shape [Tq, Tk], [heads, Tq, Tk] or [batch, heads, Tq, Tk], got ", sizes_of(*w),
             ": make it with aft::local_weights or aft::conv2d_weights");
    }
    s.targets = w->sym_size(-2);
    if (w->dim() > 2 && c.heads == 1) s.heads = w->sym_size(-3);
  }
  if (has_query(op, q, s.gate)) {
    check_dtype_device(op, "q", *q, "v", v);
    if (q->dim() == 3 && !w.has_value()) s.targets = q->sym_size(1);
    check_shape(op, "q", *q, c10::SymDimVector{s.batch, s.targets, s.channels}, v);
  }
  check_heads(op, s.heads, v);
  check_dtype_device(op, "k", k, "v", v);
  s.key_channels = k.dim() == 3 && k.sym_size(2) == s.heads ? s.heads : s.channels;
  check_shape(op, "k", k, c10::SymDimVector{s.batch, s.sources, s.key_channels}, v);
  if (w.has_value()) {
    const bool fits = w->sym_size(-1) == s.sources && w->device() == v.device() &&
                      (w->dim() < 3 || w->sym_size(-3) == 1 || w->sym_size(-3) == s.heads) &&
                      (w->dim() < 4 || w->sym_size(0) == 1 || w->sym_size(0) == s.batch);
    if (!fits) {
      refuse(op, "w must spread over [", s.batch, ", ", s.heads, ", ", s.targets, ", ", s.sources, "] on ", v.device(),
             ", got shape ", sizes_of(*w), " on ", w->device(), ": reshape or move it");
    }
  }
  if (c.causal && s.targets != s.sources) {
    refuse(op, "causal needs as many targets as sources, got ", s.targets, " and ", s.sources, ": pass causal=False");
  }
  check_key_mask(op, c.key_mask, v);
  return s;
}

// t [B, T, heads * n] -> [B, heads, n, 1, T].
Tensor by_head(const Tensor& t, const SymInt& heads) {
  return t.reshape_symint({t.sym_size(0), t.sym_size(1), heads, t.sym_size(2) / heads})
      .permute({0, 2, 3, 1})
      .unsqueeze(3);
}

Tensor reference(std::string_view op, ReferenceCall& c) {
  const DenseSizes s = check_reference(op, c);
  const auto& [q, k, v, w] = std::tie(c.q, c.k, c.v, c.w);
  const auto type = at::toOpMathType(v.scalar_type());
  const Tensor values = by_head(v.to(type), s.heads);  // [B, H, d / H, 1, Tk]
  Tensor x = by_head(k.to(type), s.heads);             // [B, H, d / H or 1, 1, Tk]
  if (w.has_value()) {
    Tensor weights = w->to(type);
    while (weights.dim() < 4) weights = weights.unsqueeze(0);
    x = x + weights.unsqueeze(2);  // [B, H, d / H or 1, Tq, Tk]
  }

  // What a row does not see is cut off before it meets a number that is not finite: 0 * inf would reach the gradients.
  Tensor seen = x.detach() != kNothing;
  if (c.causal) {
    const auto bools = v.options().dtype(at::kBool);
    seen = seen.logical_and(at::ones_symint({s.targets, s.sources}, bools).tril());
  }
  if (c.key_mask.has_value()) seen = seen.logical_and(c.key_mask->unsqueeze(1).unsqueeze(1).unsqueeze(1));
  x = at::where(seen, x, kNothing);
  // The maximum cancels out of N / D, so it is a constant of every derivative.
  Tensor ratio, empty;
  if (s.sources == 0) {
    ratio = x.sum(-1) + values.sum(-1);
    empty = at::ones_like(ratio, ratio.options().dtype(at::kBool));
  } else {
    const Tensor highest = x.detach().amax(-1, /*keepdim=*/true);
    const Tensor e = (x - highest.masked_fill(highest == kNothing, 0)).exp();
    const Tensor num = (e * at::where(seen, values, 0)).sum(-1);
    const Tensor den = e.sum(-1);
    empty = den == 0;
    ratio = num / den.masked_fill(empty, 1);  // [B, H, d / H, Tq], or 1 for Tq where all rows are the same
  }
  const auto by_row = [&](const Tensor& t) {
    return t.expand_symint({s.batch, s.heads, s.channels / s.heads, s.targets})
        .permute({0, 3, 1, 2})
        .reshape_symint({s.batch, s.targets, s.channels});
  };
  const Tensor y = by_row(ratio);
  if (s.gate == ops::Gate::kNone) return y.to(v.scalar_type());
  // The query of a row with nothing to see, whatever it holds, must not meet its 0.
  const Tensor query = at::where(by_row(empty), 0, q->to(type));
  return ((s.gate == ops::Gate::kRelu ? query.relu() : query.sigmoid()) * y).to(v.scalar_type());
}

// w[h, t, t'] = bias[h, t, t' - t + left] where there is such a column, else 0.
Tensor local_weights(std::string_view op, const LocalWeightsCall& c) {
  const auto& [bias, time, left, right] = c;
  const bool table_like = bias.dim() == 2 || bias.dim() == 3;
  if (!table_like || left < 0 || right < 0 || bias.sym_size(-1) - 1 - left != right) {
    refuse(op, "bias must have shape [heads, rows, left + 1 + right] or [rows, left + 1 + right], got ", sizes_of(bias),
           " with left = ", left, " and right = ", right, ": pass the reach that the bias was made for");
  }
  const Tensor table = bias.dim() == 2 ? bias.unsqueeze(0) : bias;
  if (time < 0 || (table.sym_size(1) != 1 && table.sym_size(1) < time)) {
    refuse(op, "bias must have a row for each of the ", time, " positions, or one for all, got ", table.sym_size(1),
           " rows: pass a longer table or a smaller time");
  }
  const SymInt heads = table.sym_size(0);
  const Tensor rows =
      table.sym_size(1) == 1 ? table.expand_symint({heads, time, table.sym_size(2)}) : table.slice_symint(1, 0, time);
  const Tensor positions = at::arange(time, bias.options().dtype(at::kLong));
  const Tensor column = positions.unsqueeze(0) - positions.unsqueeze(1) + left;  // [target, source]
  const Tensor inside = (column >= 0).logical_and(column <= left + right);
  const Tensor index = column.clamp(0, left + right).unsqueeze(0).expand_symint({heads, time, time});
  return at::where(inside, rows.gather(2, index), 0);
}

// [..., 2n] to [..., n, n]: row i has the n entries from n - 1 - i on. By rows of 2n read as rows of 2n - 1, each of
// which begins one earlier; the gradient of an index would be added up on a GPU in an order of its own.
Tensor shifted_rows(const Tensor& line, const SymInt& n) {
  auto sizes = line.sym_sizes().vec();
  sizes.insert(sizes.end() - 1, n);
  return line.unsqueeze(-2)
      .expand_symint(sizes)
      .flatten(-2)
      .slice_symint(-1, n - 1, n - 1 + n * (2 * n - 1))
      .unflatten_symint(-1, {n, 2 * n - 1})
      .slice_symint(-1, 0, n);
}

// w[h, (y, x), (y', x')] = kernel[h, y' - y + reach_y, x' - x + reach_x] inside the kernel, else 0.
Tensor conv2d_weights(std::string_view op, const Conv2dWeightsCall& c) {
  const Tensor& kernel = c.kernel;
  const c10::SymIntArrayRef grid = c.grid;
  if (kernel.dim() != 3 || kernel.sym_size(1) % 2 != 1 || kernel.sym_size(2) % 2 != 1) {
    refuse(op, "kernel must have shape [heads, s, s] with s odd, got ", sizes_of(kernel),
           ": it is centred on the target");
  }
  if (grid.size() != 2 || grid[0] < 0 || grid[1] < 0) {
    refuse(op, "grid must be the two sizes [rows, columns], got ", grid, ": pass both");
  }
  const SymInt heads = kernel.sym_size(0);
  const SymInt height = grid[0];
  const SymInt width = grid[1];
  if (height * width == 0) return kernel.slice_symint(1, 0, 0).slice_symint(2, 0, 0);
  // All offsets from a target to a source, 0 beside the kernel: from 1 - height and 1 - width on.
  const Tensor offsets = at::constant_pad_nd_symint(kernel, {width, width, height, height}, 0)
                             .narrow_symint(1, kernel.sym_size(1) / 2 + 1, 2 * height)
                             .narrow_symint(2, kernel.sym_size(2) / 2 + 1, 2 * width);
  const Tensor columns = shifted_rows(offsets, width);                       // [h, offset of rows, x, x']
  const Tensor pairs = shifted_rows(columns.permute({0, 2, 3, 1}), height);  // [h, x, x', y, y']
  return pairs.permute({0, 3, 1, 4, 2}).reshape_symint({heads, height * width, height * width});
}

AFT_REGISTER(m) {
  define_composite<Reference, reference>(m);
  define_composite<LocalWeights, local_weights>(m);
  define_composite<Conv2dWeights, conv2d_weights>(m);
}

}  // namespace
}  // namespace dispatch

torch::Tensor reference(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                        const std::optional<torch::Tensor>& w, bool causal, Gate gate, int64_t heads,
                        const std::optional<torch::Tensor>& key_mask) {
  return dispatch::Reference::call(q, k, v, w, causal, dispatch::name_of_gate(gate), heads, key_mask);
}

torch::Tensor local_weights(const torch::Tensor& bias, int64_t time, int64_t left, int64_t right) {
  return dispatch::LocalWeights::call(bias, time, left, right);
}

torch::Tensor conv2d_weights(const torch::Tensor& kernel, std::array<int64_t, 2> grid) {
  const std::array<c10::SymInt, 2> sizes = {grid[0], grid[1]};
  return dispatch::Conv2dWeights::call(kernel, sizes);
}

}  // namespace aft
