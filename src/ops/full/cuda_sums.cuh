#pragma once

// The sums of the forward and of the gradients of keys and values: rows of one axis times entries of the other, with
// e^w between them. A block has a chunk of rows and kTileChannels channels of one sequence; it walks the chunks of
// entries that its rows see.

#include "ops/full/cuda_entries.cuh"

namespace aft::ops::full {

/// Where W of a chunk of targets is in shared memory: that of the block's own chunk, or of every other chunk by turns.
template <Axis kAxis>
__device__ int exponents_side(int64_t target_chunk) {
  return kAxis == Axis::kTargets ? 0 : static_cast<int>(target_chunk % 2);
}

/// Weights of one step on their way to shared memory, e^w 2^-W at [k][row]. Rows are of kAxis, k counts the other.
template <typename E, Axis kAxis, bool kFactors>
struct WeightStep {
  using T = Accumulate<E>;
  using P = Product<T>;
  static constexpr bool kByTarget = kAxis == Axis::kTargets;
  static constexpr int kStep = P::kStep;
  static constexpr int kSteps = P::kOwn / 4;  // of k that a thread brings for 4 rows, from factors

  const Call<E>& call;
  const Sequence& x;
  int64_t head;
  const T (*all_exponents)[kTile];  // shared: W of a chunk of targets, NaN where there is no target
  FactorTile<T>* tile;              // shared, for factors

  // Of the chunks of targets and sources that meet.
  int64_t t_begin, s_begin;
  int sources;     // that there are
  bool is_own;     // causal, at the same positions: a target sees no later source
  const T* table;  // element (0, 0) of the tile
  const T* exponents;
  T own[P::kOwn];

  /// Of what this thread brings: its i-th.
  static __device__ int row(int i) {
    if (kFactors) return threadIdx.x % 32 * 4 + i / kSteps;
    return kByTarget ? threadIdx.x / kStep + i * (kThreads / kStep) : threadIdx.x % kTile;
  }
  static __device__ int k(int i) {
    if (kFactors) return threadIdx.x / 32 * kSteps + i % kSteps;
    return kByTarget ? threadIdx.x % kStep : threadIdx.x / kTile + i * (kThreads / kTile);
  }
  /// Within the tile, of the step whose first k is `offset`.
  static __device__ int target(int i, int offset) { return kByTarget ? row(i) : offset + k(i); }
  static __device__ int source(int i, int offset) { return kByTarget ? offset + k(i) : row(i); }
  __device__ bool is_seen(int i, int offset) const {
    const int t = target(i, offset);
    return exponents[t] == exponents[t] && source(i, offset) < (is_own ? t + 1 : sources);
  }

  __device__ void start_tile(int64_t target_chunk, int64_t source_chunk) {
    t_begin = target_chunk * kTile;
    s_begin = source_chunk * kTile;
    sources = static_cast<int>(min(kTile, x.sources - s_begin));
    is_own = call.in.shape.causal && target_chunk == source_chunk;
    exponents = all_exponents[exponents_side<kAxis>(target_chunk)];
    if constexpr (!kFactors) table = call.table_row(x, head, t_begin) + s_begin;
  }

  __device__ void load(int offset) {
    if constexpr (!kFactors) {
      const int64_t stride = call.in.weights.row_stride;
#pragma unroll
      for (int i = 0; i < P::kOwn; ++i) {
        own[i] = is_seen(i, offset) ? table[target(i, offset) * stride + source(i, offset)] : -INFINITY;
      }
    }
  }

  __device__ void store(int offset, typename P::Operand& to) {
    if constexpr (kFactors) multiply(offset);
#pragma unroll
    for (int i = 0; i < P::kOwn; ++i) {
      const cuda::SplitExp<T> e = cuda::split_exp(own[i]);
      T weight = e.p * cuda::pow2(e.n - exponents[target(i, offset)]);
      // A target that sees such a weight is redone: it takes no part.
      if (!kByTarget && !(weight == weight)) weight = 0;
      to.at[k(i)][row(i)] = weight;
    }
  }

