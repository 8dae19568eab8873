#pragma once

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "aft/ops/window.h"

// The one list of cases of the windowed operator: correctness, gradients and the machine's SIMD targets run over it.

namespace aft::ops::test {

struct WindowCase {
  std::string input = "normal";  // class of input: see make_inputs
  int64_t batch = 1;
  int64_t time = 0;
  int64_t channels = 1;
  int64_t heads = 1;
  bool key_per_head = false;
  bool causal = true;
  bool has_band = false;
  int64_t left = 0;
  int64_t right = 0;
  Gate gate = Gate::kSigmoid;
  bool shared_row = false;  // conv1d: every position reads one row of weights
  bool state = false;       // starts from a state, its rows at different positions
  uint64_t seed = 0;
  bool masked = false;                // some sources are left out by the key mask
  std::vector<int64_t> lengths = {};  // packed sequences; batch and time are then their number and sum
};

inline WindowShape shape_of(const WindowCase& c) {
  return {.batch = c.batch,
          .time = c.time,
          .channels = c.channels,
          .heads = c.heads,
          .key_channels = c.key_per_head ? c.heads : c.channels,
          .causal = c.causal,
          .packed = !c.lengths.empty(),
          .has_band = c.has_band,
          .left = c.left,
          .right = c.right,
          .gate = c.gate};
}

inline void pack(WindowCase& c, const std::vector<int64_t>& lengths) {
  c.lengths = lengths;
  c.batch = static_cast<int64_t>(lengths.size());
  c.time = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

/// What errors are pooled by, beside output, dtype and class of input.
inline std::string operator_name(const WindowCase& c) {
  return !c.has_band ? "simple" : c.shared_row ? "conv1d" : "local";
}

inline std::string describe(const WindowCase& c) {
  std::string lengths;
  for (const int64_t length : c.lengths) lengths += (lengths.empty() ? " packed=" : ",") + std::to_string(length);
  const char* gate = c.gate == Gate::kSigmoid ? "sigmoid" : c.gate == Gate::kRelu ? "relu" : "none";
  return operator_name(c) + (c.causal ? " causal" : " non-causal") + " input=" + c.input +
         " B=" + std::to_string(c.batch) + " T=" + std::to_string(c.time) + " d=" + std::to_string(c.channels) +
         " H=" + std::to_string(c.heads) + (c.key_per_head ? " key-per-head" : "") + " left=" + std::to_string(c.left) +
         " right=" + std::to_string(c.right) + " gate=" + gate + (c.state ? " state" : "") +
         (c.masked ? " masked" : "") + lengths + " seed=" + std::to_string(c.seed);
}

/// Window s of AFT-local: sources abs(t - t') < s, those with t' <= t if causal; 0: no band.
inline void set_window(WindowCase& c, int64_t s) {
  c.has_band = s > 0;
  c.left = s > 0 ? s - 1 : 0;
  c.right = s > 0 && !c.causal ? s - 1 : 0;
}

/// Every length with every window, causal and not; widths, heads, keys, gates and states take turns.
inline std::vector<WindowCase> length_and_window_cases() {
  std::vector<WindowCase> cases;
  uint64_t n = 0;
  for (const int64_t time : {0, 1, 2, 3, 31, 32, 33, 97, 257, 1031}) {
    std::vector<int64_t> windows;
    for (const int64_t s : std::initializer_list<int64_t>{0, 1, 2, 7, 32, time, time + 5}) {
      bool known = false;
      for (const int64_t w : windows) known = known || w == s;
      if (!known) windows.push_back(s);
    }
    for (const int64_t s : windows) {
      for (const bool causal : {true, false}) {
        WindowCase c;
        c.time = time;
        c.causal = causal;
        set_window(c, s);
        c.seed = ++n;
        // The dense reference costs T^2 d: the long ones are narrow.
        const std::vector<int64_t> one_head = time > 257  ? std::vector<int64_t>{1, 3}
                                              : time > 97 ? std::vector<int64_t>{5, 17}
                                                          : std::vector<int64_t>{1, 7, 19, 37};
        const std::vector<int64_t> three_heads = time > 257  ? std::vector<int64_t>{3}
                                                 : time > 97 ? std::vector<int64_t>{9, 15}
                                                             : std::vector<int64_t>{3, 9, 27, 51};
        c.heads = n % 3 == 0 ? 3 : 1;
        const auto& widths = c.heads == 3 ? three_heads : one_head;
        c.channels = widths[n / 3 % widths.size()];
        c.key_per_head = n % 4 == 1;
        c.batch = time > 97 ? 1 : 2 + static_cast<int64_t>(n % 2);
        c.gate = n % 5 == 2 ? Gate::kRelu : n % 5 == 4 ? Gate::kNone : Gate::kSigmoid;
        c.state = causal && n % 4 >= 2;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

/// What the list above leaves out: windows with unequal reach, a row of weights shared by all positions (conv1d),
/// widths past several vectors.
inline std::vector<WindowCase> other_shape_cases() {
  std::vector<WindowCase> cases;
  const auto add = [&](int64_t batch, int64_t time, int64_t channels, int64_t heads, bool causal, int64_t left,
                       int64_t right, bool shared_row, bool key_per_head, bool state) {
    WindowCase c;
    c.batch = batch, c.time = time, c.channels = channels, c.heads = heads, c.causal = causal;
    c.has_band = true, c.left = left, c.right = right;
    c.shared_row = shared_row, c.key_per_head = key_per_head, c.state = state;
    c.seed = 1000 + cases.size();
    cases.push_back(c);
  };
  add(2, 65, 19, 1, false, 3, 0, false, false, false);
  add(2, 65, 21, 3, false, 0, 5, false, true, false);
  add(1, 70, 9, 1, false, 40, 2, false, false, false);
  add(1, 70, 9, 3, false, 2, 90, false, false, false);
  add(2, 97, 21, 3, true, 6, 0, true, false, false);
  add(3, 97, 35, 1, true, 31, 0, true, false, true);
  add(2, 97, 21, 3, false, 6, 6, true, true, false);
  add(2, 33, 12, 3, false, 50, 50, true, false, false);
  add(2, 130, 131, 1, true, 31, 0, false, false, true);
  add(2, 130, 66, 3, false, 15, 15, false, false, false);
  add(1, 64, 257, 1, true, 7, 0, false, true, false);
  add(4, 140, 64, 1, true, 31, 0, false, false, true);
  for (const int64_t left : {1, 4, 11, 20, 40, 70}) {  // states within and past their first window
    add(8, 50, 13, 1, true, left, 0, false, false, true);
    add(8, 70, 18, 3, true, left, 0, false, left == 20, true);
    add(8, 60, 15, 1, true, left, 0, true, false, true);
  }
  return cases;
}

/// Masked keys and packed sequences, also together, empty and one-token sequences among them.
inline std::vector<WindowCase> masked_and_packed_cases() {
  std::vector<WindowCase> cases;
  uint64_t n = 0;
  for (const bool causal : {true, false}) {
    for (const int64_t s : {0, 1, 7, 32, 90}) {
      for (const int form : {1, 2, 3}) {
        WindowCase c;
        c.causal = causal;
        c.batch = 3, c.time = 83;
        set_window(c, s);
        c.masked = form != 2;
        if (form != 1) pack(c, {5, 0, 70, 1, 131, 0, 33});
        c.seed = 3000 + ++n;
        c.heads = n % 3 == 0 ? 3 : 1;
        c.channels = c.heads == 3 ? 12 : 17;
        c.key_per_head = n % 5 == 1;
        c.state = causal && n % 2 == 0;
        c.shared_row = s == 7 && form != 1;
        c.gate = n % 7 == 0 ? Gate::kNone : Gate::kSigmoid;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

inline std::vector<WindowCase> window_cases() {
  std::vector<WindowCase> cases = length_and_window_cases();
  for (const WindowCase& c : other_shape_cases()) cases.push_back(c);
  for (const WindowCase& c : masked_and_packed_cases()) cases.push_back(c);
  return cases;
}

/// Hard numbers, each class over simple, local and conv1d, causal and not. Many short rows rather than few long ones:
/// the maximum of a small pool is an accident.
inline std::vector<WindowCase> hard_cases(const std::string& input) {
  std::vector<WindowCase> cases;
  uint64_t n = 0;
  for (const int64_t time : {5, 40, 70, 150}) {
    for (const int64_t s : {0, 1, 7, 9, 32, 0}) {
      for (const bool causal : {true, false}) {
        WindowCase c;
        c.input = input;
        c.batch = time > 70 ? 1 : 6;
        c.time = time;
        c.causal = causal;
        set_window(c, s);
        c.seed = 2000 + ++n;
        c.heads = n % 3 == 0 ? 3 : 1;
        c.channels = time > 70 ? (c.heads == 3 ? 6 : 5) : (c.heads == 3 ? 12 : 11);
        c.key_per_head = n % 5 == 3;
        c.state = causal && n % 8 != 1;
        c.shared_row = s == 7;
        c.gate = n % 7 == 0 ? Gate::kNone : Gate::kSigmoid;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

/// Classes of input that hard_cases takes; make_inputs says what each is.
inline std::vector<std::string> hard_inputs() {
  return {"wide",       "key_offset_1e4", "key_1e4", "weight_1e4", "both_1e4",    "key_65504", "weight_65504",
          "both_65504", "all_equal",      "apart",   "apart_1e4",  "apart_65504", "tiny",      "absent"};
}

}  // namespace aft::ops::test
