// The lists of cases that every operator is judged over.

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "tests/ops/case.h"

namespace aft::ops::test {
namespace {

void append(std::vector<Case>& to, const std::vector<Case>& from) { to.insert(to.end(), from.begin(), from.end()); }

Gate gate_in_turn(uint64_t n) { return n % 5 == 2 ? Gate::kRelu : n % 5 == 4 ? Gate::kNone : Gate::kSigmoid; }

// Every length with every window, causal and not; widths, heads, keys, gates and states take turns.
std::vector<Case> length_and_window_cases() {
  std::vector<Case> list;
  uint64_t n = 0;
  for (const int64_t time : {0, 1, 2, 3, 31, 32, 33, 97, 257, 1031}) {
    if (kSanitized && time > 257) break;
    std::vector<int64_t> windows;
    for (const int64_t s : std::initializer_list<int64_t>{0, 1, 2, 7, 32, time, time + 5}) {
      if (std::find(windows.begin(), windows.end(), s) == windows.end()) windows.push_back(s);
    }
    for (const int64_t s : windows) {
      for (const bool causal : {true, false}) {
        Case c{.time = time, .causal = causal, .seed = ++n};
        set_window(c, s);
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
        c.gate = gate_in_turn(n);
        c.state = causal && n % 4 >= 2;
        list.push_back(c);
      }
    }
  }
  return list;
}

// Also together; empty and one-token sequences among them.
std::vector<Case> masked_and_packed_cases() {
  std::vector<Case> list;
  uint64_t n = 0;
  for (const bool causal : {true, false}) {
    for (const int64_t s : {0, 1, 7, 32, 90}) {
      for (const int form : {1, 2, 3}) {
        Case c{.batch = 3, .time = 83, .causal = causal, .masked = form != 2, .seed = 3000 + ++n};
        set_window(c, s);
        if (form != 1) pack(c, {5, 0, 70, 1, 131, 0, 33});
        c.heads = n % 3 == 0 ? 3 : 1;
        c.channels = c.heads == 3 ? 12 : 17;
        c.key_per_head = n % 5 == 1;
        c.state = causal && n % 2 == 0;
        if (s == 7 && form != 1) c.op = Operator::kConv1d;
        c.gate = n % 7 == 0 ? Gate::kNone : Gate::kSigmoid;
        list.push_back(c);
      }
    }
  }
  return list;
}

std::vector<Case> hard_window_cases(const std::string& input) {
  std::vector<Case> list;
  uint64_t n = 0;
  for (const int64_t time : {5, 40, 70, 150}) {
    for (const int64_t s : {0, 1, 7, 9, 32, 0}) {
      for (const bool causal : {true, false}) {
        Case c{.input = input, .batch = time > 70 ? 1 : 6, .time = time, .causal = causal, .seed = 2000 + ++n};
        set_window(c, s);
        c.heads = n % 3 == 0 ? 3 : 1;
        c.channels = time > 70 ? (c.heads == 3 ? 6 : 5) : (c.heads == 3 ? 12 : 11);
        c.key_per_head = n % 5 == 3;
        c.state = causal && n % 8 != 1;
        if (s == 7) c.op = Operator::kConv1d;
        c.gate = n % 7 == 0 ? Gate::kNone : Gate::kSigmoid;
        if (kSanitized && time == 70) continue;  // 150 are several chunks too
        list.push_back(c);
      }
    }
  }
  return list;
}

// Every grid with every kernel; heads, widths, keys, gates and masks take turns.
std::vector<Case> grid_cases() {
  constexpr int64_t kGrids[][2] = {{1, 1},  {1, 2},   {1, 37}, {29, 1}, {3, 4},
                                   {7, 13}, {14, 14}, {0, 5},  {4, 0},  {18, 5}};
  std::vector<Case> list;
  uint64_t n = 0;
  for (const auto& grid : kGrids) {
    for (const int64_t kernel : {1, 3, 7, 11, 25, 31}) {
      Case c{.seed = ++n};
      set_grid(c, grid[0], grid[1], kernel);
      // The dense reference costs T^2 d: large grids are narrow.
      const bool large = c.time > 60;
      c.channels = large ? (n % 2 == 0 ? 6 : 3) : (n % 2 == 0 ? 51 : 21);
      c.heads = n % 3 == 0 ? 1 : n % 3 == 1 ? 3 : c.channels;
      c.key_per_head = n % 4 < 2 && c.heads < c.channels;
      c.batch = large ? 1 + static_cast<int64_t>(n % 5 == 1) : 2 + static_cast<int64_t>(n % 2);
      c.gate = gate_in_turn(n);
      c.masked = n % 4 == 2 && c.batch > 1;
      list.push_back(c);
    }
  }
  // Widths past a panel and past a vector; heads that straddle them; a kernel that covers part of a long grid.
  const auto add = [&](int64_t height, int64_t width, int64_t channels, int64_t heads, bool key_per_head,
                       int64_t kernel) {
    Case c{.batch = 2, .channels = channels, .heads = heads, .key_per_head = key_per_head, .masked = kernel == 5};
    c.seed = 500 + list.size();
    set_grid(c, height, width, kernel);
    list.push_back(c);
  };
  add(4, 5, 131, 131, false, 3);
  add(4, 5, 132, 4, true, 5);
  add(5, 4, 130, 65, true, 5);
  add(3, 6, 96, 1, true, 3);
  add(2, 70, 5, 5, false, 9);
  add(70, 2, 5, 1, false, 9);
  add(9, 41, 2, 1, false, 73);
  // Images that have no room in the shared memory of a GPU.
  add(29, 28, 2, 2, false, 7);
  add(2, 450, 2, 1, true, 5);
  return list;
}

std::vector<Case> hard_grid_cases(const std::string& input) {
  constexpr int64_t kGrids[][2] = {{1, 1}, {1, 9}, {5, 1}, {4, 5}, {7, 6}, {14, 14}};
  std::vector<Case> list;
  uint64_t n = 0;
  for (const auto& grid : kGrids) {
    for (const int64_t kernel : {1, 3, 5, 9, 11, 31}) {
      Case c{.input = input, .seed = 2000 + ++n};
      set_grid(c, grid[0], grid[1], kernel);
      const bool large = c.time > 60;
      c.batch = large ? 1 : 5;
      c.channels = large ? 6 : 12;
      c.heads = n % 3 == 0 ? 3 : n % 3 == 1 ? 1 : c.channels;
      c.key_per_head = n % 5 == 3 && c.heads < c.channels;
      c.masked = n % 6 == 4 && c.batch > 1;
      c.gate = n % 7 == 0 ? Gate::kNone : Gate::kSigmoid;
      list.push_back(c);
    }
  }
  return list;
}

std::vector<Case> full_cases() {
  std::vector<Case> list;
  uint64_t n = 0;
  for (const int64_t time : {0, 1, 2, 3, 31, 33, 97, 193, 210, 390}) {
    if (kSanitized && time > 210) break;
    for (const bool causal : {true, false}) {
      for (int variant = 0; variant < 3; ++variant) {
        Case c{.op = Operator::kFull, .time = time, .causal = causal, .seed = ++n};
        if (!causal && variant > 0) c.sources = std::max<int64_t>(0, time + (variant == 1 ? 7 : -5));
        c.heads = n % 3 == 0 ? 3 : 1;
        const std::vector<int64_t> one_head = time > 210  ? std::vector<int64_t>{2}
                                              : time > 97 ? std::vector<int64_t>{3, 5}
                                                          : std::vector<int64_t>{1, 7, 19, 37};
        const std::vector<int64_t> three_heads =
            time > 97 ? std::vector<int64_t>{3, 6} : std::vector<int64_t>{3, 9, 51};
        const auto& widths = c.heads == 3 ? three_heads : one_head;
        c.channels = widths[n / 3 % widths.size()];
        c.batch = time > 210 ? 1 : time > 97 ? 1 + static_cast<int64_t>(n % 2) : 3;
        c.key_per_head = n % 4 == 1;
        c.gate = gate_in_turn(n);
        c.weights = static_cast<Weights>(n % 6);
        c.state = causal && n % 4 >= 2;
        c.masked = n % 7 == 3;
        list.push_back(c);
      }
    }
  }
  // Heads of one channel; factors wider than a chunk; packed sequences, some empty.
  const auto add = [&](Case c) {
    c.op = Operator::kFull;
    c.seed = 500 + list.size();
    list.push_back(c);
  };
  add({.batch = 2, .time = 40, .channels = 5, .heads = 5, .weights = Weights::kTablePerHead});
  add({.batch = 2,
       .time = 40,
       .sources = 33,
       .channels = 5,
       .heads = 5,
       .causal = false,
       .weights = Weights::kFactorsPerHead});
  add({.time = 60, .channels = 9, .weights = Weights::kFactors, .factors = 230});
  add({.time = 60, .channels = 9, .weights = Weights::kFactors, .factors = 0});
  for (const bool causal : {true, false}) {
    for (const Weights w : {Weights::kTable, Weights::kFactors, Weights::kTablePerHead}) {
      Case c{.channels = 21, .heads = 3, .key_per_head = w == Weights::kFactors, .causal = causal, .weights = w};
      c.masked = w == Weights::kTable;
      pack(c, {5, 0, 1, 210, 33, 0});
      add(c);
    }
  }
  return list;
}

std::vector<Case> hard_full_cases(const std::string& input) {
  std::vector<Case> list;
  uint64_t n = 0;
  for (const int64_t time : {5, 40, 70, 200}) {
    for (int variant = 0; variant < (time > 70 ? 1 : 4); ++variant) {
      for (const bool causal : {true, false}) {
        Case c{.op = Operator::kFull, .input = input, .time = time, .causal = causal, .seed = 3000 + ++n};
        c.batch = time > 70 ? 1 : 8;
        if (!causal) c.sources = time + variant;
        c.heads = n % 3 == 0 ? 3 : 1;
        c.channels = c.heads == 3 ? 6 : 5;
        c.key_per_head = n % 5 == 3;
        c.state = causal && n % 3 == 1;
        c.weights = variant == 1 ? Weights::kTablePerHead : variant == 2 ? Weights::kTablePerBatch : Weights::kTable;
        c.gate = n % 7 == 0 ? Gate::kNone : Gate::kSigmoid;
        list.push_back(c);
      }
    }
  }
  return list;
}

std::vector<Case> local_bias_cases() {
  std::vector<Case> list;
  const auto add = [&](int64_t heads, int64_t rows, int64_t factors, int64_t left, int64_t right) {
    list.push_back({.op = Operator::kLocalBias,
                    .time = rows,
                    .heads = heads,
                    .left = left,
                    .right = right,
                    .factors = factors,
                    .seed = list.size() + 1});
  };
  const std::vector<int64_t> widths = {1, 3, 7, 8, 16, 17, 31, 64, 67, 131};
  for (const int64_t rows : {0, 1, 2, 3, 4, 5, 31, 33, 97, 257}) {
    for (const int64_t s : std::initializer_list<int64_t>{1, 2, 7, 32, rows, rows + 5}) {
      if (s == 0) continue;
      for (const bool causal : {true, false}) {
        const size_t n = list.size();
        add(n % 3 == 0 ? 3 : 1, rows, widths[n % widths.size()], s - 1, causal ? 0 : s - 1);
      }
    }
  }
  add(2, 40, 5, 0, 9);
  add(1, 300, 20, 130, 3);
  add(1, 50, 0, 3, 0);  // no width: every weight is 0
  add(1, 1031, 6, 31, 0);
  return list;
}

}  // namespace

std::vector<Case> other_window_cases() {
  std::vector<Case> list;
  const auto add = [&](int64_t batch, int64_t time, int64_t channels, int64_t heads, bool causal, int64_t left,
                       int64_t right, Operator op, bool key_per_head, bool state) {
    list.push_back({.op = op,
                    .batch = batch,
                    .time = time,
                    .channels = channels,
                    .heads = heads,
                    .key_per_head = key_per_head,
                    .causal = causal,
                    .left = left,
                    .right = right,
                    .state = state,
                    .seed = 1000 + list.size()});
  };
  constexpr Operator kLocal = Operator::kLocal, kConv1d = Operator::kConv1d;
  add(2, 65, 19, 1, false, 3, 0, kLocal, false, false);
  add(2, 65, 21, 3, false, 0, 5, kLocal, true, false);
  add(1, 70, 9, 1, false, 40, 2, kLocal, false, false);
  add(1, 70, 9, 3, false, 2, 90, kLocal, false, false);
  add(2, 97, 21, 3, true, 6, 0, kConv1d, false, false);
  add(3, 97, 35, 1, true, 31, 0, kConv1d, false, true);
  add(2, 97, 21, 3, false, 6, 6, kConv1d, true, false);
  add(2, 33, 12, 3, false, 50, 50, kConv1d, false, false);
  add(2, 130, 131, 1, true, 31, 0, kLocal, false, true);
  add(2, 130, 66, 3, false, 15, 15, kLocal, false, false);
  add(1, 64, 257, 1, true, 7, 0, kLocal, true, false);
  add(4, 140, 64, 1, true, 31, 0, kLocal, false, true);
  for (const int64_t left : {1, 4, 11, 20, 40, 70}) {  // states within and past their first window
    add(8, 50, 13, 1, true, left, 0, kLocal, false, true);
    add(8, 70, 18, 3, true, left, 0, kLocal, left == 20, true);
    add(8, 60, 15, 1, true, left, 0, kConv1d, false, true);
  }
  return list;
}

namespace {

std::vector<Case> all_cases(Family family) {
  switch (family) {
    case Family::kGrid:
      return grid_cases();
    case Family::kFull:
      return full_cases();
    case Family::kLocalBias:
      return local_bias_cases();
    case Family::kWindow:
      break;
  }
  std::vector<Case> list = length_and_window_cases();
  append(list, other_window_cases());
  append(list, masked_and_packed_cases());
  return list;
}

}  // namespace

std::vector<Case> cases(Family family) {
  const std::vector<Case> all = all_cases(family);
  const char* every = std::getenv("AFT_TEST_EVERY");
  if (every == nullptr) return all;
  std::vector<Case> list;
  for (size_t i = 0; i < all.size(); i += std::max(1UL, std::stoul(every))) list.push_back(all[i]);
  return list;
}

// Many short rows rather than few long ones: the maximum of a small pool is an accident.
std::vector<Case> hard_cases(Family family, const std::string& input) {
  return family == Family::kWindow ? hard_window_cases(input)
         : family == Family::kGrid ? hard_grid_cases(input)
         : family == Family::kFull ? hard_full_cases(input)
                                   : std::vector<Case>();
}

std::vector<std::string> hard_inputs() {
  return {"wide",       "key_offset_1e4", "key_1e4", "weight_1e4", "both_1e4",    "key_65504", "weight_65504",
          "both_65504", "all_equal",      "apart",   "apart_1e4",  "apart_65504", "tiny",      "absent"};
}

}  // namespace aft::ops::test
