// Backward of the dense operator on a CUDA device. Cost and layout: README.md.

#include <algorithm>
#include <cstdint>

#include "aft/ops/full.h"
#include "ops/common/for_each_element.h"
#include "ops/full/check.h"
#include "ops/full/cuda_sums.cuh"
#include "ops/full/cuda_targets.cuh"
#include "ops/full/cuda_weight_gradient.cuh"

namespace aft::ops {
namespace full {
namespace {

/// Writes the gradient of a key, or of the value of a source: with what the ring after the call, a copy, adds to it.
template <typename E>
struct SourceGrads {
  using T = Accumulate<E>;

  const Call<E>& call;
  const FullBackward<E>& p;

  __device__ void write_value(const Sequence& x, int64_t s, int64_t c, T grad) const {
    write(x, s, c, call.in.shape.channels, p.grad_final_state.ring_value, p.grad_v, p.grad_initial_state.ring_value,
          grad);
  }
  /// c: key channel.
  __device__ void write_key(const Sequence& x, int64_t s, int64_t c, T grad) const {
    write(x, s, c, call.in.shape.key_channels, p.grad_final_state.ring_key, p.grad_k, p.grad_initial_state.ring_key,
          grad);
  }

 private:
  __device__ void write(const Sequence& x, int64_t s, int64_t c, int64_t width, const T* final_ring,
                        const Rows<E>& rows, T* initial_ring, T grad) const {
    const int64_t slot = (x.index * call.in.shape.capacity + s) * width + c;
    if (final_ring != nullptr) grad += final_ring[slot];
    if (call.masked(x, s)) grad = 0;
    if (s >= x.first) {
      call.target(rows, x, s)[c] = cuda::narrow<E>(grad);
    } else if (initial_ring != nullptr) {
      initial_ring[slot] = grad;
    }
  }
};

template <typename X, bool factors>
struct SourcePass {
  using Element = X;
  using T = Accumulate<X>;
  static constexpr Axis kAxis = Axis::kSources;
  static constexpr bool kFactors = factors;

  Call<X> call;
  Wave wave;
  const T* exponents;
  Entries<T> entries;
  FullBackward<X> p;
  T* key_grads;
  int64_t* redone;  // null: the forward counts

  struct Row {
    T key, value;
  };

  struct Rows {
    const SourcePass& pass;
    const Sequence& x;
    int64_t head, position, c;

    __device__ Rows(const SourcePass& of, const Sequence& sequence, int64_t weights, int64_t s, int64_t channel)
        : pass(of), x(sequence), head(weights), position(s), c(channel) {}

    __device__ void move(int rows) { position += rows * kRowsApart; }

    __device__ Row load(int i) const {
      const int64_t s = position + i * kRowsApart;
      return {pass.call.key(x, s, c), pass.call.value(x, s, c)};
    }
    __device__ bool finish(int i, const Row& read, const Sums<T>& sums) const {
      if (!sums.marked) write(i, read, sums, false);
      return !sums.marked;
    }
    __device__ void finish_exactly(int i, const Row& read, const Sums<T>& sums) const { write(i, read, sums, true); }

   private:
    /// From the sums of a and b: dv = e^k a, dk = e^k (v a - b).
    __device__ void write(int i, const Row& read, const Sums<T>& sums, bool adds_pairs) const {
      const Call<X>& call = pass.call;
      const int64_t s = position + i * kRowsApart;
      const T a = sums.part[0], b = sums.part[1], value = cuda::is_absent(read.key) ? T(0) : read.value;
      const cuda::SplitExp<T> k = cuda::split_exp(read.key);
      T dv = 0, dk = 0;
      // What no target sees may be anything.
      if (a != 0) dv = scale_by(k.p * a, k.n + sums.exponent[0]);
      if (a != 0) dk = dv * value;
      if (b != 0) dk -= scale_by(k.p * b, k.n + sums.exponent[1]);
      if (adds_pairs) pass.add_pairs(x, head, s, c, k, value, dv, dk);
      const SourceGrads<X> grads = {call, pass.p};
      grads.write_value(x, s, c, dv);
      if (call.shares_key) {
        pass.key_grads[(x.source_row + s) * call.in.shape.channels + c] = dk;
      } else {
        grads.write_key(x, s, c, dk);
      }
    }
  };

