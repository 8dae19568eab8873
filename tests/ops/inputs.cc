#include "tests/ops/inputs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "tests/ops/input_classes.h"

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

// Draws the numbers of one case.
template <typename E>
class Drawing {
 public:
  using T = Accumulate<E>;

  explicit Drawing(const Case& of) : c(of), r_(of.seed * 7919 + 17) {
    // 1e-30 in float, its like in double and in binary16.
    const double tiny = std::is_same_v<E, Float16> ? 1e-5 : sizeof(T) == 4 ? 1e-30 : 1e-300;
    if (c.input == "tiny" && c.seed % 3 != 2) value_size_ = tiny;
    if (c.input == "tiny" && c.seed % 3 != 1) grad_size_ = tiny;
  }

  Inputs<E> inputs() {
    in.c = c;
    if (c.op == Operator::kLocalBias) {
      for (const char* name : {"u", "v"}) add(name, Along::kNothing, c.heads * c.time * c.factors, &Drawing::normal);
      add("grad_band", Along::kNothing, c.heads * c.time * (c.left + 1 + c.right), &Drawing::normal);
      return in;
    }
    draw_positions();
    if (c.gate != Gate::kNone) add("q", Along::kTargets, c.channels, &Drawing::normal);
    draw_keys();
    add("v", Along::kSources, c.channels, &Drawing::value);
    add("grad_y", Along::kTargets, c.channels, &Drawing::grad);
    if (c.masked) draw_mask();
    draw_weights();
    if (in.has_final) draw_final_gradients();
    if (c.state) draw_initial_state();
    return in;
  }

 private:
  double normal() { return r_.normal(); }
  double value() { return value_size_ * r_.normal(); }
  double grad() { return grad_size_ * r_.normal(); }
  double key(int64_t position, int64_t channel) {
    return key_value(c.input, r_, position, channel, c.key_channels() - 1);
  }
  bool windowed() const { return c.family() == Family::kWindow; }

  int64_t size(Along along, int64_t width) const {
    return c.batch == 0 && along != Along::kNothing ? 0 : part_of(c, along, width, c.batch - 1).end;
  }
  std::vector<T>& empty(const std::string& name, Along along, int64_t width) {
    in.set(name, {along, width, std::vector<T>(size(along, width))});
    return in[name];
  }
  /// Tensors are rounded to E.
  void add(const std::string& name, Along along, int64_t width, double (Drawing::*draw)()) {
    for (T& x : empty(name, along, width)) x = is_tensor(along) ? rounded<E>(T((this->*draw)())) : T((this->*draw)());
  }

  void draw_positions() {
    in.position.assign(c.state ? c.batch : 0, 0);
    const int64_t reach = windowed() ? 2 * c.left + 9 : 230;
    for (int64_t b = 0; b < static_cast<int64_t>(in.position.size()); ++b) {
      // One row is new, others stand within their first window or past it.
      const bool fresh = c.batch > 1 && b == static_cast<int64_t>(c.seed) % c.batch;
      in.position[b] = fresh ? 0 : (b * 17 + static_cast<int64_t>(c.seed) * 5) % reach;
      furthest_ = std::max(furthest_, in.position[b]);
    }
    const bool may_have_state = c.causal && (windowed() || !c.packed());
    in.has_final = may_have_state && (c.state || c.seed % 2 == 0);
    if (windowed()) in.ring = c.left;
    if (c.op == Operator::kFull && may_have_state) in.ring = furthest_ + c.time + 2;
  }

