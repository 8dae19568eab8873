#include "tests/ops/window_run.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "tests/ops/element.h"
#include "tests/ops/poisoned.h"

namespace aft::ops::test {
namespace {

int64_t span_of(const WindowShape& s) { return s.left + 1 + s.right; }

template <typename T>
Rows<const T> as_const(Rows<T> rows) {
  return {rows.data, rows.batch_stride, rows.time_stride};
}

template <typename T>
State<const T> as_const(State<T> s) {
  return {s.position, s.max, s.den, s.num, s.ring_key, s.ring_value};
}

template <typename E>
void put(const std::vector<Accumulate<E>>& from, const Rows<E>& to, int64_t batch, int64_t time, int64_t width) {
  for (int64_t i = 0; i < batch * time * width; ++i) {
    to.data[i / width / time * to.batch_stride + i / width % time * to.time_stride + i % width] = element<E>(from[i]);
  }
}

template <typename E>
std::vector<Accumulate<E>> get(const Rows<E>& from, int64_t batch, int64_t time, int64_t width) {
  std::vector<Accumulate<E>> to(batch * time * width);
  for (int64_t i = 0; i < batch * time * width; ++i) {
    to[i] = number(from.data[i / width / time * from.batch_stride + i / width % time * from.time_stride + i % width]);
  }
  return to;
}

// A state of `shape` in poisoned memory.
template <typename T>
struct PoisonedState {
  explicit PoisonedState(const WindowShape& s)
      : shape(s),
        position(s.batch, -1),
        memory{Poisoned<T>(s.batch * s.key_channels), Poisoned<T>(s.batch * s.key_channels),
               Poisoned<T>(s.batch * s.channels), Poisoned<T>(s.batch * s.left * s.key_channels),
               Poisoned<T>(s.batch * s.left * s.channels)} {
    state = {position.data(),
             memory[0].claim(0, s.batch * s.key_channels),
             memory[1].claim(0, s.batch * s.key_channels),
             memory[2].claim(0, s.batch * s.channels),
             memory[3].claim(0, s.batch * s.left * s.key_channels),
             memory[4].claim(0, s.batch * s.left * s.channels)};
  }
  PoisonedState(const WindowShape& s, const StateData<T>& from) : PoisonedState(s) {
    position = from.position;
    state.position = position.data();
    std::copy(from.max.begin(), from.max.end(), state.max);
    std::copy(from.den.begin(), from.den.end(), state.den);
    std::copy(from.num.begin(), from.num.end(), state.num);
    // Slots that hold no source keep their NaN: nothing may read them.
    for (int64_t i = 0; i < s.batch * s.left; ++i) {
      if (!slot_holds_source(position[i / s.left], s.left, i % s.left)) continue;
      std::copy_n(from.ring_key.begin() + i * s.key_channels, s.key_channels, state.ring_key + i * s.key_channels);
      std::copy_n(from.ring_value.begin() + i * s.channels, s.channels, state.ring_value + i * s.channels);
    }
  }
  PoisonedState(const PoisonedState&) = delete;

  template <typename E>
  void read_into(WindowOutputs<E>& out) const {
    const WindowShape& s = shape;
    out.position = position;
    out.max.assign(state.max, state.max + s.batch * s.key_channels);
    out.of[kFinalDen].assign(state.den, state.den + s.batch * s.key_channels);
    out.of[kFinalNum].assign(state.num, state.num + s.batch * s.channels);
    out.ring_key.assign(s.batch * s.left * s.key_channels, T(0));
    out.ring_value.assign(s.batch * s.left * s.channels, T(0));
    for (int64_t i = 0; i < s.batch * s.left; ++i) {
      if (!slot_holds_source(position[i / s.left], s.left, i % s.left)) continue;
      std::copy_n(state.ring_key + i * s.key_channels, s.key_channels, out.ring_key.begin() + i * s.key_channels);
      std::copy_n(state.ring_value + i * s.channels, s.channels, out.ring_value.begin() + i * s.channels);
    }
    for (const Poisoned<T>& m : memory) m.expect_gaps_untouched("final_state");
  }

