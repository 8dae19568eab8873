#include "tests/ops/full_run.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "tests/ops/element.h"
#include "tests/ops/poisoned.h"

namespace aft::ops::test {
namespace {

// Dense weights, T const or not.
template <typename T, typename Data>
PairWeights<T> weights_of(const FullInputs<Data>& in, T* table, T* u, T* w) {
  PairWeights<T> x;
  const int64_t heads = in.weight_heads();
  x.rows = in.rows;
  x.columns = in.columns;
  if (in.has_factors()) {
    static std::remove_const_t<T> none{};  // factors of no width have no elements, but are there
    x.u = u != nullptr ? u : &none;
    x.v = w != nullptr ? w : &none;
    x.width = in.width;
    x.u_head_stride = heads > 1 ? in.rows * in.width : 0;
    x.v_head_stride = heads > 1 ? in.columns * in.width : 0;
    return x;
  }
  x.table = table;
  x.row_stride = in.columns;
  x.head_stride = heads > 1 ? in.rows * in.columns : 0;
  x.batch_stride = in.per_batch() ? heads * in.rows * in.columns : 0;
  return x;
}

template <typename T>
State<const T> state_of(const StateData<T>& s) {
  if (s.position.empty()) return {};
  return {s.position.data(), s.max.data(), s.den.data(), s.num.data(), s.ring_key.data(), s.ring_value.data()};
}

template <typename T>
StateData<T> empty_state(const FullShape& s) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  StateData<T> x;
  x.position.assign(s.batch, -1);
  x.max.assign(s.batch * s.key_channels, nan);
  x.den.assign(s.batch * s.key_channels, nan);
  x.num.assign(s.batch * s.channels, nan);
  x.ring_key.assign(s.batch * s.capacity * s.key_channels, T(0));
  x.ring_value.assign(s.batch * s.capacity * s.channels, T(0));
  return x;
}

template <typename T>
State<T> state_of(StateData<T>& s) {
  return {s.position.data(), s.max.data(), s.den.data(), s.num.data(), s.ring_key.data(), s.ring_value.data()};
}

// A dense [B, T, width] tensor inside a larger buffer of E full of NaN.
template <typename E>
struct View {
  int64_t batch, time, width, time_stride, batch_stride, shift;
  Poisoned<E> memory;
  Rows<E> rows;

  View(int64_t batch_, int64_t time_, int64_t width_, int64_t shift_)
      : batch(batch_),
        time(time_),
        width(width_),
        time_stride(width_ + 3),
        batch_stride(time_ * (width_ + 3) + 5),
        shift(shift_),
        memory(shift_ + batch_ * (time_ * (width_ + 3) + 5)) {
    rows = memory.claim_rows(shift, batch, time, width, time_stride, batch_stride);
  }
  void fill(const std::vector<Accumulate<E>>& dense) {
    for (size_t i = 0; i < dense.size(); ++i) *at(i) = element<E>(dense[i]);
  }
  std::vector<Accumulate<E>> dense() {
    std::vector<Accumulate<E>> result(batch * time * width);
    for (size_t i = 0; i < result.size(); ++i) result[i] = number<E>(*at(i));
    return result;
  }
  Rows<const E> input() const { return {rows.data, rows.batch_stride, rows.time_stride}; }

 private:
  E* at(size_t index) {
    const auto i = static_cast<int64_t>(index);
    return rows.data + i / (time * width) * batch_stride + i / width % time * time_stride + i % width;
  }
};

std::unique_ptr<bool[]> mask_of(const std::vector<uint8_t>& mask) {
  auto result = std::make_unique<bool[]>(mask.size() + 1);
  for (size_t i = 0; i < mask.size(); ++i) result[i] = mask[i] != 0;
  return result;
}

}  // namespace

template <typename R, typename T>
FullInputs<R> convert(const FullInputs<T>& in) {
  const auto as = [](const std::vector<T>& x) { return std::vector<R>(x.begin(), x.end()); };
  FullInputs<R> out;
  out.shape = in.shape;
  out.weights = in.weights;
  out.rows = in.rows, out.columns = in.columns, out.width = in.width;
  out.q = as(in.q), out.k = as(in.k), out.v = as(in.v), out.grad_y = as(in.grad_y);
  out.table = as(in.table), out.u = as(in.u), out.w = as(in.w);
  out.mask = in.mask;
  out.cu_seqlens = in.cu_seqlens;
  out.has_final = in.has_final;
  out.initial.position = in.initial.position;
  out.initial.max = as(in.initial.max), out.initial.den = as(in.initial.den), out.initial.num = as(in.initial.num);
  out.initial.ring_key = as(in.initial.ring_key), out.initial.ring_value = as(in.initial.ring_value);
  out.grad_final.ring_key = as(in.grad_final.ring_key), out.grad_final.ring_value = as(in.grad_final.ring_value);
  return out;
}

