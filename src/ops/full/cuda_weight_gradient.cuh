#pragma once

// The gradient of the weights, the matrix or its factors: a product over channels,
//   dw[t,s] = e^w sum_c (a[t] (e^k v)[s] - b[t] (e^k)[s]),
// summed over the sequences and channels that share a matrix. Tiles of it are formed in the workspace, a band of rows
// at a time, each in a few parts, and folded in order: into the matrix, or by way of products with the factors.

#include <algorithm>

#include "ops/common/cuda/shared.cuh"
#include "ops/full/cuda_targets.cuh"

namespace aft::ops::full {

/// A row of tiles: its matrix, that of sequence b (0 if they share it) and a head, and its chunk of targets.
struct WeightRow {
  int64_t b, head, chunk;
};

template <typename E>
struct WeightBand {
  using T = Accumulate<E>;

  Targets<E> targets;
  Entries<T> target_entries, source_entries;
  T* tiles;  // [those of the band][parts][kTile][kTile], row by row; causal, those that have pairs
  Wave wave;
  int64_t target_chunks = 0, source_chunks = 0;
  int64_t parts = 0;            // that the columns of a matrix are cut into
  int64_t units = 0;            // of kTileChannels channels of a sequence that share a matrix
  int64_t first = 0, rows = 0;  // of the band, among the chunks of targets of all matrices

  /// Row i of the band.
  __device__ WeightRow row(int64_t i) const {
    const int64_t matrix = (first + i) / target_chunks;
    return {matrix / wave.heads, wave.first_head + matrix % wave.heads, (first + i) % target_chunks};
  }
  /// Tiles of the rows before `row`, of all matrices.
  __host__ __device__ int64_t tiles_before(int64_t row) const {
    const int64_t chunk = row % target_chunks;
    return row / target_chunks * tiles_of_rows(target_chunks) + tiles_of_rows(chunk);
  }
  /// Of the band's rows before row i.
  __host__ __device__ int64_t tiles_in_band(int64_t i) const { return tiles_before(first + i) - tiles_before(first); }
  __device__ T* tile(int64_t row, int64_t source_chunk, int64_t part) const {
    return tiles + ((tiles_in_band(row) + source_chunk) * parts + part) * kTile * kTile;
  }
  /// The row that has tile i of the band.
  __device__ int64_t row_of_tile(int64_t i) const {
    int64_t row = 0, end = rows;
    while (row + 1 < end) {
      const int64_t middle = (row + end) / 2;
      (tiles_in_band(middle) <= i ? row : end) = middle;
    }
    return row;
  }
  /// Element (t, s) of a row's tiles, over all parts.
  __device__ T sum(int64_t row, int64_t t, int64_t s) const {
    const T* at = tile(row, s / kTile, 0) + t * kTile + s % kTile;
    T sum = *at;
    for (int64_t part = 1; part < parts; ++part) sum += at[part * kTile * kTile];
    return sum;
  }

