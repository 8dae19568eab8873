#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tests/ops/element.h"
#include "tests/ops/input_classes.h"

namespace aft::ops::test {

/// The error rule of the operators: in maximum and in root mean square, a kernel's error is at most twice that of the
/// plain computation in the same dtype, both against a reference of higher precision. Errors are pooled by the key
/// given (operator, dtype, class of input, SIMD target, ...) and the output.
///
/// The plain computation's error is what its roundings came to in this pool, but not less than they come to in general:
/// where it makes few, or where only a few elements are large, its largest error is an accident, and where it rounds
/// nothing at all (one source outweighs all others: e^0), it would allow nothing. So every element has the scale of the
/// plain error there, which counts the roundings (plain_number.h). Plain is credited with an error of one scale in
/// maximum, and of 0.42 scales in root mean square: a rounding lies anywhere within half an ulp, which is between u/2
/// and u of the number, 0.42 u in root mean square.
///
/// Pools are judged on absolute errors: that is the rule. check_each_element judges errors in scales of their own
/// elements as well, so that neither large nor small elements hide the others.
template <typename E>
class ErrorRule {
 public:
  using T = Accumulate<E>;

  /// Adds one output of one case, stored as E or as its accumulation type. `floor` is an absolute error that the
  /// operator's contract allows anywhere.
  template <typename R>
  void add(const std::string& key, const std::string& output, const std::string& what, const std::vector<T>& kernel,
           const std::vector<T>& plain, const std::vector<double>& scale, const std::vector<R>& reference,
           double floor = 0) {
    ASSERT_EQ(kernel.size(), reference.size()) << key << ' ' << output << ": " << what;
    ASSERT_EQ(plain.size(), reference.size()) << key << ' ' << output << ": " << what;
    ASSERT_EQ(scale.size(), reference.size()) << key << ' ' << output << ": " << what;
    Pool& pool = pools_[key + ", " + output];
    for (size_t i = 0; i < reference.size(); ++i) {
      if (!std::isfinite(reference[i])) {
        if (pool.failures++ == 0)
          ADD_FAILURE() << key << ", " << output << "[" << i << "]: reference not finite; " << what;
        continue;
      }
      if (!std::isfinite(kernel[i])) {
        if (pool.failures++ == 0) {
          ADD_FAILURE() << key << ", " << output << "[" << i << "] = " << kernel[i] << ", reference "
                        << double(reference[i]) << "; " << what;
        }
        continue;
      }
      const auto location = [&] {
        std::ostringstream text;
        text.precision(9);
        text << output << "[" << i << "] = " << kernel[i] << ", plain " << plain[i] << ", reference "
             << double(reference[i]) << ", scale " << scale[i] << "; " << what;
        return text.str();
      };
      const double error = std::max(0.0, double(std::abs(R(kernel[i]) - reference[i])) - floor);
      const double plain_error = std::isfinite(plain[i]) ? double(std::abs(R(plain[i]) - reference[i])) : 0;
      pool.scaled.add(error / scale[i], plain_error / scale[i], 1, location);
      pool.absolute.add(error, plain_error, scale[i], location);
    }
  }

  /// Judges every pool of at least `smallest` elements on absolute errors.
  void check(int64_t smallest = 0) const {
    EXPECT_FALSE(pools_.empty());
    report();
    for (const auto& [key, pool] : pools_) {
      if (pool.absolute.kernel.count < smallest) continue;
      judge_maximum(key, "absolute", pool.absolute);
      judge_root_mean_square(key, "absolute", pool.absolute);
    }
  }

  /// Judges every pool on either measure; without `maxima` the second on root mean squares alone.
  void check_each_element(bool maxima = true) const {
    check();
    for (const auto& [key, pool] : pools_) {
      if (maxima) judge_maximum(key, "in scales", pool.scaled);
      judge_root_mean_square(key, "in scales", pool.scaled);
    }
  }

  /// Largest kernel error of all pools, in scales; infinite if an element was not finite.
  double largest() const {
    double largest = 0;
    for (const auto& [key, pool] : pools_) {
      largest = std::max(largest, pool.failures > 0 ? std::numeric_limits<double>::infinity() : pool.scaled.kernel.max);
    }
    return largest;
  }

 private:
  struct Errors {
    double max = 0;
    long double squares = 0;  // of the errors of numbers near 1e-300, too
    int64_t count = 0;
    std::string worst;
    template <typename Location>
    void add(double error, Location location) {
      squares += static_cast<long double>(error) * error;
      ++count;
      if (error > max) max = error, worst = location();
    }
    double rms() const { return count == 0 ? 0 : double(std::sqrt(squares / count)); }
  };
  struct Measure {
    Errors kernel, plain, scale;
    template <typename Location>
    void add(double kernel_error, double plain_error, double of_scale, Location location) {
      kernel.add(kernel_error, location);
      plain.add(plain_error, [] { return ""; });
      scale.add(of_scale, [] { return ""; });
    }
  };
  struct Pool {
    Measure scaled, absolute;
    int64_t failures = 0;
  };

  // What is allowed: twice the plain error, or twice what plain is credited with.
  static double most(const Measure& m) { return 2 * std::max(m.plain.max, m.scale.max); }
  static double most_in_mean(const Measure& m) { return 2 * std::max(m.plain.rms(), 0.42 * m.scale.rms()); }

  static void judge_maximum(const std::string& key, const char* measure, const Measure& m) {
    EXPECT_LE(m.kernel.max, most(m)) << key << ": maximum error, " << measure << ": kernel " << m.kernel.max
                                     << ", plain " << m.plain.max << ", scale " << m.scale.max << ", over "
                                     << m.kernel.count << " elements; worst: " << m.kernel.worst;
  }

  static void judge_root_mean_square(const std::string& key, const char* measure, const Measure& m) {
    EXPECT_LE(m.kernel.rms(), most_in_mean(m))
        << key << ": root mean square error, " << measure << ": kernel " << m.kernel.rms() << ", plain "
        << m.plain.rms() << ", scale " << m.scale.rms() << ", over " << m.kernel.count
        << " elements; worst: " << m.kernel.worst;
  }

  // AFT_ERROR_REPORT=FILE: a line a pool and measure is added to it, errors as parts of what is allowed: below 1.
  void report() const {
    const char* file = std::getenv("AFT_ERROR_REPORT");
    if (file == nullptr) return;
    std::ofstream to(file, std::ios::app);
    for (const auto& [key, pool] : pools_) {
      const auto line = [&](const char* measure, const Measure& m) {
        if (m.kernel.max == 0) return;
        to << m.kernel.max / most(m) << ' ' << m.kernel.rms() / most_in_mean(m) << ' ' << m.kernel.count << ' '
           << measure << ", " << key << ", AFT_TEST_SEED=" << environment_seed() << '\n';
      };
      line("absolute", pool.absolute);
      line("in scales", pool.scaled);
    }
  }

  std::map<std::string, Pool> pools_;
};

}  // namespace aft::ops::test
