// Gradients against central differences of the forward, in f64: the references' own and the kernels' own.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/ops/run.h"

namespace aft::ops::test {
namespace {

using Run = std::function<Outputs<double>(const Inputs<double>&, bool backward)>;

// A loss whose gradient the backward gives: every output times the gradient given for it. The sums of a state are taken
// in the scale of `base`, since the backward holds the maximum constant.
long double loss(const Inputs<double>& in, const Outputs<double>& out, const Outputs<double>& base, long double* size) {
  const Case& c = in.c;
  long double sum = 0;
  *size = 0;
  for (const auto& [name, x] : out) {
    if (name.starts_with("grad_") || !in.has("grad_" + name)) continue;
    const std::vector<double>& gradient = in["grad_" + name];
    for (size_t i = 0; i < x.x.size(); ++i) {
      if (x.x[i] == -std::numeric_limits<double>::infinity()) continue;  // a masked key in the ring
      long double term = (long double)gradient[i] * x.x[i];
      if (name == "final_den" || name == "final_num") {
        const int64_t b = static_cast<int64_t>(i) / x.width, channel = static_cast<int64_t>(i) % x.width;
        const int64_t key = b * c.key_channels() + (name == "final_den" ? channel : c.key_channel(channel));
        const double max = out["final_max"][key], base_max = base["final_max"][key];
        if (max != base_max) term *= std::exp2((long double)(max - base_max));
      }
      sum += term, *size += std::abs(term);
    }
  }
  return sum;
}

// False for parts of an initial state that nothing depends on: sums that hold no source, empty slots of the ring.
bool counts(const Inputs<double>& in, const std::string& name, int64_t i) {
  if (!name.starts_with("initial_")) return true;
  const int64_t width = in.array(name).width;
  const int64_t position = in.position[i / width];
  if (name == "initial_den" || name == "initial_num") return position > in.ring;
  return slot_holds_source(position, in.ring, i % width / (width / in.ring));
}

void expect_central_differences(Inputs<double> in, const Run& run) {
  const Outputs<double> base = run(in, true);
  for (const auto& [output, gradient] : base) {
    if (!output.starts_with("grad_")) continue;
    const std::string name = output.substr(5);
    std::vector<double>& x = in[name];
    ASSERT_EQ(x.size(), gradient.x.size()) << name << "; " << describe(in.c);
    for (size_t i = 0; i < x.size(); ++i) {
      if (!counts(in, name, static_cast<int64_t>(i))) {
        EXPECT_EQ(gradient.x[i], 0) << output << '[' << i << "]; " << describe(in.c);
        continue;
      }
      const double at = x[i];
      long double size = 0;
      const auto difference = [&](double h) {
        x[i] = at + h;
        const long double up = loss(in, run(in, false), base, &size);
        const double x_up = x[i];
        x[i] = at - h;
        const long double down = loss(in, run(in, false), base, &size);
        const double width = x_up - x[i];
        x[i] = at;
        return double((up - down) / width);
      };
      // Two steps and Richardson's combination: the error is of order h^4, and their difference (order h^2) shows how
      // smooth the loss is there.
      const double h = 1e-3;
      const double coarse = difference(2 * h);
      const double fine = difference(h);
      const double rounding = 16 * 0x1p-53 * double(size) / h;
      EXPECT_NEAR(gradient.x[i], (4 * fine - coarse) / 3, rounding + 1e-3 * std::abs(coarse - fine))
          << output << '[' << i << "]; " << describe(in.c);
    }
  }
}

// Small ones: heads, keys, gates and masks take turns.
std::vector<Case> small_cases() {
  std::vector<Case> list;
  uint64_t seed = 100;
  const auto add = [&](Case c) {
    c.batch = 2, c.channels = 3, c.seed = ++seed;
    if (seed % 2 == 0) c.channels = 6, c.heads = 3;
    c.key_per_head = seed % 3 == 0;
    c.masked = c.family() != Family::kWindow && seed % 5 == 0;
    c.gate = seed % 4 == 1 ? Gate::kRelu : seed % 4 == 3 ? Gate::kNone : Gate::kSigmoid;
    list.push_back(c);
  };
  for (const bool causal : {true, false}) {
    for (const int64_t s : {0, 1, 2, 4, 7, 12}) {
      for (const bool state : {false, true}) {
        if (state && !causal) continue;
        Case c{.time = 7, .causal = causal, .state = state};
        set_window(c, s);
        if (s == 4) c.op = Operator::kConv1d;
        add(c);
      }
    }
  }
  add({.op = Operator::kLocal, .time = 8, .causal = false, .left = 1, .right = 4});
  for (const auto& [height, width] : {std::pair(1, 1), std::pair(1, 5), std::pair(3, 2), std::pair(2, 6)}) {
    for (const int64_t kernel : {1, 3, 7}) {
      Case c;
      set_grid(c, height, width, kernel);
      add(c);
    }
  }
  for (int weights = 0; weights < 6; ++weights) {
    add({.op = Operator::kFull, .time = 6, .weights = static_cast<Weights>(weights), .state = weights == 2});
    add({.op = Operator::kFull, .time = 5, .sources = 7, .causal = false, .weights = static_cast<Weights>(weights)});
  }
  list.push_back({.op = Operator::kLocalBias, .time = 6, .heads = 2, .left = 2, .right = 1, .seed = 5});
  return list;
}

TEST(Gradient, ReferenceAgreesWithCentralDifferences) {
  for (const Case& c : small_cases()) {
    expect_central_differences(make_inputs<double>(c), run_reference<double>);
  }
}

TEST(Gradient, KernelsAgreeWithCentralDifferences) {
  for (const Case& c : small_cases()) {
    expect_central_differences(make_inputs<double>(c),
                               [](const Inputs<double>& in, bool backward) { return run(in, {.backward = backward}); });
  }
}

// What fails the certificate is done by other code.
TEST(Gradient, ExactRedoAgreesWithCentralDifferences) {
  for (const Family family : {Family::kWindow, Family::kGrid, Family::kFull}) {
    Case c{.op = Operator::kLocal, .batch = 2, .channels = 4, .heads = 2, .left = 3, .seed = 7};
    if (family == Family::kGrid) set_grid(c, 3, 4, 3);
    if (family == Family::kFull) c.op = Operator::kFull, c.left = 0, c.weights = Weights::kTablePerHead;
    c.time = 12;
    Inputs<double> in = make_inputs<double>(c);
    for (int64_t i = 0; i < c.channels; ++i) in["k"][i] += 900;  // position 0 of sequence 0 outweighs all,
    for (int64_t h = 0; h < c.heads; ++h) {
      // but not for a target that sees it with the least weight: on the grid one up, one left.
      in["weights"][in.weight_index(0, h, family == Family::kGrid ? 5 : 2, 0)] -= 900;
    }
    RedoCount redone;
    expect_central_differences(in, [&redone](const Inputs<double>& x, bool backward) {
      return run(x, {.redone = &redone, .backward = backward});
    });
    EXPECT_GT(redone.redone, 0) << describe(c);
  }
}

}  // namespace
}  // namespace aft::ops::test
