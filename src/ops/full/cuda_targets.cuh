#pragma once

// Targets of the backward: what one leaves for its sources, as an entry of their sums or pair by pair.

#include "ops/full/cuda_entries.cuh"

namespace aft::ops::full {

/// a and b of a target whose D = den 2^exponent, and the gradient of its query.
template <typename T>
struct Target {
  T a, b, query, exponent, den;
  bool redone;  // by the forward, or not finite: it takes no part in the products
};

template <typename E>
struct Targets {
  using T = Accumulate<E>;

  Call<E> call;
  FullBackward<E> p;
  const T* exponents;  // W

  __device__ Target<T> at(const Sequence& x, int64_t t, int64_t c) const {
    const FullShape& s = call.in.shape;
    if (!call.has_weights(x, t)) return {0, 0, NAN, 0, 1, false};
    const int64_t part = call.cut.target_rows * s.channels;
    const T* saved = p.saved + (x.target_row + t - x.first) * s.channels + c;
    const T den = saved[0], exponent = saved[part], ratio = saved[2 * part];
    if (den == 0) return {0, 0, 0, exponent, 1, false};
    const T gy = cuda::widen(call.target(p.grad_y, x, t)[c]);
    const T query = s.gate == Gate::kNone ? T(0) : T(cuda::widen(call.target(call.in.q, x, t)[c]));
    const cuda::GateSlope<T> gate = cuda::evaluate_gate(s.gate, query);
    const T a = cuda::times_gate(gate, gy, fabs(den)), b = a * ratio;
    // What is not finite must not meet the weight 0 of a pair that is not seen.
    return {a, b, gy * ratio * gate.slope, exponent, fabs(den), den < 0 || a - a != 0 || b - b != 0};
  }

  /// W less the exponent of D: 0 - the exponent that its keys were summed under.
  __device__ T under(const Sequence& x, int64_t head, int64_t t, const Target<T>& target) const {
    return exponents[call.exponent_index(x, head, t)] - target.exponent;
  }

  __device__ static bool is_absent(const Target<T>& target) { return target.redone || target.a == 0; }

  /// Of a target that is not absent.
  __device__ static Entry<T> entry(const Target<T>& target, T under) {
    const T e0 = modest_exponent(target.a), e1 = modest_exponent(target.b);
    return {target.a * cuda::pow2(-e0), target.b * cuda::pow2(-e1), under + e0, under + e1};
  }

  /// What a target gives one source in dv and in dk.
  struct PairGrad {
    T value, key;
  };
  __device__ PairGrad pair_grad(const Target<T>& target, const cuda::SplitExp<T>& k, const cuda::SplitExp<T>& w,
                                T value) const {
    if (k.p == 0 || w.p == 0) return {0, 0};
    const T e = k.p * w.p, exponent = k.n + w.n - target.exponent;
    const T dv = scale_by(e * target.a, exponent);
    return {dv, dv * value - scale_by(e * target.b, exponent)};
  }
};

/// A block: one slot of targets, one tile of channels of the wave; as pack_sources. Writes the gradients of the queries
/// too.
template <typename E>
__global__ void __launch_bounds__(kThreads) pack_targets(Targets<E> targets, Wave wave, Entries<Accumulate<E>> to) {
  using T = Accumulate<E>;
  __shared__ PackRoom<T, 5> room;
  const Call<E>& call = targets.call;
  const FullBackward<E>& p = targets.p;
  const int64_t d = call.in.shape.channels, tile = blockIdx.x % wave.count();
  const bool causal = call.in.shape.causal;
  Slot slot;
  if (!call.find_slot(Axis::kTargets, blockIdx.x / wave.count(), slot)) return;
  const Sequence& x = slot.x;
  const ChannelTile channels = call.channel_tile(wave, tile);
  const int lane = threadIdx.x % kTileChannels;
  const bool has_channel = lane < channels.count;
  const int64_t c = channels.begin + lane, head = channels.head;
  const int64_t first = slot.begin + threadIdx.x / kTileChannels, begin = has_channel ? first : slot.end;
  const int64_t end = slot.end;
  // Exponents of the entries, what the targets' D would make of an exponent of 0, the largest key, any redone.
  T most[5] = {kExponentFloor<T>, kExponentFloor<T>, 2 * kExponentFloor<T>, kExponentFloor<T>, T(0)};
  for (int64_t t = begin; t < end; t += kPackRows) {
    const Target<T> target = targets.at(x, t, c);
    if (target.redone) most[4] = 1;
    if (targets.is_absent(target)) continue;
    const T under = targets.under(x, head, t, target);
    const Entry<T> e = targets.entry(target, under);
    most[0] = fmax(most[0], e.n0);
    most[1] = fmax(most[1], e.n1);
    most[2] = fmax(most[2], under - modest_exponent(target.den));
  }
  if (causal) {
    const int64_t keys_end = has_channel ? min(x.sources, (slot.chunk + 1) * kTile) : 0;
    for (int64_t s = slot.chunk * kTile + threadIdx.x / kTileChannels; s < keys_end; s += kPackRows) {
      include(most[3], cuda::split_exp(call.key(x, s, c)).n);
    }
  }
  largest_of_channel(room, most);
  for (int64_t t = first; t < end; t += kPackRows) {
    Target<T> target = {0, 0, 0, 0, 1, false};
    if (has_channel) target = targets.at(x, t, c);
    Entry<T> e = {0, 0, most[0], most[1]};
    if (!targets.is_absent(target)) e = targets.entry(target, targets.under(x, head, t, target));
    store_entry(e, most[0], most[1], to.at(tile, x.target_row + t - x.first) + 2 * lane);
    if (has_channel && call.in.shape.gate != Gate::kNone)
      call.target(p.grad_q, x, t)[c] = cuda::narrow<E>(target.query);
  }
  if (!has_channel || threadIdx.x >= kTileChannels) return;
  const bool apart = causal && most[2] + most[3] > kRangeLimit<T>;
  const T mark = (most[4] != 0 ? kMarkRedone : 0) + (apart ? kMarkApart : 0);
  store_scale(most[0], most[1], mark, to.scales + slot.index * kScaleParts * d + c, d);
}

}  // namespace aft::ops::full