  /// What the products left out: redone targets, and those of the own chunk where it is apart.
  __device__ void add_pairs(const Sequence& x, int64_t head, int64_t s, int64_t c, const cuda::SplitExp<T>& k, T value,
                            T& dv, T& dk) const {
    const int64_t d = call.in.shape.channels;
    const bool causal = call.in.shape.causal;
    const Targets<X> targets = {call, p, exponents};
    cuda::Compensated<T> value_sum = {}, key_sum = {};
    for (int64_t chunk = (causal ? max(s, x.first) : x.first) / kTile; chunk * kTile < x.end(); ++chunk) {
      const T mark = entries.scales[(call.slot_index(Axis::kTargets, x, chunk) * kScaleParts + 2) * d + c];
      if (mark == 0) continue;
      const bool all = causal && chunk == s / kTile && is_apart(mark);
      const int64_t begin = max(max(x.first, chunk * kTile), causal ? s : 0), end = min(x.end(), (chunk + 1) * kTile);
      for (int64_t t = begin; t < end; ++t) {
        const Target<T> target = targets.at(x, t, c);
        if (!target.redone && (!all || target.a == 0)) continue;
        const auto grad = targets.pair_grad(target, k, cuda::split_exp(call.weight(x, head, t, s)), value);
        value_sum.add(grad.value, T(1));
        key_sum.add(grad.key, T(1));
      }
    }
    dv += value_sum.sum;
    dk += key_sum.sum;
  }
};

/// Where a head shares its key: dk summed over the head's channels. A block has a slot.
template <typename E>
__global__ void fold_keys(Call<E> call, FullBackward<E> p, const Accumulate<E>* key_grads) {
  using T = Accumulate<E>;
  const FullShape& s = call.in.shape;
  Slot slot;
  if (!call.find_slot(Axis::kSources, blockIdx.x, slot)) return;
  const SourceGrads<E> grads = {call, p};
  const int64_t width = s.channels / s.heads;
  for (int64_t i = threadIdx.x; i < (slot.end - slot.begin) * s.heads; i += blockDim.x) {
    const int64_t source = slot.begin + i / s.heads, head = i % s.heads;
    const T* from = key_grads + (slot.x.source_row + source) * s.channels + head * width;
    cuda::Compensated<T> sum = {};
    for (int64_t c = 0; c < width; ++c) sum.add(from[c], T(1));
    grads.write_key(slot.x, source, head, sum.sum);
  }
}

template <typename E, bool factors>
void run(const FullBackward<E>& p, const Memory<E>& memory, const Cuda& cuda) {
  constexpr const char* kName = "full_backward";
  const Call<E> call(p.in);
  const Targets<E> targets = {call, p, memory.exponents};
  const bool wants_weights =
      p.grad_weights.table != nullptr || p.grad_weights.u != nullptr || p.grad_weights.v != nullptr;
  find_all_exponents(call, memory.exponents, kName, cuda);
  // The gradient of a sequence's own matrix is summed the same way alone and in any batch: a tile of channels at a
  // time.
  const int64_t most = wants_weights && call.own_weights ? 1 : wave_tiles(p.in.shape);
  for_each_wave(call, most, [&](const Wave& wave) {
    cuda::launch_blocks(cuda, kName, call.cut.target_slots * wave.count(), kThreads, pack_targets<E>, targets, wave,
                        memory.targets);
    using Sources = SourcePass<E, factors>;
    launch_sum_rows(Sources{call, wave, memory.exponents, memory.targets, p, memory.key_grads, nullptr}, kName, cuda);
    if (!wants_weights) return;
    pack_all_sources(call, wave, memory.sources, kName, cuda);
    add_weight_gradient(targets, memory, wave, kName, cuda);
  });
  if (call.shares_key) {
    cuda::launch_blocks(cuda, kName, call.cut.source_slots, kThreads, fold_keys<E>, call, p, memory.key_grads);
  }
}

template <typename E>
void backward(const FullBackward<E>& p, const Cuda& cuda) {
  using T = Accumulate<E>;
  constexpr const char* kName = "full_backward";
  const FullShape& s = p.in.shape;
  const auto clear = [&](T* data, int64_t count) {
    if (data == nullptr || count == 0) return;
    cuda::check(cudaMemsetAsync(data, 0, count * sizeof(T), cuda::stream_of(cuda)), kName);
  };
  const StateGrad<T>& initial = p.grad_initial_state;
  clear(initial.den, s.batch * s.key_channels);
  clear(initial.num, s.batch * s.channels);
  clear(initial.ring_key, s.batch * s.capacity * s.key_channels);
  clear(initial.ring_value, s.batch * s.capacity * s.channels);
  const PairWeights<T>& w = p.grad_weights;
  clear(w.u, (w.u_head_stride == 0 ? 1 : s.heads) * w.rows * w.width);
  clear(w.v, (w.v_head_stride == 0 ? 1 : s.heads) * w.columns * w.width);
  clear_table(w, s, kName, cuda);
  if (s.batch == 0 || s.channels == 0) return;
  cuda::Workspace workspace(cuda.workspace);
  const Memory<E> memory(s, Pass::kBackward, workspace);
  p.in.weights.u != nullptr ? run<E, true>(p, memory, cuda) : run<E, false>(p, memory, cuda);
}

}  // namespace
}  // namespace full

template <typename E>
void full_backward(const FullBackward<E>& p, const Cuda& cuda) {
  full::check_sizes(p);
  full::check_values(p.in, cuda);
  full::backward(p, cuda);
}

#define AFT_INSTANTIATE(E) template void full_backward<E>(const FullBackward<E>&, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
