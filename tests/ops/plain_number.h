#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "aft/ops/operands.h"
#include "tests/ops/element.h"

// The arithmetic of the plain computations of all families.

namespace aft::ops::test {

/// A number of the plain computation in T, and how far its roundings may have taken it: every operation is charged its
/// rounding, u |result| (u: half an ulp of 1), whatever it was in this case; what reaches a result is added as if the
/// roundings were independent, by squares. That is the scale of its error: by Hoeffding's inequality an error is more
/// than x scales with a probability of at most 2 e^(-x^2/2), and sums of many roundings are mostly below half a scale.
/// Inputs are exact, and so are the arguments of exponentials: what plain loses there is seen in its errors alone.
template <typename T>
class PlainNumber {
 public:
  // Squares of numbers near 1e-300, too.
  using Square = std::conditional_t<std::is_same_v<T, double>, long double, double>;

  PlainNumber() = default;
  PlainNumber(T exact) : value_(exact) {}  // NOLINT(google-explicit-constructor): a number like T

  T value() const { return value_; }
  Square square() const { return square_; }

  PlainNumber operator-() const { return {-value_, square_}; }
  friend PlainNumber operator+(PlainNumber a, PlainNumber b) {
    return charged(a.value_ + b.value_, a.square_ + b.square_);
  }
  friend PlainNumber operator-(PlainNumber a, PlainNumber b) { return a + -b; }
  friend PlainNumber operator*(PlainNumber a, PlainNumber b) {
    return charged(a.value_ * b.value_, squared(b.value_) * a.square_ + squared(a.value_) * b.square_);
  }
  friend PlainNumber operator/(PlainNumber a, PlainNumber b) {
    const T ratio = a.value_ / b.value_;
    return charged(ratio, (a.square_ + squared(ratio) * b.square_) / squared(b.value_));
  }
  PlainNumber& operator+=(PlainNumber other) { return *this = *this + other; }

  /// e^x, x <= 0 or small.
  static PlainNumber exp(T x) { return charged(std::exp(x), 0); }

  /// The sum of the terms in their order. It is charged what its additions cost on average over all orders: in one
  /// order the partial sums may happen to be small, and a kernel that adds in another owes them nothing. With n terms,
  /// the sum Q of their squares and their sum S, the squares of the n partial sums come to (n + 1) (Q / 6 + S^2 / 3).
  static PlainNumber sum(const std::vector<PlainNumber>& terms) {
    PlainNumber total;
    Square squares = 0;
    Square charges = 0;
    for (const PlainNumber& term : terms) {
      total.value_ += term.value_;
      squares += squared(term.value_);
      charges += term.square_;
    }
    const Square partial = Square(terms.size() + 1) * (squares / 6 + squared(total.value_) / 3);
    total.square_ = charges + kUnit * kUnit * partial;
    return total;
  }

 private:
  PlainNumber(T value, Square square) : value_(value), square_(square) {}
  static constexpr Square kUnit = std::numeric_limits<T>::epsilon() / 2;
  static Square squared(T x) { return Square(x) * Square(x); }
  static PlainNumber charged(T value, Square before) { return {value, before + kUnit * kUnit * squared(value)}; }

  T value_ = 0;
  Square square_ = 0;
};

template <typename T>
PlainNumber<T> plain_gate(Gate gate, T q) {
  if (gate == Gate::kSigmoid) return PlainNumber<T>(1) / (PlainNumber<T>(1) + PlainNumber<T>::exp(-q));
  return gate == Gate::kRelu ? std::max(q, T(0)) : T(1);
}

template <typename T>
PlainNumber<T> plain_slope(Gate gate, T q) {
  if (gate == Gate::kRelu) return T(q > 0);
  const PlainNumber<T> g = plain_gate(gate, q);
  return g * (PlainNumber<T>(1) - g);
}

/// Takes an output of the plain computation apart into its numbers, as X holds them (the element type, or its
/// accumulation type), and their scales.
template <typename X, typename T>
void store_plain(const std::vector<PlainNumber<T>>& from, std::vector<T>& values, std::vector<double>& scales) {
  values.clear(), scales.clear();
  for (const PlainNumber<T>& x : from) {
    values.push_back(rounded<X>(x.value()));
    // The last rounding, where X is less than T; never nothing: results end at the smallest number of X.
    const double last = kIs16Bit<X> ? ulp_of<X>(std::abs(double(x.value()))) / 2 : ulp_of<X>(0);
    scales.push_back(double(std::sqrt(x.square())) + last);
  }
}

}  // namespace aft::ops::test
