#pragma once

// What the sums start from: W, the largest exponent of every target's weights, and the sources as entries. A chunk of
// entries lies in memory under its own largest exponents.

#include "ops/full/cuda_product.cuh"

namespace aft::ops::full {

/// A position as it takes part in the sums of the other axis: two numbers x 2^n.
template <typename T>
struct Entry {
  T x0, x1, n0, n1;
};

template <typename T>
__device__ Entry<T> source_entry(T key, T value) {
  const cuda::SplitExp<T> e = cuda::split_exp(key);
  if (cuda::is_absent(key)) value = 0;
  const T exponent = modest_exponent(value);
  return {e.p, e.p * (value * cuda::pow2(-exponent)), e.n, e.n + exponent};
}

constexpr int kPackRows = kThreads / kTileChannels;  // that a block packs at once

template <typename T, int kParts>
struct PackRoom {
  T most[kPackRows][kParts][kTileChannels];
};

/// The largest of what kPackRows threads of a channel hold, part by part.
template <typename T, int kParts>
__device__ void largest_of_channel(PackRoom<T, kParts>& room, T (&most)[kParts]) {
  const int lane = threadIdx.x % kTileChannels, row = threadIdx.x / kTileChannels;
  for (int part = 0; part < kParts; ++part) room.most[row][part][lane] = most[part];
  __syncthreads();
  for (int part = 0; part < kParts; ++part) {
    for (int i = 0; i < kPackRows; ++i) most[part] = fmax(most[part], room.most[i][part][lane]);
  }
}

template <typename T>
__device__ void include(T& most, T n) {
  most = fmax(most, n == n ? n : T(0));  // NaN and +inf are something to see
}

// One instruction: of a plain store through a pointer that moves the compiler makes two, which write half a sector
// each.
inline __device__ void store_pair(float* to, float x, float y) {
  __stwb(reinterpret_cast<float2*>(to), make_float2(x, y));
}
inline __device__ void store_pair(double* to, double x, double y) {
  __stwb(reinterpret_cast<double2*>(to), make_double2(x, y));
}

template <typename T>
__device__ void store_entry(const Entry<T>& e, T most0, T most1, T* to) {
  store_pair(to, e.x0 * cuda::pow2(e.n0 - most0), e.x1 * cuda::pow2(e.n1 - most1));
}

template <typename T>
__device__ void store_scale(T most0, T most1, T mark, T* to, int64_t channels) {
  to[0] = most0;
  to[channels] = most1;
  to[2 * channels] = mark;
}

/// A block: one slot of sources, one tile of channels of the wave. Channels past the tile's last are filled with 0.
template <typename E>
__global__ void __launch_bounds__(kThreads, 2) pack_sources(Call<E> call, Wave wave, Entries<Accumulate<E>> to) {
  using T = Accumulate<E>;
  constexpr int kAtOnce = sizeof(T) == 4 ? 16 : 8;  // rows that a thread brings
  __shared__ PackRoom<T, 2> room;
  const int64_t d = call.in.shape.channels, tile = blockIdx.x % wave.count();
  Slot slot;
  if (!call.find_slot(Axis::kSources, blockIdx.x / wave.count(), slot)) return;
  const ChannelTile channels = call.channel_tile(wave, tile);
  const int lane = threadIdx.x % kTileChannels;
  const bool has_channel = lane < channels.count;
  const int64_t c = channels.begin + lane, begin = slot.begin + threadIdx.x / kTileChannels;
  const int rows = static_cast<int>((slot.end - begin + kPackRows - 1) / kPackRows);
  // Nearly always they are rows of the tensors, and all of them count.
  const bool are_rows = slot.begin >= slot.x.first && call.in.key_mask.data == nullptr;
  const int64_t k_step = kPackRows * call.in.k.time_stride, v_step = kPackRows * call.in.v.time_stride;
  const int64_t key_channel = call.key_channel(c);
  const auto each = [&](const auto& use) {
    const E* k = call.target(call.in.k, slot.x, begin) + key_channel;
    const E* v = call.target(call.in.v, slot.x, begin) + c;
#pragma unroll 1
    for (int first = 0; first < rows; first += kAtOnce, k += kAtOnce * k_step, v += kAtOnce * v_step) {
      T keys[kAtOnce], values[kAtOnce];
      if (are_rows) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const bool exists = has_channel && first + i < rows;
          keys[i] = exists ? T(cuda::widen(k[i * k_step])) : -INFINITY;
          values[i] = exists ? T(cuda::widen(v[i * v_step])) : T(0);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const bool exists = has_channel && first + i < rows;
          keys[i] = exists ? call.key_at(slot.x, begin + (first + i) * kPackRows, key_channel) : -INFINITY;
          values[i] = exists ? call.value(slot.x, begin + (first + i) * kPackRows, c) : T(0);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < rows) use(first + i, source_entry(keys[i], values[i]));
      }
    }
  };
  T most[2] = {kExponentFloor<T>, kExponentFloor<T>};
  each([&](int /*row*/, const Entry<T>& e) {
    include(most[0], e.n0);
    include(most[1], e.n1);
  });
  largest_of_channel(room, most);
  T* row = to.at(tile, slot.x.source_row + begin) + 2 * lane;
  each([&](int i, const Entry<T>& e) { store_entry(e, most[0], most[1], row + i * kPackRows * kTile); });
  if (!has_channel || threadIdx.x >= kTileChannels) return;
  store_scale(most[0], most[1], T(0), to.scales + slot.index * kScaleParts * d + c, d);
}

