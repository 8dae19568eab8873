#pragma once

// A call of the dense operator on the device: its sequences, sources and weights, wherever they lie, and one row
// exactly, pair by pair.

#include <algorithm>
#include <cstdint>

#include "aft/ops/full.h"
#include "ops/common/cuda/element.cuh"
#include "ops/common/cuda/exp.cuh"
#include "ops/common/cuda/launch.cuh"
#include "ops/full/cuda_memory.h"

namespace aft::ops::full {

/// The checks of check.h, where the caller asks for them (Cuda::check_values): it copies positions and cu_seqlens to
/// the host and waits for the stream.
template <typename E>
void check_values(FullInputs<E> in, const Cuda& cuda);

enum class Axis { kTargets, kSources };

/// One batch row or packed sequence, in absolute positions.
struct Sequence {
  int64_t index;                   // of the state
  int64_t batch;                   // row of the tensors
  int64_t token;                   // its first row within their time axis
  int64_t first;                   // position of its first target; sources before it lie in the ring of the state
  int64_t targets;                 // rows
  int64_t sources;                 // positions [0, sources) are seen
  int64_t target_row, source_row;  // where its entries begin

  __device__ int64_t end() const { return first + targets; }
};

/// A chunk of a sequence. Rows [begin, end) in absolute positions.
struct Slot {
  Sequence x;
  int64_t chunk, index;  // in the sequence; among all slots
  int64_t begin, end;
};

/// Channels [begin, begin + count) that share a matrix of weights.
struct ChannelTile {
  int64_t head, begin;
  int count;
};

/// Tiles of channels whose entries are held at once: `tiles` of each of `heads` matrices.
struct Wave {
  int64_t first_head, heads, first_tile, tiles;

  __host__ __device__ int64_t count() const { return heads * tiles; }
};

template <typename E>
struct Call {
  using T = Accumulate<E>;

  FullInputs<E> in;
  Cut cut;
  int64_t weight_heads, weight_width;  // matrices that a sequence meets, channels of each
  int64_t head_tiles;                  // of the channels of each
  bool own_weights;                    // of each sequence, not of all
  bool exponents_per_row;              // W is that of a row of a sequence, else of a position of all
  int64_t exponent_rows;               // W's of a head
  bool has_state, shares_key;

  explicit Call(const FullInputs<E>& inputs) : in(inputs), cut(inputs.shape) {
    const FullShape& s = in.shape;
    const bool per_head = (in.weights.u != nullptr ? in.weights.u_head_stride : in.weights.head_stride) != 0;
    weight_heads = per_head ? s.heads : 1;
    weight_width = s.channels / weight_heads;
    head_tiles = tiles_of(weight_width, kTileChannels);
    own_weights = !s.packed && in.weights.u == nullptr && in.weights.batch_stride != 0;
    // Not causal, sequences of different lengths see different sources of a row.
    exponents_per_row = own_weights || (s.packed && !s.causal);
    has_state = in.initial_state.position != nullptr;
    shares_key = s.key_channels != s.channels;
    exponent_rows = exponents_per_row ? cut.target_rows : has_state ? cut.positions : s.targets;
  }

  // ---- sequences

  __device__ Sequence sequence(int64_t b) const {
    const FullShape& s = in.shape;
    if (s.packed) {
      const int64_t token = in.cu_seqlens[b], count = in.cu_seqlens[b + 1] - token;
      return {b, 0, token, 0, count, count, token, token};
    }
    const int64_t first = has_state ? max(in.initial_state.position[b], int64_t{0}) : 0;
    // What would lie past the end of the ring is no source.
    const int64_t sources = !s.causal ? s.sources : has_state ? min(first + s.targets, s.capacity) : s.targets;
    return {b, b, 0, first, s.targets, sources, b * s.targets, b * cut.source_stride};
  }

  /// Packed: floor((a + b) / c) >= floor(a / c) + ceil(b / c) - 1, so one slot more a sequence keeps them apart.
  __device__ int64_t first_slot(int64_t b) const { return in.cu_seqlens[b] / kTile + b; }