  WindowShape shape;
  std::vector<int64_t> position;
  std::array<Poisoned<T>, 5> memory;
  State<T> state;
};

// q, k, v (or their gradients) as views of one tensor, y or grad_y as a view of another. s: with the batch rows that
// the tensors have.
template <typename E>
struct PoisonedTensors {
  PoisonedTensors(const WindowShape& s, int64_t shift)
      : qkv(shift + s.batch * (s.time + 1) * (2 * s.channels + s.key_channels + 3)),
        other(shift + s.batch * (s.time + 2) * (s.channels + 5)) {
    const int64_t stride = 2 * s.channels + s.key_channels + 3;
    const int64_t batch_stride = (s.time + 1) * stride;
    if (s.gate != Gate::kNone) q = qkv.claim_rows(shift, s.batch, s.time, s.channels, stride, batch_stride);
    k = qkv.claim_rows(shift + s.channels, s.batch, s.time, s.key_channels, stride, batch_stride);
    v = qkv.claim_rows(shift + s.channels + s.key_channels, s.batch, s.time, s.channels, stride, batch_stride);
    y = other.claim_rows(shift, s.batch, s.time, s.channels, s.channels + 5, (s.time + 2) * (s.channels + 5));
  }
  Poisoned<E> qkv, other;
  Rows<E> q, k, v, y;
};

template <typename E>
struct PoisonedBand {
  using T = Accumulate<E>;
  PoisonedBand(const WindowInputs<E>& in, int64_t shift)
      : span(span_of(in.shape)),
        heads(in.shape.heads),
        stored(in.band_rows),
        memory(shift + heads * ((stored + 1) * (span + 2))) {
    if (!in.shape.has_band) return;
    band = {nullptr, (stored + 1) * (span + 2), in.shared_row ? 0 : span + 2, stored};
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < stored; ++t) {
        T* row = memory.claim(shift + h * band.head_stride + t * (span + 2), span);
        if (h == 0 && t == 0) band.data = row;
      }
    }
  }
  T& at(int64_t i) {
    return band.data[i / span / stored * band.head_stride + i / span % stored * (span + 2) + i % span];
  }
  int64_t span, heads, stored;
  Poisoned<T> memory;
  Band<T> band;
};

// Packed sequences lie in one batch row.
template <typename E>
WindowShape tensor_shape(const WindowInputs<E>& in) {
  WindowShape s = in.shape;
  if (in.packed()) s.batch = 1;
  return s;
}

template <typename E>
KeyMask mask_of(const WindowInputs<E>& in) {
  static_assert(sizeof(bool) == 1);
  return in.key_mask.empty() ? KeyMask{} : KeyMask{reinterpret_cast<const bool*>(in.key_mask.data()), in.shape.time};
}

template <typename E>
const int64_t* cu_of(const WindowInputs<E>& in) {
  return in.packed() ? in.cu_seqlens.data() : nullptr;
}

template <typename T>
std::vector<T> take(const T* data, int64_t size) {
  return std::vector<T>(data, data + size);
}

}  // namespace

template <typename R, typename E>
WindowInputs<R> convert(const WindowInputs<E>& in) {
  using T = Accumulate<E>;
  const auto vec = [](const std::vector<T>& x) { return std::vector<R>(x.begin(), x.end()); };
  const auto state = [&](const StateData<T>& s) {
    StateData<R> r{s.position, vec(s.max), vec(s.den), vec(s.num), vec(s.ring_key), vec(s.ring_value)};
    for (size_t i = 0; i < s.max.size(); ++i) {
      if (s.max[i] == std::numeric_limits<T>::lowest()) r.max[i] = std::numeric_limits<R>::lowest();
    }
    return r;
  };
  return {in.shape,      vec(in.q),    vec(in.k),           vec(in.v),         vec(in.grad_y),
          vec(in.band),  in.band_rows, in.shared_row,       state(in.initial), in.key_mask,
          in.cu_seqlens, in.has_final, state(in.grad_final)};
}

