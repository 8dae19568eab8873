// Bad input throws aft::Error that names the argument, before anything is written.

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <vector>

#include "aft/error.h"
#include "aft/ops/window.h"

namespace aft::ops::test {
namespace {

constexpr float kUntouched = 12345;

// A valid call of B = 1, T = 4, d = 6, two heads, window (2, 0), with a state; every case below spoils one thing.
struct Call {
  std::vector<float> in = std::vector<float>(4 * 6, 0.5f);
  std::vector<float> out = std::vector<float>(4 * 6, kUntouched);
  std::vector<float> grad = std::vector<float>(3 * 4 * 6, kUntouched);
  std::vector<float> weights = std::vector<float>(2 * 8 * 3, 0.25f);
  std::vector<float> grad_weights = std::vector<float>(2 * 8 * 3, kUntouched);
  int64_t position = 0;
  int64_t final_position = -1;
  std::vector<float> state = std::vector<float>(6 + 6 + 6 + 12 + 12, 0);
  std::vector<float> final = std::vector<float>(6 + 6 + 6 + 12 + 12, kUntouched);
  std::vector<float> saved;
  WindowForward<float> forward;
  WindowBackward<float> backward;
  WindowStep<float> step;

  Call() {
    forward.in.shape = {
        .batch = 1, .time = 4, .channels = 6, .heads = 2, .key_channels = 6, .has_band = true, .left = 2};
    forward.in.q = forward.in.k = forward.in.v = {in.data(), 24, 6};
    forward.y = {out.data(), 24, 6};
    forward.in.band = {weights.data(), 24, 3, 8};
    const auto at = [](std::vector<float>& s, int64_t* p) {
      return State<float>{p, s.data(), s.data() + 6, s.data() + 12, s.data() + 18, s.data() + 30};
    };
    const State<float> initial = at(state, &position);
    forward.final_state = at(final, &final_position);
    window_state_init(forward.in.shape, initial);
    forward.in.initial_state = initial;
    saved.resize(window_saved_size(forward.in.shape) + 1);
    forward.saved = saved.data();
    backward.in = forward.in;
    backward.grad_y = forward.in.q;
    backward.grad_q = {grad.data(), 24, 6};
    backward.grad_k = {grad.data() + 24, 24, 6};
    backward.grad_v = {grad.data() + 48, 24, 6};
    backward.grad_band = {grad_weights.data(), 24, 3, 8};
    backward.saved = saved.data();
    step.in = forward.in;
    step.y = forward.y;
    step.state = initial;
  }
  Call(const Call&) = delete;

  void pack(const int64_t* cu_seqlens) {
    for (WindowInputs<float>* inputs : {&forward.in, &backward.in}) {
      inputs->shape.packed = true;
      inputs->cu_seqlens = cu_seqlens;
      inputs->longest = 4;
    }
  }

