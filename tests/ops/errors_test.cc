// Bad input throws aft::Error that names the argument, before anything is written.

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "aft/error.h"
#include "aft/ops/full.h"
#include "aft/ops/grid.h"
#include "aft/ops/local_bias.h"
#include "aft/ops/window.h"

namespace aft::ops::test {
namespace {

constexpr float kUntouched = 12345;

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  } catch (const std::exception& e) {
    return std::string("something else than aft::Error: ") + e.what();
  }
  return "no error";
}

// Valid calls of B = 1, T = 4, d = 6, two heads, with a state, of which a test spoils one thing: the windowed operator
// with the window (2, 0), the dense one with a matrix of 8 x 8 and a ring of 8.
struct Memory {
  std::vector<float> in = std::vector<float>(4 * 6, 0.5f);
  std::vector<float> out = std::vector<float>(7 * 4 * 6, kUntouched);
  std::vector<float> weights = std::vector<float>(8 * 8, 0.25f);
  std::vector<float> grad_weights = std::vector<float>(8 * 8, kUntouched);
  int64_t position = 0;
  int64_t final_position = -1;
  std::vector<float> state = std::vector<float>(6 + 6 + 6 + 48 + 48, 0);
  std::vector<float> final = std::vector<float>(6 + 6 + 6 + 48 + 48, kUntouched);
  std::vector<float> saved = std::vector<float>(200);
  const int64_t* cu_seqlens = nullptr;

  static State<float> state_at(std::vector<float>& s, int64_t* p) {
    return {p, s.data(), s.data() + 6, s.data() + 12, s.data() + 18, s.data() + 66};
  }
  bool untouched() const {
    for (const auto* memory : {&out, &grad_weights, &final}) {
      for (const float x : *memory) {
        if (x != kUntouched) return false;
      }
    }
    return final_position == -1;
  }
};

template <class Forward, class Backward, class Step>
struct Call : Memory {
  Forward forward;
  Backward backward;
  Step step;

  void give() {
    forward.in.q = forward.in.k = forward.in.v = {in.data(), 24, 6};
    forward.y = {out.data(), 24, 6};
    forward.in.initial_state = state_at(state, &position);
    forward.final_state = state_at(final, &final_position);
    forward.saved = saved.data();
    backward.in = forward.in;
    backward.grad_y = forward.in.q;
    backward.grad_q = {out.data() + 24, 24, 6};
    backward.grad_k = {out.data() + 48, 24, 6};
    backward.grad_v = {out.data() + 72, 24, 6};
    backward.saved = saved.data();
    step.in = forward.in;
    step.y = forward.y;
    step.state = state_at(state, &position);
  }
  Call(const Call&) = delete;

  /// One sequence of all tokens; a state has no place in the dense operator then.
  void pack(const int64_t* cu, int64_t longest = 4) {
    const auto one = [&](auto& x) {
      x.shape.packed = true, x.cu_seqlens = cu, x.longest = longest;
      if constexpr (requires { x.weights; }) x.initial_state = {};
    };
    one(forward.in), one(backward.in);
    if constexpr (requires { forward.in.weights; }) forward.final_state = {};
  }

 protected:
  Call() = default;
};

struct WindowCall : Call<WindowForward<float>, WindowBackward<float>, WindowStep<float>> {
  WindowCall() {
    forward.in.shape = {
        .batch = 1, .time = 4, .channels = 6, .heads = 2, .key_channels = 6, .has_band = true, .left = 2};
    forward.in.band = {weights.data(), 24, 3, 8};
    give();
    window_state_init(forward.in.shape, state_at(state, &position));
    backward.grad_band = {grad_weights.data(), 24, 3, 8};
  }
  std::string error(int pass) const {
    return error_of([&] {
      pass == 0 ? window_forward(forward) : pass == 1 ? window_backward(backward) : window_step(step);
    });
  }
};

