// Random small cases, other ones every run, and what must hold of each. A failure prints its case as one line:
//
//     AFT_PROPERTY_SEED=7 AFT_PROPERTY_CASES=100000      repeats a run, asks for more of it
//     AFT_PROPERTY_CASE='local input=wide T=4 left=2 gate=none seed=9'
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
#include <string>
#include <vector>

#include "tests/ops/judge.h"
#include "tests/ops/threads.h"

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

Case random_case(Family family, Choices& r) {
  Case c;
  c.input = r.chance(0.4) ? "normal" : r.one_of(hard_inputs());
  c.batch = r.whole(1, 3);
  c.heads = r.whole(1, 3);
  c.channels = c.heads * r.whole(1, 6);
  c.key_per_head = r.chance(0.3);
  c.gate = r.one_of<Gate>({Gate::kSigmoid, Gate::kSigmoid, Gate::kRelu, Gate::kNone});
  c.masked = r.chance(0.2);
  c.seed = r.whole(0, 1'000'000);
  if (family == Family::kGrid) {
    set_grid(c, r.whole(0, 7), r.whole(0, 7), 2 * r.whole(0, r.one_of<int64_t>({1, 4, 8})) + 1);
    return c;
  }
  c.time = r.whole(0, r.one_of<int64_t>({3, 12, 40, 70}));
  c.causal = r.chance(0.6);
  c.state = c.causal && r.chance(0.5);
  const auto lengths = [&] {
    std::vector<int64_t> list(r.whole(1, 5));
    for (int64_t& length : list) length = r.whole(0, r.one_of<int64_t>({2, 12, 40}));
    return list;
  };
  const bool packed = r.chance(0.2);
  if (packed) pack(c, lengths());
  if (family == Family::kFull) {
    c.op = Operator::kFull;
    c.weights = static_cast<Weights>(r.whole(0, 5));
    if (packed && c.weights_per_batch()) c.weights = Weights::kTable;  // packed sequences share their weights
    c.factors = r.whole(0, 9);
    c.state = c.state && !packed;
    if (!c.causal && !packed) c.sources = r.whole(0, 70);
    return c;
  }
  if (r.chance(0.25)) return c;
  c.op = r.chance(0.4) ? Operator::kConv1d : Operator::kLocal;
  c.left = r.whole(0, r.one_of<int64_t>({2, 9, c.time + 3}));
  if (!c.causal) c.right = r.whole(0, r.one_of<int64_t>({2, 9, c.time + 3}));
  return c;
}

// A row is the same bits in any batch: the rows in another order, some left out, some twice.
template <typename E>
void expect_rows_of_another_batch(const Inputs<E>& in, const Outputs<E>& whole, Choices& r) {
  std::vector<int64_t> rows(r.whole(1, 4));
  for (int64_t& row : rows) row = r.whole(0, in.c.batch - 1);
  const Inputs<E> chosen = batch_of(in, rows);
  const Outputs<E> other = run(chosen);
  for (const auto& [name, x] : other) {
    if (x.along == Along::kNothing) continue;
    for (size_t i = 0; i < rows.size(); ++i) {
      const Part from = part_of(in.c, x.along, x.width, rows[i]);
      const Part to = part_of(chosen.c, x.along, x.width, static_cast<int64_t>(i));
      const auto part = [&](const auto& all, const Part& p) {
        return std::vector<Accumulate<E>>(all.begin() + p.begin, all.begin() + p.end);
      };
      expect_same_bits(part(x.x, to), part(whole[name], from),
                       name + " of row " + std::to_string(rows[i]) + " as row " + std::to_string(i));
    }
  }
}