/// W of a target that sees NaN, +inf or a weight that saturates: under it all weights are 0, so that it is redone.
template <typename T>
constexpr T kBarred = T(3e38);

/// A weight as W is taken over it.
template <typename T>
__device__ T visible_weight(T w) {
  return w <= kKeyLimit<T> ? w : T(INFINITY);
}

/// W from the largest weight; the floor where there is nothing to see.
template <typename T>
__device__ T weight_exponent(T largest) {
  if (largest > kKeyLimit<T>) return kBarred<T>;
  return cuda::is_absent(largest) ? kExponentFloor<T> : cuda::split_exp(largest).n;
}

/// Sources that W of a position is taken over. Where sequences share it, x is any of them.
template <typename E>
__device__ int64_t exponent_sources(const Call<E>& call, const Sequence& x, int64_t t) {
  const int64_t sources = call.seen(x, t);
  return t < call.in.weights.rows && sources <= call.in.weights.columns ? sources : 0;
}

/// A matrix: a warp has one row.
template <typename E>
__global__ void find_exponents(Call<E> call, Accumulate<E>* exponents) {
  using T = Accumulate<E>;
  const int64_t rows = call.exponent_rows;
  const int64_t i = cuda::thread_index() / 32, row = i % rows;
  const int lane = threadIdx.x % 32;
  if (i >= rows * call.weight_heads) return;
  Sequence x = call.sequence(0);
  int64_t t = row;
  if (call.exponents_per_row) {
    x = call.sequence(call.in.shape.packed ? call.sequence_of_row(row) : row / call.in.shape.targets);
    t = x.first + row - x.target_row;
  }
  const int64_t sources = exponent_sources(call, x, t);
  const T* weights = sources == 0 ? nullptr : call.table_row(x, i / rows, t);
  T largest = -INFINITY;
  for (int64_t s = lane; s < sources; s += 32) {
    const T w = weights[s];
    largest = fmax(largest, visible_weight(w));
  }
  for (int step = 16; step > 0; step /= 2) largest = fmax(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  if (lane == 0) exponents[i] = weight_exponent(largest);
}

/// Chunks of a head's rows that have a W.
template <typename E>
__host__ __device__ int64_t factor_chunks(const Call<E>& call) {
  return call.exponents_per_row ? call.cut.target_slots : tiles_of(call.exponent_rows, kTile);
}

/// Factors: a block has kTile rows of one head, of a sequence or of all.
template <typename E>
__global__ void __launch_bounds__(kThreads, 1) find_factor_exponents(Call<E> call, Accumulate<E>* exponents) {
  using T = Accumulate<E>;
  __shared__ typename Product<T>::Shared shared;
  __shared__ T room[2][kTile];
  const PairWeights<const T>& w = call.in.weights;
  const int64_t chunks = factor_chunks(call), head = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  Slot slot = {call.sequence(0), chunk, chunk, chunk * kTile, min((chunk + 1) * kTile, call.exponent_rows)};
  if (call.exponents_per_row && !call.find_slot(Axis::kTargets, chunk, slot)) return;
  const Sequence& x = slot.x;
  const int64_t begin = slot.begin, end = min(slot.end, w.rows);
  // Later rows see no fewer sources, if there are weights for them.
  const int64_t sources =
      min(end > begin ? (call.in.shape.causal ? end : exponent_sources(call, x, begin)) : 0, w.columns);
  T largest[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) largest[i] = -INFINITY;
  for (int64_t s = 0; s < sources; s += kTile) {
    Product<T> product;
    product.clear();
    multiply_factors(product, shared, w.u + head * w.u_head_stride + begin * w.width, end - begin,
                     w.v + head * w.v_head_stride + s * w.width, sources - s, w.width);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int64_t seen = exponent_sources(call, x, begin + row_of(i)) - s;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (column_of(j) < seen) largest[i] = fmax(largest[i], visible_weight(product.sum[i][j]));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    for (int step = 2; step < 16; step *= 2) {  // lanes of the same rows
      largest[i] = fmax(largest[i], __shfl_xor_sync(0xffffffffu, largest[i], step));
    }
    if (threadIdx.x % 16 / 2 == 0) room[threadIdx.x / 32 % 2][row_of(i)] = largest[i];
  }
  __syncthreads();
  const int i = threadIdx.x;
  if (i < kTile && begin + i < slot.end) {
    exponents[call.exponent_index(x, head, begin + i)] = weight_exponent(fmax(room[0][i], room[1][i]));
  }
}

/// W of all targets, [weight_heads][call.exponent_rows].
template <typename E>
void find_all_exponents(const Call<E>& call, Accumulate<E>* exponents, const char* name, const Cuda& cuda) {
  if (call.in.shape.targets == 0 || (call.in.shape.sources == 0 && !call.has_state)) return;
  if (call.in.weights.u == nullptr) {
    cuda::launch(cuda, name, call.exponent_rows * call.weight_heads * 32, find_exponents<E>, call, exponents);
  } else {
    cuda::launch_blocks(cuda, name, factor_chunks(call) * call.weight_heads, kThreads, find_factor_exponents<E>, call,
                        exponents);
  }
}

template <typename E>
void pack_all_sources(const Call<E>& call, const Wave& wave, const Entries<Accumulate<E>>& to, const char* name,
                      const Cuda& cuda) {
  cuda::launch_blocks(cuda, name, call.cut.source_slots * wave.count(), kThreads, pack_sources<E>, call, wave, to);
}

}  // namespace aft::ops::full