struct FullCall : Call<FullForward<float>, FullBackward<float>, FullStep<float>> {
  FullCall() {
    forward.in.shape = {
        .batch = 1, .targets = 4, .sources = 4, .channels = 6, .heads = 2, .key_channels = 6, .capacity = 8};
    forward.in.weights.table = weights.data();
    forward.in.weights.row_stride = forward.in.weights.rows = forward.in.weights.columns = 8;
    give();
    backward.grad_weights.table = grad_weights.data();
    backward.grad_weights.row_stride = backward.grad_weights.rows = backward.grad_weights.columns = 8;
  }
  std::string error(int pass) const {
    return error_of([&] { pass == 0 ? full_forward(forward) : pass == 1 ? full_backward(backward) : full_step(step); });
  }
};

enum Passes { kForward = 1, kBackward = 2, kStep = 4, kBoth = 3, kAll = 7 };

// Spoils a call and expects that the passes given say so. The change of inputs is that of all passes.
template <class Of>
void expect_error(const std::string& words, int passes, const std::function<void(Of&)>& spoil) {
  for (int pass = 0; pass < 3; ++pass) {
    if ((passes >> pass & 1) == 0) continue;
    Of call;
    spoil(call);
    const std::string error = call.error(pass);
    EXPECT_NE(error.find(words), std::string::npos) << "pass " << pass << " does not say " << words << ": " << error;
    EXPECT_TRUE(call.untouched()) << "pass " << pass << " wrote before it threw for " << words;
  }
}
template <class Of, class Change>
void expect_input_error(const std::string& words, int passes, const Change& change) {
  expect_error<Of>(words, passes,
                   [&](Of& call) { change(call.forward.in), change(call.backward.in), change(call.step.in); });
}

TEST(Errors, TheCallsThemselvesAreGood) {
  WindowCall window;
  FullCall full;
  for (int pass = 0; pass < 3; ++pass) {
    EXPECT_EQ(window.error(pass), "no error");
    EXPECT_EQ(full.error(pass), "no error");
  }
}

template <class Of>
void expect_shape_errors() {
  const auto shape = [](const char* words, int passes, auto change) {
    expect_input_error<Of>(words, passes, [&](auto& in) { change(in.shape); });
  };
  shape("batch: expected at least 0, got -1", kAll, [](auto& s) { s.batch = -1; });
  shape("channels: expected at least 0, got -6", kAll, [](auto& s) { s.channels = -6; });
  shape("heads: expected a divisor of channels = 6, got 0", kAll, [](auto& s) { s.heads = 0; });
  shape("heads: expected a divisor of channels = 6, got 4", kAll, [](auto& s) { s.heads = 4; });
  shape("key_channels", kAll, [](auto& s) { s.key_channels = 3; });
  shape("causal", kAll, [](auto& s) { s.causal = false; });  // with a state
}

TEST(Errors, Shape) {
  expect_shape_errors<WindowCall>();
  expect_shape_errors<FullCall>();
  const auto window = [](const char* words, int passes, auto change) {
    expect_input_error<WindowCall>(words, passes, [&](auto& in) { change(in.shape); });
  };
  window("time", kBoth, [](auto& s) { s.time = -1; });
  window("left", kAll, [](auto& s) { s.left = -1; });
  window("left", kAll, [](auto& s) { s.left = std::numeric_limits<int64_t>::max(); });
  window("right", kAll, [](auto& s) { s.right = -1; });
  window("right", kAll, [](auto& s) { s.right = 1; });        // causal
  window("left", kAll, [](auto& s) { s.has_band = false; });  // a reach without a band
  const auto full = [](const char* words, int passes, auto change) {
    expect_input_error<FullCall>(words, passes, [&](auto& in) { change(in.shape); });
  };
  full("targets", kBoth, [](auto& s) { s.targets = -1; });
  full("sources: expected targets = 4 when causal, got 5", kBoth, [](auto& s) { s.sources = 5; });
  full("ring of at least 4", kForward, [](auto& s) { s.capacity = 3; });
  full("capacity", kBoth, [](auto& s) { s.capacity = -1; });
}