  /// The packed sequence that has slot i, and that which has row i.
  __device__ int64_t sequence_of_slot(int64_t i) const {
    return last_sequence([&](int64_t b) { return first_slot(b) <= i; });
  }
  __device__ int64_t sequence_of_row(int64_t i) const {
    return last_sequence([&](int64_t b) { return in.cu_seqlens[b] <= i; });
  }

  /// Slots of a chunk lie side by side if not packed: they share weights. False where slot i has no rows.
  __device__ bool find_slot(Axis axis, int64_t i, Slot& slot) const {
    const int64_t b = in.shape.packed ? sequence_of_slot(i) : i % in.shape.batch;
    slot.x = sequence(b);
    slot.chunk = in.shape.packed ? i - first_slot(b) : i / in.shape.batch;
    if (axis == Axis::kTargets) slot.chunk += slot.x.first / kTile;
    slot.index = slot_index(axis, slot.x, slot.chunk);
    const int64_t begin = axis == Axis::kTargets ? slot.x.first : 0;
    const int64_t end = axis == Axis::kTargets ? slot.x.end() : slot.x.sources;
    slot.begin = max(begin, slot.chunk * kTile);
    slot.end = min(end, (slot.chunk + 1) * kTile);
    return slot.begin < slot.end;
  }
  __device__ int64_t slot_index(Axis axis, const Sequence& x, int64_t chunk) const {
    if (in.shape.packed) return first_slot(x.index) + chunk;
    return axis == Axis::kTargets ? x.index * cut.targets + chunk - x.first / kTile : x.index * cut.sources + chunk;
  }
  /// Tile i of a wave.
  __device__ ChannelTile channel_tile(const Wave& wave, int64_t i) const {
    const int64_t head = wave.first_head + i / wave.tiles, at = (wave.first_tile + i % wave.tiles) * kTileChannels;
    return {head, head * weight_width + at, static_cast<int>(min(kTileChannels, weight_width - at))};
  }

  // ---- sources

  __device__ int64_t key_channel(int64_t c) const { return shares_key ? c / (in.shape.channels / in.shape.heads) : c; }
  __device__ bool masked(const Sequence& x, int64_t s) const {
    return in.key_mask.data != nullptr && s >= x.first &&
           !in.key_mask.data[x.batch * in.key_mask.batch_stride + x.token + s - x.first];
  }
  __device__ T key(const Sequence& x, int64_t s, int64_t c) const { return key_at(x, s, key_channel(c)); }
  __device__ T key_at(const Sequence& x, int64_t s, int64_t at) const {
    if (s < x.first) {
      return in.initial_state.ring_key[(x.index * in.shape.capacity + s) * in.shape.key_channels + at];
    }
    if (masked(x, s)) return -INFINITY;
    return cuda::widen(in.k.data[x.batch * in.k.batch_stride + (x.token + s - x.first) * in.k.time_stride + at]);
  }
  __device__ T value(const Sequence& x, int64_t s, int64_t c) const {
    if (s < x.first) {
      return in.initial_state.ring_value[(x.index * in.shape.capacity + s) * in.shape.channels + c];
    }
    return cuda::widen(in.v.data[x.batch * in.v.batch_stride + (x.token + s - x.first) * in.v.time_stride + c]);
  }
  /// Where row t of a tensor of targets, as wide as y, lies.
  template <typename X>
  __device__ X* target(const Rows<X>& rows, const Sequence& x, int64_t t) const {
    return rows.data + x.batch * rows.batch_stride + (x.token + t - x.first) * rows.time_stride;
  }

  // ---- weights

