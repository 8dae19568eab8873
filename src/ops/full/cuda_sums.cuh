#pragma once

// The sums of the forward and of the gradients of keys and values: rows of one axis times entries of the other, with
// e^w between them. A block has a chunk of rows and kTileChannels channels of one sequence; it walks the chunks of
// entries that its rows see.

#include <type_traits>

#include "ops/common/cuda/shared.cuh"
#include "ops/full/cuda_entries.cuh"

namespace aft::ops::full {

/// What stands for W where there is no target, or one that has no weights: they are 0 under it.
template <typename T>
constexpr T kNoTarget = INFINITY;

/// Where W of a chunk of targets is in shared memory: that of the block's own chunk, or of every other chunk by turns.
template <Axis kAxis>
__device__ int exponents_side(int64_t target_chunk) {
  return kAxis == Axis::kTargets ? 0 : static_cast<int>(target_chunk % 2);
}

/// e^w 2^-W for a W not below w's exponent, in few instructions; 0 for -inf, anything for what W is kBarred for. Where
/// 16 bits come of it, the machine's own power of two is right enough.
template <typename E, typename T = Accumulate<E>>
__device__ T scaled_weight(T w, T exponent) {
  using F = FloatFormat<T>;
  if constexpr (sizeof(E) == 2) {
    constexpr float kLog2ELow = 1.925963033500011079e-8f;  // log2 e less kLog2E
    return exp2f(fma(w, kLog2ELow, fma(w, kLog2E<T>, -exponent)));
  } else {
    const T clamped = fmax(w, -kKeyLimit<T>);
    const T shifted = fma(clamped, kLog2E<T>, F::kMagic), n = shifted - F::kMagic;
    const T p = cuda::exp_polynomial(fma(-n, kLn2Low<T>, fma(-n, kLn2High<T>, clamped)));
    // Integers in the low bits: the exponent of the power, and what makes it that of a number.
    const auto bits = cuda::to_bits(fmax(shifted - exponent, F::kMagic - F::kBias));
    return p * cuda::from_bits((bits << F::kMantissaBits) + cuda::to_bits(T(1)));
  }
}

/// Weights of one step on their way to shared memory, e^w 2^-W at [k][row]. Rows are of kAxis, k counts the other.
template <typename E, Axis kAxis, bool kFactors>
struct WeightStep {
  using T = Accumulate<E>;
  using P = Product<T>;
  static constexpr bool kByTarget = kAxis == Axis::kTargets;
  static constexpr int kStep = P::kStep;
  static constexpr int kRows = P::kOwn < 4 ? P::kOwn : 4, kSteps = P::kOwn / kRows;  // that a thread brings, of factors

  const Call<E>& call;
  const Sequence& x;
  const int64_t& head;
  const T (*all_exponents)[kTile];  // shared: W of a chunk of targets, kNoTarget where there is none
  FactorTile<T>* tile;              // shared, for factors

  // Of the chunks of targets and sources that meet.
  int target_chunk, source_chunk;
  int sources;    // that there are
  bool is_own;    // causal, at the same positions: a target sees no later source
  bool is_whole;  // every target of the chunk is there and sees every source of the other
  const T* from;  // of the matrix: what this thread brings of the step at offset 0, the first of it
  const T* exponents;

  /// Of what this thread brings: its i-th. By target, a warp has kAcross k of other rows for every bank.
  static constexpr int kAcross = kStep < 8 ? kStep : 8, kParts = kStep / kAcross;
  static __device__ int row(int i) {
    if (kFactors) return threadIdx.x % (kTile / kRows) * kRows + i / kSteps;
    return kByTarget ? threadIdx.x / kAcross + i / kParts * (kThreads / kAcross) : threadIdx.x % kTile;
  }
  static __device__ int k(int i) {
    if (kFactors) return threadIdx.x / (kTile / kRows) * kSteps + i % kSteps;
    return kByTarget ? threadIdx.x % kAcross + i % kParts * kAcross : threadIdx.x / kTile + i * (kThreads / kTile);
  }
  /// Within the tile, of the step whose first k is `offset`.
  static __device__ int target(int i, int offset) { return kByTarget ? row(i) : offset + k(i); }
  static __device__ int source(int i, int offset) { return kByTarget ? offset + k(i) : row(i); }
  __device__ bool is_seen(int i, int offset) const {
    const int t = target(i, offset);
    return exponents[t] < kNoTarget<T> && source(i, offset) < (is_own ? t + 1 : sources);
  }

