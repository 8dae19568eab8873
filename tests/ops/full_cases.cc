#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/ops/element.h"
#include "tests/ops/full_run.h"
#include "tests/ops/input_classes.h"

namespace aft::ops::test {

std::string describe(const FullCase& c) {
  const char* gate = c.gate == Gate::kSigmoid ? "sigmoid" : c.gate == Gate::kRelu ? "relu" : "none";
  constexpr const char* kNames[] = {"table",   "table per head",  "table per batch row", "table per batch row and head",
                                    "factors", "factors per head"};
  std::string text = std::string("full") + (c.causal ? " causal" : " non-causal") + " input=" + c.input +
                     " B=" + std::to_string(c.batch) + " Tq=" + std::to_string(c.targets) +
                     " Tk=" + std::to_string(c.sources) + " d=" + std::to_string(c.channels) +
                     " H=" + std::to_string(c.heads) + (c.key_per_head ? " key-per-head" : "") + " gate=" + gate +
                     " weights=" + kNames[static_cast<int>(c.weights)] + (c.state ? " state" : "") +
                     (c.masked ? " masked" : "") + " seed=" + std::to_string(c.seed);
  for (const int64_t n : c.lengths) text += " length=" + std::to_string(n);
  return text;
}

std::vector<FullCase> full_cases() {
  std::vector<FullCase> cases;
  uint64_t n = 0;
  for (const int64_t time : {0, 1, 2, 3, 31, 33, 97, 193, 210, 390}) {
    for (const bool causal : {true, false}) {
      for (int variant = 0; variant < 3; ++variant) {
        FullCase c;
        c.seed = ++n;
        c.targets = time;
        c.causal = causal;
        c.sources = causal || variant == 0 ? time : std::max<int64_t>(0, time + (variant == 1 ? 7 : -5));
        c.heads = n % 3 == 0 ? 3 : 1;
        const std::vector<int64_t> one_head = time > 210  ? std::vector<int64_t>{2}
                                              : time > 97 ? std::vector<int64_t>{3, 5}
                                                          : std::vector<int64_t>{1, 7, 19, 37};
        const std::vector<int64_t> three_heads =
            time > 97 ? std::vector<int64_t>{3, 6} : std::vector<int64_t>{3, 9, 51};
        const auto& widths = c.heads == 3 ? three_heads : one_head;
        c.channels = widths[n / 3 % widths.size()];
        c.batch = time > 210 ? 1 : time > 97 ? 1 + static_cast<int64_t>(n % 2) : 3;
        c.key_per_head = n % 4 == 1;
        c.gate = n % 5 == 2 ? Gate::kRelu : n % 5 == 4 ? Gate::kNone : Gate::kSigmoid;
        c.weights = static_cast<Weights>(n % 6);
        c.state = causal && n % 4 >= 2;
        c.masked = n % 7 == 3;
        cases.push_back(c);
      }
    }
  }
  // Heads of one channel; factors wider than a chunk; packed sequences, some empty.
  const auto add = [&](FullCase c) {
    c.seed = 500 + cases.size();
    cases.push_back(c);
  };
  add({.batch = 2, .targets = 40, .sources = 40, .channels = 5, .heads = 5, .weights = Weights::kTablePerHead});
  add({.batch = 2,
       .targets = 40,
       .sources = 33,
       .channels = 5,
       .heads = 5,
       .causal = false,
       .weights = Weights::kFactorsPerHead});
  add({.targets = 60, .sources = 60, .channels = 9, .weights = Weights::kFactors, .width = 230});
  add({.targets = 60, .sources = 60, .channels = 9, .weights = Weights::kFactors, .width = 0});
  for (const bool causal : {true, false}) {
    for (const Weights w : {Weights::kTable, Weights::kFactors, Weights::kTablePerHead}) {
      add({.batch = 6,
           .channels = 21,
           .heads = 3,
           .key_per_head = w == Weights::kFactors,
           .causal = causal,
           .weights = w,
           .masked = w == Weights::kTable,
           .lengths = {5, 0, 1, 210, 33, 0}});
    }
  }
  return cases;
}

std::vector<FullCase> full_hard_cases(const std::string& input) {
  std::vector<FullCase> cases;
  uint64_t n = 0;
  for (const int64_t time : {5, 40, 70, 200}) {
    for (int variant = 0; variant < (time > 70 ? 1 : 4); ++variant) {
      for (const bool causal : {true, false}) {
        FullCase c;
        c.input = input;
        c.seed = 3000 + ++n;
        c.batch = time > 70 ? 1 : 8;
        c.targets = time;
        c.causal = causal;
        c.sources = causal ? time : time + variant;
        c.heads = n % 3 == 0 ? 3 : 1;
        c.channels = c.heads == 3 ? 6 : 5;
        c.key_per_head = n % 5 == 3;
        c.state = causal && n % 3 == 1;
        c.weights = variant == 1 ? Weights::kTablePerHead : variant == 2 ? Weights::kTablePerBatch : Weights::kTable;
        c.gate = n % 7 == 0 ? Gate::kNone : Gate::kSigmoid;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

template <typename E>
FullInputs<Accumulate<E>> make_full_inputs(const FullCase& c) {
  using T = Accumulate<E>;
  Random r(c.seed * 104729 + 5);
  const auto stored = [](double x) { return rounded<E>(static_cast<T>(x)); };
  const auto stored_key = [&](double x) {
    const T k = stored(x);
    return std::isfinite(x) && std::abs(k) > 65504 ? std::copysign(T(65280), k) : k;
  };
  FullInputs<T> in;
  FullShape& s = in.shape;
  s.batch = c.batch;
  s.targets = c.targets;
  s.sources = c.causal ? c.targets : c.sources;
  s.channels = c.channels;
  s.heads = c.heads;
  s.key_channels = c.key_per_head ? c.heads : c.channels;
  s.causal = c.causal;
  s.gate = c.gate;
  if (!c.lengths.empty()) {
    in.cu_seqlens = {0};
    for (const int64_t n : c.lengths) in.cu_seqlens.push_back(in.cu_seqlens.back() + n);
    s.batch = static_cast<int64_t>(c.lengths.size());
    s.targets = s.sources = in.cu_seqlens.back();
    s.packed = true;
  }
  std::vector<int64_t> position(s.batch, 0);
  if (c.state) {
    for (int64_t b = 0; b < s.batch; ++b) position[b] = b == 0 && s.batch > 1 ? 0 : (b * 37 + c.seed * 11) % 230;
  }
  const int64_t furthest = position.empty() ? 0 : *std::max_element(position.begin(), position.end());
  in.has_final = c.causal && c.lengths.empty() && (c.state || c.seed % 2 == 0);
  if (c.state || in.has_final) s.capacity = furthest + s.targets + 2;

  const double tiny = std::is_same_v<E, Float16> ? 1e-5 : sizeof(T) == 4 ? 1e-30 : 1e-300;
  const double value_size = c.input == "tiny" && c.seed % 3 != 2 ? tiny : 1;
  const double grad_size = c.input == "tiny" && c.seed % 3 != 1 ? tiny : 1;
  const int64_t rows = in.tensor_rows();
  for (int64_t i = 0; i < rows * s.targets * s.channels; ++i) {
    if (s.gate != Gate::kNone) in.q.push_back(stored(r.normal()));
    in.grad_y.push_back(stored(grad_size * r.normal()));
  }
  for (int64_t i = 0; i < rows * s.sources * s.channels; ++i) in.v.push_back(stored(value_size * r.normal()));
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t t = 0; t < s.sources; ++t) {
      for (int64_t i = 0; i < s.key_channels; ++i) {
        in.k.push_back(
            stored_key(key_value(c.input, r, position.empty() ? t : position[b] + t, i, s.key_channels - 1)));
      }
    }
  }
  if (c.masked) {
    for (int64_t i = 0; i < rows * s.sources; ++i) in.mask.push_back(i >= s.sources / 3 && !r.chance(0.3) ? 1 : 0);
  }

  in.weights = c.weights;
  const int64_t longest = c.lengths.empty() ? 0 : *std::max_element(c.lengths.begin(), c.lengths.end());
  in.rows = (c.lengths.empty() ? furthest + s.targets : longest) + 1;
  in.columns = (c.lengths.empty() ? (c.causal ? furthest + s.targets : s.sources) : longest) + 2;
  const bool factors = c.weights == Weights::kFactors || c.weights == Weights::kFactorsPerHead;
  const int64_t per_head = c.weights == Weights::kTablePerHead || c.weights == Weights::kTablePerBatchAndHead ||
                                   c.weights == Weights::kFactorsPerHead
                               ? s.heads
                               : 1;
  const int64_t per_batch =
      c.weights == Weights::kTablePerBatch || c.weights == Weights::kTablePerBatchAndHead ? s.batch : 1;
  if (factors) {
    in.width = c.width;
    const double size = c.width > 100 ? 0.05 : 0.5;
    for (int64_t i = 0; i < per_head * in.rows * c.width; ++i) in.u.push_back(static_cast<T>(size * r.normal()));
    for (int64_t i = 0; i < per_head * in.columns * c.width; ++i) in.w.push_back(static_cast<T>(size * r.normal()));
  } else {
    for (int64_t m = 0; m < per_batch * per_head; ++m) {
      for (int64_t t = 0; t < in.rows; ++t) {
        for (int64_t i = 0; i < in.columns; ++i) {
          in.table.push_back(static_cast<T>(weight_value(c.input, r, i)));
        }
      }
    }
  }
  if (in.has_final) {
    for (int64_t i = 0; i < s.batch * s.capacity * s.key_channels; ++i) {
      in.grad_final.ring_key.push_back(static_cast<T>(grad_size * r.normal()));
    }
    for (int64_t i = 0; i < s.batch * s.capacity * s.channels; ++i) {
      in.grad_final.ring_value.push_back(static_cast<T>(grad_size * r.normal()));
    }
  }
  if (!c.state) return in;
  in.initial.position = position;
  in.initial.max.assign(s.batch * s.key_channels, std::numeric_limits<T>::lowest());
  in.initial.den.assign(s.batch * s.key_channels, T(0));
  in.initial.num.assign(s.batch * s.channels, T(0));
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t t = 0; t < s.capacity; ++t) {
      const bool held = t < position[b];
      for (int64_t i = 0; i < s.key_channels; ++i) {
        const T k = stored_key(key_value(c.input, r, t, i, s.key_channels - 1));
        in.initial.ring_key.push_back(held ? k : T(0));
      }
      for (int64_t i = 0; i < s.channels; ++i) {
        const T v = stored(value_size * r.normal());
        in.initial.ring_value.push_back(held ? v : T(0));
      }
    }
  }
  return in;
}

template FullInputs<float> make_full_inputs<float>(const FullCase&);
template FullInputs<double> make_full_inputs<double>(const FullCase&);
template FullInputs<float> make_full_inputs<BFloat16>(const FullCase&);
template FullInputs<float> make_full_inputs<Float16>(const FullCase&);

}  // namespace aft::ops::test
