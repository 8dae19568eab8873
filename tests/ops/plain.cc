#include "tests/ops/plain.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "tests/ops/plain_number.h"

namespace aft::ops::test {
namespace {

template <typename E>
using Numbers = Arrays<PlainNumber<Accumulate<E>>>;

// Sequence b: its sources are the state's sums, the ring, and those of the call. i counts sources from the oldest in
// the ring.
template <typename E>
struct Sequence {
  using T = Accumulate<E>;
  const Inputs<E>& in;
  const Case& c;
  int64_t b, targets, before_targets, before_sources, position = 0, ring = 0, sources;

  Sequence(const Inputs<E>& inputs, int64_t index)
      : in(inputs),
        c(inputs.c),
        b(index),
        targets(c.targets_of(b)),
        before_targets(c.targets_before(b)),
        before_sources(c.sources_before(b)) {
    if (in.has_initial()) position = in.position[b];
    ring = std::min(position, in.ring);
    sources = ring + c.sources_of(b);
  }
  int64_t at(int64_t i) const { return position - ring + i; }  // absolute position
  int64_t seen(int64_t t) const { return c.causal ? ring + t + 1 : sources; }
  int64_t slot(int64_t i) const { return b * in.ring + at(i) % in.ring; }
  // Of key or value i in the array that holds it: the ring's, or the call's.
  int64_t index(int64_t i) const { return i < ring ? slot(i) : before_sources + i - ring; }
};

// Keys or values, or their gradients: in the array of the call, and in that of the initial ring where there is one.
template <typename X>
struct Entries {
  X *call, *ring;
  int64_t width;
  template <typename E>
  X& at(const Sequence<E>& s, int64_t i, int64_t channel) const {
    return (i < s.ring ? ring : call)[s.index(i) * width + channel];
  }
};

template <typename E>
void attend(const Inputs<E>& in, const std::vector<Accumulate<E>>& w, Numbers<E>& out) {
  using T = Accumulate<E>;
  using Number = PlainNumber<T>;
  const Case& c = in.c;
  const T absent = -std::numeric_limits<T>::infinity();
  const T ln2 = std::numbers::ln2_v<T>;
  const int64_t keys = c.key_channels();
  const bool gated = in.has("q");
  const auto of = [](auto& arrays, const char* name) { return arrays.has(name) ? arrays[name].data() : nullptr; };
  const Entries<const T> k = {of(in, "k"), of(in, "initial_ring_key"), keys};
  const Entries<const T> v = {of(in, "v"), of(in, "initial_ring_value"), c.channels};
  const Entries<Number> grad_ks = {of(out, "grad_k"), of(out, "grad_initial_ring_key"), keys};
  const Entries<Number> grad_vs = {of(out, "grad_v"), of(out, "grad_initial_ring_value"), c.channels};
  const T *mask = of(in, "key_mask"), *q = of(in, "q"), *grad_y = of(in, "grad_y");
  const T *initial_max = of(in, "initial_max"), *initial_den = of(in, "initial_den"),
          *initial_num = of(in, "initial_num");
  const T *grad_final_den = of(in, "grad_final_den"), *grad_final_num = of(in, "grad_final_num"),
          *grad_final_key = of(in, "grad_final_ring_key"), *grad_final_value = of(in, "grad_final_ring_value");
  Number *y = of(out, "y"), *grad_q = of(out, "grad_q"), *grad_w = of(out, "grad_weights");
  Number *final_den = of(out, "final_den"), *final_num = of(out, "final_num");
  Number *grad_initial_den = of(out, "grad_initial_den"), *grad_initial_num = of(out, "grad_initial_num");

  std::vector<T> exponent, value;
  std::vector<int64_t> weight;  // index, -1: outside the window
  std::vector<Number> e;
  for (int64_t b = 0; b < c.batch; ++b) {
    const Sequence<E> s(in, b);
    exponent.resize(s.sources), value.resize(s.sources), weight.resize(s.sources), e.resize(s.sources);
    const auto masked = [&](int64_t i) { return i >= s.ring && mask != nullptr && mask[s.index(i)] == 0; };
    for (int64_t ch = 0; ch < c.channels; ++ch) {
      const int64_t kc = c.key_channel(ch);
      const int64_t sum_k = b * keys + kc;
      const int64_t sum_v = b * c.channels + ch;
      const bool has_sums = initial_max != nullptr && initial_max[sum_k] != std::numeric_limits<T>::lowest();
      const auto key = [&](int64_t i) { return masked(i) ? absent : k.at(s, i, kc); };
      const auto grad_k = [&](int64_t i, Number g) { grad_ks.at(s, i, kc) += g; };
      const auto grad_v = [&](int64_t i, Number g) { grad_vs.at(s, i, ch) += g; };
      for (int64_t i = 0; i < s.sources; ++i) value[i] = v.at(s, i, ch);
      for (int64_t t = 0; t < s.targets; ++t) {
        const int64_t end = s.seen(t);
        T max = has_sums ? initial_max[sum_k] * ln2 : absent;
        for (int64_t i = 0; i < end; ++i) {
          weight[i] = in.weight_index(b, c.head(ch), s.position + t, s.at(i));
          exponent[i] = key(i) + (weight[i] >= 0 ? w[weight[i]] : T(0));
          max = std::max(max, exponent[i]);
        }
        if (max == absent) continue;  // nothing to see: 0 and no gradient
        Number den, num;
        const Number e_sums = has_sums ? Number::exp(initial_max[sum_k] * ln2 - max) : Number();
        if (has_sums) {
          den += e_sums * initial_den[sum_k];
          num += e_sums * initial_num[sum_v];
        }
        for (int64_t i = 0; i < end; ++i) {
          e[i] = exponent[i] == absent ? Number() : Number::exp(exponent[i] - max);
          if (e[i].value() == 0) continue;
          den += e[i];
          num += e[i] * value[i];
        }
        const int64_t at = (s.before_targets + t) * c.channels + ch;
        const Number ratio = num / den;
        y[at] = ratio;
        Number grad = grad_y[at];
        if (gated) {
          const Number gate = plain_gate(c.gate, q[at]);
          y[at] = gate * ratio;
          grad_q[at] = grad * ratio * plain_slope(c.gate, q[at]);
          grad = grad * gate;
        }
        const Number grad_num = grad / den;
        const Number grad_den = -grad_num * ratio;
        if (has_sums) {
          grad_initial_den[sum_k] += e_sums * grad_den;
          grad_initial_num[sum_v] += e_sums * grad_num;
        }
        for (int64_t i = 0; i < end; ++i) {
          if (e[i].value() == 0) continue;
          grad_v(i, e[i] * grad_num);
          for (const Number& through : {e[i] * grad_num * value[i], e[i] * grad_den}) {
            grad_k(i, through);
            if (weight[i] >= 0) grad_w[weight[i]] += through;
          }
        }
      }
      if (!in.has_final) continue;

      // The final state: its maximum is a constant for the gradient. den belongs to the key channel, counted once. The
      // gradient of the ring is one more summand, but the ring knows nothing of what was masked.
      const bool first_of_key = !c.key_per_head || ch % (c.channels / c.heads) == 0;
      const int64_t summed = std::max<int64_t>(0, s.sources - in.ring);
      T max = has_sums ? initial_max[sum_k] : std::numeric_limits<T>::lowest();
      for (int64_t i = 0; i < summed; ++i) {
        if (key(i) != absent) max = std::max(max, T(std::nearbyint(key(i) * std::numbers::log2e_v<T>)));
      }
      const T grad_den = first_of_key && grad_final_den != nullptr ? grad_final_den[sum_k] : T(0);
      const T grad_num = grad_final_num != nullptr ? grad_final_num[sum_v] : T(0);
      if (has_sums) {
        const Number scale = std::exp2(initial_max[sum_k] - max);
        if (first_of_key) final_den[sum_k] += scale * initial_den[sum_k];
        final_num[sum_v] += scale * initial_num[sum_v];
        grad_initial_den[sum_k] += scale * grad_den;
        grad_initial_num[sum_v] += scale * grad_num;
      }
      for (int64_t i = 0; i < s.sources; ++i) {
        if (masked(i)) continue;
        if (i >= summed) {
          if (first_of_key) grad_k(i, grad_final_key[s.slot(i) * keys + kc]);
          grad_v(i, grad_final_value[s.slot(i) * c.channels + ch]);
          continue;
        }
        const Number scale = key(i) == absent ? Number() : Number::exp(key(i) - max * ln2);
        if (scale.value() == 0) continue;
        if (first_of_key) final_den[sum_k] += scale;
        final_num[sum_v] += scale * value[i];
        grad_v(i, scale * grad_num);
        grad_k(i, scale * grad_den);
        grad_k(i, scale * value[i] * grad_num);
      }
    }
  }
}

// w = u v^T of every head that has its own, and their gradients from that of w.
template <typename E>
std::vector<Accumulate<E>> product_of_factors(const Inputs<E>& in) {
  using T = Accumulate<E>;
  const std::vector<T>&u = in["u"], &v = in["w"];
  std::vector<T> products;
  for (int64_t row = 0; row < in.c.weight_heads() * in.rows; ++row) {
    for (int64_t column = 0; column < in.columns; ++column) {
      const int64_t other = row / in.rows * in.columns + column;
      T sum = 0;
      for (int64_t f = 0; f < in.c.factors; ++f) sum += u[row * in.c.factors + f] * v[other * in.c.factors + f];
      products.push_back(sum);
    }
  }
  return products;
}
template <typename E>
void factor_gradients(const Inputs<E>& in, Numbers<E>& out) {
  const int64_t width = in.c.factors;
  auto &grad_u = out["grad_u"], &grad_v = out["grad_w"];
  const auto &u = in["u"], &v = in["w"];
  const auto& grad_w = out["grad_weights"];
  for (int64_t at = 0; at < static_cast<int64_t>(grad_w.size()); ++at) {
    const int64_t row = at / in.columns;
    const int64_t other = row / in.rows * in.columns + at % in.columns;
    for (int64_t f = 0; f < width; ++f) {
      grad_u[row * width + f] += grad_w[at] * v[other * width + f];
      grad_v[other * width + f] += grad_w[at] * u[row * width + f];
    }
  }
}

// Every sum in the order of its terms.
template <typename T>
Numbers<T> local_bias(const Inputs<T>& in) {
  using Number = PlainNumber<T>;
  const Case& c = in.c;
  const std::vector<T>&u = in["u"], &v = in["v"], &grad_band = in["grad_band"];
  const int64_t columns = c.left + 1 + c.right;
  std::vector<std::vector<Number>> band(grad_band.size()), grad_u(u.size()), grad_v(u.size());  // their terms
  for (int64_t at = 0; at < static_cast<int64_t>(grad_band.size()); ++at) {
    const int64_t row = at / columns;
    const int64_t source = row % c.time - c.left + at % columns;
    if (source < 0 || source >= c.time) continue;
    const int64_t other = row / c.time * c.time + source;
    for (int64_t f = 0; f < c.factors; ++f) {
      const int64_t a = row * c.factors + f, b = other * c.factors + f;
      band[at].push_back(Number(u[a]) * v[b]);
      grad_u[a].push_back(Number(grad_band[at]) * v[b]);
      grad_v[b].push_back(Number(grad_band[at]) * u[a]);
    }
  }
  Numbers<T> out;
  const auto add = [&](const char* name, const std::vector<std::vector<Number>>& terms) {
    std::vector<Number> sums;
    for (const auto& of_one : terms) sums.push_back(Number::sum(of_one));
    out.set(name, {Along::kNothing, static_cast<int64_t>(sums.size()), std::move(sums)});
  };
  add("band", band), add("grad_u", grad_u), add("grad_v", grad_v);
  return out;
}

template <typename E>
Numbers<E> attention(const Inputs<E>& in) {
  using Number = PlainNumber<Accumulate<E>>;
  Numbers<E> out;
  const auto like = [&](const std::string& name, Along along, int64_t width, size_t size) {
    out.set(name, {along, width, std::vector<Number>(size)});
  };
  for (const auto& [name, x] : in) {
    if (name == "grad_y") like("y", x.along, x.width, x.x.size());
    const bool constant = name == "key_mask" || name == "initial_max" || name.starts_with("grad_");
    if (!constant) like("grad_" + name, x.along, x.width, x.x.size());
  }
  for (const std::string part : {"den", "num"}) {
    const int64_t width = in.state_width(part);
    if (in.has_final) like("final_" + part, Along::kSequences, width, in.c.batch * width);
  }
  if (!in.c.has_factors()) {
    attend(in, in.has("weights") ? in["weights"] : std::vector<Accumulate<E>>(), out);
    return out;
  }
  const std::vector<Accumulate<E>> w = product_of_factors(in);
  like("grad_weights", Along::kNothing, w.size(), w.size());
  attend(in, w, out);
  factor_gradients(in, out);
  out.remove("grad_weights");
  return out;
}

}  // namespace

template <typename E>
Plain<E> run_plain(const Inputs<E>& in) {
  Numbers<E> numbers;
  if constexpr (!kIs16Bit<E>) {
    if (in.c.op == Operator::kLocalBias) numbers = local_bias(in);
  }
  if (in.c.op != Operator::kLocalBias) numbers = attention(in);
  Plain<E> plain;
  for (const auto& [name, from] : numbers) {
    Array<Accumulate<E>> values{from.along, from.width, {}};
    Array<double> scales{from.along, from.width, {}};
    if (is_tensor(from.along)) {
      store_plain<E>(from.x, values.x, scales.x);
    } else {
      store_plain<Accumulate<E>>(from.x, values.x, scales.x);
    }
    plain.outputs.set(name, std::move(values));
    plain.scales.set(name, std::move(scales));
  }
  return plain;
}

template Plain<float> run_plain<float>(const Inputs<float>&);
template Plain<double> run_plain<double>(const Inputs<double>&);
template Plain<BFloat16> run_plain<BFloat16>(const Inputs<BFloat16>&);
template Plain<Float16> run_plain<Float16>(const Inputs<Float16>&);

}  // namespace aft::ops::test
