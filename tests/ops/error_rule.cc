#include "tests/ops/error_rule.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>

#include "tests/ops/input_classes.h"

namespace aft::ops::test {

template <typename E>
template <typename R>
void ErrorRule<E>::add(const std::string& key, const std::string& output, const std::string& what,
                       const std::vector<T>& kernel, const std::vector<T>& plain, const std::vector<double>& scale,
                       const std::vector<R>& reference, double floor) {
  ASSERT_EQ(kernel.size(), reference.size()) << key << ' ' << output << ": " << what;
  ASSERT_EQ(plain.size(), reference.size()) << key << ' ' << output << ": " << what;
  ASSERT_EQ(scale.size(), reference.size()) << key << ' ' << output << ": " << what;
  Pool& pool = pools_[key + ", " + output];
  const Square before = pool.absolute.scale.squares;
  for (size_t i = 0; i < reference.size(); ++i) {
    const auto location = [&] {
      std::ostringstream text;
      text.precision(9);
      text << output << "[" << i << "] = " << kernel[i] << ", plain " << plain[i] << ", reference "
           << double(reference[i]) << ", scale " << scale[i] << "; " << what;
      return text.str();
    };
    if (!std::isfinite(reference[i]) || !std::isfinite(kernel[i])) {
      if (pool.failures++ == 0) ADD_FAILURE() << key << ", not finite: " << location();
      continue;
    }
    const double error = std::max(0.0, double(std::abs(R(kernel[i]) - reference[i])) - floor);
    const double plain_error = std::isfinite(plain[i]) ? double(std::abs(R(plain[i]) - reference[i])) : 0;
    if (pool.scaled.kernel.add(error / scale[i])) pool.scaled.kernel.worst = location();
    if (pool.absolute.kernel.add(error)) pool.absolute.kernel.worst = location();
    pool.scaled.plain.add(plain_error / scale[i]);
    pool.absolute.plain.add(plain_error);
    pool.absolute.scale.add(scale[i]);
  }
  const Square of_case = pool.absolute.scale.squares - before;
  pool.squares_of_cases += of_case * of_case;
}

template <typename E>
void ErrorRule<E>::check(int64_t smallest, double cases) const {
  EXPECT_FALSE(pools_.empty());
  report();
  for (const auto& [key, pool] : pools_) {
    if (pool.absolute.kernel.count < smallest) continue;
    pool.absolute.judge_maximum(key, "absolute");
    if (pool.cases_in_mean() >= cases) pool.absolute.judge_root_mean_square(key, "absolute");
  }
}

template <typename E>
void ErrorRule<E>::check_each_element(bool maxima) const {
  check();
  for (const auto& [key, pool] : pools_) {
    if (maxima) pool.scaled.judge_maximum(key, "in scales");
    pool.scaled.judge_root_mean_square(key, "in scales");
  }
}

template <typename E>
double ErrorRule<E>::largest() const {
  double largest = 0;
  for (const auto& [key, pool] : pools_) {
    largest = std::max(largest, pool.failures > 0 ? std::numeric_limits<double>::infinity() : pool.scaled.kernel.max);
  }
  return largest;
}

template <typename E>
void ErrorRule<E>::Measure::judge_maximum(const std::string& key, const char* measure) const {
  EXPECT_LE(kernel.max, most()) << key << ": maximum error, " << measure << ": kernel " << kernel.max << ", plain "
                                << plain.max << ", scale " << largest_scale() << ", over " << kernel.count
                                << " elements; worst: " << kernel.worst;
}

template <typename E>
void ErrorRule<E>::Measure::judge_root_mean_square(const std::string& key, const char* measure) const {
  EXPECT_LE(kernel.rms(), most_in_mean())
      << key << ": root mean square error, " << measure << ": kernel " << kernel.rms() << ", plain " << plain.rms()
      << ", scale " << mean_scale() << ", over " << kernel.count << " elements; worst: " << kernel.worst;
}

template <typename E>
void ErrorRule<E>::report() const {
  const char* file = std::getenv("AFT_ERROR_REPORT");
  if (file == nullptr) return;
  std::ofstream to(file, std::ios::app);
  for (const auto& [key, pool] : pools_) {
    const auto line = [&](const std::string& of, const char* measure, const Measure& m) {
      if (m.kernel.max == 0) return;
      to << m.kernel.max / m.most() << ' ' << m.kernel.rms() / m.most_in_mean() << ' ' << m.kernel.count << ' '
         << measure << ", " << of << ", AFT_TEST_SEED=" << environment_seed() << '\n';
    };
    line(key, "absolute", pool.absolute);
    line(key, "in scales", pool.scaled);
  }
}

#define AFT_INSTANTIATE(E, R)                                                                              \
  template class ErrorRule<E>;                                                                             \
  template void ErrorRule<E>::add<R>(const std::string&, const std::string&, const std::string&,           \
                                     const std::vector<Accumulate<E>>&, const std::vector<Accumulate<E>>&, \
                                     const std::vector<double>&, const std::vector<R>&, double);
AFT_INSTANTIATE(float, double)
AFT_INSTANTIATE(double, long double)
AFT_INSTANTIATE(BFloat16, double)
AFT_INSTANTIATE(Float16, double)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::test
