// Forward and prefill of the dense operator on a CUDA device. Cost and layout: README.md.

#include <cstdint>
#include <limits>

#include "aft/ops/full.h"
#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/full/check.h"
#include "ops/full/cuda_sums.cuh"

namespace aft::ops {
namespace full {
namespace {

template <typename X, bool factors>
struct ForwardPass {
  using Element = X;
  using T = Accumulate<X>;
  static constexpr Axis kAxis = Axis::kTargets;
  static constexpr bool kFactors = factors;

  Call<X> call;
  const T* exponents;
  Entries<T> entries;
  FullForward<X> p;
  bool redo;
  int64_t* redone;

  /// Target t from den 2^den_exponent, num 2^num_exponent, both in units of 2^weight_exponent: 1 if it is redone.
  __device__ int finish(const Sequence& x, int64_t head, int64_t t, int64_t c, T den, T num, T den_exponent,
                        T num_exponent, T weight_exponent, bool /*marked*/) const {
    const FullShape& s = call.in.shape;
    T exponent = den_exponent + weight_exponent, difference = num_exponent - den_exponent, sign = 1;
    const bool sees = den_exponent > kExponentFloor<T> && weight_exponent > kExponentFloor<T>;
    if (!call.has_weights(x, t)) {
      den = num = exponent = NAN;
      difference = 0;
    } else if (!sees) {
      den = num = exponent = difference = 0;
    } else if (redo && (!(den >= kCertificate<T>) || num - num != 0)) {
      const cuda::RunningSum<T> row = exact_row(call, x, head, t, c);
      den = row.den.sum;
      num = row.num.sum;
      exponent = row.max;
      difference = 0;
      sign = -1;
    }
    const T query = s.gate == Gate::kNone ? T(0) : T(cuda::widen(call.target(call.in.q, x, t)[c]));
    const T scale = cuda::pow2(difference);
    call.target(p.y, x, t)[c] = cuda::narrow<X>(cuda::gated_ratio(s.gate, query, num, den) * scale);
    if (p.saved != nullptr) {
      const int64_t part = call.cut.target_rows * s.channels;
      T* saved = p.saved + (x.target_row + t - x.first) * s.channels + c;
      saved[0] = den * sign;
      saved[part] = exponent;
      saved[2 * part] = den == 0 ? T(0) : num / den * scale;
    }
    return sign < 0 ? 1 : 0;
  }
};

// The ring takes every source so far; sums and their maximum stay neutral. A thread has a row of the ring and a
// channel.
template <typename E>
__global__ void write_state(Call<E> call, FullForward<E> p) {
  using T = Accumulate<E>;
  const FullShape& s = p.in.shape;
  const int64_t i = cuda::thread_index();
  if (i >= s.batch * s.capacity * s.channels) return;
  const int64_t c = i % s.channels, slot = i / s.channels % s.capacity, b = i / s.channels / s.capacity;
  const Sequence x = call.sequence(b);
  const State<T>& to = p.final_state;
  const bool has_key = c < s.key_channels;
  if (slot == 0) {
    to.num[b * s.channels + c] = 0;
    if (has_key) {
      to.max[b * s.key_channels + c] = std::numeric_limits<T>::lowest();
      to.den[b * s.key_channels + c] = 0;
    }
  }
  // Past the end of the ring the state stays.
  if (slot >= x.end() || x.end() > s.capacity) return;
  if (slot < x.first && to.ring_value == p.in.initial_state.ring_value) return;
  to.ring_value[i] = call.masked(x, slot) ? T(0) : call.value(x, slot, c);
  if (!has_key) return;
  const int64_t first_channel = call.shares_key ? c * (s.channels / s.heads) : c;
  to.ring_key[(b * s.capacity + slot) * s.key_channels + c] = call.key(x, slot, first_channel);
}

template <typename E>
__global__ void write_position(FullInputs<E> in, int64_t* to) {
  const int64_t b = cuda::thread_index();
  if (b >= in.shape.batch) return;
  to[b] = in.shape.targets + (in.initial_state.position == nullptr ? 0 : in.initial_state.position[b]);
}

template <typename E>
void forward(const FullForward<E>& p, const Cuda& cuda) {
  constexpr const char* kName = "full_forward";
  const FullShape& s = p.in.shape;
  cuda::Workspace workspace(cuda.workspace);
  const Memory<E> memory(s, Pass::kForward, workspace);
  const Call<E> call(p.in);
  if (s.batch > 0 && s.targets > 0 && s.channels > 0) {
    find_all_exponents(call, memory.exponents, kName, cuda);
    pack_all_sources(call, memory.sources, kName, cuda);
    const auto run = [&](const auto& pass) {
      cuda::launch_blocks(cuda, kName, call.cut.target_slots * call.channel_tiles, kThreads,
                          sum_rows<std::decay_t<decltype(pass)>>, pass);
    };
    if (p.in.weights.u != nullptr) {
      run(ForwardPass<E, true>{call, memory.exponents, memory.sources, p, redo_enabled(), cuda.redone});
    } else {
      run(ForwardPass<E, false>{call, memory.exponents, memory.sources, p, redo_enabled(), cuda.redone});
    }
  }
  if (p.final_state.position == nullptr) return;
  if (s.channels > 0) cuda::launch(cuda, kName, s.batch * s.capacity * s.channels, write_state<E>, call, p);
  cuda::launch(cuda, kName, s.batch, write_position<E>, p.in, p.final_state.position);
}

}  // namespace
}  // namespace full

template <typename E>
void full_forward(const FullForward<E>& p, const Cuda& cuda) {
  full::check_sizes(p);
  full::check_values(p.in, cuda);
  full::forward(p, cuda);
}

#define AFT_INSTANTIATE(E) template void full_forward<E>(const FullForward<E>&, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
