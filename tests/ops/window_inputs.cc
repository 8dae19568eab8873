#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "tests/ops/element.h"
#include "tests/ops/input_classes.h"
#include "tests/ops/window_run.h"

namespace aft::ops::test {
namespace {

// Away from the points where the nearest integer to k log2 e depends on the precision it is computed in, in steps that
// E can hold.
template <typename E>
Accumulate<E> clear_of_ties(Accumulate<E> k) {
  if (!std::isfinite(k)) return k;
  const double margin = std::max(1e-3, std::abs(double(k)) * 1e-6);
  for (int i = 0; i < 1000; ++i) {
    const double x = double(k) * std::numbers::log2e;
    if (std::abs(x - std::floor(x) - 0.5) > margin) break;
    k = kIs16Bit<E> ? Accumulate<E>(k - std::copysign(ulp_of<E>(std::abs(double(k))), double(k)))
                    : k + Accumulate<E>(2 * margin);
  }
  return k;
}

}  // namespace

template <typename E>
WindowInputs<E> make_inputs(const WindowCase& c) {
  using T = Accumulate<E>;
  Random r(c.seed * 7919 + 17);
  const WindowShape s = shape_of(c);
  const int64_t span = s.left + 1 + s.right;
  // 1e-30 in float, its like in double and in binary16.
  const double tiny = std::is_same_v<E, Float16> ? 1e-5 : sizeof(T) == 4 ? 1e-30 : 1e-300;
  const double value_size = c.input == "tiny" && c.seed % 3 != 2 ? tiny : 1;
  const double grad_size = c.input == "tiny" && c.seed % 3 != 1 ? tiny : 1;
  const auto value = [&] { return T(value_size * r.normal()); };
  const auto grad = [&] { return T(grad_size * r.normal()); };

  const auto stored = [](double x) { return rounded<E>(T(x)); };
  // Stays within the promised range: 65504 is not a number of bfloat16, and the next is larger.
  const auto stored_key = [&](double x) {
    const T k = stored(x);
    return std::isfinite(x) && std::abs(k) > 65504 ? std::copysign(T(65280), k) : k;
  };

  WindowInputs<E> in;
  in.shape = s;
  in.shared_row = c.shared_row;
  std::vector<int64_t> position(s.batch, 0);
  if (c.state) {
    for (int64_t b = 0; b < s.batch; ++b) {
      // One row is new, others stand within their first window or past it.
      position[b] =
          s.batch > 1 && b == static_cast<int64_t>(c.seed) % s.batch ? 0 : (b * 17 + c.seed * 5) % (2 * s.left + 9);
    }
  }
  if (!c.lengths.empty()) {
    in.cu_seqlens = {0};
    for (const int64_t length : c.lengths) in.cu_seqlens.push_back(in.cu_seqlens.back() + length);
  }
  for (int64_t i = 0; i < in.tokens() * s.channels; ++i) {
    if (s.gate != Gate::kNone) in.q.push_back(stored(r.normal()));
    in.v.push_back(stored(value()));
    in.grad_y.push_back(stored(grad()));
  }
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t t = 0; t < in.time_of(b); ++t) {
      for (int64_t i = 0; i < s.key_channels; ++i) {
        in.k.push_back(clear_of_ties<E>(stored_key(key_value(c.input, r, position[b] + t, i, s.key_channels - 1))));
      }
    }
  }
  if (s.has_band) {
    int64_t furthest = 0;
    for (const int64_t p : position) furthest = std::max(furthest, p);
    in.band_rows = c.shared_row ? 1 : furthest + s.time + 3;
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t t = 0; t < in.band_rows; ++t) {
        for (int64_t j = 0; j < span; ++j) in.band.push_back(T(weight_value(c.input, r, t - s.left + j)));
      }
    }
  }
  // Whole stretches too, and all of the first sequence.
  for (int64_t i = 0; c.masked && i < in.tokens(); ++i) {
    in.key_mask.push_back(i >= in.time_of(0) && i % 31 > 9 && r.chance(0.7));
  }
  in.has_final = s.causal && (c.state || c.seed % 2 == 0);
  if (in.has_final) {
    // One gradient per sum: about as large as the summed e^k 2^-max allow.
    for (int64_t i = 0; i < s.batch * s.key_channels; ++i) in.grad_final.den.push_back(grad());
    for (int64_t i = 0; i < s.batch * s.channels; ++i) in.grad_final.num.push_back(grad());
    for (int64_t i = 0; i < s.batch * s.left * s.key_channels; ++i) in.grad_final.ring_key.push_back(grad());
    for (int64_t i = 0; i < s.batch * s.left * s.channels; ++i) in.grad_final.ring_value.push_back(grad());
  }
  if (!c.state) return in;

  in.initial.position = position;
  for (int64_t b = 0; b < s.batch; ++b) {
    const bool summed = position[b] > s.left;
    for (int64_t i = 0; i < s.key_channels; ++i) {
      const double k = key_value(c.input, r, position[b] - s.left - 1, i, s.key_channels - 1);
      const bool neutral = !summed || k == -kInf;
      in.initial.max.push_back(neutral ? std::numeric_limits<T>::lowest() : T(std::nearbyint(k * std::numbers::log2e)));
      in.initial.den.push_back(neutral ? T(0) : T(0.7 + 3 * r.uniform()));
    }
    for (int64_t i = 0; i < s.channels; ++i) {
      const T den = in.initial.den[b * s.key_channels + key_channel(s, i)];
      const T v = value();
      in.initial.num.push_back(den == 0 ? T(0) : den * v);
    }
    for (int64_t slot = 0; slot < s.left; ++slot) {
      // The source in `slot`: the last one before position that is congruent to it.
      const int64_t source = position[b] - 1 - (((position[b] - 1 - slot) % s.left) + s.left) % s.left;
      for (int64_t i = 0; i < s.key_channels; ++i) {
        const T k = clear_of_ties<T>(T(key_value(c.input, r, source, i, s.key_channels - 1)));
        in.initial.ring_key.push_back(source < 0 ? T(0) : k);
      }
      for (int64_t i = 0; i < s.channels; ++i) {
        const T v = value();
        in.initial.ring_value.push_back(source < 0 ? T(0) : v);
      }
    }
  }
  return in;
}

template WindowInputs<float> make_inputs<float>(const WindowCase&);
template WindowInputs<double> make_inputs<double>(const WindowCase&);
template WindowInputs<BFloat16> make_inputs<BFloat16>(const WindowCase&);
template WindowInputs<Float16> make_inputs<Float16>(const WindowCase&);

}  // namespace aft::ops::test
