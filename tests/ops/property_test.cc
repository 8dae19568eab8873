// Choices small cases, other ones every run, and what must hold of each. A failure prints its case as one line:
//
//     AFT_PROPERTY_SEED=7 AFT_PROPERTY_CASES=100000      repeats a run, asks for more of it
//     AFT_PROPERTY_CASE='local causal input=wide B=1 T=4 d=1 H=1 left=2 right=0 gate=none seed=9'
//
// runs that case alone: make it smaller by hand until it no longer fails, then keep it as a test.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <numbers>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/ops/threads.h"
#include "tests/ops/window_compare.h"

namespace aft::ops::test {
namespace {

class Choices {
 public:
  explicit Choices(uint64_t seed) : engine_(seed) {}
  /// From `low` to `high`, both included.
  int64_t whole(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  bool chance(double p) { return std::uniform_real_distribution<double>()(engine_) < p; }
  template <typename X>
  X one_of(const std::vector<X>& all) {
    return all[whole(0, int64_t(all.size()) - 1)];
  }

 private:
  std::mt19937_64 engine_;
};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// Family: a kernel family, with Case, random_case(Choices&), parse_case(line), describe(case) and
/// check<T>(rule, case): all properties of one case.
template <typename Family, typename T>
void run_properties() {
  ErrorRule<T> rule;
  if (const std::string line = environment("AFT_PROPERTY_CASE"); !line.empty()) {
    if (!Family::owns(line)) GTEST_SKIP() << "a case of another family";
    Family::template check<T>(rule, Family::parse_case(line));
    // The rule is one of pools: a case alone may lie above it by accident.
    std::cout << kDtype<T> << ": largest error " << rule.largest() << " scales of the plain error\n";
    return;
  }
  const std::string given = environment("AFT_PROPERTY_SEED");
  const uint64_t seed = given.empty() ? std::random_device()() : std::stoull(given);
  const std::string count = environment("AFT_PROPERTY_CASES");
  const int64_t cases = count.empty() ? 2500 : std::stoll(count);
  std::cout << kDtype<T> << ": AFT_PROPERTY_SEED=" << seed << " AFT_PROPERTY_CASES=" << cases << std::endl;
  SCOPED_TRACE("AFT_PROPERTY_SEED=" + std::to_string(seed));
  Choices random(seed);
  for (int64_t i = 0; i < cases && !::testing::Test::HasFailure(); ++i) {
    const auto c = Family::random_case(random);
    SCOPED_TRACE("AFT_PROPERTY_CASE='" + Family::describe(c) + "'");
    Family::template check<T>(rule, c);
  }
  if (!::testing::Test::HasFailure()) rule.check(/*smallest=*/1000);
}

// ---- the windowed operator: simple, local, conv1d

struct WindowFamily {
  using Case = WindowCase;

  static std::string describe(const Case& c) { return test::describe(c); }

  static bool owns(const std::string& line) {
    return line.rfind("simple", 0) == 0 || line.rfind("local", 0) == 0 || line.rfind("conv1d", 0) == 0;
  }

  static Case random_case(Choices& r) {
    Case c;
    c.input = r.chance(0.4) ? "normal" : r.one_of(hard_inputs());
    c.time = r.whole(0, r.one_of<int64_t>({3, 12, 40, 70}));
    c.batch = r.whole(1, 3);
    c.heads = r.whole(1, 3);
    c.channels = c.heads * r.whole(1, 6);
    c.key_per_head = r.chance(0.3);
    c.causal = r.chance(0.6);
    c.has_band = r.chance(0.75);
    c.shared_row = c.has_band && r.chance(0.4);
    if (c.has_band) {
      c.left = r.whole(0, r.one_of<int64_t>({2, 9, c.time + 3}));
      c.right = c.causal ? 0 : r.whole(0, r.one_of<int64_t>({2, 9, c.time + 3}));
    }
    c.gate = r.one_of<Gate>({Gate::kSigmoid, Gate::kSigmoid, Gate::kRelu, Gate::kNone});
    c.state = c.causal && r.chance(0.5);
    c.masked = r.chance(0.2);
    if (r.chance(0.2)) {
      std::vector<int64_t> lengths(r.whole(1, 5));
      for (int64_t& length : lengths) length = r.whole(0, r.one_of<int64_t>({2, 12, 40}));
      pack(c, lengths);
    }
    c.seed = r.whole(0, 1'000'000);
    return c;
  }