  __device__ void start_tile(int t_chunk, int s_chunk) {
    target_chunk = t_chunk;
    source_chunk = s_chunk;
    const int64_t t_begin = target_chunk * kTile, s_begin = source_chunk * kTile;
    sources = static_cast<int>(min(kTile, x.sources - s_begin));
    is_own = call.in.shape.causal && target_chunk == source_chunk;
    exponents = all_exponents[exponents_side<kAxis>(target_chunk)];
    if constexpr (!kFactors) {
      // A target sees no fewer sources than those before it.
      is_whole = !is_own && sources == kTile && t_begin >= x.first && t_begin + kTile <= x.end() &&
                 call.has_weights(x, t_begin + kTile - 1);
      from = call.table_row(x, head, t_begin + target(0, 0)) + s_begin + source(0, 0);
    }
  }

  /// Brings weights as they are to where store() leaves them.
  __device__ void load(int offset, typename P::Operand& to) const {
    if constexpr (!kFactors) {
      const int64_t stride = call.in.weights.row_stride;
      const T* at = from + (kByTarget ? offset : offset * stride);
      // From one line of the matrix to the next; by target a thread has kParts of a line.
      const auto move = [&](int i) {
        if (!kByTarget) at += stride * (kThreads / kTile);
        if (kByTarget && i % kParts == kParts - 1) at += stride * (kThreads / kAcross);
      };
      if (is_whole) {
#pragma unroll
        for (int i = 0; i < P::kOwn; ++i) {
          __pipeline_memcpy_async(&to.at[k(i)][row(i)], kByTarget ? at + i % kParts * kAcross : at, sizeof(T));
          move(i);
        }
      } else {
#pragma unroll
        for (int i = 0; i < P::kOwn; ++i) {
          T* own = &to.at[k(i)][row(i)];
          if (is_seen(i, offset)) {
            __pipeline_memcpy_async(own, kByTarget ? at + i % kParts * kAcross : at, sizeof(T));
          } else {
            *own = -INFINITY;
          }
          move(i);
        }
      }
    }
  }

  __device__ void store(int offset, typename P::Operand& to) const {
    T own[P::kOwn], own_exponents[P::kOwn];
    if constexpr (kFactors) multiply(offset, own);
#pragma unroll
    for (int i = 0; i < P::kOwn; ++i) {
      if constexpr (!kFactors) own[i] = to.at[k(i)][row(i)];
      own_exponents[i] = exponents[target(i, offset)];
    }
#pragma unroll
    for (int i = 0; i < P::kOwn; ++i) {
      // A target that sees what is no number is redone: for sources it takes no part.
      const T weight = scaled_weight<E>(own[i], own_exponents[i]);
      to.at[k(i)][row(i)] = kByTarget || own[i] <= kKeyLimit<T> ? weight : T(0);
    }
  }