template <typename E>
WindowOutputs<E> run_kernel(const WindowInputs<E>& in, const RunOptions& options) {
  using T = Accumulate<E>;
  const WindowShape& s = in.shape;
  const WindowShape dims = tensor_shape(in);
  WindowOutputs<E> out;
  PoisonedTensors<E> tensors(dims, options.shift);
  if (s.gate != Gate::kNone) put(in.q, tensors.q, dims.batch, s.time, s.channels);
  put(in.k, tensors.k, dims.batch, s.time, s.key_channels);
  put(in.v, tensors.v, dims.batch, s.time, s.channels);
  PoisonedBand<E> band(in, options.shift);
  for (size_t i = 0; i < in.band.size(); ++i) band.at(i) = in.band[i];
  const Band<const T> weights = {band.band.data, band.band.head_stride, band.band.row_stride, band.band.rows};
  const int64_t saved_size = window_saved_size(s);
  Poisoned<T> saved_memory(saved_size);
  T* saved = saved_memory.claim(0, saved_size);
  const bool has_initial = !in.initial.position.empty();

  WindowForward<E> forward;
  forward.in.shape = s;
  forward.in.q = as_const(tensors.q);
  forward.in.k = as_const(tensors.k);
  forward.in.v = as_const(tensors.v);
  forward.y = tensors.y;
  forward.in.key_mask = mask_of(in);
  forward.in.cu_seqlens = cu_of(in);
  forward.in.longest = s.time;
  forward.in.band = weights;
  forward.saved = options.backward ? saved : nullptr;
  {
    PoisonedState<T> initial = has_initial ? PoisonedState<T>(s, in.initial) : PoisonedState<T>(s);
    PoisonedState<T> separate(s);
    PoisonedState<T>& final = options.alias_state && has_initial ? initial : separate;
    if (has_initial) forward.in.initial_state = as_const(initial.state);
    if (in.has_final) forward.final_state = final.state;
    window_forward(forward, Cpu{options.parallel, options.redone});
    out.of[kY] = get(tensors.y, dims.batch, s.time, s.channels);
    if (in.has_final) final.read_into(out);
  }
  tensors.other.expect_gaps_untouched("y");
  saved_memory.expect_gaps_untouched("saved");
  if (!options.backward) return out;

  PoisonedTensors<E> grads(dims, options.shift + 1);
  put(in.grad_y, tensors.y, dims.batch, s.time, s.channels);
  PoisonedBand<E> grad_band(in, options.shift + 1);
  PoisonedState<T> initial = has_initial ? PoisonedState<T>(s, in.initial) : PoisonedState<T>(s);
  PoisonedState<T> grad_initial(s);
  WindowBackward<E> backward;
  backward.in = forward.in;
  backward.grad_y = as_const(tensors.y);
  backward.grad_q = grads.q;
  backward.grad_k = grads.k;
  backward.grad_v = grads.v;
  if (options.grad_band) backward.grad_band = grad_band.band;
  backward.saved = saved;
  if (has_initial) {
    backward.in.initial_state = as_const(initial.state);
    backward.grad_initial_state = {grad_initial.state.den, grad_initial.state.num, grad_initial.state.ring_key,
                                   grad_initial.state.ring_value};
  }
  if (in.has_final) {
    backward.grad_final_state = {in.grad_final.den.data(), in.grad_final.num.data(), in.grad_final.ring_key.data(),
                                 in.grad_final.ring_value.data()};
  }
  window_backward(backward, Cpu{options.parallel, options.redone});
  if (s.gate != Gate::kNone) out.of[kGradQ] = get(grads.q, dims.batch, s.time, s.channels);
  out.of[kGradK] = get(grads.k, dims.batch, s.time, s.key_channels);
  out.of[kGradV] = get(grads.v, dims.batch, s.time, s.channels);
  out.of[kGradBand].resize(in.band.size());
  for (size_t i = 0; i < in.band.size(); ++i) out.of[kGradBand][i] = grad_band.at(i);
  if (has_initial) {
    out.of[kGradInitialDen] = take(grad_initial.state.den, s.batch * s.key_channels);
    out.of[kGradInitialNum] = take(grad_initial.state.num, s.batch * s.channels);
    out.of[kGradInitialRingKey] = take(grad_initial.state.ring_key, s.batch * s.left * s.key_channels);
    out.of[kGradInitialRingValue] = take(grad_initial.state.ring_value, s.batch * s.left * s.channels);
  }
  grads.qkv.expect_gaps_untouched("grad_q, grad_k, grad_v");
  grad_band.memory.expect_gaps_untouched("grad_band");
  for (const Poisoned<T>& m : grad_initial.memory) m.expect_gaps_untouched("grad_initial_state");
  return out;
}

