// Factors of AFT-local to the band of weights: hand values, the error rule, central differences, threads, errors.

#include "aft/ops/local_bias.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "aft/error.h"
#include "tests/ops/input_classes.h"
#include "tests/ops/plain_number.h"
#include "tests/ops/poisoned.h"
#include "tests/ops/threads.h"
#include "tests/ops/window_compare.h"

namespace aft::ops::test {
namespace {

std::string describe(const LocalBiasShape& s) {
  return "H=" + std::to_string(s.heads) + " T=" + std::to_string(s.rows) + " d'=" + std::to_string(s.width) +
         " left=" + std::to_string(s.left) + " right=" + std::to_string(s.right);
}

template <typename T>
struct Factors {
  LocalBiasShape shape;
  std::vector<T> u, v, grad_band;
};

template <typename T>
Factors<T> make_factors(const LocalBiasShape& s, uint64_t seed) {
  Random r(seed);
  Factors<T> f{s, {}, {}, {}};
  for (int64_t i = 0; i < s.heads * s.rows * s.width; ++i) {
    f.u.push_back(T(r.normal()));
    f.v.push_back(T(r.normal()));
  }
  for (int64_t i = 0; i < s.heads * s.rows * s.columns(); ++i) f.grad_band.push_back(T(r.normal()));
  return f;
}

template <typename T>
struct Results {
  std::vector<T> band, grad_u, grad_v;
};

// Through the kernels, outputs in poisoned memory at an odd offset.
template <typename T>
Results<T> run(const Factors<T>& f, const ParallelFor& parallel = {}, int64_t shift = 1) {
  const LocalBiasShape& s = f.shape;
  const int64_t size = f.u.size(), band_size = f.grad_band.size();
  Poisoned<T> in(size * 2 + shift), out(size * 2 + 7 + shift), band(band_size + shift), grad_band(band_size + shift);
  T* u = in.claim(shift, size);
  T* v = in.claim(shift + size, size);
  std::copy(f.u.begin(), f.u.end(), u);
  std::copy(f.v.begin(), f.v.end(), v);
  T* w = band.claim(shift, band_size);
  T* grad_w = grad_band.claim(shift, band_size);
  std::copy(f.grad_band.begin(), f.grad_band.end(), grad_w);
  T* grad_u = out.claim(shift, size);
  T* grad_v = out.claim(shift + size + 7, size);
  const LocalBiasInputs<T> inputs = {s, u, v};
  local_bias_forward(LocalBiasForward<T>{inputs, w}, Cpu{parallel});
  local_bias_backward(LocalBiasBackward<T>{inputs, grad_w, grad_u, grad_v}, Cpu{parallel});
  band.expect_gaps_untouched("band");
  out.expect_gaps_untouched("grad_u, grad_v");
  return {{w, w + band_size}, {grad_u, grad_u + size}, {grad_v, grad_v + size}};
}

template <typename R, typename T>
Results<R> run_reference(const Factors<T>& f) {
  const std::vector<R> u(f.u.begin(), f.u.end()), v(f.v.begin(), f.v.end()), g(f.grad_band.begin(), f.grad_band.end());
  Results<R> r{std::vector<R>(g.size()), std::vector<R>(u.size()), std::vector<R>(v.size())};
  const LocalBiasInputs<R> in = {f.shape, u.data(), v.data()};
  local_bias_forward_reference(LocalBiasForward<R>{in, r.band.data()});
  local_bias_backward_reference(LocalBiasBackward<R>{in, g.data(), r.grad_u.data(), r.grad_v.data()});
  return r;
}

// The plain computation in T: every sum in the order of its terms; and the scale of its error.
template <typename T>
Results<T> run_plain(const Factors<T>& f, Results<double>& scale) {
  const LocalBiasShape& s = f.shape;
  const int64_t span = s.columns();
  using Number = PlainNumber<T>;
  std::vector<std::vector<Number>> band(f.grad_band.size()), grad_u(f.u.size()), grad_v(f.u.size());  // their terms
  for (int64_t row = 0; row < s.heads * s.rows; ++row) {
    for (int64_t j = 0; j < span; ++j) {
      const int64_t source = row % s.rows - s.left + j;
      if (source < 0 || source >= s.rows) continue;
      const int64_t other = row / s.rows * s.rows + source;
      const int64_t at = row * span + j;
      for (int64_t c = 0; c < s.width; ++c) {
        const int64_t a = row * s.width + c, b = other * s.width + c;
        band[at].push_back(Number(f.u[a]) * f.v[b]);
        grad_u[a].push_back(Number(f.grad_band[at]) * f.v[b]);
        grad_v[b].push_back(Number(f.grad_band[at]) * f.u[a]);
      }
    }
  }
  const auto store = [](const std::vector<std::vector<Number>>& terms, std::vector<T>& values,
                        std::vector<double>& scales) {
    std::vector<Number> sums;
    for (const auto& of_one : terms) sums.push_back(Number::sum(of_one));
    store_plain<T>(sums, values, scales);
  };
  Results<T> r;
  store(band, r.band, scale.band);
  store(grad_u, r.grad_u, scale.grad_u);
  store(grad_v, r.grad_v, scale.grad_v);
  return r;
}

std::vector<LocalBiasShape> shapes() {
  std::vector<LocalBiasShape> all;
  const std::vector<int64_t> widths = {1, 3, 7, 8, 16, 17, 31, 64, 67, 131};
  size_t n = 0;
  for (const int64_t rows : {0, 1, 2, 3, 4, 5, 31, 33, 97, 257}) {
    for (const int64_t s : std::initializer_list<int64_t>{1, 2, 7, 32, rows, rows + 5}) {
      if (s == 0) continue;
      for (const bool causal : {true, false}) {
        all.push_back(
            {1 + 2 * static_cast<int64_t>(n % 3 == 0), rows, widths[n % widths.size()], s - 1, causal ? 0 : s - 1});
        ++n;
      }
    }
  }
  all.push_back({2, 40, 5, 0, 9});
  all.push_back({1, 300, 20, 130, 3});
  all.push_back({1, 50, 0, 3, 0});  // no width: every weight is 0
  all.push_back({1, 1031, 6, 31, 0});
  return all;
}

TEST(LocalBiasReference, HandValues) {
  // T = 3, d' = 2, reach 1 to both sides; 9 marks gradients outside the sequence, to be ignored.
  const Factors<double> f = {{1, 3, 2, 1, 1}, {1, 2, 0, 1, 3, -1}, {1, 0, 2, 1, -1, 4}, {9, 1, 2, 3, 4, 5, 6, 7, 9}};
  const auto r = run_reference<double>(f);
  // u0.v0 = 1, u0.v1 = 2 + 2; u1.v0 = 0, u1.v1 = 1, u1.v2 = 4; u2.v1 = 6 - 1, u2.v2 = -3 - 4.
  EXPECT_EQ(r.band, (std::vector<double>{0, 1, 4, 0, 1, 4, 5, -7, 0}));
  // 1 v0 + 2 v1; 3 v0 + 4 v1 + 5 v2; 6 v1 + 7 v2.
  EXPECT_EQ(r.grad_u, (std::vector<double>{5, 2, 6, 24, 5, 34}));
  // 1 u0 + 3 u1; 2 u0 + 4 u1 + 6 u2; 5 u1 + 7 u2.
  EXPECT_EQ(r.grad_v, (std::vector<double>{1, 5, 20, 2, 21, -2}));
  // Small integers: the kernels are exact.
  const auto kernel = run(f);
  EXPECT_EQ(kernel.band, r.band);
  EXPECT_EQ(kernel.grad_u, r.grad_u);
  EXPECT_EQ(kernel.grad_v, r.grad_v);
}

TEST(LocalBiasReference, AgreesWithCentralDifferences) {
  // The band is linear in each factor, so differences are exact but for rounding.
  Factors<double> f = make_factors<double>({2, 6, 3, 2, 1}, 5);
  const auto r = run_reference<double>(f);
  const auto loss = [&] {
    const auto band = run_reference<double>(f).band;
    double sum = 0;
    for (size_t i = 0; i < band.size(); ++i) sum += band[i] * f.grad_band[i];
    return sum;
  };
  const auto check = [&](std::vector<double>& x, const std::vector<double>& gradient) {
    for (size_t i = 0; i < x.size(); ++i) {
      const double at = x[i];
      x[i] = at + 0.5;
      const double up = loss();
      x[i] = at - 0.5;
      const double down = loss();
      x[i] = at;
      EXPECT_NEAR(gradient[i], up - down, 1e-12);
    }
  };
  check(f.u, r.grad_u);
  check(f.v, r.grad_v);
}

template <typename T>
class LocalBiasTest : public ::testing::Test {};
using Dtypes = ::testing::Types<float, double>;
TYPED_TEST_SUITE(LocalBiasTest, Dtypes);

TYPED_TEST(LocalBiasTest, ErrorRuleHolds) {
  using T = TypeParam;
  ErrorRule<T> rule;
  uint64_t seed = 0;
  for (const LocalBiasShape& s : shapes()) {
    const Factors<T> f = make_factors<T>(s, ++seed);
    Results<double> scale;
    const Results<T> plain = run_plain(f, scale);
    const auto reference = run_reference<Truth<T>>(f);
    const std::string what = describe(s) + " seed=" + std::to_string(seed);
    for (const int64_t target : machine_targets()) {
      const TargetScope scope(target);
      const Results<T> kernel = run(f);
      const std::string key = std::string("local_bias, ") + kDtype<T> + ", " + hwy::TargetName(target);
      rule.add(key, "band", what, kernel.band, plain.band, scale.band, reference.band);
      rule.add(key, "grad_u", what, kernel.grad_u, plain.grad_u, scale.grad_u, reference.grad_u);
      rule.add(key, "grad_v", what, kernel.grad_v, plain.grad_v, scale.grad_v, reference.grad_v);
    }
  }
  rule.check_each_element();
}

TYPED_TEST(LocalBiasTest, ThreadsAndAlignmentDoNotChangeABit) {
  using T = TypeParam;
  for (const LocalBiasShape& s : {LocalBiasShape{1, 1000, 67, 31, 0}, LocalBiasShape{3, 150, 20, 6, 6}}) {
    const Factors<T> f = make_factors<T>(s, 3);
    const Results<T> serial = run(f);
    for (const int64_t n : {1, 2, 3, 7}) {
      Threads threads(n);
      const Results<T> r = run(f, threads.parallel_for(), n);
      EXPECT_EQ(first_difference(r.band, serial.band), -1) << n << " threads; " << describe(s);
      EXPECT_EQ(first_difference(r.grad_u, serial.grad_u), -1) << n << " threads; " << describe(s);
      EXPECT_EQ(first_difference(r.grad_v, serial.grad_v), -1) << n << " threads; " << describe(s);
      EXPECT_EQ(threads.most_at_once() >= 2, n >= 2) << n << " threads; " << describe(s);
    }
  }
}

TYPED_TEST(LocalBiasTest, UnwantedGradientsAreNotMissed) {
  using T = TypeParam;
  const Factors<T> f = make_factors<T>({2, 50, 9, 6, 2}, 4);
  const Results<T> both = run(f);
  std::vector<T> only(f.u.size());
  local_bias_backward<T>({{f.shape, nullptr, f.v.data()}, f.grad_band.data(), only.data(), nullptr});
  EXPECT_EQ(only, both.grad_u);
  local_bias_backward<T>({{f.shape, f.u.data(), nullptr}, f.grad_band.data(), nullptr, only.data()});
  EXPECT_EQ(only, both.grad_v);
}

TYPED_TEST(LocalBiasTest, NanReachesOnlyWhatSeesIt) {
  using T = TypeParam;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const LocalBiasShape s = {1, 40, 21, 5, 2};
  Factors<T> f = make_factors<T>(s, 6);
  f.u[13 * s.width + 20] = nan;
  f.v[20 * s.width + 3] = nan;
  // Outside the sequence anything may stand.
  for (int64_t j = 0; j < s.left; ++j) f.grad_band[j] = nan;
  f.grad_band.back() = nan;
  const Results<T> r = run(f);
  for (int64_t t = 0; t < s.rows; ++t) {
    for (int64_t j = 0; j < s.columns(); ++j) {
      const int64_t source = t - s.left + j;
      const bool inside = source >= 0 && source < s.rows;
      EXPECT_EQ(std::isnan(r.band[t * s.columns() + j]), inside && (t == 13 || source == 20)) << t << ' ' << source;
    }
    for (int64_t c = 0; c < s.width; ++c) {
      const auto sees = [&](int64_t target, int64_t source) {
        return source >= target - s.left && source <= target + s.right;
      };
      EXPECT_EQ(std::isnan(r.grad_u[t * s.width + c]), c == 3 && sees(t, 20)) << t << ' ' << c;
      EXPECT_EQ(std::isnan(r.grad_v[t * s.width + c]), c == 20 && sees(13, t)) << t << ' ' << c;
    }
  }
}

TEST(LocalBiasErrors, NameTheArgument) {
  const std::vector<float> in(100, 1);
  std::vector<float> out(100, 5);
  const LocalBiasShape good = {1, 4, 3, 1, 0};
  const auto expect_error = [&](const LocalBiasShape& s, const float* u, const float* v, float* band,
                                const char* name) {
    try {
      local_bias_forward(LocalBiasForward<float>{{s, u, v}, band});
      ADD_FAILURE() << "took a bad " << name;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(name), std::string::npos) << e.what();
    }
    EXPECT_EQ(out, std::vector<float>(100, 5)) << name;
  };
  const auto bad_shape = [&](auto spoil, const char* name) {
    LocalBiasShape s = good;
    spoil(s);
    expect_error(s, in.data(), in.data(), out.data(), name);
    EXPECT_THROW(
        local_bias_backward(LocalBiasBackward<float>{{s, in.data(), in.data()}, in.data(), out.data(), out.data()}),
        Error)
        << name;
  };
  bad_shape([](LocalBiasShape& s) { s.heads = 0; }, "heads");
  bad_shape([](LocalBiasShape& s) { s.rows = -1; }, "rows");
  bad_shape([](LocalBiasShape& s) { s.width = -1; }, "width");
  bad_shape([](LocalBiasShape& s) { s.left = -1; }, "left");
  bad_shape([](LocalBiasShape& s) { s.right = -1; }, "right");
  expect_error(good, nullptr, in.data(), out.data(), "u");
  expect_error(good, in.data(), nullptr, out.data(), "v");
  expect_error(good, in.data(), in.data(), nullptr, "band");
}

}  // namespace
}  // namespace aft::ops::test