 private:
  /// Sums of products of factors, one after another, as Call::weight has them.
  __device__ void multiply(int offset, T (&own)[P::kOwn]) const {
    const PairWeights<const T>& w = call.in.weights;
    const int64_t t_begin = target_chunk * kTile, s_begin = source_chunk * kTile;
    const T* u = w.u + head * w.u_head_stride + t_begin * w.width;
    const T* v = w.v + head * w.v_head_stride + s_begin * w.width;
    const T* rows = kByTarget ? u : v;
    const T* steps = (kByTarget ? v : u) + offset * w.width;
    const int targets = static_cast<int>(min(kTile, w.rows - t_begin));
    const int sources_of_factors = static_cast<int>(min(kTile, w.columns - s_begin));
    const int row_limit = kByTarget ? targets : sources_of_factors;
    const int step_limit = (kByTarget ? sources_of_factors : targets) - offset;
#pragma unroll
    for (int i = 0; i < P::kOwn; ++i) own[i] = 0;
#pragma unroll 1
    for (int64_t f = 0; f < w.width; f += kStep) {
      __syncthreads();
#pragma unroll 1
      for (int i = threadIdx.x; i < kTile * kStep; i += kThreads) {
        const int at = i % kStep, n = i / kStep;
        tile->rows.at[at][n] = n < row_limit && f + at < w.width ? rows[n * w.width + f + at] : T(0);
      }
      if (threadIdx.x < kStep * kStep) {
        const int at = threadIdx.x % kStep, n = threadIdx.x / kStep;
        tile->steps[at][n] = n < step_limit && f + at < w.width ? steps[n * w.width + f + at] : T(0);
      }
      __syncthreads();
#pragma unroll 4
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

/// What a block walks: the chunks of the other axis that its rows see, [first_chunk, last_chunk], a step at a time.
struct Walk {
  int first_chunk, last_chunk, steps;
  int own_step;                 // of the chunk at the same positions
  int first_entry, last_entry;  // of those that there are, counted from the first chunk's beginning
  int64_t first_row;            // where the first chunk begins among the entries of all tiles
  ChannelTile channels;
};

/// A block's shared memory. What all its threads know lies here, not in the registers of each.
template <typename T, Axis kAxis, bool kFactors>
struct SumRoom {
  struct NoFactors {};

  Totals<T> total;
  typename Product<T>::Operand weights[2];
  typename Product<T>::Entries entries[2];
  T scales[kScaleParts][kTileChannels];  // of a chunk of entries
  T now[kTile], take[kTile];             // of the columns: exponents of their sums, and what a chunk is multiplied by
  T exponents[kAxis == Axis::kTargets ? 1 : 2][kTile];
  [[no_unique_address]] std::conditional_t<kFactors, FactorTile<T>, NoFactors> factors;
  Slot slot;
  Walk walk;
  const T *all_entries, *all_scales;  // of the walk, from its first chunk on
  bool has_rows, marked;              // marked: a chunk has a channel that its mark tells something of
};

/// entry_rows: of all sequences.
template <Axis kAxis, typename E>
__device__ Walk find_walk(const Call<E>& call, const Slot& slot, const Wave& wave, int64_t tile, int64_t entry_rows) {
  constexpr int kStep = Product<Accumulate<E>>::kStep;
  const Sequence& x = slot.x;
  const bool causal = call.in.shape.causal, by_target = kAxis == Axis::kTargets;
  const int64_t row_begin = slot.chunk * kTile;
  const int64_t begin = by_target ? 0 : causal ? max(x.first, row_begin) : x.first;
  const int64_t end = !by_target ? x.end() : causal ? min(x.sources, row_begin + kTile) : x.sources;
  Walk walk;
  walk.first_chunk = static_cast<int>(begin / kTile);
  walk.last_chunk = static_cast<int>(tiles_of(end, kTile)) - 1;
  const int64_t from = walk.first_chunk * kTile;
  walk.steps = begin < end ? static_cast<int>(tiles_of(end - from, kStep)) : 0;
  walk.own_step = static_cast<int>((row_begin - from) / kStep);
  walk.first_entry = by_target ? 0 : static_cast<int>(max(x.first - from, int64_t{0}));
  walk.last_entry = static_cast<int>(end - from);
  walk.first_row = tile * entry_rows + (by_target ? x.source_row : x.target_row - x.first) + from;
  walk.channels = call.channel_tile(wave, tile);
  return walk;
}

/// Of those that a thread writes, when the sums are there.
constexpr int kRowsApart = kThreads / kTileChannels;

/// Of one row and channel.
template <typename T>
struct Sums {
  T part[2], exponent[2];
  T weight_exponent;  // W of the row, if it is a target
  bool marked;        // a chunk has a channel that its mark tells something of
};

/// Pass: what is summed, and what becomes of it.
///   kAxis, kFactors; call; wave; exponents (W); entries, of the other axis
///   Rows: rows of one channel of a sequence, kRowsApart apart; it stands at one and counts from there
///     Rows(pass, x, head, position, channel)
///     void move(rows)
///     Row load(i): what row i reads of the tensors
///     bool finish(i, what was read, sums): writes it; false, and nothing is written, where that is left to
///     finish_exactly(the same)
template <typename Pass>
__global__ void __launch_bounds__(kThreads, kBlocks<Accumulate<typename Pass::Element>>) sum_rows(Pass pass) {
  using E = typename Pass::Element;
  using T = Accumulate<E>;
  using P = Product<T>;
  constexpr Axis kAxis = Pass::kAxis;
  constexpr Axis kOther = kAxis == Axis::kTargets ? Axis::kSources : Axis::kTargets;
  constexpr int kStep = P::kStep, kChunkSteps = kTile / kStep;
  using Room = SumRoom<T, kAxis, Pass::kFactors>;
  Room& room = *cuda::shared_memory<Room>();

  const Call<E>& call = pass.call;
  const Slot& slot = room.slot;
  const Sequence& x = slot.x;
  const Walk& walk = room.walk;
  const ChannelTile& channels = walk.channels;
  const bool causal = call.in.shape.causal;
  if (threadIdx.x == 0) {
    const int64_t slots = kAxis == Axis::kTargets ? call.cut.target_slots : call.cut.source_slots;
    const int64_t own_slot = blockIdx.x / pass.wave.count();
    // Causal, those with most to do come first.
    room.has_rows = call.find_slot(kAxis, kAxis == Axis::kTargets ? slots - 1 - own_slot : own_slot, room.slot);
    room.walk = find_walk<kAxis>(call, slot, pass.wave, blockIdx.x % pass.wave.count(), pass.entries.rows);
    room.all_entries = pass.entries.data + walk.first_row * kTile;
    const int64_t first_slot = call.slot_index(kOther, x, walk.first_chunk);
    room.all_scales = pass.entries.scales + first_slot * kScaleParts * call.in.shape.channels + channels.begin;
    room.marked = false;
  }
  __syncthreads();
  if (!room.has_rows) return;

  // W of a target of a chunk, one a thread.
  const auto load_weights_exponent = [&](int64_t chunk) {
    const int64_t t = chunk * kTile + threadIdx.x;
    const bool is_target = t >= x.first && t < x.end() && call.has_weights(x, t) && x.sources > 0;
    room.exponents[exponents_side<kAxis>(chunk)][threadIdx.x] =
        is_target ? pass.exponents[call.exponent_index(x, channels.head, t)] : kNoTarget<T>;
  };
  // Entries of one step: [k][column], two columns a channel.
  const auto load_entries = [&](uint32_t step, typename P::Entries& to) {
    constexpr int kUnit = 16 / sizeof(T), kOwn = kTile * kStep / kUnit / kThreads;
    const int first = static_cast<int>(step) * kStep;
    const T* from = room.all_entries + int64_t{first} * kTile + threadIdx.x * kUnit;
    T* own = &to.at[0][threadIdx.x * kUnit];
    if (first >= walk.first_entry && first + kStep <= walk.last_entry) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        __pipeline_memcpy_async(own + i * kThreads * kUnit, from + i * kThreads * kUnit, 16);
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < kOwn; ++i) {
        const int at = first + (threadIdx.x + i * kThreads) * kUnit / kTile;
        const bool exists = at >= walk.first_entry && at < walk.last_entry;
        __pipeline_memcpy_async(own + i * kThreads * kUnit, exists ? from + i * kThreads * kUnit : pass.entries.data,
                                16, exists ? 0 : 16);
      }
    }
  };
  WeightStep<E, kAxis, Pass::kFactors> weights = {call, x, channels.head, room.exponents, nullptr};
  if constexpr (Pass::kFactors) weights.tile = &room.factors;
  const auto start_tile = [&](int chunk) {
    const int own = static_cast<int>(slot.chunk);
    weights.start_tile(kAxis == Axis::kTargets ? own : chunk, kAxis == Axis::kTargets ? chunk : own);
  };
  // A chunk's scales come with its first step.
  const auto load_scales = [&](int chunk) {
    const int part = threadIdx.x / kTileChannels, lane = threadIdx.x % kTileChannels;
    if (part >= kScaleParts || lane >= channels.count) return;
    const T* from = room.all_scales + (int64_t{chunk} * kScaleParts + part) * call.in.shape.channels + lane;
    __pipeline_memcpy_async(&room.scales[part][lane], from, sizeof(T));
  };
  const auto load_step = [&](uint32_t step) {
    if (step % kChunkSteps == 0) {
      const int chunk = static_cast<int>(step / kChunkSteps);
      start_tile(walk.first_chunk + chunk);
      load_scales(chunk);
    }
    weights.load(step % kChunkSteps * kStep, room.weights[step % 2]);
    load_entries(step, room.entries[step % 2]);
    __pipeline_commit();
  };
  const auto store_step = [&](uint32_t step) { weights.store(step % kChunkSteps * kStep, room.weights[step % 2]); };
  // Causal, no row of this warp meets the k of steps from here on, or (sources) before.
  const int rows_end = walk.own_step + (first_row_of_warp() + (kAxis == Axis::kTargets ? 32 : 0)) / kStep;
  const auto is_unseen = [&](int step) {
    return causal && (kAxis == Axis::kTargets ? step >= rows_end : step < rows_end);
  };
  // The exponents of the columns at the beginning of a chunk: the totals and the chunk come under the larger ones.
  const auto start_chunk = [&](int step) {
    const int chunk = walk.first_chunk + step / kChunkSteps, column = threadIdx.x;
    T* keep = room.entries[(step + 1) % 2].at[0];  // free until the next step is brought
    bool moves = false;
    if (column < kTile) {
      T exponent = kExponentFloor<T>, mark = 0;
      if (column < 2 * channels.count) {
        exponent = room.scales[column % 2][column / 2];
        mark = room.scales[2][column / 2];
      }
      if (mark != 0) room.marked = true;
      const T old = room.now[column], most = fmax(old, exponent);
      room.now[column] = most;
      keep[column] = cuda::pow2(old - most);
      room.take[column] = causal && chunk == slot.chunk && is_apart(mark) ? T(0) : cuda::pow2(exponent - most);
      moves = most > old;
      if (kAxis == Axis::kSources && chunk < walk.last_chunk) load_weights_exponent(chunk + 1);
    }
    if (!__syncthreads_or(moves)) return;
    room.total.multiply(keep);
    __syncthreads();
  };

  const int steps = walk.steps;
  if (threadIdx.x < kTile) {
    room.now[threadIdx.x] = kExponentFloor<T>;
    load_weights_exponent(kAxis == Axis::kTargets ? slot.chunk : walk.first_chunk);
  }
  __syncthreads();
  P product;
  product.clear();
#pragma unroll 1
  for (int step = -1; step < steps; ++step) {  // at first the first is brought
    if (step >= 0 && step % kChunkSteps == 0) start_chunk(step);
    const bool more = step + 1 < steps;
    if (more) load_step(step + 1);
    if (step < 0) {
      room.total.clear();
    } else {
      if (!is_unseen(step)) product.multiply(room.weights[step % 2], room.entries[step % 2]);
      if ((step + 1) * kStep % kSegment<E> == 0 || !more) {
        room.total.add(product, room.take);
        product.clear();
      }
    }
    __pipeline_wait_prior(0);
    if (more) store_step(step + 1);
    __syncthreads();
  }

  // Neighbouring threads have neighbouring channels. What a thread reads for a few rows comes before what it writes.
  constexpr int kRows = kTile / kRowsApart, kAtOnce = kAxis == Axis::kTargets ? 8 : 4;
  const int lane = threadIdx.x % kTileChannels, first_row = threadIdx.x / kTileChannels % kRowsApart;
  const int64_t row_begin = slot.chunk * kTile;
  const auto rows_before = [&](int64_t position) {  // of this thread
    return (static_cast<int>(position - row_begin) - first_row + kRowsApart - 1) / kRowsApart;
  };
  const int begin = rows_before(slot.begin), end = lane < channels.count ? rows_before(slot.end) : 0;
  const T exponents[2] = {room.now[2 * lane], room.now[2 * lane + 1]};
  const bool marked = room.marked;
  const auto sums = [&](int i) {
    const int row = first_row + i * kRowsApart;
    const T* part = room.total.at(row, 2 * lane);
    return Sums<T>{{part[0], part[1]}, {exponents[0], exponents[1]}, room.exponents[0][row], marked};
  };
  const auto rows_from = [&](int i) {
    return typename Pass::Rows(pass, x, channels.head, row_begin + first_row + i * kRowsApart, channels.begin + lane);
  };
  uint32_t left = 0;  // to finish_exactly
  static_assert(kRows <= 32);
  typename Pass::Rows rows = rows_from(0);
#pragma unroll 1
  for (int turn = 0; turn < kRows / kAtOnce; ++turn, rows.move(kAtOnce)) {
    const auto exists = [&](int i) { return turn * kAtOnce + i >= begin && turn * kAtOnce + i < end; };
    typename Pass::Row read[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (exists(i)) read[i] = rows.load(i);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (exists(i) && !rows.finish(i, read[i], sums(turn * kAtOnce + i))) left |= 1u << (turn * kAtOnce + i);
    }
  }
  int redone = __popc(left);
  for (; left != 0; left &= left - 1) {
    const int i = __ffs(static_cast<int>(left)) - 1;
    const typename Pass::Rows row = rows_from(i);
    row.finish_exactly(0, row.load(0), sums(i));
  }
  if (pass.redone != nullptr) {
    for (int step = 16; step > 0; step /= 2) redone += __shfl_xor_sync(0xffffffffu, redone, step);
    if (threadIdx.x % 32 == 0) cuda::count(pass.redone, redone);
    if (threadIdx.x == 0) cuda::count(pass.redone + 1, (slot.end - slot.begin) * channels.count);
  }
}

template <typename Pass>
void launch_sum_rows(const Pass& pass, const char* name, const Cuda& cuda) {
  const Cut& cut = pass.call.cut;
  const int64_t slots = Pass::kAxis == Axis::kTargets ? cut.target_slots : cut.source_slots;
  using Room = SumRoom<Accumulate<typename Pass::Element>, Pass::kAxis, Pass::kFactors>;
  cuda::launch_with_memory(cuda, name, slots * pass.wave.count(), kThreads, sizeof(Room), sum_rows<Pass>, pass);
}

}  // namespace aft::ops::full