template <class Of>
void expect_packing_errors() {
  for (const std::vector<int64_t>& cu : std::vector<std::vector<int64_t>>{{1, 4}, {0, 3}, {0, 5}, {0, -1}}) {
    expect_error<Of>("cu_seqlens", kBoth, [&](Of& call) { call.pack(cu.data()); });
  }
  const int64_t back[] = {0, 3, 2}, past[] = {0, 5, 4};
  for (const int64_t* cu : {back, past}) {
    expect_error<Of>("cu_seqlens", kBoth, [&](Of& call) {
      call.pack(cu);
      call.forward.in.shape.batch = call.backward.in.shape.batch = 2;
      call.forward.in.initial_state = call.backward.in.initial_state = {};
      call.forward.final_state = {};
    });
  }
  const int64_t cu[] = {0, 4};
  for (const int pass : {0, 1}) {
    Of call;
    call.pack(cu);
    EXPECT_EQ(call.error(pass), "no error");
  }
  expect_error<Of>("of at most longest = 3 tokens, got 4", kBoth, [&](Of& call) { call.pack(cu, 3); });
  expect_error<Of>("longest: expected at least 0, got -1", kBoth, [&](Of& call) { call.pack(cu, -1); });
  expect_error<Of>("cu_seqlens: expected an array because packed is set, got null", kBoth,
                   [](Of& call) { call.pack(nullptr); });
  expect_error<Of>("cu_seqlens: expected null because packed is not set, got an array", kBoth, [&](Of& call) {
    call.pack(cu);
    call.forward.in.shape.packed = call.backward.in.shape.packed = false;
  });
}

TEST(Errors, PackedSequences) {
  expect_packing_errors<WindowCall>();
  expect_packing_errors<FullCall>();
  const int64_t cu[] = {0, 4};
  expect_error<WindowCall>("band", kBoth, [&](WindowCall& call) {
    call.pack(cu);
    call.forward.in.band.rows = call.backward.in.band.rows = call.backward.grad_band.rows = 3;
  });
  expect_error<FullCall>("weights: expected a row for every target up to 4, got 3", kBoth, [&](FullCall& call) {
    call.pack(cu);
    call.forward.in.weights.rows = call.backward.in.weights.rows = call.backward.grad_weights.rows = 3;
  });
  expect_error<FullCall>("initial_state: expected none with cu_seqlens", kBoth, [&](FullCall& call) {
    const auto state = call.forward.in.initial_state;
    call.pack(cu);
    call.forward.in.initial_state = call.backward.in.initial_state = state;
  });
}

template <class Of>
void expect_missing_errors() {
  expect_input_error<Of>("q: expected", kAll, [](auto& in) { in.q.data = nullptr; });
  expect_input_error<Of>("k: expected", kAll, [](auto& in) { in.k.data = nullptr; });
  expect_input_error<Of>("v: expected", kAll, [](auto& in) { in.v.data = nullptr; });
  expect_input_error<Of>("initial_state", kBoth, [](auto& in) { in.initial_state.den = nullptr; });
  expect_error<Of>("y: expected", kForward, [](Of& call) { call.forward.y.data = nullptr; });
  expect_error<Of>("final_state", kForward, [](Of& call) { call.forward.final_state.num = nullptr; });
  expect_error<Of>("grad_y", kBackward, [](Of& call) { call.backward.grad_y.data = nullptr; });
  expect_error<Of>("grad_q", kBackward, [](Of& call) { call.backward.grad_q.data = nullptr; });
  expect_error<Of>("grad_v", kBackward, [](Of& call) { call.backward.grad_v.data = nullptr; });
  expect_error<Of>("state", kStep, [](Of& call) { call.step.state.position = nullptr; });
}

TEST(Errors, MissingArrays) {
  expect_missing_errors<WindowCall>();
  expect_missing_errors<FullCall>();
  expect_input_error<WindowCall>("band", kAll, [](auto& in) { in.band.data = nullptr; });
  expect_input_error<FullCall>("weights", kAll, [](auto& in) { in.weights.table = nullptr; });
}

TEST(Errors, GradientsOfWeights) {
  expect_error<WindowCall>("grad_band", kBackward, [](WindowCall& call) { call.backward.grad_band.row_stride = 0; });
  expect_error<WindowCall>("grad_band", kBackward, [](WindowCall& call) { call.backward.grad_band.rows = 7; });
  expect_error<FullCall>("grad_weights", kBackward, [](FullCall& call) { call.backward.grad_weights.rows = 7; });
}

