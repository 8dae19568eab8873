#pragma once

#include <algorithm>
#include <cstdint>

#include "aft/ops/full.h"
#include "ops/common/cuda/workspace.h"

// How the dense operator is cut on a CUDA device, and the workspaces of its passes: all of it follows from the shape.

namespace aft::ops::full {

constexpr int64_t kTile = 128;           // positions of a chunk: rows of the tile that a block computes
constexpr int64_t kTileChannels = 64;    // channels of a block, each with two sums: as many columns as rows
constexpr int64_t kScaleParts = 3;       // of a chunk's entries and channel: the exponents of the two parts, and a mark
constexpr int64_t kGradientTiles = 528;  // of the weights' gradient formed at once: four for every multiprocessor
constexpr int64_t kWaveTiles = 2048;     // of entries, kTile positions by kTileChannels each, held at once

constexpr int64_t tiles_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

/// Rows of entries, and slots: a slot is one chunk of one sequence, chunks beginning at multiples of kTile of the
/// position. Packed, which it is follows from cu_seqlens on the device, and there are a few more slots than chunks.
struct Cut {
  int64_t target_rows, source_rows;    // of all sequences
  int64_t target_slots, source_slots;  // of all sequences
  int64_t targets, sources;            // slots of a sequence that is not packed
  int64_t source_stride;               // rows of its sources, those of a state's ring included
  int64_t positions;                   // that its targets may stand at

  explicit Cut(const FullShape& s)
      : targets(tiles_of(s.targets, kTile) + (s.capacity > 0 ? 1 : 0)),
        source_stride(std::max(s.sources, s.capacity)),
        positions(std::max(s.targets, s.capacity)) {
    sources = tiles_of(source_stride, kTile);
    target_rows = s.packed ? s.targets : s.batch * s.targets;
    source_rows = s.packed ? s.targets : s.batch * source_stride;
    target_slots = s.batch == 0 ? 0 : s.packed ? s.targets / kTile + s.batch : s.batch * targets;
    source_slots = s.packed ? target_slots : s.batch * sources;
  }
};

static_assert(kTile == 2 * kTileChannels);  // a row of a tile of entries is as long as one of weights

/// What positions give the sums of the other axis: see README.md.
template <typename T>
struct Entries {
  T* data;       // [tiles of a wave][rows][kTileChannels][2]
  T* scales;     // [slots][kScaleParts][d]
  int64_t rows;  // of all sequences

  /// Where row `row` of a wave's tile lies.
  __host__ __device__ T* at(int64_t tile, int64_t row) const { return data + (tile * rows + row) * kTile; }
};

/// Tiles of channels that a wave has: entries are held for one wave at a time. At least one, and no more than there
/// are, whether each head has a matrix of weights or all share one.
inline int64_t wave_tiles(const FullShape& s) {
  const Cut cut(s);
  const int64_t slots = std::max<int64_t>(1, std::max(cut.target_slots, cut.source_slots));
  const int64_t most = s.heads * tiles_of(s.channels / s.heads, kTileChannels);
  return std::max<int64_t>(1, std::min(kWaveTiles / slots, most));
}

/// Tiles of the weights' gradient that a call takes at once: at least a row of them, and no more than there can be,
/// whether each sequence and head has a matrix or all share one, which is then cut into parts.
inline int64_t gradient_tiles(const FullShape& s) {
  const Cut cut(s);
  const int64_t row = tiles_of(cut.source_stride, kTile), parts = tiles_of(s.channels / s.heads, kTileChannels);
  return std::max(row, std::min(kGradientTiles, s.batch * s.heads * parts * tiles_of(cut.positions, kTile) * row));
}

template <typename E>
class Memory {
 public:
  using T = Accumulate<E>;

  T* exponents;  // [heads][rows]: W, the largest exponent of a target's weights
  Entries<T> sources = {};

  Memory(const FullShape& s, Pass pass, cuda::Workspace& workspace) {
    const Cut cut(s);
    exponents = workspace.take<T>(s.heads * std::max(cut.target_rows, cut.positions));
    sources = take_entries(cut.source_rows, cut.source_slots, s, workspace);
    if (pass != Pass::kBackward) return;
    targets = take_entries(cut.target_rows, cut.target_slots, s, workspace);
    if (s.key_channels != s.channels) key_grads = workspace.take<T>(cut.source_rows * s.channels);
    tiles = workspace.take<T>(gradient_tiles(s) * kTile * kTile);
  }

  // Of the backward.
  Entries<T> targets = {};
  T* key_grads = nullptr;  // [source rows][d]: dk of each channel, where a head shares its key
  T* tiles = nullptr;      // [gradient_tiles()][kTile][kTile]

 private:
  static Entries<T> take_entries(int64_t rows, int64_t slots, const FullShape& s, cuda::Workspace& workspace) {
    return {workspace.take<T>(wave_tiles(s) * rows * kTile), workspace.take<T>(slots * kScaleParts * s.channels), rows};
  }
};

}  // namespace aft::ops::full