// A sequence cut in two, the second piece in one call or in steps.
template <typename E>
Outputs<E> in_two_pieces(const Inputs<E>& in, Choices& r) {
  const int64_t cut = r.whole(0, in.c.time);
  Inputs<E> first = cut_time(in, 0, cut);
  first.has_final = true;
  const Outputs<E> before = run(first, {.backward = false});
  Inputs<E> second = cut_time(in, cut, in.c.time);
  start_from(second, before);
  Outputs<E> out = r.chance(0.5) && !in.c.masked ? run_steps(second) : run(second, {.backward = false});
  if (!in.has_final) out.position.clear();
  std::vector<Accumulate<E>> y;
  for (int64_t b = 0; b < in.c.batch; ++b) {
    for (const auto* piece : {&before["y"], &std::as_const(out)["y"]}) {
      const int64_t size = static_cast<int64_t>(piece->size()) / in.c.batch;
      y.insert(y.end(), piece->begin() + b * size, piece->begin() + (b + 1) * size);
    }
  }
  out["y"] = y;
  return out;
}

// Whatever comes later, earlier rows keep every bit.
template <typename E>
void expect_future_unseen(const Inputs<E>& in, const Outputs<E>& whole, Choices& r) {
  using T = Accumulate<E>;
  constexpr T inf = std::numeric_limits<T>::infinity();
  const std::vector<T> strange = {65504, -65504, T(1e30), T(-1e30), inf, -inf, std::numeric_limits<T>::quiet_NaN()};
  Inputs<E> changed = in;
  std::vector<int64_t> unseen;  // first row of each sequence that may differ, counted over all tokens
  for (int64_t b = 0; b < in.c.batch; ++b) {
    const int64_t begin = in.c.targets_before(b), end = begin + in.c.targets_of(b);
    unseen.push_back(r.whole(begin, end));
    for (const char* name : {"k", "v"}) {
      const int64_t width = in.array(name).width;
      for (int64_t i = unseen[b] * width; i < end * width; ++i) changed[name][i] = r.one_of(strange);
    }
  }
  changed.has_final = false;
  const std::vector<T> y = run(changed, {.backward = false})["y"];
  for (int64_t b = 0; b < in.c.batch; ++b) {
    const int64_t end = unseen[b] - rows_of_a_scale(in.c) + 1;
    for (int64_t i = in.c.targets_before(b) * in.c.channels; i < end * in.c.channels; ++i) {
      ASSERT_TRUE(same_bits(y[i], whole["y"][i]))
          << "y[" << i << "]: " << y[i] << " with another future, was " << whole["y"][i];
    }
  }
}

// Keys m ln 2 higher cancel out of N / D, and raise the maximum of the state by m.
template <typename T>
void expect_shift_of_keys_cancels(const Inputs<T>& in, const Outputs<T>& whole, Choices& r) {
  const Case& c = in.c;
  const T m = T(r.whole(-30, 30));
  const T lowest = std::numeric_limits<T>::lowest();
  Truth<T> moved = 0;  // the largest error of a shifted key: rounding
  Inputs<T> shifted = in;
  for (const char* name : {"k", "initial_ring_key"}) {
    if (!in.has(name)) continue;
    for (T& k : shifted[name]) {
      if (!std::isfinite(k)) continue;
      const Truth<T> exact = Truth<T>(k) + Truth<T>(m) * std::numbers::ln2_v<Truth<T>>;
      k = T(exact);
      moved = std::max(moved, std::abs(Truth<T>(k) - exact));
    }
  }
  if (in.has_initial()) {
    for (T& max : shifted["initial_max"]) max = max == lowest ? max : max + m;
  }
  const Outputs<T> out = run(shifted, {.backward = false});

  // A sum of n positive terms is off by at most n + 8 roundings (8: exponential, product, division, gate), here four
  // times: N and D of either run. Moved weights change N / D by a factor of exp(2 moved) of the largest value.
  double largest = 0;
  for (const char* name : {"v", "initial_ring_value"}) {
    if (!in.has(name)) continue;
    for (const T v : in[name]) largest = std::max(largest, std::abs(double(v)));
  }
  for (int64_t i = 0; in.has_initial() && i < c.batch * c.channels; ++i) {  // the mean of what was summed before
    const T den = in["initial_den"][i / c.channels * c.key_channels() + c.key_channel(i % c.channels)];
    if (den > 0) largest = std::max(largest, std::abs(double(in["initial_num"][i] / den)));
  }
  const double roundings = 4 * double(c.source_count() + in.ring + 9) * std::numeric_limits<T>::epsilon();
  for (size_t i = 0; i < whole["y"].size(); ++i) {
    const double gate = c.gate == Gate::kRelu ? std::max(0.0, double(in["q"][i])) : 1;
    ASSERT_NEAR(double(out["y"][i]), double(whole["y"][i]),
                gate * largest * (std::expm1(2 * double(moved)) + roundings))
        << "y[" << i << "] with keys " << m << " ln 2 higher";
  }
  for (size_t i = 0; in.has_final && i < whole["final_max"].size(); ++i) {
    const T max = whole["final_max"][i];
    ASSERT_EQ(out["final_max"][i], max == lowest ? lowest : max + m) << "final_max[" << i << "]";
  }
}

