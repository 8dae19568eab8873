#include "tests/ops/run.h"

#include "aft/ops/local_bias.h"
#include "tests/ops/memory.h"

namespace aft::ops::test {
namespace {

// What is an operator's own: its shape, its weights and the calls of its passes, on a device or of the reference.

struct Window {
  template <typename E>
  using Forward = WindowForward<E>;
  template <typename E>
  using Backward = WindowBackward<E>;
  template <typename E>
  using Step = WindowStep<E>;

  template <typename E>
  static void give(Memory& memory, const Inputs<E>& in, WindowInputs<E>& to) {
    const Case& c = in.c;
    to.shape = {.batch = c.batch,
                .time = c.time,
                .channels = c.channels,
                .heads = c.heads,
                .key_channels = c.key_channels(),
                .causal = c.causal,
                .packed = c.packed(),
                .has_band = in.has("weights"),
                .left = c.left,
                .right = c.right,
                .gate = c.gate};
    if (!to.shape.has_band) return;
    const auto w = memory.place<Accumulate<E>>("band", c.heads, in.rows, in.columns);
    w.put(in["weights"]);
    to.band = {w.data(), w.outer_stride, c.op == Operator::kConv1d ? 0 : w.inner_stride, in.rows};
  }
  template <typename E>
  static void take(Memory& memory, const Inputs<E>& in, WindowBackward<E>& p, Outputs<E>& out) {
    if (!in.has("weights")) return;
    const auto w = memory.place<Accumulate<E>>("grad_band", in.c.heads, in.rows, in.columns);
    memory.take(w, in.array("weights"), "weights", out);
    p.grad_band = {w.data(), w.outer_stride, in.c.op == Operator::kConv1d ? 0 : w.inner_stride, in.rows};
  }
  static int64_t saved_size(const WindowShape& shape) { return window_saved_size(shape); }
  template <typename E>
  static int64_t workspace(const WindowShape& shape, Pass pass) {
    return window_workspace<E>(shape, pass);
  }
  static void forward(const auto& p, const auto& device) { window_forward(p, device); }
  static void backward(const auto& p, const auto& device) { window_backward(p, device); }
  static void step(const auto& p, const auto& device) { window_step(p, device); }
  static void forward(const auto& p, Reference) { window_forward_reference(p); }
  static void backward(const auto& p, Reference) { window_backward_reference(p); }
  static void step(const auto& p, Reference) { window_step_reference(p); }
};

struct Full {
  template <typename E>
  using Forward = FullForward<E>;
  template <typename E>
  using Backward = FullBackward<E>;
  template <typename E>
  using Step = FullStep<E>;

  template <typename E>
  static void give(Memory& memory, const Inputs<E>& in, FullInputs<E>& to) {
    const Case& c = in.c;
    to.shape = {.batch = c.batch,
                .targets = c.time,
                .sources = c.source_count(),
                .channels = c.channels,
                .heads = c.heads,
                .key_channels = c.key_channels(),
                .causal = c.causal,
                .packed = c.packed(),
                .gate = c.gate,
                .capacity = in.has_final || in.has_initial() ? in.ring : 0};
    if (in.c.has_factors()) {
      strides_of_factors(in, to.weights);
      to.weights.u = memory.dense(in, "u");
      to.weights.v = memory.dense(in, "w");
      return;
    }
    const auto w = memory.place<Accumulate<E>>("weights", matrices(in), in.rows, in.columns);
    w.put(in["weights"]);
    to.weights.table = w.data();
    strides_of_table(in, w, to.weights);
  }
  template <typename E>
  static void take(Memory& memory, const Inputs<E>& in, FullBackward<E>& p, Outputs<E>& out) {
    if (in.c.has_factors()) {
      strides_of_factors(in, p.grad_weights);
      p.grad_weights.u = memory.dense_result(in, "u", out);
      p.grad_weights.v = memory.dense_result(in, "w", out);
      return;
    }
    const auto w = memory.place<Accumulate<E>>("grad_weights", matrices(in), in.rows, in.columns);
    memory.take(w, in.array("weights"), "weights", out);
    p.grad_weights.table = w.data();
    strides_of_table(in, w, p.grad_weights);
  }
  static int64_t saved_size(const FullShape& shape) { return full_saved_size(shape); }
  template <typename E>
  static int64_t workspace(const FullShape& shape, Pass pass) {
    return full_workspace<E>(shape, pass);
  }
  static void forward(const auto& p, const auto& device) { full_forward(p, device); }
  static void backward(const auto& p, const auto& device) { full_backward(p, device); }
  static void step(const auto& p, const auto& device) { full_step(p, device); }
  static void forward(const auto& p, Reference) { full_forward_reference(p); }
  static void backward(const auto& p, Reference) { full_backward_reference(p); }
  static void step(const auto&, Reference) { throw std::logic_error("full has no step of the reference"); }

