#pragma once

// The gradient of the weights, the matrix or its factors: a product over channels,
//   dw[t,s] = e^w sum_c (a[t] (e^k v)[s] - b[t] (e^k)[s]),
// summed over the sequences and channels that share a matrix. Tiles of it are formed in the workspace, a band of rows
// at a time, each in a few parts, and folded in order: into the matrix, or by way of products with the factors.

#include <algorithm>

#include "ops/full/cuda_targets.cuh"

namespace aft::ops::full {

template <typename E>
struct WeightBand {
  using T = Accumulate<E>;

  Targets<E> targets;
  Entries<T> target_entries, source_entries;
  T* tiles;  // [rows of the band][source chunks][parts][kTile][kTile]
  Wave wave;
  int64_t target_chunks = 0, source_chunks = 0;
  int64_t parts = 0;            // that the columns of a matrix are cut into
  int64_t units = 0;            // of kTileChannels channels of a sequence that share a matrix
  int64_t first = 0, rows = 0;  // of the band, among the chunks of targets of all matrices

  /// Of row i of the band: its matrix, that of sequence b (0 if they share it) and a head, and its chunk of targets.
  struct Row {
    int64_t b, head, chunk;
  };
  __device__ Row row(int64_t i) const {
    const int64_t matrix = (first + i) / target_chunks;
    return {matrix / wave.heads, wave.first_head + matrix % wave.heads, (first + i) % target_chunks};
  }
  __device__ T* tile(int64_t row, int64_t source_chunk, int64_t part) const {
    return tiles + ((row * source_chunks + source_chunk) * parts + part) * kTile * kTile;
  }
  /// Element (t, s) of a row's tiles, over all parts.
  __device__ T sum(int64_t row, int64_t t, int64_t s) const {
    const T* at = tile(row, s / kTile, 0) + t * kTile + s % kTile;
    T sum = *at;
    for (int64_t part = 1; part < parts; ++part) sum += at[part * kTile * kTile];
    return sum;
  }
};

/// Some channels of one sequence, for one tile: there is none without targets and sources.
struct Unit {
  Sequence x;
  int64_t target_slot, source_slot;
  int64_t tile;  // of the wave
  ChannelTile channels;
};

template <typename E>
__device__ bool find_unit(const WeightBand<E>& band, const typename WeightBand<E>::Row& row, int64_t source_chunk,
                          int64_t i, Unit& unit) {
  const Call<E>& call = band.targets.call;
  const int64_t tiles = band.wave.tiles;
  unit.x = call.sequence(row.b + i / tiles);
  const Sequence& x = unit.x;
  if (row.chunk < x.first / kTile || row.chunk * kTile >= x.end() || source_chunk * kTile >= x.sources) return false;
  if (x.targets == 0) return false;
  unit.target_slot = call.slot_index(Axis::kTargets, x, row.chunk);
  unit.source_slot = call.slot_index(Axis::kSources, x, source_chunk);
  unit.tile = (row.head - band.wave.first_head) * tiles + i % tiles;
  unit.channels = call.channel_tile(band.wave, unit.tile);
  return true;
}

/// Exponents of the products a e^k v and b e^k of a channel, and the mark of its targets.
template <typename T>
struct ProductScale {
  T value, key, mark;
};

template <typename E, typename T = Accumulate<E>>
__device__ ProductScale<T> product_scale(const WeightBand<E>& band, const Unit& unit, int64_t c) {
  const int64_t d = band.targets.call.in.shape.channels;
  const T* target = band.target_entries.scales + unit.target_slot * kScaleParts * d + c;
  const T* source = band.source_entries.scales + unit.source_slot * kScaleParts * d + c;
  return {target[0] + source[d], target[d] + source[0], target[2 * d]};
}

/// A block: a tile, one part of its columns.
template <typename E, bool kFactors>
__global__ void __launch_bounds__(kThreads, 1) weight_tiles(WeightBand<E> band) {
  using T = Accumulate<E>;
  using P = Product<T>;
  constexpr int kStep = P::kStep, kChannels = kStep / 2;
  __shared__ typename P::Shared shared;
  __shared__ T room[kThreads / 32];
  const Call<E>& call = band.targets.call;
  const PairWeights<const T>& w = call.in.weights;
  const int64_t d = call.in.shape.channels;
  const bool causal = call.in.shape.causal;
  const int64_t part = blockIdx.x % band.parts, source_chunk = blockIdx.x / band.parts % band.source_chunks;
  const int64_t band_row = blockIdx.x / band.parts / band.source_chunks;
  const auto row = band.row(band_row);
  if (causal && source_chunk > row.chunk) return;
  const bool own_chunk = causal && source_chunk == row.chunk;
  const int64_t first_unit = band.units * part / band.parts, last_unit = band.units * (part + 1) / band.parts;
  const int64_t t_begin = row.chunk * kTile, s_begin = source_chunk * kTile;

  // One exponent for the sums: the largest of any channel's products.
  T scale = 2 * kExponentFloor<T>;
  bool has_pairs = false;
  for (int64_t i = threadIdx.x; i < (last_unit - first_unit) * kTileChannels; i += kThreads) {
    Unit unit;
    if (!find_unit(band, row, source_chunk, first_unit + i / kTileChannels, unit)) continue;
    if (i % kTileChannels >= unit.channels.count) continue;
    const ProductScale<T> own = product_scale(band, unit, unit.channels.begin + i % kTileChannels);
    const bool apart = own_chunk && is_apart(own.mark);
    if (apart || own.mark == kMarkRedone || own.mark == kMarkRedone + kMarkApart) has_pairs = true;
    if (!apart) scale = fmax(scale, fmax(own.value, own.key));
  }
  for (int step = 16; step > 0; step /= 2) scale = fmax(scale, __shfl_xor_sync(0xffffffffu, scale, step));
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = scale;
  has_pairs = __syncthreads_or(has_pairs);
  for (int i = 0; i < kThreads / 32; ++i) scale = fmax(scale, room[i]);

  P product;
  T total[8][8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) total[i][j] = 0;
  }
  product.clear();
  const int k = threadIdx.x % kStep;  // of what this thread brings: part k % 2 of channel k / 2, of some rows
  for (int64_t i = first_unit; i < last_unit; ++i) {
    Unit unit;
    if (!find_unit(band, row, source_chunk, i, unit)) continue;
    const Sequence& x = unit.x;
    const int steps = (unit.channels.count + kChannels - 1) / kChannels;
    T a[P::kOwn], b[P::kOwn], factor = 0;
    const auto load = [&](int step) {
      const int channel = step * kChannels + k / 2;
      const bool exists = channel < unit.channels.count;
      const int64_t c = unit.channels.begin + channel;
      factor = 0;
      if (exists) {
        const ProductScale<T> own = product_scale(band, unit, c);
        if (!(own_chunk && is_apart(own.mark))) {
          factor = k % 2 == 0 ? cuda::pow2(own.value - scale) : -cuda::pow2(own.key - scale);
        }
      }
#pragma unroll
      for (int n = 0; n < P::kOwn; ++n) {
        const int64_t at = threadIdx.x / kStep + n * (kThreads / kStep), t = t_begin + at, s = s_begin + at;
        const bool is_target = exists && t >= x.first && t < x.end(), is_source = exists && s < x.sources;
        const int part = 2 * channel + k % 2;
        a[n] = is_target ? band.target_entries.at(unit.tile, x.target_row + t - x.first)[part] : T(0);
        b[n] = is_source ? band.source_entries.at(unit.tile, x.source_row + s)[part ^ 1] : T(0);
      }
    };
    const auto store = [&](int side) {
#pragma unroll
      for (int n = 0; n < P::kOwn; ++n) {
        const int at = threadIdx.x / kStep + n * (kThreads / kStep);
        shared.a[side].at[k][at] = a[n] * factor;
        shared.b[side].at[k][at] = b[n];
      }
    };
    load(0);
    __syncthreads();
    store(0);
    __syncthreads();
    for (int step = 0; step < steps; ++step) {
      const bool more = step + 1 < steps;
      if (more) load(step + 1);
      product.multiply(shared.a[step % 2], shared.b[step % 2]);
      if ((step + 1) * kStep % kSegment == 0 || !more) {
#pragma unroll
        for (int m = 0; m < 8; ++m) {
#pragma unroll
          for (int j = 0; j < 8; ++j) total[m][j] += product.sum[m][j];
        }
        product.clear();
      }
      if (more) store(1 - step % 2);
      __syncthreads();
    }
  }