  bool untouched() const {
    for (const auto* memory : {&out, &grad, &grad_weights, &final}) {
      for (const float x : *memory) {
        if (x != kUntouched) return false;
      }
    }
    return final_position == -1;
  }
};

void expect_error(Call& call, const char* pass, const std::function<void()>& run, const std::string& argument) {
  try {
    run();
    ADD_FAILURE() << pass << " took a bad " << argument;
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(argument), std::string::npos)
        << pass << " does not name " << argument << ": " << e.what();
  } catch (const std::exception& e) {
    ADD_FAILURE() << pass << " threw something else than aft::Error for a bad " << argument << ": " << e.what();
  }
  EXPECT_TRUE(call.untouched()) << pass << " wrote before it threw for " << argument;
}

// The same change of the shape in all three passes.
void expect_shape_error(const std::string& argument, const std::function<void(WindowShape&)>& spoil,
                        bool step_too = true) {
  Call call;
  spoil(call.forward.in.shape);
  spoil(call.backward.in.shape);
  spoil(call.step.in.shape);
  expect_error(
      call, "window_forward", [&] { window_forward(call.forward); }, argument);
  expect_error(
      call, "window_backward", [&] { window_backward(call.backward); }, argument);
  if (step_too)
    expect_error(
        call, "window_step", [&] { window_step(call.step); }, argument);
}

TEST(WindowErrors, TheCallItselfIsGood) {
  Call call;
  EXPECT_NO_THROW(window_forward(call.forward));
  EXPECT_NO_THROW(window_backward(call.backward));
  EXPECT_NO_THROW(window_step(call.step));
}

TEST(WindowErrors, Shape) {
  expect_shape_error("batch", [](WindowShape& s) { s.batch = -1; });
  expect_shape_error(
      "time", [](WindowShape& s) { s.time = -1; }, false);
  expect_shape_error("channels", [](WindowShape& s) { s.channels = -6; });
  expect_shape_error("heads", [](WindowShape& s) { s.heads = 0; });
  expect_shape_error("heads", [](WindowShape& s) { s.heads = 4; });
  expect_shape_error("key_channels", [](WindowShape& s) { s.key_channels = 3; });
  expect_shape_error("left", [](WindowShape& s) { s.left = -1; });
  expect_shape_error("right", [](WindowShape& s) { s.right = -1; });
  expect_shape_error("right", [](WindowShape& s) { s.right = 1; });        // causal
  expect_shape_error("left", [](WindowShape& s) { s.has_band = false; });  // a reach without a band
}

TEST(WindowErrors, PackedSequences) {
  for (const std::vector<int64_t>& cu : std::vector<std::vector<int64_t>>{{1, 4}, {0, 3}, {0, 5}, {0, -1}}) {
    Call call;
    call.pack(cu.data());
    expect_error(
        call, "window_forward", [&] { window_forward(call.forward); }, "cu_seqlens");
    expect_error(
        call, "window_backward", [&] { window_backward(call.backward); }, "cu_seqlens");
  }
  Call call;
  const int64_t cu[] = {0, 4};
  call.pack(cu);
  call.forward.in.band.rows = call.backward.in.band.rows = call.backward.grad_band.rows = 3;
  expect_error(
      call, "window_forward", [&] { window_forward(call.forward); }, "band");
  expect_error(
      call, "window_backward", [&] { window_backward(call.backward); }, "band");
}

TEST(WindowErrors, StatesBelongToCausal) {
  Call call;
  call.forward.in.shape.causal = call.backward.in.shape.causal = call.step.in.shape.causal = false;
  expect_error(
      call, "window_forward", [&] { window_forward(call.forward); }, "causal");
  expect_error(
      call, "window_backward", [&] { window_backward(call.backward); }, "causal");
  expect_error(
      call, "window_step", [&] { window_step(call.step); }, "causal");
}

TEST(WindowErrors, MissingArrays) {
  {
    Call call;
    call.forward.in.k.data = nullptr;
    expect_error(
        call, "window_forward", [&] { window_forward(call.forward); }, "k");
  }
  {
    Call call;
    call.forward.in.q.data = nullptr;
    expect_error(
        call, "window_forward", [&] { window_forward(call.forward); }, "q");
  }
  {
    Call call;
    call.forward.in.band.data = nullptr;
    expect_error(
        call, "window_forward", [&] { window_forward(call.forward); }, "band");
  }
  {
    Call call;
    call.forward.final_state.num = nullptr;
    expect_error(
        call, "window_forward", [&] { window_forward(call.forward); }, "final_state");
  }
  {
    Call call;
    call.backward.grad_v.data = nullptr;
    expect_error(
        call, "window_backward", [&] { window_backward(call.backward); }, "grad_v");
  }
  {
    Call call;
    call.step.state.position = nullptr;
    expect_error(
        call, "window_step", [&] { window_step(call.step); }, "state");
  }
}

TEST(WindowErrors, GradientOfTheBand) {
  Call call;
  call.backward.grad_band.row_stride = 0;
  expect_error(
      call, "window_backward", [&] { window_backward(call.backward); }, "grad_band");
}

TEST(WindowErrors, Reach) {
  Call call;
  call.forward.in.shape.left = std::numeric_limits<int64_t>::max();
  expect_error(
      call, "window_forward", [&] { window_forward(call.forward); }, "left");
}

TEST(WindowErrors, Positions) {
  for (const int64_t position : {int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    Call call;
    call.position = position;
    expect_error(
        call, "window_forward", [&] { window_forward(call.forward); }, "position");
    expect_error(
        call, "window_backward", [&] { window_backward(call.backward); }, "position");
    expect_error(
        call, "window_step", [&] { window_step(call.step); }, "position");
  }
  {
    Call call;
    call.position = 5;  // 5 + 4 > 8 rows
    expect_error(
        call, "window_forward", [&] { window_forward(call.forward); }, "band");
    expect_error(
        call, "window_backward", [&] { window_backward(call.backward); }, "band");
    call.position = 8;
    expect_error(
        call, "window_step", [&] { window_step(call.step); }, "band");
  }
}

}  // namespace
}  // namespace aft::ops::test