 private:
  template <typename E>
  static int64_t matrices(const Inputs<E>& in) {
    return (in.c.weights_per_batch() ? in.c.batch : 1) * in.c.weight_heads();
  }
  template <typename E, typename T>
  static void strides_of_table(const Inputs<E>& in, const View<std::remove_const_t<T>>& w, PairWeights<T>& to) {
    to.rows = in.rows, to.columns = in.columns;
    to.row_stride = w.inner_stride;
    to.head_stride = in.c.weight_heads() > 1 ? w.outer_stride : 0;
    to.batch_stride = in.c.weights_per_batch() ? in.c.weight_heads() * w.outer_stride : 0;
  }
  template <typename E, typename T>
  static void strides_of_factors(const Inputs<E>& in, PairWeights<T>& to) {
    to.rows = in.rows, to.columns = in.columns, to.width = in.c.factors;
    to.u_head_stride = in.c.weight_heads() > 1 ? in.rows * to.width : 0;
    to.v_head_stride = in.c.weight_heads() > 1 ? in.columns * to.width : 0;
  }
};

struct Grid {
  template <typename E>
  using Forward = GridForward<E>;
  template <typename E>
  using Backward = GridBackward<E>;

  template <typename E>
  static void give(Memory& memory, const Inputs<E>& in, GridInputs<E>& to) {
    const Case& c = in.c;
    to.shape = {.batch = c.batch,
                .height = c.height,
                .width = c.width,
                .channels = c.channels,
                .heads = c.heads,
                .key_channels = c.key_channels(),
                .kernel = c.kernel,
                .gate = c.gate};
    to.kernel = memory.dense(in, "weights");
  }
  template <typename E>
  static void take(Memory& memory, const Inputs<E>& in, GridBackward<E>& p, Outputs<E>& out) {
    p.grad_kernel = memory.dense_result(in, "weights", out);
  }
  template <typename E>
  static int64_t workspace(const GridShape& shape, Pass pass) {
    return grid_workspace<E>(shape, pass);
  }
  static void forward(const auto& p, const auto& device) { grid_forward(p, device); }
  static void backward(const auto& p, const auto& device) { grid_backward(p, device); }
  static void forward(const auto& p, Reference) { grid_forward_reference(p); }
  static void backward(const auto& p, Reference) { grid_backward_reference(p); }
};

template <typename E>
State<const Accumulate<E>> initial_state(Memory& memory, const Inputs<E>& in) {
  if (!in.has_initial()) return {};
  return memory.state<E>(in, /*initial=*/true, nullptr);
}

template <class Op, typename E>
Outputs<E> run_attention(const Inputs<E>& in, const RunOptions& options) {
  using T = Accumulate<E>;
  const Case& c = in.c;
  Memory memory(options);
  Outputs<E> out;
  typename Op::template Forward<E> f;
  constexpr bool kHasState = requires { f.final_state; };
  Op::give(memory, in, f.in);
  const auto qkv = memory.tensors(in, {"q", "k", "v"});
  f.in.q = qkv[0], f.in.k = qkv[1], f.in.v = qkv[2];
  if (in.has("key_mask")) {
    const std::vector<uint8_t> mask(in["key_mask"].begin(), in["key_mask"].end());
    f.in.key_mask = {reinterpret_cast<const bool*>(memory.plain("key_mask", mask)), c.source_count()};
  }
  f.y = memory.results(in, {"grad_y"}, out)[0];
  if constexpr (kHasState) {
    if (c.packed()) {
      std::vector<int64_t> cu_seqlens = {0};
      for (const int64_t length : c.lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
      f.in.cu_seqlens = memory.plain("cu_seqlens", cu_seqlens);
      f.in.longest = c.seed % 2 == 0 ? c.time : *std::max_element(c.lengths.begin(), c.lengths.end());  // or more
    }
    const bool alias = options.alias_state && in.has_initial();
    if (in.has_final) f.final_state = memory.state<E>(in, alias, &out);
    f.in.initial_state = alias ? f.final_state : initial_state(memory, in);
    if (options.backward) f.saved = memory.uninitialised<T>("saved", Op::saved_size(f.in.shape));
  }
  memory.run<E>([&] { return Op::template workspace<E>(f.in.shape, Pass::kForward); },
                [&](const auto& device) { Op::forward(f, device); });
  if (!options.backward) return out;

  typename Op::template Backward<E> b;
  b.in = f.in;
  b.grad_y = memory.tensors(in, {"grad_y"})[0];
  const auto grads = memory.results(in, {"q", "k", "v"}, out);
  b.grad_q = grads[0], b.grad_k = grads[1], b.grad_v = grads[2];
  if (options.grad_weights) Op::take(memory, in, b, out);
  if constexpr (kHasState) {
    b.saved = f.saved;
    b.in.initial_state = initial_state(memory, in);
    const auto wanted = [&](const char* part) { return memory.dense_result(in, std::string("initial_") + part, out); };
    b.grad_initial_state = {wanted("den"), wanted("num"), wanted("ring_key"), wanted("ring_value")};
    const auto given = [&](const char* part) { return memory.dense(in, std::string("grad_final_") + part); };
    if (in.has_final) b.grad_final_state = {given("den"), given("num"), given("ring_key"), given("ring_value")};
  }
  memory.run<E>([&] { return Op::template workspace<E>(b.in.shape, Pass::kBackward); },
                [&](const auto& device) { Op::backward(b, device); });
  return out;
}

template <class Op, typename E>
Outputs<E> run_attention_steps(Inputs<E> in, const RunOptions& options) {
  if (!in.has_initial()) start_anew(in);
  Memory memory(options);
  Outputs<E> out;
  typename Op::template Step<E> p;
  Op::give(memory, in, p.in);
  const auto qkv = memory.tensors(in, {"q", "k", "v"});
  p.in.q = qkv[0], p.in.k = qkv[1], p.in.v = qkv[2];
  p.y = memory.results(in, {"grad_y"}, out)[0];
  p.state = memory.state<E>(in, /*initial=*/true, &out);
  memory.run<E>([&] { return Op::template workspace<E>(p.in.shape, Pass::kStep); },
                [&](const auto& device) {
                  auto at = p;
                  for (int64_t t = 0; t < in.c.time; ++t) {
                    Op::step(at, device);
                    if (at.in.q.data != nullptr) at.in.q.data += at.in.q.time_stride;
                    at.in.k.data += at.in.k.time_stride;
                    at.in.v.data += at.in.v.time_stride;
                    at.y.data += at.y.time_stride;
                  }
                });
  return out;
}

template <typename T>
Outputs<T> run_local_bias(const Inputs<T>& in, const RunOptions& options) {
  const Case& c = in.c;
  Memory memory(options);
  Outputs<T> out;
  LocalBiasForward<T> f;
  f.in.shape = {.heads = c.heads, .rows = c.time, .width = c.factors, .left = c.left, .right = c.right};
  f.in.u = memory.dense(in, "u");
  f.in.v = memory.dense(in, "v");
  f.band = memory.dense_result(in, "grad_band", out);
  const LocalBiasBackward<T> b = {f.in, memory.dense(in, "grad_band"), memory.dense_result(in, "u", out),
                                  memory.dense_result(in, "v", out)};
  memory.run<T>([] { return int64_t{0}; },
                [&](const auto& device) {
                  if constexpr (std::is_same_v<std::decay_t<decltype(device)>, Reference>) {
                    local_bias_forward_reference(f);
                    local_bias_backward_reference(b);
                  } else {
                    local_bias_forward(f, device);
                    local_bias_backward(b, device);
                  }
                });
  return out;
}

}  // namespace

int64_t rows_of_a_scale(const Case& c) {
  if (!current_backend().cuda) return 1;
  if (c.op == Operator::kFull) return 128;  // src/ops/full/cuda_memory.h: kTile
  WindowShape reach;
  reach.left = c.left;
  return window_chunk(reach);
}

template <typename E>
Outputs<E> run(const Inputs<E>& in, const RunOptions& options) {
  switch (in.c.family()) {
    case Family::kWindow:
      return run_attention<Window>(in, options);
    case Family::kFull:
      return run_attention<Full>(in, options);
    case Family::kGrid:
      return run_attention<Grid>(in, options);
    case Family::kLocalBias:
      if constexpr (!kIs16Bit<E>) return run_local_bias(in, options);
  }
  throw std::logic_error("no such operator for these elements");
}

template <typename E>
Outputs<E> run_steps(const Inputs<E>& in, const RunOptions& options) {
  return in.c.op == Operator::kFull ? run_attention_steps<Full>(in, options) : run_attention_steps<Window>(in, options);
}

#define AFT_INSTANTIATE(E)                                         \
  template Outputs<E> run<E>(const Inputs<E>&, const RunOptions&); \
  template Outputs<E> run_steps<E>(const Inputs<E>&, const RunOptions&);
AFT_INSTANTIATE(float)
AFT_INSTANTIATE(double)
AFT_INSTANTIATE(BFloat16)
AFT_INSTANTIATE(Float16)
#undef AFT_INSTANTIATE
template Outputs<long double> run<long double>(const Inputs<long double>&, const RunOptions&);

}  // namespace aft::ops::test