  void draw_keys() {
    std::vector<T>& k = empty("k", Along::kSources, c.key_channels());
    size_t i = 0;
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t t = 0; t < c.sources_of(b); ++t) {
        for (int64_t channel = 0; channel < c.key_channels(); ++channel) {
          const double x = key((in.has_initial() ? in.position[b] : 0) + t, channel);
          T stored = rounded<E>(T(x));
          // Stays within the promised range: 65504 is not a number of bfloat16, and the next is larger.
          if (std::isfinite(x) && std::abs(stored) > 65504) stored = std::copysign(T(65280), stored);
          k[i++] = windowed() ? clear_of_ties<E>(stored) : stored;
        }
      }
    }
  }

  // Whole stretches too, and all of the first sequence where there are others.
  void draw_mask() {
    std::vector<T>& mask = empty("key_mask", Along::kSources, 1);
    const int64_t hidden = c.batch > 1 ? c.sources_of(0) : 0;
    for (int64_t i = 0; i < static_cast<int64_t>(mask.size()); ++i) {
      mask[i] = T(i >= hidden && i % 31 > 9 && r_.chance(0.7));
    }
  }

  void draw_weights() {
    if (c.op == Operator::kSimple) return;
    if (c.op == Operator::kFull) return draw_full_weights();
    in.columns = windowed() ? c.left + 1 + c.right : c.kernel;
    in.rows = c.op == Operator::kLocal ? furthest_ + c.time + 3 : c.op == Operator::kConv2d ? c.kernel : 1;
    std::vector<T>& w = empty("weights", Along::kNothing, c.heads * in.rows * in.columns);
    for (int64_t i = 0; i < static_cast<int64_t>(w.size()); ++i) {
      const int64_t in_head = i % (in.rows * in.columns);
      const int64_t source =
          windowed() ? in_head / in.columns - c.left + in_head % in.columns : in_head - (c.kernel * c.kernel - 1) / 2;
      w[i] = T(weight_value(c.input, r_, source));
    }
  }

  void draw_full_weights() {
    const int64_t longest = c.packed() ? *std::max_element(c.lengths.begin(), c.lengths.end()) : furthest_ + c.time;
    in.rows = longest + 1;
    in.columns = (c.causal || c.packed() ? longest : c.source_count()) + 2;
    if (c.has_factors()) {
      const double factor_size = c.factors > 100 ? 0.05 : 0.5;
      for (const auto& [name, count] : {std::pair("u", in.rows), std::pair("w", in.columns)}) {
        for (T& x : empty(name, Along::kNothing, c.weight_heads() * count * c.factors)) {
          x = T(factor_size * r_.normal());
        }
      }
      return;
    }
    const Along along = c.weights_per_batch() ? Along::kSequences : Along::kNothing;
    std::vector<T>& w = empty("weights", along, c.weight_heads() * in.rows * in.columns);
    for (size_t i = 0; i < w.size(); ++i) {
      w[i] = T(weight_value(c.input, r_, static_cast<int64_t>(i) % in.columns));
    }
  }

  // About as large as the summed e^k 2^-max allow. The sums of `full` hold nothing.
  void draw_final_gradients() {
    for (const std::string part : {"den", "num", "ring_key", "ring_value"}) {
      if (c.op == Operator::kFull && part.size() == 3) continue;
      add("grad_final_" + part, Along::kSequences, in.state_width(part), &Drawing::grad);
    }
  }

  void draw_initial_state() {
    const int64_t keys = c.key_channels();
    for (const std::string part : kStateParts) empty("initial_" + part, Along::kSequences, in.state_width(part));
    std::vector<T>&max = in["initial_max"], &sum = in["initial_den"], &num = in["initial_num"];
    std::vector<T>&ring_key = in["initial_ring_key"], &ring_value = in["initial_ring_value"];
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t i = 0; i < keys; ++i) {
        const double k = key(in.position[b] - in.ring - 1, i);
        const bool neutral = in.position[b] <= in.ring || k == -kInf;
        max[b * keys + i] = neutral ? std::numeric_limits<T>::lowest() : T(std::nearbyint(k * std::numbers::log2e));
        sum[b * keys + i] = neutral ? T(0) : T(0.7 + 3 * r_.uniform());
      }
      for (int64_t i = 0; i < c.channels; ++i) {
        const T den = sum[b * keys + c.key_channel(i)];
        num[b * c.channels + i] = den == 0 ? T(0) : den * T(value());
      }
      for (int64_t slot = b * in.ring; slot < (b + 1) * in.ring; ++slot) {
        // The source in the slot: the last one before position that is congruent to it.
        const int64_t last = in.position[b] - 1;
        const int64_t source = last - (((last - slot % in.ring) % in.ring) + in.ring) % in.ring;
        for (int64_t i = 0; i < keys; ++i) {
          const T k = T(key(source, i));
          ring_key[slot * keys + i] = source < 0 ? T(0) : windowed() ? clear_of_ties<T>(k) : k;
        }
        for (int64_t i = 0; i < c.channels; ++i) {
          ring_value[slot * c.channels + i] = source < 0 ? T(0) : T(value());
        }
      }
    }
  }

  const Case& c;
  Inputs<E> in;
  Random r_;
  double value_size_ = 1, grad_size_ = 1;
  int64_t furthest_ = 0;  // position
};

}  // namespace

Part part_of(const Case& c, Along along, int64_t width, int64_t b) {
  switch (along) {
    case Along::kTargets:
      return {c.targets_before(b) * width, (c.targets_before(b) + c.targets_of(b)) * width};
    case Along::kSources:
      return {c.sources_before(b) * width, (c.sources_before(b) + c.sources_of(b)) * width};
    case Along::kSequences:
      return {b * width, (b + 1) * width};
    case Along::kNothing:
      break;
  }
  return {0, width};
}

template <typename E>
int64_t Inputs<E>::state_width(std::string_view part) const {
  return (part.starts_with("ring") ? ring : 1) *
         (part == "num" || part == "ring_value" ? c.channels : c.key_channels());
}