  /// The inverse of describe().
  static Case parse_case(const std::string& line) {
    Case c;
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      const std::string name = word.substr(0, equals);
      const std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
      const auto number = [&] { return std::stoll(value); };
      if (name == "simple")
        c.has_band = false;
      else if (name == "local")
        c.has_band = true;
      else if (name == "conv1d")
        c.has_band = c.shared_row = true;
      else if (name == "causal")
        c.causal = true;
      else if (name == "non-causal")
        c.causal = false;
      else if (name == "key-per-head")
        c.key_per_head = true;
      else if (name == "state")
        c.state = true;
      else if (name == "input")
        c.input = value;
      else if (name == "B")
        c.batch = number();
      else if (name == "T")
        c.time = number();
      else if (name == "d")
        c.channels = number();
      else if (name == "H")
        c.heads = number();
      else if (name == "left")
        c.left = number();
      else if (name == "right")
        c.right = number();
      else if (name == "gate")
        c.gate = value == "sigmoid" ? Gate::kSigmoid : value == "relu" ? Gate::kRelu : Gate::kNone;
      else if (name == "masked")
        c.masked = true;
      else if (name == "packed") {
        std::vector<int64_t> lengths;
        std::istringstream list(value);
        for (std::string length; std::getline(list, length, ',');) lengths.push_back(std::stoll(length));
        pack(c, lengths);
      } else if (name == "seed")
        c.seed = number();
      else
        throw std::invalid_argument("AFT_PROPERTY_CASE: unknown word " + word);
    }
    return c;
  }

  template <typename T>
  static void check(ErrorRule<T>& rule, const Case& c) {
    Choices r(c.seed);
    const JudgedCase<T> judged(c);
    const WindowInputs<T>& in = judged.inputs;
    const TargetScope target(r.one_of(machine_targets()));
    const WindowOutputs<T> whole = run_kernel(in, {.shift = r.whole(0, 3)});
    judge(rule, judged, whole);

    Threads threads(r.whole(2, 4));
    expect_same_bits(whole, run_kernel(in, {.parallel = threads.parallel_for(), .shift = r.whole(0, 3)}), "threads");
    expect_rows_of_another_batch(in, whole, r);
    if (c.causal) expect_future_unseen(in, whole, r);
    if (c.causal && !c.masked && !in.packed()) {
      judge(rule, judged, in_two_pieces(in, whole, r), "", /*backward=*/false);
    }
    expect_shift_of_keys_cancels(in, whole, r);
  }

 private:
  /// The rows given, in this order, as a batch; packed if they were, one alone not.
  template <typename T>
  static WindowInputs<T> batch_of(const WindowInputs<T>& in, const std::vector<int64_t>& rows) {
    WindowInputs<T> out = slice_batch(in, rows[0]);
    const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    const auto append_state = [&](StateData<T>& to, const StateData<T>& from) {
      append(to.position, from.position);
      append(to.max, from.max);
      append(to.den, from.den);
      append(to.num, from.num);
      append(to.ring_key, from.ring_key);
      append(to.ring_value, from.ring_value);
    };
    for (size_t i = 1; i < rows.size(); ++i) {
      const WindowInputs<T> row = slice_batch(in, rows[i]);
      append(out.q, row.q);
      append(out.k, row.k);
      append(out.v, row.v);
      append(out.grad_y, row.grad_y);
      append(out.key_mask, row.key_mask);
      append_state(out.initial, row.initial);
      append_state(out.grad_final, row.grad_final);
    }
    out.shape.batch = static_cast<int64_t>(rows.size());
    if (in.packed() && rows.size() > 1) {
      out.cu_seqlens = {0};
      for (const int64_t row : rows) out.cu_seqlens.push_back(out.cu_seqlens.back() + in.time_of(row));
      out.shape.time = out.cu_seqlens.back();
      out.shape.packed = true;
    }
    return out;
  }