  // Times e^w; 0 where a target does not see a source.
  const Sequence owner = call.sequence(row.b);  // of the matrix, where it has one
  if constexpr (kFactors) {
    multiply_factors(product, shared, w.u + row.head * w.u_head_stride + t_begin * w.width, w.rows - t_begin,
                     w.v + row.head * w.v_head_stride + s_begin * w.width, w.columns - s_begin, w.width);
  }
  T* tile = band.tile(band_row, source_chunk, part);
#pragma unroll
  for (int m = 0; m < 8; ++m) {
    const int64_t t = t_begin + row_of(m);
    const int64_t seen = exponent_sources(call, t);
    const bool known =
        seen > 0 && (call.exponents_per_row ? t >= owner.first && t < owner.end() : t < call.exponent_rows);
    const T exponent = known ? band.targets.exponents[call.exponent_index(owner, row.head, t)] : T(0);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int64_t s = s_begin + column_of(j);
      T value = 0;
      if (known && s < seen) {
        const T weight = kFactors ? product.sum[m][j] : call.table_row(owner, row.head, t)[s];
        const cuda::SplitExp<T> e = cuda::split_exp(weight);
        const T factor = e.p * cuda::pow2(e.n - exponent);
        // A target that sees a weight that is no number is redone.
        if (factor > 0) value = scale_by(total[m][j] * factor, scale);
      }
      tile[row_of(m) * kTile + column_of(j)] = value;
    }
  }
  if (!has_pairs) return;

  // What the product left out, pair by pair: redone targets, and channels apart.
  __syncthreads();
  for (int64_t i = first_unit; i < last_unit; ++i) {
    Unit unit;
    if (!find_unit(band, row, source_chunk, i, unit)) continue;
    const Sequence& x = unit.x;
    for (int64_t c = unit.channels.begin; c < unit.channels.begin + unit.channels.count; ++c) {
      const T mark = product_scale(band, unit, c).mark;
      const bool all = own_chunk && is_apart(mark);
      if (mark == 0 || (!all && mark == kMarkApart)) continue;
      for (int64_t e = threadIdx.x; e < kTile * kTile; e += kThreads) {
        const int64_t t = t_begin + e / kTile, s = s_begin + e % kTile;
        if (t < x.first || t >= x.end() || s >= x.sources || !call.has_weights(x, t) || s >= call.seen(x, t)) continue;
        const Target<T> target = band.targets.at(x, t, c);
        if (!target.redone && (!all || target.a == 0)) continue;
        const T key = call.key(x, s, c);
        const T value = cuda::is_absent(key) ? T(0) : call.value(x, s, c);
        tile[e] +=
            band.targets.pair_grad(target, cuda::split_exp(key), cuda::split_exp(call.weight(x, row.head, t, s)), value)
                .key;
      }
    }
  }
}