  /// Sources [0, seen) of target t.
  __device__ int64_t seen(const Sequence& x, int64_t t) const { return in.shape.causal ? t + 1 : x.sources; }
  /// False where the weights, or the ring, end before the target.
  __device__ bool has_weights(const Sequence& x, int64_t t) const {
    const int64_t sources = seen(x, t);
    return sources == 0 || (t < in.weights.rows && sources <= in.weights.columns && sources <= x.sources);
  }
  /// Row t of the matrix that a sequence meets.
  __device__ const T* table_row(const Sequence& x, int64_t head, int64_t t) const {
    const PairWeights<const T>& w = in.weights;
    return w.table + (in.shape.packed ? 0 : x.index * w.batch_stride) + head * w.head_stride + t * w.row_stride;
  }
  __device__ T weight(const Sequence& x, int64_t head, int64_t t, int64_t s) const {
    const PairWeights<const T>& w = in.weights;
    if (w.u == nullptr) return table_row(x, head, t)[s];
    const T* u = w.u + head * w.u_head_stride + t * w.width;
    const T* v = w.v + head * w.v_head_stride + s * w.width;
    T sum = 0;
    for (int64_t f = 0; f < w.width; ++f) sum = fma(u[f], v[f], sum);
    return sum;
  }
  /// Where W of target t is among Memory::exponents.
  __device__ int64_t exponent_index(const Sequence& x, int64_t head, int64_t t) const {
    return head * exponent_rows + (exponents_per_row ? x.target_row + t - x.first : t);
  }

 private:
  /// The last packed sequence b that begins(b) holds for: it does up to there.
  template <typename Begins>
  __device__ int64_t last_sequence(const Begins& begins) const {
    int64_t b = 0, end = in.shape.batch;
    while (b + 1 < end) {
      const int64_t middle = (b + end) / 2;
      (begins(middle) ? b : end) = middle;
    }
    return b;
  }
};

/// run(wave) for all channels, `most` tiles at a time.
template <typename E, typename Run>
void for_each_wave(const Call<E>& call, int64_t most, const Run& run) {
  const int64_t parts = tiles_of(call.head_tiles, most), tiles = tiles_of(call.head_tiles, parts);
  const int64_t heads = std::max<int64_t>(1, parts > 1 ? 1 : most / tiles);
  for (int64_t head = 0; head < call.weight_heads; head += heads) {
    for (int64_t tile = 0; tile < call.head_tiles; tile += tiles) {
      run(Wave{head, std::min(heads, call.weight_heads - head), tile, std::min(tiles, call.head_tiles - tile)});
    }
  }
}

/// x 2^n, for any n.
template <typename T>
__device__ T scale_by(T x, T n) {
  constexpr T kMost = 2 * FloatFormat<T>::kBias - 2;
  const T whole = n < -kMost ? -kMost : n > kMost ? kMost : n;
  const T half = trunc(whole / 2);
  return x * cuda::pow2(half) * cuda::pow2(whole - half);
}

/// The integer part of log2 |x|, short of the largest exponents, whose powers of two are no normal numbers.
template <typename T>
__device__ T modest_exponent(T x) {
  constexpr T kMost = FloatFormat<T>::kBias - 7;
  return fmin(fmax(cuda::exponent_of(x), -kMost), kMost);
}

/// What a chunk's mark says of a channel, bits of a small whole number: it has redone targets, to be added pair by
/// pair; its targets see keys so much below others of the chunk that, causal, the chunk of sources at the same
/// positions is done pair by pair too.
constexpr int kMarkRedone = 1, kMarkApart = 2;

template <typename T>
__device__ bool is_apart(T mark) {
  return mark >= kMarkApart;
}

/// D and N of target t, pair by pair, under the maximum of the row.
template <typename E, typename T = Accumulate<E>>
__device__ cuda::RunningSum<T> exact_row(const Call<E>& call, const Sequence& x, int64_t head, int64_t t, int64_t c) {
  cuda::RunningSum<T> sum;
  sum.max = 4 * kExponentFloor<T>;
  const int64_t seen = call.seen(x, t);
  for (int64_t s = 0; s < seen; ++s) {
    const cuda::SplitExp<T> w = cuda::split_exp(call.weight(x, head, t, s));
    const cuda::SplitExp<T> k = cuda::split_exp(call.key(x, s, c));
    if (k.p == 0 || w.p == 0) continue;  // its value may be anything
    const T e = k.p * w.p;
    sum.add(k.n + w.n, e, e * call.value(x, s, c));
  }
  return sum;
}

}  // namespace aft::ops::full
