#pragma once

#include <array>

#include "device.h"
#include "register.h"
#include "tensors.h"

// The operators of a family differ in what they give and in who owns the memory. A Family says what is its own:
//   Forward, Backward, kWeights, kStateGradients     see gradients.h
//   Sizes, check(op, call)       checks all but the state. What it found: `weights` with all dimensions, and sizes
//   check_state(op, call, sizes)
//   check_y(op, name, tensor, call, sizes), y_shape(call, sizes), saved_size(call, sizes), make_saved(call, sizes)
//   read(call, sizes)            gives the weights the dtype and strides that the operator reads
//   inputs<E>(call, sizes)       of aft/ops; as ForwardParams, BackwardParams, StepParams, forward, backward, step,
//                                workspace
//   weights_of(op, call), put(params, sums)   the gradients of a backward's weights, and where it adds them up

namespace aft::dispatch {

/// What an operator checks before it allocates anything.
template <typename Family, typename Op>
typename Family::Sizes check(std::string_view op, const typename Op::Call& c) {
  auto s = Family::check(op, c);
  if constexpr (Family::kStateGradients > 0) {
    constexpr bool takes_state = std::is_same_v<typename Op::Result, YAndState> || Op::name.ends_with("_step_");
    if (takes_state || !c.state.empty()) Family::check_state(op, c, s);
  }
  return s;
}

/// Runs a pass on the call's device, with what fill(E(), params) adds to its inputs.
template <typename Family, template <typename> typename Params, typename C, typename Function, typename Fill>
void run(ops::Pass pass, const Function& function, C& c, typename Family::Sizes& s, const Fill& fill) {
  make_readable(c);
  Family::read(c, s);
  with_element_type(c.v, [&]<typename E>(E e) {
    Params<E> p;
    p.in = Family::template inputs<E>(c, s);
    fill(e, p);
    on_device(
        c.v, [&] { return Family::workspace(e, p.in.shape, pass); }, [&](const auto& device) { function(p, device); });
  });
}

/// Whole sequences: gives y; y, what is saved and the state after; or y and that state.
template <typename Family, typename Op>
typename Op::Result forward(std::string_view op, typename Op::Call& c) {
  using Result = typename Op::Result;
  auto s = check<Family, Op>(op, c);
  if (c.out.defined()) {
    Family::check_y(op, "out", c.out, c, s);
    check_writable(op, "out", c.out, tensors_read(typename Op::Taken(), c));
  } else {
    c.out = at::empty_symint(Family::y_shape(c, s), c.v.options());
  }
  Tensor saved;
  std::vector<Tensor> after;
  if constexpr (std::is_same_v<Result, Forward>) saved = Family::make_saved(c, s);
  if constexpr (Family::kStateGradients > 0) after = empty_state_like(c.state);
  if (!c.v.is_meta()) {
    const auto fill = [&]<typename E>(E, auto& p) {
      p.y = rows_of<E>(c.out);
      if constexpr (Family::kStateGradients > 0) {
        p.final_state = state_of<ops::Accumulate<E>>(after);
        p.saved = saved.defined() ? data_of<ops::Accumulate<E>>(saved) : nullptr;
      }
    };
    run<Family, Family::template ForwardParams>(ops::Pass::kForward, Family::forward, c, s, fill);
  }
  if constexpr (std::is_same_v<Result, Tensor>) {
    return c.out;
  } else if constexpr (!Op::writes) {
    std::vector<Tensor> results = {c.out};
    if (saved.defined()) results.push_back(saved);
    results.insert(results.end(), after.begin(), after.end());
    return unflat<Result>(results);
  }
}

/// One position, the state edited in place.
template <typename Family, typename Op>
Tensor step(std::string_view op, typename Op::Call& c) {
  auto s = check<Family, Op>(op, c);
  check_step(op, c);
  Tensor y = dense_like(c.v);
  if (!c.v.is_meta()) {
    const auto fill = [&]<typename E>(E, auto& p) {
      p.y = rows_of<E>(y);
      p.state = state_of<ops::Accumulate<E>>(c.state);
    };
    run<Family, Family::template StepParams>(ops::Pass::kStep, Family::step, c, s, fill);
  }
  return y;
}

/// Gives the gradients, absent ones of size [0], or writes them where the caller wants them.
template <typename Family, typename Op>
typename Op::Result backward(std::string_view op, typename Op::Call& c) {
  auto s = check<Family, Op>(op, c);
  Family::check_y(op, "grad_y", c.grad_y, c, s);
  std::vector<Tensor> from, to;  // of the state after, of the state before
  if constexpr (Family::kStateGradients > 0) {
    check_saved(op, c.saved, Family::saved_size(c, s), c.v);
    check_state_gradients(op, c.grad_state, c.state, Family::kStateGradients);
    for (size_t i = c.state.empty() ? 6 : 6 - Family::kStateGradients; i < 6; ++i) to.push_back(dense_like(c.state[i]));
  }
  const auto weights = Family::weights_of(op, c);
  std::vector<GradientOutput> outputs = {
      {"grad_q", c.grad_q, "q", c.q}, {"grad_k", c.grad_k, "k", c.k}, {"grad_v", c.grad_v, "v", c.v}};
  for (const GradientOutput& w : weights) outputs.push_back(w);
  if constexpr (Op::writes) {
    check_gradients(op, outputs, tensors_read(typename Op::Taken(), c));
  } else {
    for (size_t i = 0; i < (c.weights_gradient ? outputs.size() : 3); ++i) {
      if (outputs[i].of.has_value()) outputs[i].to = dense_like(*outputs[i].of);
    }
  }
  if (!c.v.is_meta()) {
    make_readable(c.grad_y);
    if (c.saved.defined()) c.saved = c.saved.contiguous();
    from = contiguous(c.grad_state);
    std::vector<GradientSum> sums;
    for (size_t i = 0; i < weights.size(); ++i) sums.emplace_back(weights[i].to, s.weights[i], c.v);
    const auto fill = [&]<typename E>(E, auto& p) {
      using T = ops::Accumulate<E>;
      p.grad_y = rows_of<const E>(c.grad_y);
      p.grad_q = rows_of<E>(c.grad_q);
      p.grad_k = rows_of<E>(c.grad_k);
      p.grad_v = rows_of<E>(c.grad_v);
      if constexpr (Family::kStateGradients > 0) {
        p.saved = data_of<const T>(c.saved);
        p.grad_final_state = state_grad_of<const T>(from);
        p.grad_initial_state = state_grad_of<T>(to);
      }
      Family::put(p, sums);
    };
    run<Family, Family::template BackwardParams>(ops::Pass::kBackward, Family::backward, c, s, fill);
    for (const GradientSum& sum : sums) sum.finish();
  }
  if constexpr (!Op::writes) {
    std::vector<Tensor> results = {or_empty(c.grad_q, c.v), *c.grad_k, *c.grad_v};
    for (const GradientOutput& w : weights) results.push_back(or_empty(w.to, c.v));
    results.insert(results.end(), to.begin(), to.end());
    return unflat<typename Op::Result>(results);
  }
}

template <typename Family, typename Whole, typename Out, typename BackwardOut>
void define_family(torch::Library& m) {
  define<Whole, forward<Family, Whole>>(m);
  define<Out, forward<Family, Out>>(m);
  using ForwardOp = typename Family::Forward;
  if constexpr (!std::is_same_v<ForwardOp, Whole>) define<ForwardOp, forward<Family, ForwardOp>>(m);
  define<typename Family::Backward, backward<Family, typename Family::Backward>>(m);
  define<BackwardOut, backward<Family, BackwardOut>>(m);
  define_gradient<Whole, Family, check<Family, Whole>>(m);
}
template <typename Family, typename WithState, typename Step>
void define_stateful(torch::Library& m) {
  define<WithState, forward<Family, WithState>>(m);
  define<Step, step<Family, Step>>(m);
  define_gradient<WithState, Family, check<Family, WithState>>(m);
}

}  // namespace aft::dispatch