/// Adds the band's rows to the gradient of a matrix. A thread has one element.
template <typename E>
__global__ void fold_table(WeightBand<E> band, PairWeights<Accumulate<E>> to) {
  const Call<E>& call = band.targets.call;
  const int64_t i = cuda::thread_index(), columns = min(band.source_chunks * kTile, to.columns);
  const int64_t band_row = i / columns / kTile, s = i % columns;
  if (band_row >= band.rows) return;
  const auto row = band.row(band_row);
  const int64_t at = i / columns % kTile, t = row.chunk * kTile + at;
  if (t >= to.rows || (call.in.shape.causal && s > t)) return;
  to.table[row.b * to.batch_stride + row.head * to.head_stride + t * to.row_stride + s] += band.sum(band_row, at, s);
}

/// Adds the band's targets to du. A thread has one element.
template <typename E>
__global__ void fold_u(WeightBand<E> band, PairWeights<Accumulate<E>> to) {
  using T = Accumulate<E>;
  const Call<E>& call = band.targets.call;
  const PairWeights<const T>& w = call.in.weights;
  const int64_t i = cuda::thread_index(), f = i % w.width, at = i / w.width % kTile, band_row = i / w.width / kTile;
  if (band_row >= band.rows) return;
  const auto row = band.row(band_row);
  const int64_t t = row.chunk * kTile + at;
  if (t >= to.rows) return;
  const int64_t seen = min(min(band.source_chunks * kTile, w.columns), call.in.shape.causal ? t + 1 : w.columns);
  const T* v = w.v + row.head * w.v_head_stride + f;
  T total = 0;
  for (int64_t begin = 0; begin < seen; begin += kSegment) {
    T sum = 0;
    for (int64_t s = begin; s < min(seen, begin + kSegment); ++s)
      sum = fma(band.sum(band_row, at, s), v[s * w.width], sum);
    total += sum;
  }
  to.u[row.head * to.u_head_stride + t * w.width + f] += total;
}

