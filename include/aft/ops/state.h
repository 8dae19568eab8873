#pragma once

#include <cstdint>
#include <type_traits>

namespace aft::ops {

/// What a causal layer remembers of the positions it has seen, one per batch row; the same shape in training in chunks,
/// prefill, step, server and file. All arrays are dense. K = key channels, left = reach of the window (0: no ring).
///
/// With p = position, the sums hold the sources t' < p - left, the ring holds max(0, p - left) <= t' < p, source t' in
/// slot t' mod left. den = sum e^k 2^-max and num = sum e^k v 2^-max, where max is the largest round(k log2 e) among
/// the summed sources, an integer kept as a float. Neutral: position 0, max = lowest float, sums 0 (ring unread).
template <typename T>
struct State {
  std::conditional_t<std::is_const_v<T>, const int64_t, int64_t>* position = nullptr;  // [B]; null: no state at all
  T* max = nullptr;                                                                    // [B, K]
  T* den = nullptr;                                                                    // [B, K]
  T* num = nullptr;                                                                    // [B, d]
  T* ring_key = nullptr;                                                               // [B, left, K]
  T* ring_value = nullptr;                                                             // [B, left, d]

  /// To read from.
  operator State<const T>() const  // NOLINT(google-explicit-constructor): as T* to const T*
      requires(!std::is_const_v<T>) {
    return {position, max, den, num, ring_key, ring_value};
  }
};

/// Gradient with respect to a State. `max` is an integer exponent, a constant for the gradient. Null members: zero
/// (as input) or not wanted (as output).
template <typename T>
struct StateGrad {
  T* den = nullptr;         // [B, K]
  T* num = nullptr;         // [B, d]
  T* ring_key = nullptr;    // [B, left, K]
  T* ring_value = nullptr;  // [B, left, d]
};

}  // namespace aft::ops