template <typename E>
void check_case(ErrorRule<E>& rule, const Case& c) {
  Choices r(c.seed);
  const Judged<E> judged(c);
  const Inputs<E>& in = judged.inputs;
  const BackendScope scope(backends()[r.whole(0, static_cast<int64_t>(backends().size()) - 1)]);
  const Outputs<E> whole = run(in, {.shift = r.whole(0, 3)});
  judge(rule, judged, whole);

  Threads threads(r.whole(2, 4));
  expect_same_bits(whole, run(in, {.parallel = threads.parallel_for(), .shift = r.whole(0, 3)}), "threads");
  expect_rows_of_another_batch(in, whole, r);
  if (c.causal) expect_future_unseen(in, whole, r);
  if (c.causal && !c.packed()) judge(rule, judged, in_two_pieces(in, r), "", /*backward=*/false);
  expect_shift_of_keys_cancels(in, whole, r);
}

template <class Type>
class Properties : public ::testing::Test {};
using Types = ::testing::Types<On<Family::kWindow, float>, On<Family::kWindow, double>, On<Family::kGrid, float>,
                               On<Family::kGrid, double>, On<Family::kFull, float>, On<Family::kFull, double>>;
TYPED_TEST_SUITE(Properties, Types, OnName);

TYPED_TEST(Properties, Hold) {
  using E = typename TypeParam::E;
  ErrorRule<E> rule;
  if (const std::string line = environment("AFT_PROPERTY_CASE"); !line.empty()) {
    const Case c = parse_case(line);
    if (c.family() != TypeParam::kFamily) GTEST_SKIP() << "a case of another family";
    check_case(rule, c);
    // The rule is one of pools: a case alone may lie above it by accident.
    std::cout << kDtype<E> << ": largest error " << rule.largest() << " scales of the plain error\n";
    return;
  }
  const std::string given = environment("AFT_PROPERTY_SEED");
  const uint64_t seed = given.empty() ? std::random_device()() : std::stoull(given);
  const std::string count = environment("AFT_PROPERTY_CASES");
  const int64_t usual = TypeParam::kFamily == Family::kWindow ? 2500 : TypeParam::kFamily == Family::kGrid ? 500 : 200;
  const int64_t number = count.empty() ? usual / (kSanitized ? 5 : 1) : std::stoll(count);
  std::cout << kDtype<E> << ": AFT_PROPERTY_SEED=" << seed << " AFT_PROPERTY_CASES=" << number << std::endl;
  SCOPED_TRACE("AFT_PROPERTY_SEED=" + std::to_string(seed));
  Choices random(seed);
  for (int64_t i = 0; i < number && !this->HasFailure(); ++i) {
    const Case c = random_case(TypeParam::kFamily, random);
    SCOPED_TRACE("AFT_PROPERTY_CASE='" + describe(c) + "'");
    check_case(rule, c);
  }
  if (!this->HasFailure()) rule.check(/*smallest=*/1000, /*cases=*/12);
}

TEST(CaseLines, AreReadBack) {
  Choices random(1);
  for (int i = 0; i < 600; ++i) {
    const std::string line = describe(random_case(static_cast<Family>(i % 3), random));
    EXPECT_EQ(describe(parse_case(line)), line);
  }
}

}  // namespace
}  // namespace aft::ops::test
