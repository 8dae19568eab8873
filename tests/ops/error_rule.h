#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "aft/ops/operands.h"

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
/// Errors of one case are alike: its elements share sums and weights. Where cases are drawn by chance, a large one may
/// make up a mean, which then says no more than a maximum. check() can ask for several: there are (sum s)^2 / sum s^2,
/// where s is what a case adds to the squares of the scales (degrees of freedom by Welch and Satterthwaite).
///
/// Pools are judged on absolute errors: that is the rule. check_each_element judges errors in scales of their own
/// elements as well, so that neither large nor small elements hide the others.
template <typename E>
class ErrorRule {
 public:
  using T = Accumulate<E>;

  /// Adds one output of one case, stored as E or as its accumulation type, judged by R: one precision up. `floor` is an
  /// absolute error that the operator's contract allows anywhere.
  template <typename R>
  void add(const std::string& key, const std::string& output, const std::string& what, const std::vector<T>& kernel,
           const std::vector<T>& plain, const std::vector<double>& scale, const std::vector<R>& reference,
           double floor = 0);

  /// Judges every pool of at least `smallest` elements on absolute errors; in root mean square those alone whose mean
  /// at least `cases` of them make up.
  void check(int64_t smallest = 0, double cases = 0) const;
  /// Judges every pool on either measure; without `maxima` the second on root mean squares alone.
  void check_each_element(bool maxima = true) const;
  /// Largest kernel error of all pools, in scales; infinite if an element was not finite.
  double largest() const;

 private:
  // Has the range for fourth powers of scales of numbers near 1e-300, too.
  using Square = long double;

  struct Errors {
    double max = 0;
    Square squares = 0;
    int64_t count = 0;
    std::string worst;

    /// True if it is the largest so far.
    bool add(double error) {
      ++count;
      if (error == 0) return false;
      squares += Square(error) * error;
      const bool largest = error > max;
      if (largest) max = error;
      return largest;
    }
    double rms() const { return count == 0 ? 0 : double(std::sqrt(squares / count)); }
  };
  struct Measure {
    Errors kernel, plain, scale;  // scale: none where errors are in scales, which is 1 then

    double largest_scale() const { return scale.count == 0 ? 1 : scale.max; }
    double mean_scale() const { return scale.count == 0 ? 1 : scale.rms(); }
    // What is allowed: twice the plain error, or twice what plain is credited with.
    double most() const { return 2 * std::max(plain.max, largest_scale()); }
    double most_in_mean() const { return 2 * std::max(plain.rms(), 0.42 * mean_scale()); }
    void judge_maximum(const std::string& key, const char* measure) const;
    void judge_root_mean_square(const std::string& key, const char* measure) const;
  };
  struct Pool {
    Measure scaled, absolute;
    int64_t failures = 0;
    Square squares_of_cases = 0;  // sum s^2

    double cases_in_mean() const {
      const Square all = absolute.scale.squares;
      return squares_of_cases == 0 ? 0 : double(all / squares_of_cases * all);
    }
  };

  // AFT_ERROR_REPORT=FILE: a line a pool and measure is added to it, errors as parts of what is allowed: below 1.
  void report() const;

  std::map<std::string, Pool> pools_;
};

}  // namespace aft::ops::test
