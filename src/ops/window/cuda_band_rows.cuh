#pragma once

// Rows of q, k, v and the gradients as a block with a band reads and writes them: the rows of its warps, the largest
// key and value of its sources, K = e^k 2^-M and K v 2^-X.

#include <cstdint>

#include "ops/window/cuda_band.cuh"

namespace aft::ops::window {

/// A source of a state's ring at `count` channels.
template <typename T>
struct RingSource {
  T key[kLanes], value[kLanes];
};

template <typename E, typename T = Accumulate<E>>
__device__ __noinline__ RingSource<T> read_ring(const WindowInputs<E>& in, const Sequence& one, int64_t s, int64_t c,
                                                int count) {
  const Ring<E> ring(in, one, c);
  RingSource<T> source;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    source.key[i] = i < count ? ring.key(s, i) : T(0);
    source.value[i] = i < count ? ring.value(s, i) : T(0);
  }
  return source;
}

/// The channels [begin, begin + kLanes) of a sequence, those below `end`: rows of a tensor, and its sources with the
/// ring's before them.
template <typename E>
struct BandChannels {
  using T = Accumulate<E>;

  const WindowInputs<E>& in;
  const Sequence& one;
  Columns<E, 1> own;
  int64_t begin;
  int count;      // of channels; 0 to kLanes
  bool can_pack;  // rows can be moved kLanes elements at once
  bool packs;     // this thread's can

  __device__ __forceinline__ BandChannels(const WindowInputs<E>& inputs, const Sequence& sequence, int64_t first,
                                          int64_t end, bool moves_in_packs)
      : in(inputs),
        one(sequence),
        own(inputs, sequence, min(first, end - (moves_in_packs ? kLanes : 1))),
        begin(first),
        count(static_cast<int>(max(int64_t{0}, min(int64_t{kLanes}, end - first)))),
        can_pack(moves_in_packs),
        packs(moves_in_packs && count == kLanes) {}

  /// kTile rows as they lie in memory, so that their loads run ahead; the first `rows`.
  __device__ __forceinline__ void load_rows(const E* from, int64_t stride, int rows, cuda::Pair<E> (&to)[kTile]) const {
    if (packs) {
#pragma unroll
      for (int r = 0; r < kTile; ++r, from += stride) to[r] = r < rows ? cuda::Pair<E>::load(from) : cuda::Pair<E>();
      return;
    }
#pragma unroll
    for (int r = 0; r < kTile; ++r, from += stride) {
      if (r < rows && count > 0) to[r] = cuda::Pair<E>::of(from[0], count > 1 ? from[1] : E{});
    }
  }
  template <typename From>
  __device__ __forceinline__ void load(const From* from, T (&to)[kLanes]) const {
    if (packs) {
      const auto x = cuda::load<kLanes>(from);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) to[i] = cuda::widen(x.lane[i]);
      return;
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) to[i] = i < count ? T(cuda::widen(from[i])) : T(0);
  }
  /// kPacks: that it moves in packs is known.
  template <bool kPacks = false, typename To>
  __device__ __forceinline__ void store(To* to, const T (&x)[kLanes]) const {
    if constexpr (!kPacks) {
      if (!packs) {
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          if (i < count) to[i] = cuda::narrow<To>(x[i]);
        }
        return;
      }
    }
    cuda::store<kLanes>(to, x);
  }
  /// Keys and values of source s; what is masked is absent.
  __device__ __forceinline__ void read(int64_t s, T (&key)[kLanes], T (&value)[kLanes]) const {
    if (s < 0) {
      const RingSource<T> source = read_ring(in, one, s, begin, count);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        key[i] = source.key[i];
        value[i] = source.value[i];
      }
      return;
    }
    load(own.v + s * own.v_stride, value);
    if (own.shares_key) {
      const T shared = cuda::widen(own.k[s * own.k_stride]);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) key[i] = shared;
    } else {
      load(own.k + s * own.k_stride, key);
    }
    if (own.mask == nullptr || own.mask[s]) return;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) key[i] = -INFINITY;
  }
};

/// The largest key and the largest absolute value of a thread's channels; a key of -inf where there is none.
template <typename T>
struct Largest {
  T key[kLanes], value[kLanes] = {};
  bool plain = true;  // nothing is absent, infinite, NaN or beyond kKeyLimit

  __device__ Largest() {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) key[i] = -INFINITY;
  }
  /// Keys of +inf and NaN do not count.
  __device__ __forceinline__ void add_any(const T (&k)[kLanes], const T (&v)[kLanes]) {
    plain = false;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      if (cuda::is_absent(k[i]) || !(fabs(k[i]) < INFINITY)) continue;
      key[i] = fmax(key[i], k[i]);
      value[i] = fmax(value[i], fabs(v[i]));
    }
  }
};