template <typename E>
WindowOutputs<E> run_steps(const WindowInputs<E>& in, const RunOptions& options) {
  using T = Accumulate<E>;
  const WindowShape& s = in.shape;
  WindowOutputs<E> out;
  PoisonedTensors<E> tensors(s, options.shift);
  if (s.gate != Gate::kNone) put(in.q, tensors.q, s.batch, s.time, s.channels);
  put(in.k, tensors.k, s.batch, s.time, s.key_channels);
  put(in.v, tensors.v, s.batch, s.time, s.channels);
  PoisonedBand<E> band(in, options.shift);
  for (size_t i = 0; i < in.band.size(); ++i) band.at(i) = in.band[i];
  const bool has_initial = !in.initial.position.empty();
  PoisonedState<T> state = has_initial ? PoisonedState<T>(s, in.initial) : PoisonedState<T>(s);
  if (!has_initial) window_state_init<T>(s, state.state);
  for (int64_t t = 0; t < s.time; ++t) {
    const auto at = [&](Rows<E> rows) {
      return Rows<E>{rows.data == nullptr ? nullptr : rows.data + t * rows.time_stride, rows.batch_stride,
                     rows.time_stride};
    };
    WindowStep<E> step;
    step.in.shape = s;
    step.in.q = as_const(at(tensors.q));
    step.in.k = as_const(at(tensors.k));
    step.in.v = as_const(at(tensors.v));
    step.y = at(tensors.y);
    step.in.band = {band.band.data, band.band.head_stride, band.band.row_stride, band.band.rows};
    step.state = state.state;
    window_step(step, Cpu{options.parallel, options.redone});
  }
  out.of[kY] = get(tensors.y, s.batch, s.time, s.channels);
  state.read_into(out);
  tensors.other.expect_gaps_untouched("y of step");
  return out;
}

template <typename R>
WindowOutputs<R> run_reference(const WindowInputs<R>& in, bool backward) {
  const WindowShape& s = in.shape;
  const int64_t span = span_of(s);
  WindowOutputs<R> out;
  const auto rows = [&](auto& data, int64_t width) {
    return Rows<std::remove_reference_t<decltype(data[0])>>{data.data(), s.time * width, width};
  };
  const bool has_initial = !in.initial.position.empty();
  WindowForward<R> f;
  f.in.shape = s;
  f.in.q = rows(in.q, s.channels);
  f.in.k = rows(in.k, s.key_channels);
  f.in.v = rows(in.v, s.channels);
  f.in.key_mask = mask_of(in);
  f.in.cu_seqlens = cu_of(in);
  f.in.longest = s.time;
  f.in.band = {in.band.data(), in.band_rows * span, in.shared_row ? 0 : span, in.band_rows};
  out.of[kY].resize(in.tokens() * s.channels);
  f.y = rows(out.of[kY], s.channels);
  if (has_initial) {
    f.in.initial_state = {in.initial.position.data(), in.initial.max.data(),      in.initial.den.data(),
                          in.initial.num.data(),      in.initial.ring_key.data(), in.initial.ring_value.data()};
  }
  if (in.has_final) {
    out.position.resize(s.batch);
    out.max.resize(s.batch * s.key_channels);
    out.of[kFinalDen].resize(s.batch * s.key_channels);
    out.of[kFinalNum].resize(s.batch * s.channels);
    out.ring_key.resize(s.batch * s.left * s.key_channels);
    out.ring_value.resize(s.batch * s.left * s.channels);
    f.final_state = {out.position.data(),      out.max.data(),      out.of[kFinalDen].data(),
                     out.of[kFinalNum].data(), out.ring_key.data(), out.ring_value.data()};
  }
  window_forward_reference(f);
  if (!backward) return out;

  WindowBackward<R> b;
  b.in = f.in;
  b.grad_y = rows(in.grad_y, s.channels);
  if (s.gate != Gate::kNone) out.of[kGradQ].resize(in.tokens() * s.channels);
  out.of[kGradK].resize(in.tokens() * s.key_channels);
  out.of[kGradV].resize(in.tokens() * s.channels);
  out.of[kGradBand].resize(in.band.size());
  b.grad_q = rows(out.of[kGradQ], s.channels);
  b.grad_k = rows(out.of[kGradK], s.key_channels);
  b.grad_v = rows(out.of[kGradV], s.channels);
  if (s.has_band) {
    b.grad_band = {out.of[kGradBand].data(), in.band_rows * span, in.shared_row ? 0 : span, in.band_rows};
  }
  if (has_initial) {
    out.of[kGradInitialDen].resize(s.batch * s.key_channels);
    out.of[kGradInitialNum].resize(s.batch * s.channels);
    out.of[kGradInitialRingKey].resize(s.batch * s.left * s.key_channels);
    out.of[kGradInitialRingValue].resize(s.batch * s.left * s.channels);
    b.grad_initial_state = {out.of[kGradInitialDen].data(), out.of[kGradInitialNum].data(),
                            out.of[kGradInitialRingKey].data(), out.of[kGradInitialRingValue].data()};
  }
  if (in.has_final) {
    b.grad_final_state = {in.grad_final.den.data(), in.grad_final.num.data(), in.grad_final.ring_key.data(),
                          in.grad_final.ring_value.data()};
  }
  window_backward_reference(b);
  return out;
}