template <typename E>
FullOutputs<Accumulate<E>> run_full(const FullInputs<Accumulate<E>>& in, const FullOptions& options) {
  using T = Accumulate<E>;
  const FullShape& s = in.shape;
  const int64_t rows = in.tensor_rows();
  const bool gated = s.gate != Gate::kNone;
  const auto view = [&](int64_t time, int64_t width) { return View<E>(rows, time, width, options.shift); };
  View<E> q = view(s.targets, s.channels), k = view(s.sources, s.key_channels), v = view(s.sources, s.channels);
  View<E> y = view(s.targets, s.channels), gy = view(s.targets, s.channels);
  q.fill(in.q), k.fill(in.k), v.fill(in.v), gy.fill(in.grad_y);
  const auto mask = mask_of(in.mask);

  FullOutputs<T> out;
  StateData<T> initial = in.initial;
  if (in.has_final) out.final = empty_state<T>(s);
  FullForward<E> f;
  f.in.shape = s;
  if (gated) f.in.q = q.input();
  f.in.k = k.input(), f.in.v = v.input(), f.y = y.rows;
  f.in.weights = weights_of<const T>(in, in.table.data(), in.u.data(), in.w.data());
  if (!in.mask.empty()) f.in.key_mask = {mask.get(), s.sources};
  if (!in.cu_seqlens.empty()) f.in.cu_seqlens = in.cu_seqlens.data();
  f.in.longest = s.targets;
  f.in.initial_state = state_of(static_cast<const StateData<T>&>(initial));
  if (in.has_final) f.final_state = options.alias_state ? state_of(initial) : state_of(out.final);
  Poisoned<T> saved(full_saved_size(s));
  f.saved = saved.claim(0, full_saved_size(s));
  full_forward(f, Cpu{options.parallel, options.redone});
  y.memory.expect_gaps_untouched("y");
  saved.expect_gaps_untouched("saved");
  out.of[kFullY] = y.dense();
  if (in.has_final && options.alias_state) out.final = initial;
  if (!options.backward) return out;

  View<E> gq = view(s.targets, s.channels), gk = view(s.sources, s.key_channels), gv = view(s.sources, s.channels);
  const T nan = std::numeric_limits<T>::quiet_NaN();
  std::vector<T> g_table(in.table.size(), nan), g_u(in.u.size(), nan), g_w(in.w.size(), nan);
  StateData<T> g_initial = empty_state<T>(s);
  std::fill(g_initial.ring_key.begin(), g_initial.ring_key.end(), nan);
  std::fill(g_initial.ring_value.begin(), g_initial.ring_value.end(), nan);
  FullBackward<E> b;
  b.in = f.in;
  b.grad_y = gy.input();
  if (gated) b.grad_q = gq.rows;
  b.grad_k = gk.rows, b.grad_v = gv.rows;
  b.grad_weights = weights_of<T>(in, g_table.data(), g_u.data(), g_w.data());
  b.in.initial_state = state_of(in.initial);
  b.saved = f.saved;
  if (in.has_final) {
    b.grad_final_state.ring_key = in.grad_final.ring_key.data();
    b.grad_final_state.ring_value = in.grad_final.ring_value.data();
  }
  if (!in.initial.position.empty()) {
    b.grad_initial_state = {g_initial.den.data(), g_initial.num.data(), g_initial.ring_key.data(),
                            g_initial.ring_value.data()};
  }
  full_backward(b, Cpu{options.parallel, options.redone});
  for (View<E>* grad : {&gq, &gk, &gv}) grad->memory.expect_gaps_untouched("gradient");
  if (gated) out.of[kFullGradQ] = gq.dense();
  out.of[kFullGradK] = gk.dense();
  out.of[kFullGradV] = gv.dense();
  out.of[kFullGradTable] = g_table;
  out.of[kFullGradU] = g_u;
  out.of[kFullGradW] = g_w;
  if (!in.initial.position.empty()) {
    for (const T g : g_initial.den) EXPECT_EQ(g, T(0));
    for (const T g : g_initial.num) EXPECT_EQ(g, T(0));
    out.of[kFullGradRingKey] = g_initial.ring_key;
    out.of[kFullGradRingValue] = g_initial.ring_value;
  }
  return out;
}