  // A row is the same bits in any batch: the rows in another order, some left out, some twice.
  template <typename T>
  static void expect_rows_of_another_batch(const WindowInputs<T>& in, const WindowOutputs<T>& whole, Choices& r) {
    const int64_t batch = in.shape.batch;
    std::vector<int64_t> rows(r.whole(1, 4));
    for (int64_t& row : rows) row = r.whole(0, batch - 1);
    const WindowInputs<T> chosen = batch_of(in, rows);
    const WindowOutputs<T> other = run_kernel(chosen);
    for (int output = 0; output < kOutputs; ++output) {
      const std::vector<T>& all = whole.of[output];
      if (output == kGradBand || all.empty()) continue;
      const bool of_tokens = output == kY || output == kGradQ || output == kGradK || output == kGradV;
      const int64_t width = int64_t(all.size()) / (of_tokens ? in.tokens() : batch);
      for (size_t i = 0; i < rows.size(); ++i) {
        const int64_t from = width * (of_tokens ? in.tokens_before(rows[i]) : rows[i]);
        const int64_t to = width * (of_tokens ? chosen.tokens_before(int64_t(i)) : int64_t(i));
        for (int64_t e = 0; e < width * (of_tokens ? in.time_of(rows[i]) : 1); ++e) {
          ASSERT_TRUE(same_bits(other.of[output][to + e], all[from + e]))
              << kOutputNames[output] << ", element " << e << " of row " << rows[i] << " as row " << i;
        }
      }
    }
  }

  // A sequence cut in two, the second piece in one call or in steps.
  template <typename T>
  static WindowOutputs<T> in_two_pieces(const WindowInputs<T>& in, const WindowOutputs<T>& whole, Choices& r) {
    const WindowShape& s = in.shape;
    const int64_t cut = r.whole(0, s.time);
    WindowInputs<T> first = slice_time(in, 0, cut, in.initial);
    first.has_final = true;
    const WindowOutputs<T> before = run_kernel(first, {.backward = false});
    const WindowInputs<T> second = slice_time(in, cut, s.time, final_state(before));
    WindowOutputs<T> out = r.chance(0.5) ? run_steps(second) : run_kernel(second, {.backward = false});
    if (!in.has_final) out = {.of = {out.of[kY]}, .position = {}, .max = {}, .ring_key = {}, .ring_value = {}};
    std::vector<T> y;
    for (int64_t b = 0; b < s.batch; ++b) {
      const auto append = [&](const std::vector<T>& piece, int64_t time) {
        const int64_t size = time * s.channels;
        y.insert(y.end(), piece.begin() + b * size, piece.begin() + (b + 1) * size);
      };
      append(before.of[kY], cut);
      append(out.of[kY], s.time - cut);
    }
    EXPECT_EQ(y.size(), whole.of[kY].size());
    out.of[kY] = y;
    return out;
  }