 private:
  /// Sums of products of factors, one after another, as Call::weight has them.
  __device__ void multiply(int offset) {
    const PairWeights<const T>& w = call.in.weights;
    const T* u = w.u + head * w.u_head_stride + t_begin * w.width;
    const T* v = w.v + head * w.v_head_stride + s_begin * w.width;
    const T* rows = kByTarget ? u : v;
    const T* steps = (kByTarget ? v : u) + offset * w.width;
    const int64_t targets_left = w.rows - t_begin, sources_left = w.columns - s_begin;
    const int64_t row_limit = kByTarget ? targets_left : sources_left;
    const int64_t step_limit = (kByTarget ? sources_left : targets_left) - offset;
#pragma unroll
    for (int i = 0; i < P::kOwn; ++i) own[i] = 0;
    for (int64_t f = 0; f < w.width; f += kStep) {
      __syncthreads();
      for (int i = threadIdx.x; i < kTile * kStep; i += kThreads) {
        const int at = i % kStep, n = i / kStep;
        tile->rows.at[at][n] = n < row_limit && f + at < w.width ? rows[n * w.width + f + at] : T(0);
      }
      if (threadIdx.x < kStep * kStep) {
        const int at = threadIdx.x % kStep, n = threadIdx.x / kStep;
        tile->steps[at][n] = n < step_limit && f + at < w.width ? steps[n * w.width + f + at] : T(0);
      }
      __syncthreads();
#pragma unroll
      for (int at = 0; at < kStep; ++at) {
#pragma unroll
        for (int i = 0; i < P::kOwn; ++i) own[i] = fma(tile->rows.at[at][row(i)], tile->steps[at][k(i)], own[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < P::kOwn; ++i) {
      if (!is_seen(i, offset)) own[i] = -INFINITY;
    }
  }
};

/// Pass: what is summed, and what becomes of it.
///   kAxis, kFactors; call; exponents (W); entries, of the other axis
///   finish(slot, channels, row, c, sums of the two parts, their exponents, marked): one row of one channel
template <typename Pass>
__global__ void __launch_bounds__(kThreads, 1) sum_rows(Pass pass) {
  using E = typename Pass::Element;
  using T = Accumulate<E>;
  using P = Product<T>;
  constexpr Axis kAxis = Pass::kAxis;
  constexpr Axis kOther = kAxis == Axis::kTargets ? Axis::kSources : Axis::kTargets;
  constexpr int kStep = P::kStep;
  constexpr int kStageRows = 32 * 1024 / (kTile * sizeof(T));
  union Room {
    typename P::Shared operands;
    T stage[kStageRows][kTile];
  };
  static_assert(sizeof(typename P::Shared) >= sizeof(T) * kStageRows * kTile);
  __shared__ Room room;
  __shared__ FactorTile<T> factors[1];
  __shared__ T now[kTile], keep[kTile],
      take[kTile];  // of the columns: exponents of their sums, what sums and a chunk are
  __shared__ T exponents[kAxis == Axis::kTargets ? 1 : 2][kTile];
  __shared__ int marked;  // whether a chunk has a channel that its mark tells something of

  const Call<E>& call = pass.call;
  Slot slot;
  const int64_t slots = kAxis == Axis::kTargets ? call.cut.target_slots : call.cut.source_slots;
  const int64_t own_slot = blockIdx.x / call.channel_tiles;
  // Causal, those with most to do come first.
  if (!call.find_slot(kAxis, kAxis == Axis::kTargets ? slots - 1 - own_slot : own_slot, slot)) return;
  const ChannelTile channels = call.channel_tile(blockIdx.x % call.channel_tiles);
  const Sequence& x = slot.x;
  const int64_t d = call.in.shape.channels;
  const bool causal = call.in.shape.causal;
  const int64_t row_begin = slot.chunk * kTile;

  // W of a target of the chunk that begins there, one a thread.
  const auto exponent_at = [&](int64_t begin) {
    const int64_t t = begin + threadIdx.x;
    const bool is_target = t >= x.first && t < x.end() && call.has_weights(x, t) && x.sources > 0;
    return is_target ? pass.exponents[call.exponent_index(x, channels.head, t)] : T(NAN);
  };
  // Entries of one step: [k][column], two columns a channel.
  const auto load_entries = [&](int64_t begin, int64_t end, typename P::Operand& to) {
    const int64_t before = kOther == Axis::kSources ? x.source_row : x.target_row - x.first;
    constexpr int kPairs = kTile / 2;
#pragma unroll
    for (int i = 0; i < kStep * kPairs / kThreads; ++i) {
      const int k = threadIdx.x / kPairs + i * (kThreads / kPairs), c = threadIdx.x % kPairs;
      const bool exists =
          begin + k < end && begin + k >= (kOther == Axis::kTargets ? x.first : 0) && c < channels.count;
      const T* from = pass.entries.data;
      if (exists) from += ((before + begin + k) * d + channels.begin + c) * 2;
      __pipeline_memcpy_async(&to.at[k][2 * c], from, 2 * sizeof(T), exists ? 0 : 2 * sizeof(T));
    }
    __pipeline_commit();
  };

  if (threadIdx.x < kTile) now[threadIdx.x] = kExponentFloor<T>;
  if (threadIdx.x == 0) marked = 0;

  P product;
  T total[8][8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) total[i][j] = 0;
  }
  WeightStep<E, kAxis, Pass::kFactors> weights = {call, x, channels.head, exponents, factors};

  // [begin, end) of positions of the other axis; its chunks, all of as many steps but the last.
  const int64_t other_begin = kOther == Axis::kSources ? 0 : causal ? max(x.first, row_begin) : x.first;
  const int64_t other_end = kOther == Axis::kTargets ? x.end() : causal ? min(x.sources, row_begin + kTile) : x.sources;
  constexpr int kChunkSteps = kTile / kStep;
  const int64_t first_chunk = other_begin / kTile, last_chunk = tiles_of(other_end, kTile) - 1;
  const int64_t steps = other_begin < other_end ? tiles_of(other_end - first_chunk * kTile, kStep) : 0;

  // What a thread brings for the next chunks, ahead of their use: the exponent and mark of a column, W of a target.
  const int column = threadIdx.x;
  T next_exponent = kExponentFloor<T>, next_mark = 0, next_weights = NAN;
  const auto load_scale = [&](int64_t chunk) {
    if (column >= 2 * channels.count || chunk > last_chunk) return;
    const T* scale =
        pass.entries.scales + call.slot_index(kOther, x, chunk) * kScaleParts * d + channels.begin + column / 2;
    next_exponent = scale[column % 2 * d];
    next_mark = scale[2 * d];
  };
  const auto load_weights_exponent = [&](int64_t chunk) {
    if (kAxis == Axis::kSources && column < kTile && chunk <= last_chunk) next_weights = exponent_at(chunk * kTile);
  };
  const auto start_tile = [&](int64_t chunk) {
    weights.start_tile(kAxis == Axis::kTargets ? slot.chunk : chunk, kAxis == Axis::kTargets ? chunk : slot.chunk);
  };
  const auto load_step = [&](int64_t step) {
    const int64_t begin = first_chunk * kTile + step * kStep;
    load_entries(begin, other_end, room.operands.b[step % 2]);
    weights.load(static_cast<int>(begin % kTile));
  };
  const auto store_step = [&](int64_t step) {
    weights.store(static_cast<int>(step % kChunkSteps) * kStep, room.operands.a[step % 2]);
  };

  if (column < kTile) {
    const int64_t begin = kAxis == Axis::kTargets ? row_begin : first_chunk * kTile;
    exponents[exponents_side<kAxis>(begin / kTile)][column] = exponent_at(begin);
  }
  __syncthreads();
  if (steps > 0) {
    load_scale(first_chunk);
    load_weights_exponent(first_chunk + 1);
    start_tile(first_chunk);
    load_step(0);
    store_step(0);
    __pipeline_wait_prior(0);
  }
  product.clear();
  for (int64_t step = 0; step < steps; ++step) {
    if (step % kChunkSteps == 0) {
      const int64_t chunk = first_chunk + step / kChunkSteps;
      bool moves = false;
      if (column < kTile) {
        if (next_mark != 0) marked = 1;
        const T old = now[column], most = fmax(old, next_exponent);
        now[column] = most;
        keep[column] = cuda::pow2(old - most);
        const bool left_out = causal && chunk == slot.chunk && is_apart(next_mark);
        take[column] = left_out ? T(0) : cuda::pow2(next_exponent - most);
        moves = most > old;
        if constexpr (kAxis == Axis::kSources) exponents[exponents_side<kAxis>(chunk + 1)][column] = next_weights;
      }
      if (__syncthreads_or(moves)) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const T scale = keep[column_of(j)];
#pragma unroll
          for (int i = 0; i < 8; ++i) total[i][j] *= scale;
        }
      }
      load_scale(chunk + 1);
      load_weights_exponent(chunk + 2);
    }
    const bool more = step + 1 < steps;
    if (more) {
      if ((step + 1) % kChunkSteps == 0) start_tile(first_chunk + (step + 1) / kChunkSteps);
      load_step(step + 1);
    }
    product.multiply(room.operands.a[step % 2], room.operands.b[step % 2]);
    if ((step + 1) * kStep % kSegment == 0 || !more) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const T scale = take[column_of(j)];
#pragma unroll
        for (int i = 0; i < 8; ++i) total[i][j] = fma(product.sum[i][j], scale, total[i][j]);
      }
      product.clear();
    }
    if (more) store_step(step + 1);
    __pipeline_wait_prior(0);
    __syncthreads();
  }

  // By way of shared memory: neighbouring threads then have neighbouring channels.
  int64_t redone = 0;
#pragma unroll 1
  for (int first = 0; first < kTile; first += kStageRows) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (row_of(i) / kStageRows != first / kStageRows) continue;
#pragma unroll
      for (int j = 0; j < 8; ++j) room.stage[row_of(i) - first][column_of(j)] = total[i][j];
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < kStageRows * kTileChannels; i += kThreads) {
      const int row = i / static_cast<int>(kTileChannels), c = i % static_cast<int>(kTileChannels);
      const int64_t position = row_begin + first + row;
      if (c >= channels.count || position < slot.begin || position >= slot.end) continue;
      const T* sums = &room.stage[row][2 * c];
      redone += pass.finish(x, channels.head, position, channels.begin + c, sums[0], sums[1], now[2 * c],
                            now[2 * c + 1], exponents[0][first + row], marked != 0);
    }
  }
  if (pass.redone != nullptr) {
    for (int step = 16; step > 0; step /= 2) redone += __shfl_xor_sync(0xffffffffu, redone, step);
    if (threadIdx.x % 32 == 0) cuda::count(pass.redone, redone);
    if (threadIdx.x == 0) cuda::count(pass.redone + 1, (slot.end - slot.begin) * channels.count);
  }
}

}  // namespace aft::ops::full
