#pragma once

// What the kernels of the backward with a band leave for each other, and how each is launched.

#include <cstdint>

#include "ops/window/cuda_backward.cuh"
#include "ops/window/cuda_band.cuh"

namespace aft::ops::window {

constexpr int kRowParts = 3;  // a, b and the exponent of D, each [channels]

/// Where a and b of the targets of some slots lie.
template <typename T>
struct WaveRows {
  T* data = nullptr;
  int64_t first_slot = 0, channels = 0;

  /// Target t of the sequence whose first slot is given.
  __device__ T* at(int64_t sequence_slot, int64_t t, int64_t c) const {
    return data + ((sequence_slot - first_slot) * kChunk + t) * kRowParts * channels + c;
  }
};

/// A call with all that its launches share.
template <typename E>
struct BandBackward {
  const WindowBackward<E>& p;
  const Slots& slots;
  const BandBackwardMemory<E>& memory;
  const Cuda& cuda;
  bool packs;  // kLanes channels can be moved at once

  /// Whether all positions have the same weights.
  bool shares_row() const { return p.in.band.row_stride == 0; }
};

/// a and b in the scale of a product are at most this: what is lost of them is below 2^-126 of it.
template <typename T>
constexpr T kMostScaled = sizeof(T) == 4 ? T(0x1p60) : T(0x1p900);

/// The exponent of D of a target that saw nothing, and asks nothing: above any other.
template <typename T>
constexpr T kNoTarget = T(1 << 22);

/// What the targets of the slots from first_slot on leave, beside their rows.
struct TargetsWanted {
  int64_t first_slot;
  bool ends;   // the sums of a and b over the targets of each slot, and the gradients of the queries
  bool pairs;  // the gradient of the band from each row
};

/// The forward again of the slots [first, first + count): a, b and the exponent of D of every target to `rows`, if it
/// has data, and what is wanted.
template <typename E>
void run_band_targets(const BandBackward<E>& call, int64_t first, int64_t count, const TargetsWanted& wanted,
                      const WaveRows<Accumulate<E>>& rows);

/// dk and dv of the sources [begin - left, end - left) of the slots [first, first + count), and after the last slot of
/// a sequence those up to its end.
template <typename E>
void run_band_sources(const BandBackward<E>& call, int64_t first, int64_t count, const WaveRows<Accumulate<E>>& rows);

/// dk of keys that heads share, from their parts.
template <typename E>
void run_band_keys(const BandBackward<E>& call);

/// Adds to the gradient of the band what comes from the targets of the slots [first, first + count); finish_band_pairs
/// after the last.
template <typename E>
void run_band_pairs(const BandBackward<E>& call, int64_t first, int64_t count);
template <typename E>
void finish_band_pairs(const BandBackward<E>& call);

}  // namespace aft::ops::window