template <typename E>
WindowInputs<E> slice_time(const WindowInputs<E>& in, int64_t begin, int64_t end,
                           const StateData<Accumulate<E>>& state) {
  using T = Accumulate<E>;
  WindowInputs<E> out = in;
  const WindowShape& s = in.shape;
  out.shape.time = end - begin;
  const auto cut = [&](const std::vector<T>& from, int64_t width) {
    std::vector<T> to;
    for (int64_t b = 0; b < s.batch && !from.empty(); ++b) {
      const auto row = from.begin() + b * s.time * width;
      to.insert(to.end(), row + begin * width, row + end * width);
    }
    return to;
  };
  out.q = cut(in.q, s.channels);
  out.k = cut(in.k, s.key_channels);
  out.v = cut(in.v, s.channels);
  out.grad_y = cut(in.grad_y, s.channels);
  out.initial = state;
  return out;
}

template <typename E>
WindowInputs<E> slice_batch(const WindowInputs<E>& in, int64_t b) {
  using T = Accumulate<E>;
  WindowInputs<E> out = in;
  const WindowShape& s = in.shape;
  out.shape.batch = 1;
  const auto cut = [&](const auto& from, int64_t size) {
    if (from.empty()) return from;
    return std::remove_cvref_t<decltype(from)>(from.begin() + b * size, from.begin() + (b + 1) * size);
  };
  const auto cut_state = [&](const StateData<T>& from) {
    return StateData<T>{cut(from.position, 1),
                        cut(from.max, s.key_channels),
                        cut(from.den, s.key_channels),
                        cut(from.num, s.channels),
                        cut(from.ring_key, s.left * s.key_channels),
                        cut(from.ring_value, s.left * s.channels)};
  };
  const auto cut_rows = [&](const auto& from, int64_t width) {
    if (from.empty()) return from;
    const auto begin = from.begin() + in.tokens_before(b) * width;
    return std::remove_cvref_t<decltype(from)>(begin, begin + in.time_of(b) * width);
  };
  out.shape.time = in.time_of(b);
  out.cu_seqlens.clear();
  out.shape.packed = false;
  out.key_mask = cut_rows(in.key_mask, 1);
  out.q = cut_rows(in.q, s.channels);
  out.k = cut_rows(in.k, s.key_channels);
  out.v = cut_rows(in.v, s.channels);
  out.grad_y = cut_rows(in.grad_y, s.channels);
  out.initial = cut_state(in.initial);
  out.grad_final = cut_state(in.grad_final);
  return out;
}

template <typename E>
StateData<Accumulate<E>> final_state(const WindowOutputs<E>& out) {
  return {out.position, out.max, out.of[kFinalDen], out.of[kFinalNum], out.ring_key, out.ring_value};
}

#define AFT_INSTANTIATE(E)                                                                                           \
  template WindowOutputs<E> run_kernel<E>(const WindowInputs<E>&, const RunOptions&);                                \
  template WindowOutputs<E> run_steps<E>(const WindowInputs<E>&, const RunOptions&);                                 \
  template WindowInputs<E> slice_time<E>(const WindowInputs<E>&, int64_t, int64_t, const StateData<Accumulate<E>>&); \
  template WindowInputs<E> slice_batch<E>(const WindowInputs<E>&, int64_t);                                          \
  template StateData<Accumulate<E>> final_state<E>(const WindowOutputs<E>&);
AFT_INSTANTIATE(float)
AFT_INSTANTIATE(double)
AFT_INSTANTIATE(BFloat16)
AFT_INSTANTIATE(Float16)
template WindowOutputs<double> run_reference<double>(const WindowInputs<double>&, bool);
template WindowOutputs<long double> run_reference<long double>(const WindowInputs<long double>&, bool);
template WindowInputs<double> convert<double, float>(const WindowInputs<float>&);
template WindowInputs<double> convert<double, double>(const WindowInputs<double>&);
template WindowInputs<double> convert<double, BFloat16>(const WindowInputs<BFloat16>&);
template WindowInputs<double> convert<double, Float16>(const WindowInputs<Float16>&);
template WindowInputs<long double> convert<long double, double>(const WindowInputs<double>&);

}  // namespace aft::ops::test