/// Adds the band's targets to dv.
template <typename E>
__global__ void fold_v(WeightBand<E> band, PairWeights<Accumulate<E>> to) {
  using T = Accumulate<E>;
  const Call<E>& call = band.targets.call;
  const PairWeights<const T>& w = call.in.weights;
  const int64_t columns = min(band.source_chunks * kTile, to.columns);
  const int64_t i = cuda::thread_index(), f = i % w.width, s = i / w.width % columns;
  const int64_t head = band.wave.first_head + i / w.width / columns;
  if (head >= band.wave.first_head + band.wave.heads) return;
  T& grad = to.v[head * to.v_head_stride + s * w.width + f];
  for (int64_t band_row = 0; band_row < band.rows; ++band_row) {
    const auto row = band.row(band_row);
    if (row.head != head || (call.in.shape.causal && row.chunk < s / kTile)) continue;
    const T* u = w.u + head * w.u_head_stride + row.chunk * kTile * w.width + f;
    const int64_t end = min(kTile, w.rows - row.chunk * kTile);
    for (int64_t begin = 0; begin < end; begin += kSegment) {
      T sum = 0;
      for (int64_t at = begin; at < min(end, begin + kSegment); ++at) {
        sum = fma(band.sum(band_row, at, s), u[at * w.width], sum);
      }
      grad += sum;
    }
  }
}

template <typename T>
__global__ void clear_rows(PairWeights<T> w, int64_t heads, int64_t matrices) {
  const int64_t i = cuda::thread_index(), row = i / w.columns, matrix = row / w.rows;
  if (matrix >= matrices) return;
  w.table[matrix / heads * w.batch_stride + matrix % heads * w.head_stride + row % w.rows * w.row_stride +
          i % w.columns] = 0;
}

template <typename T>
void clear_table(const PairWeights<T>& w, const FullShape& s, const char* name, const Cuda& cuda) {
  if (w.table == nullptr) return;
  const int64_t heads = w.head_stride == 0 ? 1 : s.heads;
  const int64_t matrices = (w.batch_stride == 0 || s.packed ? 1 : s.batch) * heads;
  cuda::launch(cuda, name, matrices * w.rows * w.columns, clear_rows<T>, w, heads, matrices);
}

template <typename E>
void add_weight_gradient(const Targets<E>& targets, const Memory<E>& memory, const Wave& wave, const char* name,
                         const Cuda& cuda) {
  const Call<E>& call = targets.call;
  const FullShape& s = call.in.shape;
  const auto& w = call.in.weights;
  const auto& to = targets.p.grad_weights;
  const int64_t longest = s.packed ? std::min(s.targets, call.in.longest) : 0;
  const int64_t positions = s.packed ? longest : call.has_state ? call.cut.positions : s.targets;
  const int64_t sources = s.causal ? positions : s.packed ? longest : s.sources;
  const bool per_batch = call.exponents_per_row;
  WeightBand<E> band = {targets, memory.targets, memory.sources, memory.tiles, wave};
  band.target_chunks = tiles_of(std::min(positions, w.rows), kTile);
  band.source_chunks = tiles_of(std::min(sources, w.columns), kTile);
  const int64_t tiles_of_matrices = wave.heads * band.target_chunks * band.source_chunks;
  if (tiles_of_matrices == 0) return;
  band.units = (per_batch ? 1 : s.batch) * wave.tiles;
  // Of a matrix of its own a sequence has the same parts alone and in any batch.
  band.parts =
      per_batch ? 1 : std::clamp<int64_t>(kGradientTiles / tiles_of_matrices, 1, std::max<int64_t>(1, band.units));
  const int64_t all_rows = (per_batch ? s.batch : 1) * wave.heads * band.target_chunks;
  const int64_t rows = std::max<int64_t>(1, kGradientTiles / (band.source_chunks * band.parts));
  for (band.first = 0; band.first < all_rows; band.first += rows) {
    band.rows = std::min(rows, all_rows - band.first);
    const int64_t blocks = band.rows * band.source_chunks * band.parts;
    const int64_t columns = std::min(band.source_chunks * kTile, w.columns);
    if (w.u == nullptr) {
      cuda::launch_blocks(cuda, name, blocks, kThreads, weight_tiles<E, false>, band);
      cuda::launch(cuda, name, band.rows * kTile * columns, fold_table<E>, band, to);
    } else {
      cuda::launch_blocks(cuda, name, blocks, kThreads, weight_tiles<E, true>, band);
      if (to.u != nullptr) cuda::launch(cuda, name, band.rows * kTile * w.width, fold_u<E>, band, to);
      if (to.v != nullptr) cuda::launch(cuda, name, wave.heads * columns * w.width, fold_v<E>, band, to);
    }
  }
}

}  // namespace aft::ops::full