TEST(Errors, Positions) {
  for (const int64_t position : {int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    expect_error<WindowCall>("position", kAll, [&](WindowCall& call) { call.position = position; });
    expect_error<FullCall>("position", kBoth, [&](FullCall& call) { call.position = position; });
  }
  expect_error<WindowCall>("band", kBoth, [](WindowCall& call) { call.position = 5; });  // 5 + 4 > 8 rows
  expect_error<WindowCall>("band", kStep, [](WindowCall& call) { call.position = 8; });
  expect_error<FullCall>("position", kBoth, [](FullCall& call) { call.position = 5; });  // 5 + 4 > a ring of 8
  expect_error<FullCall>("position", kStep, [](FullCall& call) { call.position = 8; });
  for (const int64_t channels : {6, 0}) {
    const auto shorter = [&](int64_t rows, int64_t columns) {
      return [=](auto& in) {
        in.shape.channels = in.shape.key_channels = channels;
        in.weights.rows = rows, in.weights.columns = columns;
      };
    };
    expect_input_error<FullCall>("row for every target up to 4, got 3", kForward, shorter(3, 8));
    expect_input_error<FullCall>("column for every source up to 4, got 3", kForward, shorter(8, 3));
  }
}

TEST(Errors, Grid) {
  using P = GridForward<float>;
  const auto forward_error = [](const std::function<void(P&)>& change) {
    P p;
    std::vector<float> x(100);
    p.in.shape = {1, 2, 3, 4, 2, 4, 3};
    p.in.q = p.in.k = p.in.v = {x.data(), 24, 4};
    p.y = {x.data(), 24, 4};
    p.in.kernel = x.data();
    change(p);
    return error_of([&] { grid_forward(p); });
  };
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.kernel = 4; }),
            "kernel: expected an odd size, so that it has a centre, got 4; use 5");
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.kernel = 0; }),
            "kernel: expected an odd size, so that it has a centre, got 0; use 1");
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.heads = 3; }), "heads: expected a divisor of channels = 4, got 3");
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.key_channels = 3; }),
            "key_channels: expected channels = 4 or heads = 2, got 3");
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.channels = 0; }), "key_channels: expected channels = 0, got 4");
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.height = -1; }), "height: expected at least 0, got -1");
  // Their product is 2 in 64 bits.
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.height = 3, p.in.shape.width = 6148914691236517206; }),
            "height, width: expected a grid of fewer than 2^63 positions, got 3 x 6148914691236517206");
  EXPECT_EQ(forward_error([](P& p) { p.in.q.data = nullptr; }), "q: expected a tensor, got null");
  EXPECT_EQ(forward_error([](P& p) { p.in.kernel = nullptr; }), "kernel: expected weights, got null");
}

TEST(Errors, LocalBias) {
  using P = LocalBiasBackward<float>;
  const std::vector<float> in(100, 1);
  std::vector<float> out(100, kUntouched);
  const auto expect = [&](const char* words, const std::function<void(P&)>& change) {
    P p = {{{1, 4, 3, 1, 0}, in.data(), in.data()}, in.data(), out.data(), out.data() + 50};
    change(p);
    float* band = p.grad_band == nullptr ? nullptr : out.data();
    const std::string forward = error_of([&] { local_bias_forward(LocalBiasForward<float>{p.in, band}); });
    const std::string backward = error_of([&] { local_bias_backward(p); });
    EXPECT_NE(forward.find(words), std::string::npos) << forward;
    EXPECT_NE(backward.find(words), std::string::npos) << backward;
    EXPECT_EQ(out, std::vector<float>(100, kUntouched)) << words;
  };
  expect("heads", [](P& p) { p.in.shape.heads = 0; });
  expect("rows", [](P& p) { p.in.shape.rows = -1; });
  expect("width", [](P& p) { p.in.shape.width = -1; });
  expect("left", [](P& p) { p.in.shape.left = -1; });
  expect("right", [](P& p) { p.in.shape.right = -1; });
  expect("u: expected", [](P& p) { p.in.u = nullptr; });
  expect("v: expected", [](P& p) { p.in.v = nullptr; });
  expect("band: expected", [](P& p) { p.grad_band = nullptr; });
}

}  // namespace
}  // namespace aft::ops::test