/// n of e^k = p 2^n for the largest of some keys.
template <typename T>
__device__ T exponent_of_key(T key) {
  using F = FloatFormat<T>;
  return cuda::is_absent(key) ? kExponentFloor<T> : fma(fmin(key, kKeyLimit<T>), kLog2E<T>, F::kMagic) - F::kMagic;
}

/// K = e^k 2^-max and K v scale of a source's channels. kPlain: as Largest has it.
template <bool kPlain, bool kRounded, typename T>
__device__ __forceinline__ void scale_source(const T (&key)[kLanes], const T (&value)[kLanes], const T (&max)[kLanes],
                                             const T (&scale)[kLanes], cuda::Pack<T, kLanes>& k,
                                             cuda::Pack<T, kLanes>& kv) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    T own = key[i], v = value[i];
    if constexpr (!kPlain) {
      own = fmin(own, kKeyLimit<T>);
      if (cuda::is_absent(own)) v = 0;
    }
    k.lane[i] = cuda::exp_under_for<kRounded>(own, max[i]);
    if (!kPlain && !cuda::is_absent(own)) k.lane[i] += key[i] - key[i];
    kv.lane[i] = k.lane[i] * (v * scale[i]);
  }
}

/// The sources of a round that a thread has at hand: the first kRows of its warp. They stay in registers as they lie in
/// memory, so that all their loads are under way at once and none is done twice.
template <typename E, int kRows>
struct RoundSources {
  using T = Accumulate<E>;

  const BandChannels<E> channels;  // a copy, as all here: what lies beside an array is in registers by its values only
  const BandThread thread;
  cuda::Pair<E> k[kRows], v[kRows];
  int64_t s0;      // source of row 0
  uint32_t there;  // bit i: row i of the warp is a source
  bool loaded;     // false: some lie in a ring, or cannot be moved in pairs, so each is read where it is used

  __device__ RoundSources(const BandChannels<E>& of, const BandThread& place) : channels(of), thread(place) {}