template <typename E>
FullOutputs<Accumulate<E>> run_full_steps(const FullInputs<Accumulate<E>>& in, const FullOptions& options) {
  using T = Accumulate<E>;
  const FullShape& s = in.shape;
  FullOutputs<T> out;
  out.of[kFullY].resize(s.batch * s.targets * s.channels);
  out.final = in.initial.position.empty() ? empty_state<T>(s) : in.initial;
  if (in.initial.position.empty()) {
    std::fill(out.final.position.begin(), out.final.position.end(), 0);
    std::fill(out.final.max.begin(), out.final.max.end(), std::numeric_limits<T>::lowest());
    std::fill(out.final.den.begin(), out.final.den.end(), T(0));
    std::fill(out.final.num.begin(), out.final.num.end(), T(0));
  }
  for (int64_t t = 0; t < s.targets; ++t) {
    View<E> q(s.batch, 1, s.channels, options.shift), k(s.batch, 1, s.key_channels, options.shift);
    View<E> v(s.batch, 1, s.channels, options.shift), y(s.batch, 1, s.channels, options.shift);
    const auto row = [&](const std::vector<T>& x, int64_t width) {
      std::vector<T> r;
      for (int64_t b = 0; b < s.batch && !x.empty(); ++b) {
        r.insert(r.end(), x.begin() + (b * s.targets + t) * width, x.begin() + (b * s.targets + t + 1) * width);
      }
      return r;
    };
    q.fill(row(in.q, s.channels)), k.fill(row(in.k, s.key_channels)), v.fill(row(in.v, s.channels));
    FullStep<E> p;
    p.in.shape = s;
    if (s.gate != Gate::kNone) p.in.q = q.input();
    p.in.k = k.input(), p.in.v = v.input(), p.y = y.rows;
    p.in.weights = weights_of<const T>(in, in.table.data(), in.u.data(), in.w.data());
    p.state = state_of(out.final);
    full_step(p, Cpu{options.parallel, options.redone});
    y.memory.expect_gaps_untouched("y");
    const std::vector<T> result = y.dense();
    for (int64_t b = 0; b < s.batch; ++b) {
      std::copy_n(result.begin() + b * s.channels, s.channels,
                  out.of[kFullY].begin() + (b * s.targets + t) * s.channels);
    }
  }
  return out;
}

template <typename T>
FullOutputs<T> run_full_reference(const FullInputs<T>& in) {
  const FullShape& s = in.shape;
  const auto rows = [&](const std::vector<T>& x, int64_t time, int64_t width) {
    return Rows<const T>{x.data(), time * width, width};
  };
  const auto out_rows = [&](std::vector<T>& x, int64_t time, int64_t width) {
    x.assign(in.tensor_rows() * time * width, T(0));
    return Rows<T>{x.data(), time * width, width};
  };
  const auto mask = mask_of(in.mask);
  FullOutputs<T> out;
  if (in.has_final) out.final = empty_state<T>(s);
  FullForward<T> f;
  f.in.shape = s;
  f.in.q = rows(in.q, s.targets, s.channels), f.in.k = rows(in.k, s.sources, s.key_channels);
  f.in.v = rows(in.v, s.sources, s.channels), f.y = out_rows(out.of[kFullY], s.targets, s.channels);
  f.in.weights = weights_of<const T>(in, in.table.data(), in.u.data(), in.w.data());
  if (!in.mask.empty()) f.in.key_mask = {mask.get(), s.sources};
  if (!in.cu_seqlens.empty()) f.in.cu_seqlens = in.cu_seqlens.data();
  f.in.longest = s.targets;
  f.in.initial_state = state_of(in.initial);
  if (in.has_final) f.final_state = state_of(out.final);
  full_forward_reference(f);

  FullBackward<T> b;
  b.in = f.in;
  b.grad_y = rows(in.grad_y, s.targets, s.channels);
  if (s.gate != Gate::kNone) b.grad_q = out_rows(out.of[kFullGradQ], s.targets, s.channels);
  b.grad_k = out_rows(out.of[kFullGradK], s.sources, s.key_channels);
  b.grad_v = out_rows(out.of[kFullGradV], s.sources, s.channels);
  out.of[kFullGradTable].resize(in.table.size());
  out.of[kFullGradU].resize(in.u.size());
  out.of[kFullGradW].resize(in.w.size());
  b.grad_weights =
      weights_of<T>(in, out.of[kFullGradTable].data(), out.of[kFullGradU].data(), out.of[kFullGradW].data());
  if (in.has_final) {
    b.grad_final_state.ring_key = in.grad_final.ring_key.data();
    b.grad_final_state.ring_value = in.grad_final.ring_value.data();
  }
  if (!in.initial.position.empty()) {
    out.of[kFullGradRingKey].resize(s.batch * s.capacity * s.key_channels);
    out.of[kFullGradRingValue].resize(s.batch * s.capacity * s.channels);
    b.grad_initial_state = {nullptr, nullptr, out.of[kFullGradRingKey].data(), out.of[kFullGradRingValue].data()};
  }
  full_backward_reference(b);
  return out;
}