template <typename E>
int64_t Inputs<E>::weight_index(int64_t b, int64_t head, int64_t target, int64_t source) const {
  int64_t row = 0, column = 0;
  switch (c.op) {
    case Operator::kLocal:
    case Operator::kConv1d:
      row = c.op == Operator::kLocal ? target : 0;
      column = source - target + c.left;
      if (column < 0 || column >= columns) return -1;
      break;
    case Operator::kConv2d:
      row = source / c.width - target / c.width + c.kernel / 2;
      column = source % c.width - target % c.width + c.kernel / 2;
      if (std::min(row, column) < 0 || std::max(row, column) >= c.kernel) return -1;
      break;
    case Operator::kFull:
      row = target, column = source;
      break;
    default:
      return -1;
  }
  const int64_t matrix = (c.weights_per_batch() ? b * c.weight_heads() : 0) + (c.weight_heads() > 1 ? head : 0);
  return (matrix * rows + row) * columns + column;
}

template <typename E>
Inputs<E> make_inputs(const Case& c) {
  return Drawing<E>(c).inputs();
}

template <typename R, typename E>
Inputs<R> convert(const Inputs<E>& in) {
  using T = Accumulate<E>;
  Inputs<R> out;
  out.c = in.c, out.rows = in.rows, out.columns = in.columns, out.ring = in.ring;
  out.has_final = in.has_final, out.position = in.position;
  for (const auto& [name, from] : in) {
    Array<R> to{from.along, from.width, {from.x.begin(), from.x.end()}};
    for (size_t i = 0; name == "initial_max" && i < to.x.size(); ++i) {
      if (from.x[i] == std::numeric_limits<T>::lowest()) to.x[i] = std::numeric_limits<R>::lowest();
    }
    out.set(name, std::move(to));
  }
  return out;
}

template <typename E>
Inputs<E> batch_of(const Inputs<E>& in, const std::vector<int64_t>& sequences) {
  Inputs<E> out = in;
  out.c.batch = static_cast<int64_t>(sequences.size());
  if (in.c.packed()) {
    std::vector<int64_t> lengths;
    for (const int64_t b : sequences) lengths.push_back(in.c.lengths[b]);
    pack(out.c, lengths);
    if (sequences.size() == 1) out.c.lengths.clear();
  }
  for (auto& [name, to] : out) {
    if (to.along == Along::kNothing) continue;
    to.x.clear();
    const auto from = in[name].begin();
    for (const int64_t b : sequences) {
      const Part part = part_of(in.c, to.along, to.width, b);
      to.x.insert(to.x.end(), from + part.begin, from + part.end);
    }
  }
  out.position.clear();
  for (size_t i = 0; in.has_initial() && i < sequences.size(); ++i) out.position.push_back(in.position[sequences[i]]);
  return out;
}

template <typename E>
Inputs<E> cut_time(const Inputs<E>& in, int64_t begin, int64_t end) {
  Inputs<E> out = in;
  out.c.time = end - begin;
  for (auto& [name, to] : out) {
    if (to.along != Along::kTargets && to.along != Along::kSources) continue;
    to.x.clear();
    for (int64_t b = 0; b < in.c.batch; ++b) {
      const auto row = in[name].begin() + b * in.c.time * to.width;
      to.x.insert(to.x.end(), row + begin * to.width, row + end * to.width);
    }
  }
  return out;
}

template <typename E>
void start_from(Inputs<E>& in, const Outputs<E>& before) {
  in.position = before.position;
  for (const std::string part : kStateParts) in.set("initial_" + part, before.array("final_" + part));
}

template <typename E>
void start_anew(Inputs<E>& in) {
  in.position.assign(in.c.batch, 0);
  for (const std::string part : kStateParts) {
    const int64_t width = in.state_width(part);
    const Accumulate<E> x = part == "max" ? std::numeric_limits<Accumulate<E>>::lowest() : Accumulate<E>(0);
    in.set("initial_" + part, {Along::kSequences, width, std::vector<Accumulate<E>>(in.c.batch * width, x)});
  }
}

#define AFT_INSTANTIATE(E)                                                       \
  template struct Inputs<E>;                                                     \
  template Inputs<E> make_inputs<E>(const Case&);                                \
  template Inputs<E> batch_of<E>(const Inputs<E>&, const std::vector<int64_t>&); \
  template Inputs<E> cut_time<E>(const Inputs<E>&, int64_t, int64_t);            \
  template void start_from<E>(Inputs<E>&, const Outputs<E>&);                    \
  template void start_anew<E>(Inputs<E>&);
AFT_INSTANTIATE(float)
AFT_INSTANTIATE(double)
AFT_INSTANTIATE(BFloat16)
AFT_INSTANTIATE(Float16)
#undef AFT_INSTANTIATE
template struct Inputs<long double>;
template Inputs<double> convert<double, float>(const Inputs<float>&);
template Inputs<double> convert<double, double>(const Inputs<double>&);
template Inputs<double> convert<double, BFloat16>(const Inputs<BFloat16>&);
template Inputs<double> convert<double, Float16>(const Inputs<Float16>&);
template Inputs<long double> convert<long double, double>(const Inputs<double>&);

}  // namespace aft::ops::test