  // Whatever comes later, earlier rows keep every bit.
  template <typename T>
  static void expect_future_unseen(const WindowInputs<T>& in, const WindowOutputs<T>& whole, Choices& r) {
    const WindowShape& s = in.shape;
    constexpr T kInf = std::numeric_limits<T>::infinity();
    const std::vector<T> strange = {65504, -65504, T(1e30), T(-1e30), kInf, -kInf, std::nan("")};
    WindowInputs<T> changed = in;
    std::vector<int64_t> unseen;  // first row of each sequence that may differ, counted over all tokens
    for (int64_t b = 0; b < s.batch; ++b) {
      const int64_t end = in.tokens_before(b) + in.time_of(b);
      unseen.push_back(r.whole(in.tokens_before(b), end));
      for (int64_t i = unseen[b] * s.key_channels; i < end * s.key_channels; ++i) changed.k[i] = r.one_of(strange);
      for (int64_t i = unseen[b] * s.channels; i < end * s.channels; ++i) changed.v[i] = r.one_of(strange);
    }
    changed.has_final = false;
    const WindowOutputs<T> out = run_kernel(changed, {.backward = false});
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t i = in.tokens_before(b) * s.channels; i < unseen[b] * s.channels; ++i) {
        ASSERT_TRUE(same_bits(out.of[kY][i], whole.of[kY][i]))
            << "y[" << i << "]: " << out.of[kY][i] << " with another future, was " << whole.of[kY][i];
      }
    }
  }

  // Keys m ln 2 higher cancel out of N / D, and raise the maximum of the state by m.
  template <typename T>
  static void expect_shift_of_keys_cancels(const WindowInputs<T>& in, const WindowOutputs<T>& whole, Choices& r) {
    const WindowShape& s = in.shape;
    const T m = T(r.whole(-30, 30));
    const T lowest = std::numeric_limits<T>::lowest();
    Truth<T> moved = 0;  // the largest error of a shifted key: rounding
    const auto shift = [&](T& k) {
      if (!std::isfinite(k)) return;
      const Truth<T> exact = Truth<T>(k) + Truth<T>(m) * std::numbers::ln2_v<Truth<T>>;
      k = T(exact);
      moved = std::max(moved, std::abs(Truth<T>(k) - exact));
    };
    WindowInputs<T> shifted = in;
    for (T& k : shifted.k) shift(k);
    for (T& k : shifted.initial.ring_key) shift(k);
    for (T& max : shifted.initial.max) max = max == lowest ? max : max + m;
    const WindowOutputs<T> out = run_kernel(shifted, {.backward = false});

    // A sum of n positive terms is off by at most n + 8 roundings (8: exponential, product, division, gate), here four
    // times: N and D of either run. Moved weights change N / D by a factor of exp(2 moved) of the largest value.
    double largest = 0;
    for (const auto* values : {&in.v, &in.initial.ring_value}) {
      for (const T v : *values) largest = std::max(largest, std::abs(double(v)));
    }
    for (size_t i = 0; i < in.initial.num.size(); ++i) {  // the mean of what was summed before
      const T den = in.initial.den[i / s.channels * s.key_channels + key_channel(s, int64_t(i) % s.channels)];
      if (den > 0) largest = std::max(largest, std::abs(double(in.initial.num[i] / den)));
    }
    const double roundings = 4 * double(s.time + s.left + 9) * std::numeric_limits<T>::epsilon();
    for (size_t i = 0; i < whole.of[kY].size(); ++i) {
      const double gate = s.gate == Gate::kRelu ? std::max(0.0, double(in.q[i])) : 1;
      ASSERT_NEAR(double(out.of[kY][i]), double(whole.of[kY][i]),
                  gate * largest * (std::expm1(2 * double(moved)) + roundings))
          << "y[" << i << "] with keys " << m << " ln 2 higher";
    }
    for (size_t i = 0; i < whole.max.size(); ++i) {
      ASSERT_EQ(out.max[i], whole.max[i] == lowest ? lowest : whole.max[i] + m) << "final_state.max[" << i << "]";
    }
  }
};

TEST(Properties, CaseLinesAreReadBack) {
  Choices random(1);
  for (int i = 0; i < 200; ++i) {
    const std::string line = describe(WindowFamily::random_case(random));
    EXPECT_EQ(describe(WindowFamily::parse_case(line)), line);
  }
}

TEST(Properties, WindowF32) { run_properties<WindowFamily, float>(); }
TEST(Properties, WindowF64) { run_properties<WindowFamily, double>(); }

}  // namespace
}  // namespace aft::ops::test