template <typename T>
FullInputs<T> slice_time(const FullInputs<T>& in, int64_t begin, int64_t end, const StateData<T>& state) {
  const FullShape& s = in.shape;
  FullInputs<T> out = in;
  out.shape.targets = out.shape.sources = end - begin;
  const auto cut = [&](const std::vector<T>& x, int64_t width) {
    std::vector<T> r;
    for (int64_t b = 0; b < s.batch && !x.empty(); ++b) {
      r.insert(r.end(), x.begin() + (b * s.targets + begin) * width, x.begin() + (b * s.targets + end) * width);
    }
    return r;
  };
  out.q = cut(in.q, s.channels), out.k = cut(in.k, s.key_channels), out.v = cut(in.v, s.channels);
  out.grad_y = cut(in.grad_y, s.channels);
  out.mask.clear();
  for (int64_t b = 0; b < s.batch && !in.mask.empty(); ++b) {
    out.mask.insert(out.mask.end(), in.mask.begin() + b * s.targets + begin, in.mask.begin() + b * s.targets + end);
  }
  out.initial = state;
  out.has_final = true;
  return out;
}

template <typename T>
FullInputs<T> slice_batch(const FullInputs<T>& in, int64_t b) {
  const FullShape& s = in.shape;
  FullInputs<T> out = in;
  const auto part = [](const auto& x, int64_t begin, int64_t size) {
    return x.empty() ? x : std::decay_t<decltype(x)>(x.begin() + begin, x.begin() + begin + size);
  };
  out.shape.batch = 1;
  if (!in.cu_seqlens.empty()) {
    const int64_t token = in.cu_seqlens[b];
    const int64_t n = in.cu_seqlens[b + 1] - token;
    out.cu_seqlens.clear();
    out.shape.packed = false;
    out.shape.targets = out.shape.sources = n;
    out.q = part(in.q, token * s.channels, n * s.channels),
    out.k = part(in.k, token * s.key_channels, n * s.key_channels);
    out.v = part(in.v, token * s.channels, n * s.channels);
    out.grad_y = part(in.grad_y, token * s.channels, n * s.channels);
    out.mask = part(in.mask, token, n);
    return out;
  }
  const int64_t q_size = s.targets * s.channels;
  out.q = part(in.q, b * q_size, q_size), out.grad_y = part(in.grad_y, b * q_size, q_size);
  out.k = part(in.k, b * s.sources * s.key_channels, s.sources * s.key_channels);
  out.v = part(in.v, b * s.sources * s.channels, s.sources * s.channels);
  out.mask = part(in.mask, b * s.sources, s.sources);
  if (in.per_batch()) {
    const int64_t size = static_cast<int64_t>(in.table.size()) / s.batch;
    out.table = part(in.table, b * size, size);
  }
  const auto state = [&](const StateData<T>& x) {
    StateData<T> r;
    r.position = part(x.position, b, 1);
    r.max = part(x.max, b * s.key_channels, s.key_channels), r.den = part(x.den, b * s.key_channels, s.key_channels);
    r.num = part(x.num, b * s.channels, s.channels);
    r.ring_key = part(x.ring_key, b * s.capacity * s.key_channels, s.capacity * s.key_channels);
    r.ring_value = part(x.ring_value, b * s.capacity * s.channels, s.capacity * s.channels);
    return r;
  };
  out.initial = state(in.initial);
  out.grad_final = state(in.grad_final);
  return out;
}

#define AFT_CONVERT(R, T) template FullInputs<R> convert<R, T>(const FullInputs<T>&);
AFT_CONVERT(double, float)
AFT_CONVERT(double, double)
AFT_CONVERT(long double, double)
#undef AFT_CONVERT
#define AFT_INSTANTIATE(E)                                                                               \
  template FullOutputs<Accumulate<E>> run_full<E>(const FullInputs<Accumulate<E>>&, const FullOptions&); \
  template FullOutputs<Accumulate<E>> run_full_steps<E>(const FullInputs<Accumulate<E>>&, const FullOptions&);
AFT_INSTANTIATE(float)
AFT_INSTANTIATE(double)
AFT_INSTANTIATE(BFloat16)
AFT_INSTANTIATE(Float16)
#undef AFT_INSTANTIATE
template FullOutputs<double> run_full_reference(const FullInputs<double>&);
template FullOutputs<long double> run_full_reference(const FullInputs<long double>&);
template FullInputs<float> slice_time(const FullInputs<float>&, int64_t, int64_t, const StateData<float>&);
template FullInputs<double> slice_time(const FullInputs<double>&, int64_t, int64_t, const StateData<double>&);
template FullInputs<float> slice_batch(const FullInputs<float>&, int64_t);
template FullInputs<double> slice_batch(const FullInputs<double>&, int64_t);

}  // namespace aft::ops::test
