#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tests/ops/element.h"

namespace aft::ops::test {

/// The error rule of the operators: in maximum and in root mean square, a kernel's error is at most twice that of the
/// plain computation in the same dtype, both against a reference of higher precision; with a floor of 2 ulp of the
/// largest summand. Errors are pooled by the key given (operator, dtype, class of input, ...) and the output.
///
/// Pools are judged on absolute errors: that is the rule. Ordinary inputs are judged on errors in ulp of every
/// element's own largest summand as well, so that neither large nor small elements hide the others
/// (check_each_summand).
template <typename E>
class ErrorRule {
 public:
  using T = Accumulate<E>;

  /// Adds one output of one case, stored as E or as its accumulation type. `floor` is an absolute error that the
  /// operator's contract allows anywhere.
  template <typename R>
  void add(const std::string& key, const std::string& output, const std::string& what, const std::vector<T>& kernel,
           const std::vector<T>& plain, const std::vector<double>& largest_summand, const std::vector<R>& reference,
           double floor = 0, bool stored_as_element = true) {
    ASSERT_EQ(kernel.size(), reference.size()) << key << ' ' << output << ": " << what;
    ASSERT_EQ(plain.size(), reference.size()) << key << ' ' << output << ": " << what;
    ASSERT_EQ(largest_summand.size(), reference.size()) << key << ' ' << output << ": " << what;
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
      const double unit = stored_as_element ? ulp_of<E>(largest_summand[i]) : ulp_of<T>(largest_summand[i]);
      const auto location = [&] {
        std::ostringstream text;
        text.precision(9);
        text << output << "[" << i << "] = " << kernel[i] << ", plain " << plain[i] << ", reference "
             << double(reference[i]) << ", largest summand " << largest_summand[i] << "; " << what;
        return text.str();
      };
      const double error = std::max(0.0, double(std::abs(R(kernel[i]) - reference[i])) - floor);
      pool.in_ulp.kernel.add(error / unit, location);
      pool.absolute.kernel.add(error, location);
      pool.absolute.unit_max = std::max(pool.absolute.unit_max, unit);
      pool.absolute.unit_squares += static_cast<long double>(unit) * unit;
      pool.in_ulp.unit_max = 1;
      pool.in_ulp.unit_squares += 1;
      if (!std::isfinite(plain[i])) continue;
      const double plain_error = double(std::abs(R(plain[i]) - reference[i]));
      pool.in_ulp.plain.add(plain_error / unit, [] { return ""; });
      pool.absolute.plain.add(plain_error, [] { return ""; });
    }
  }

  /// Judges every pool: at most `times` the error of the plain computation.
  void check(double times = 2) const {
    EXPECT_FALSE(pools_.empty());
    for (const auto& [key, pool] : pools_) judge(key, "absolute", pool.absolute, times);
  }

  /// Judges every pool, on either measure.
  void check_each_summand() const {
    check();
    for (const auto& [key, pool] : pools_) judge(key, "in ulp of the largest summand", pool.in_ulp, 2);
  }

  /// For other cases every run: judges root mean squares only, and of pools of at least `smallest` elements only. The
  /// maximum of a random pool is now and then more than twice that of another; a wrong element shows in either.
  void check_root_mean_squares(int64_t smallest) const {
    EXPECT_FALSE(pools_.empty());
    for (const auto& [key, pool] : pools_) {
      if (pool.absolute.kernel.count >= smallest) judge_root_mean_square(key, "absolute", pool.absolute, 2);
    }
  }

  /// Largest kernel error of all pools, in ulp of the largest summand; infinite if an element was not finite.
  double largest() const {
    double largest = 0;
    for (const auto& [key, pool] : pools_) {
      largest = std::max(largest, pool.failures > 0 ? std::numeric_limits<double>::infinity() : pool.in_ulp.kernel.max);
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
    Errors kernel, plain;
    double unit_max = 0;
    long double unit_squares = 0;
  };
  struct Pool {
    Measure in_ulp, absolute;
    int64_t failures = 0;
  };

  static void judge(const std::string& key, const char* measure, const Measure& m, double times) {
    EXPECT_LE(m.kernel.max, std::max(times * m.plain.max, 2 * m.unit_max))
        << key << ": maximum error, " << measure << ": kernel " << m.kernel.max << ", plain " << m.plain.max
        << ", over " << m.kernel.count << " elements; worst: " << m.kernel.worst;
    judge_root_mean_square(key, measure, m, times);
  }

  static void judge_root_mean_square(const std::string& key, const char* measure, const Measure& m, double times) {
    const double unit_rms = m.kernel.count == 0 ? 0 : double(std::sqrt(m.unit_squares / m.kernel.count));
    EXPECT_LE(m.kernel.rms(), std::max(times * m.plain.rms(), 2 * unit_rms))
        << key << ": root mean square error, " << measure << ": kernel " << m.kernel.rms() << ", plain "
        << m.plain.rms() << ", over " << m.kernel.count << " elements; worst: " << m.kernel.worst;
  }

  std::map<std::string, Pool> pools_;
};

}  // namespace aft::ops::test