  /// Rows of the round whose row 0 is source s0: those in [first, last), first <= 0 the first of all. In place of rows
  /// that are not there, others are loaded: what has no condition runs ahead.
  __device__ __forceinline__ void load(int64_t source, int64_t first, int64_t last) {
    s0 = source;
    const RowRange range(first, last, s0, kRound<kRows>);
    there = bits(range, 0, kTile) | (kRows > kTile ? bits(range, kTile, kRows - kTile) << kTile : 0);
    loaded = channels.can_pack && s0 + range.from >= 0 && range.from < range.to;
    if (!loaded) return;
    if (s0 >= 0 && s0 + kRound<kRows> <= channels.one.time) {
      load_rows(s0, [&](int i) { return thread.own_row(i); });
    } else {
      load_rows(s0 + range.from,
                [&](int i) { return min(max(thread.own_row(i), range.from), range.to - 1) - range.from; });
    }
#pragma unroll
    for (int i = 1; i < kRows; ++i) {  // repeats change no maximum
      k[i] = has(i) ? k[i] : k[i - 1];
      v[i] = has(i) ? v[i] : v[i - 1];
    }
  }
  __device__ bool has(int i) const { return (there >> i & 1) != 0; }
  /// Which of the `count` rows of the warp from its i-th on lie in the range.
  __device__ uint32_t bits(const RowRange& range, int i, int count) const {
    const int row = thread.own_row(i), from = min(max(range.from - row, 0), count);
    const int to = min(max(range.to - row, from), count);
    return (1u << to) - (1u << from);
  }
  /// Sources base + row(i), which all are of the sequence; a masked one is absent, also where it stands for another.
  template <typename Row>
  __device__ __forceinline__ void load_rows(int64_t base, const Row& row) {
    const Columns<E, 1>& own = channels.own;
    const auto load_all = [&](cuda::Pair<E>(&x)[kRows], const E* at, int64_t stride, const auto& read) {
      at += base * stride;
      const auto step = static_cast<uint32_t>(stride);
#pragma unroll
      for (int i = 0; i < kRows; ++i) x[i] = read(at + static_cast<uint64_t>(static_cast<uint32_t>(row(i))) * step);
    };
    const auto two = [](const E* at) { return cuda::Pair<E>::load(at); };
    if (own.shares_key) {
      load_all(k, own.k, own.k_stride, [](const E* at) { return cuda::Pair<E>::of(*at, *at); });
    } else {
      load_all(k, own.k, own.k_stride, two);
    }
    load_all(v, own.v, own.v_stride, two);
    if (own.mask == nullptr) return;
    const E absent = cuda::narrow<E>(T(-INFINITY));
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (!own.mask[base + row(i)]) k[i] = cuda::Pair<E>::of(absent, absent);
    }
  }
  /// Row i.
  __device__ __forceinline__ void get(int i, T (&key)[kLanes], T (&value)[kLanes]) const {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      key[lane] = k[i].at(lane);
      value[lane] = v[i].at(lane);
    }
  }

  /// K and K v 2^-X into the block's memory; of rows that are not there, 0. plain: as Largest has it, of all threads.
  template <bool kRounded>
  __device__ __forceinline__ void store_scaled(const BandRoom<T>& room, bool plain) const {
    T max[kLanes], scale[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      max[i] = room.of_channel(kMax, thread.lane + i);
      scale[i] = cuda::pow2(-room.of_channel(kValueExponent, thread.lane + i));
    }
    RoundWriter<T> writer = {room, thread, {}, {}};
    if (plain && loaded) {
      put_loaded<true, kRounded>(writer, max, scale);
    } else if (loaded) {
      put_loaded<false, kRounded>(writer, max, scale);
    } else {
#pragma unroll 1
      for (int i = 0; i < kRows; ++i) {
        cuda::Pack<T, kLanes> scaled_key = {}, scaled_value = {};
        if (has(i)) {
          T key[kLanes], value[kLanes];
          channels.read(s0 + thread.own_row(i), key, value);
          scale_source<false, kRounded>(key, value, max, scale, scaled_key, scaled_value);
        }
        writer.put(i, scaled_key, scaled_value);
      }
    }
    writer.store_groups();
  }
  template <bool kPlain, bool kRounded>
  __device__ __forceinline__ void put_loaded(RoundWriter<T>& writer, const T (&max)[kLanes],
                                             const T (&scale)[kLanes]) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      T key[kLanes], value[kLanes];
      get(i, key, value);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) key[lane] = has(i) ? key[lane] : -INFINITY;
      cuda::Pack<T, kLanes> scaled_key, scaled_value;
      scale_source<kPlain, kRounded>(key, value, max, scale, scaled_key, scaled_value);
      writer.put(i, scaled_key, scaled_value);
    }
  }

  __device__ __forceinline__ void add_to(Largest<T>& largest) const {
    T key[kLanes], value[kLanes];
    if (!loaded) {
#pragma unroll 1
      for (int i = 0; i < kRows; ++i) {
        if (!has(i)) continue;
        channels.read(s0 + thread.own_row(i), key, value);
        largest.add_any(key, value);
      }
      return;
    }
    if (there == 0) return;
    // First as if all were finite and present.
    cuda::Pair<E> most = k[0], most_key = k[0].abs(), most_value = v[0].abs();
#pragma unroll
    for (int i = 1; i < kRows; ++i) {
      most = most.max(k[i]);
      most_key = most_key.max_nan(k[i].abs());
      most_value = most_value.max_nan(v[i].abs());
    }
    bool plain = true;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      plain = plain && most_key.at(lane) <= kKeyLimit<T> && most_value.at(lane) < INFINITY;
    }
    if (plain) {
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        largest.key[lane] = fmax(largest.key[lane], T(most.at(lane)));
        largest.value[lane] = fmax(largest.value[lane], T(most_value.at(lane)));
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      get(i, key, value);
      largest.add_any(key, value);
    }
  }
};

/// Calls visit(channel, key, value) with the largest of all threads, in one thread a channel. Returns whether all is
/// plain. All threads; uses room.groups.
template <typename T, typename Visit>
__device__ __forceinline__ bool share_largest(const Largest<T>& largest, const BandRoom<T>& room,
                                              const BandThread& thread, const Visit& visit) {
  T* keys = room.groups;
  T* values = room.groups + kPanelTiles * kPanel;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    keys[thread.tile * kPanel + thread.lane + i] = largest.key[i];
    values[thread.tile * kPanel + thread.lane + i] = largest.value[i];
  }
  const bool plain = __syncthreads_and(largest.plain) != 0;
  if (threadIdx.x < kPanel) {
    const int channel = threadIdx.x;
    T key = -INFINITY, value = 0;
#pragma unroll
    for (int tile = 0; tile < kPanelTiles; ++tile) {
      key = fmax(key, keys[tile * kPanel + channel]);
      value = fmax(value, values[tile * kPanel + channel]);
    }
    visit(channel, key, value);
  }
  __syncthreads();
  return plain;
}

}  // namespace aft::ops::window
