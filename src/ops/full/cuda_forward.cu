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
  Wave wave;
  const T* exponents;
  Entries<T> entries;
  FullForward<X> p;
  bool redo;
  int64_t* redone;

  struct Row {
    T query;
  };

  struct Rows {
    const ForwardPass& pass;
    const Sequence& x;
    int64_t head, position, c;
    const X* q;  // of the row where it stands, as y and saved
    X* y;
    T* saved;
    int64_t q_step, y_step;  // to the next row

    __device__ Rows(const ForwardPass& of, const Sequence& sequence, int64_t weights, int64_t t, int64_t channel)
        : pass(of), x(sequence), head(weights), position(t), c(channel) {
      const FullShape& s = pass.call.in.shape;
      q = s.gate == Gate::kNone ? nullptr : pass.call.target(pass.call.in.q, x, t) + c;
      y = pass.call.target(pass.p.y, x, t) + c;
      saved = pass.p.saved == nullptr ? nullptr : pass.p.saved + (x.target_row + t - x.first) * s.channels + c;
      q_step = kRowsApart * pass.call.in.q.time_stride;
      y_step = kRowsApart * pass.p.y.time_stride;
    }

    __device__ void move(int rows) {
      position += rows * kRowsApart;
      if (q != nullptr) q += rows * q_step;
      y += rows * y_step;
      if (saved != nullptr) saved += rows * kRowsApart * pass.call.in.shape.channels;
    }

    __device__ Row load(int i) const { return {q == nullptr ? T(0) : T(cuda::widen(q[i * q_step]))}; }

    /// From den 2^exponent and num 2^exponent, both in units of 2^W.
    __device__ bool finish(int i, const Row& read, const Sums<T>& sums) const {
      T den = sums.part[0], num = sums.part[1], exponent = sums.exponent[0] + sums.weight_exponent;
      T difference = sums.exponent[1] - sums.exponent[0];
      const bool has_weights = sums.weight_exponent > kExponentFloor<T> && sums.weight_exponent < kNoTarget<T>;
      if (!(has_weights && sums.exponent[0] > kExponentFloor<T>)) {
        den = num = exponent = pass.call.has_weights(x, position + i * kRowsApart) ? T(0) : T(NAN);
        difference = 0;
      } else if (pass.redo && (!(den >= kCertificate<T>) || num - num != 0)) {
        return false;
      }
      write(i, read, den, num, exponent, difference, T(1));
      return true;
    }
    __device__ void finish_exactly(int i, const Row& read, const Sums<T>& /*sums*/) const {
      const cuda::RunningSum<T> sum = exact_row(pass.call, x, head, position + i * kRowsApart, c);
      write(i, read, sum.den.sum, sum.num.sum, sum.max, T(0), T(-1));
    }

   private:
    /// D = den 2^exponent, N = num 2^(exponent + difference). Sign: -1 for rows that were redone.
    __device__ void write(int i, const Row& read, T den, T num, T exponent, T difference, T sign) const {
      const FullShape& s = pass.call.in.shape;
      const bool seen = den != 0;
      const T scale = cuda::pow2(difference);
      const T gated = seen ? cuda::gated_ratio_for<X>(s.gate, read.query, num, den) * scale : T(0);
      y[i * y_step] = cuda::narrow<X>(gated);
      if (saved == nullptr) return;
      T ratio = 0;
      if constexpr (sizeof(X) == 2) {
        if (seen) ratio = num * cuda::reciprocal(den) * scale;
      } else {
        if (seen) ratio = num / den * scale;
      }
      const int64_t part = pass.call.cut.target_rows * s.channels;
      T* to = saved + i * kRowsApart * s.channels;
      to[0] = den * sign;
      to[part] = exponent;
      to[2 * part] = ratio;
    }
  };
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
    for_each_wave(call, wave_tiles(s), [&](const Wave& wave) {
      pack_all_sources(call, wave, memory.sources, kName, cuda);
      const auto run = [&](const auto& pass) { launch_sum_rows(pass, kName, cuda); };
      if (p.in.weights.u != nullptr) {
        run(ForwardPass<E, true>{call, wave, memory.exponents, memory.sources, p, redo_enabled(), cuda.redone});
      } else {
        run(ForwardPass<E, false>{call, wave, memory.exponents, memory.sources, p, redo_enabled(), cuda.redone});
      }
    });
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