 private:
  /// Of the first rows of a matrix.
  __host__ __device__ int64_t tiles_of_rows(int64_t count) const {
    if (!targets.call.in.shape.causal) return count * source_chunks;
    const int64_t growing = count < source_chunks ? count : source_chunks;
    return growing * (growing + 1) / 2 + (count - growing) * source_chunks;
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
__device__ bool find_unit(const WeightBand<E>& band, const WeightRow& row, int64_t source_chunk, int64_t i,
                          Unit& unit) {
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

/// A unit that a block takes, and where it is among all.
struct Turn {
  Unit unit;
  int64_t index;
  int steps;  // 0: there is no unit left
};

/// What a block does: a tile, for units [first, last) of its matrix; of these [begin, end) at once.
template <typename T>
struct TileTask {
  WeightRow row;
  int64_t source_chunk, first, last, begin, end;
  T* tile;
};

/// A block's shared memory.
template <typename T>
struct TileRoom {
  Totals<T> total;
  typename Product<T>::Shared operands;
  T largest[kThreads / 32];
  Turn turns[2];  // that whose steps are multiplied, and the next
  TileTask<T> task;
};

/// Writes the products of a task's units [begin, end), whose targets share W, to its tile; adds them after the first.
/// True if some are left to be done pair by pair.
template <typename E, bool kFactors, typename T = Accumulate<E>>
__device__ bool add_products(const WeightBand<E>& band, TileRoom<T>& room) {
  using P = Product<T>;
  constexpr int kStep = P::kStep, kChannels = kStep / 2;
  const Call<E>& call = band.targets.call;
  const PairWeights<const T>& w = call.in.weights;
  const TileTask<T>& task = room.task;
  const WeightRow& row = task.row;
  const int64_t& source_chunk = task.source_chunk;
  const bool own_chunk = call.in.shape.causal && source_chunk == row.chunk;
  const int64_t t_begin = row.chunk * kTile, s_begin = source_chunk * kTile;

  // One exponent for the sums: the largest of any channel's products.
  T scale = 2 * kExponentFloor<T>;
  bool has_pairs = false;
  for (int64_t i = threadIdx.x; i < (task.end - task.begin) * kTileChannels; i += kThreads) {
    Unit unit;
    if (!find_unit(band, row, source_chunk, task.begin + i / kTileChannels, unit)) continue;
    if (i % kTileChannels >= unit.channels.count) continue;
    const ProductScale<T> own = product_scale(band, unit, unit.channels.begin + i % kTileChannels);
    const bool apart = own_chunk && is_apart(own.mark);
    if (apart || own.mark == kMarkRedone || own.mark == kMarkRedone + kMarkApart) has_pairs = true;
    if (!apart) scale = fmax(scale, fmax(own.value, own.key));
  }
  for (int step = 16; step > 0; step /= 2) scale = fmax(scale, __shfl_xor_sync(0xffffffffu, scale, step));
  if (threadIdx.x % 32 == 0) room.largest[threadIdx.x / 32] = scale;

  const auto find_turn = [&](int64_t i, Turn& turn) {
    while (i < task.end && !find_unit(band, row, source_chunk, i, turn.unit)) ++i;
    turn.index = i;
    turn.steps = i < task.end ? (turn.unit.channels.count + kChannels - 1) / kChannels : 0;
  };
  if (threadIdx.x == 0) find_turn(task.begin, room.turns[0]);
  has_pairs = __syncthreads_or(has_pairs);
  for (int i = 0; i < kThreads / 32; ++i) scale = fmax(scale, room.largest[i]);
  if (task.begin > task.first && room.turns[0].steps == 0) return has_pairs;

  // What a thread brings of a step: part k % 2 of channel k / 2, of every kRows-th row.
  constexpr int kRows = kThreads / kStep;
  const int k = threadIdx.x % kStep, first_row = threadIdx.x / kStep;
  T factor = 0;  // of the targets that are on their way
  const auto load = [&](const Turn& turn, int step, int side) {
    const Unit& unit = turn.unit;
    const Sequence& x = unit.x;
    const int channel = step * kChannels + k / 2;
    const bool exists = channel < unit.channels.count;
    factor = 0;
    if (exists) {
      const ProductScale<T> own = product_scale(band, unit, unit.channels.begin + channel);
      if (!(own_chunk && is_apart(own.mark))) {
        factor = k % 2 == 0 ? cuda::pow2(own.value - scale) : -cuda::pow2(own.key - scale);
      }
    }
    const auto bring = [&](const T* from, int64_t begin, int64_t end, T* to) {
#pragma unroll
      for (int n = 0; n < P::kOwn; ++n) {
        const int at = first_row + n * kRows;
        if (exists && at >= begin && at < end) {
          __pipeline_memcpy_async(to + n * kRows, from + n * kRows * kTile, sizeof(T));
        } else {
          to[n * kRows] = 0;
        }
      }
    };
    const int column = 2 * channel + k % 2;
    bring(band.target_entries.at(unit.tile, x.target_row + t_begin - x.first + first_row) + column, x.first - t_begin,
          x.end() - t_begin, &room.operands.a[side].at[k][first_row]);
    bring(band.source_entries.at(unit.tile, x.source_row + s_begin + first_row) + (column ^ 1), 0, x.sources - s_begin,
          &room.operands.b[side].at[k][first_row]);
    __pipeline_commit();
  };
  const auto finish_load = [&](int side) {
    __pipeline_wait_prior(0);
    T* own = &room.operands.a[side].at[k][first_row];
#pragma unroll
    for (int n = 0; n < P::kOwn; ++n) own[n * kRows] *= factor;
  };

  P product;
  product.clear();
  room.total.clear();
  if (room.turns[0].steps > 0) {
    load(room.turns[0], 0, 0);
    finish_load(0);
  }
  __syncthreads();
  int side = 0, turn = 0, step = 0;
  while (room.turns[turn].steps > 0) {
    const int steps = room.turns[turn].steps;
    if (step == 0) {
      if (threadIdx.x == 0) find_turn(room.turns[turn].index + 1, room.turns[1 - turn]);
      if (steps == 1) __syncthreads();
    }
    const bool ends = step + 1 == steps, more = !ends || room.turns[1 - turn].steps > 0;
    if (more) load(room.turns[ends ? 1 - turn : turn], ends ? 0 : step + 1, 1 - side);
    product.multiply(room.operands.a[side], room.operands.b[side]);
    if ((step + 1) * kStep % kSegment<T> == 0 || ends) {
      room.total.add(product);
      product.clear();
    }
    if (more) finish_load(1 - side);
    __syncthreads();
    side = 1 - side;
    step = ends ? 0 : step + 1;
    if (ends) turn = 1 - turn;
  }

  // Times e^w; 0 where a target does not see a source.
  const Sequence owner = call.sequence(row.b + task.begin / band.wave.tiles);  // of W, where it has its own
  if constexpr (kFactors) {
    multiply_factors(product, room.operands, w.u + row.head * w.u_head_stride + t_begin * w.width, w.rows - t_begin,
                     w.v + row.head * w.v_head_stride + s_begin * w.width, w.columns - s_begin, w.width);
  }
#pragma unroll
  for (int m = 0; m < 8; ++m) {
    const int64_t t = t_begin + row_of(m);
    const int64_t seen = exponent_sources(call, owner, t);
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
        const T weight_factor = e.p * cuda::pow2(e.n - exponent);
        // A target that sees a weight that is no number is redone.
        if (weight_factor > 0) value = scale_by(room.total.own(m, j) * weight_factor, scale);
      }
      T& sum = task.tile[row_of(m) * kTile + column_of(j)];
      sum = task.begin == task.first ? value : sum + value;
    }
  }
  return has_pairs;
}

/// A block: a tile, one part of its columns.
template <typename E, bool kFactors>
__global__ void __launch_bounds__(kThreads, kBlocks<Accumulate<E>>) weight_tiles(WeightBand<E> band) {
  using T = Accumulate<E>;
  TileRoom<T>& room = *cuda::shared_memory<TileRoom<T>>();
  const Call<E>& call = band.targets.call;
  TileTask<T>& task = room.task;
  if (threadIdx.x == 0) {
    const int64_t part = blockIdx.x % band.parts, band_row = band.row_of_tile(blockIdx.x / band.parts);
    task.row = band.row(band_row);
    task.source_chunk = blockIdx.x / band.parts - band.tiles_in_band(band_row);
    task.first = band.units * part / band.parts;
    task.last = band.units * (part + 1) / band.parts;
    task.tile = band.tile(band_row, task.source_chunk, part);
    task.end = task.first;
  }
  bool has_pairs = false, more = true;
  while (more) {
    if (threadIdx.x == 0) {
      // Those of a sequence, where its targets have a W of their own, else all.
      const int64_t sharing = call.exponents_per_row ? band.wave.tiles : band.units;
      task.begin = task.end;
      task.end = min(task.last, (task.begin / sharing + 1) * sharing);
    }
    __syncthreads();
    has_pairs |= add_products<E, kFactors>(band, room);
    more = task.end < task.last;
    __syncthreads();
  }
  if (!has_pairs) return;

  // What the product left out, pair by pair: redone targets, and channels apart.
  const WeightRow& row = task.row;
  const int64_t source_chunk = task.source_chunk, t_begin = row.chunk * kTile, s_begin = source_chunk * kTile;
  const bool own_chunk = call.in.shape.causal && source_chunk == row.chunk;
  for (int64_t i = task.first; i < task.last; ++i) {
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
        task.tile[e] +=
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
  for (int64_t begin = 0; begin < seen; begin += kSegment<T>) {
    T sum = 0;
    for (int64_t s = begin; s < min(seen, begin + kSegment<T>); ++s)
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
    for (int64_t begin = 0; begin < end; begin += kSegment<T>) {
      T sum = 0;
      for (int64_t at = begin; at < min(end, begin + kSegment<T>); ++at) {
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
  using T = Accumulate<E>;
  const Call<E>& call = targets.call;
  const FullShape& s = call.in.shape;
  const auto& w = call.in.weights;
  const auto& to = targets.p.grad_weights;
  const int64_t longest = s.packed ? std::min(s.targets, call.in.longest) : 0;
  const int64_t positions = s.packed ? longest : call.has_state ? call.cut.positions : s.targets;
  const int64_t sources = s.causal ? positions : s.packed ? longest : s.sources;
  const bool per_batch = call.own_weights;
  WeightBand<E> band = {targets, memory.targets, memory.sources, memory.tiles, wave};
  band.target_chunks = tiles_of(std::min(positions, w.rows), kTile);
  band.source_chunks = tiles_of(std::min(sources, w.columns), kTile);
  const int64_t matrices = (per_batch ? s.batch : 1) * wave.heads, all_rows = matrices * band.target_chunks;
  if (all_rows * band.source_chunks == 0) return;
  band.units = (per_batch ? 1 : s.batch) * wave.tiles;
  // Of a matrix of its own a sequence has the same parts alone and in any batch.
  band.parts = per_batch ? 1
                         : std::clamp<int64_t>(kGradientTiles / band.tiles_before(all_rows), 1,
                                               std::max<int64_t>(1, band.units));
  for (; band.first < all_rows; band.first += band.rows) {
    band.rows = 1;
    while (band.first + band.rows < all_rows && band.tiles_in_band(band.rows + 1) * band.parts <= kGradientTiles) {
      ++band.rows;
    }
    const int64_t blocks = band.tiles_in_band(band.rows) * band.parts;
    const int64_t columns = std::min(band.source_chunks * kTile, w.columns);
    if (w.u == nullptr) {
      cuda::launch_with_memory(cuda, name, blocks, kThreads, sizeof(TileRoom<T>), weight_tiles<E, false>, band);
      cuda::launch(cuda, name, band.rows * kTile * columns, fold_table<E>, band, to);
    } else {
      cuda::launch_with_memory(cuda, name, blocks, kThreads, sizeof(TileRoom<T>), weight_tiles<E, true>, band);
      if (to.u != nullptr) cuda::launch(cuda, name, band.rows * kTile * w.width, fold_u<E>, band, to);
      if (to.v != nullptr) cuda::launch(cuda, name, wave.heads * columns * w.width, fold_v<E>, band, to);
    }
  }
}

}  // namespace aft::ops::full
