#pragma once

#include "ops/common/cuda/workspace.h"
#include "ops/window/plan.h"

// How the windowed operator is cut on a CUDA device, and the workspaces of its passes.

namespace aft::ops::window {

constexpr int64_t kSumParts = 3;  // of running sums in memory: max, den, num, each [channels]

constexpr int64_t kChunk = 64;  // rows

/// Whether the forward leaves the sums at every chunk for the backward: where the CPU's chunks, which say how much is
/// saved, are as long.
inline bool saves_sums(const WindowShape& s) { return s.causal && chunk_rows(s) == kChunk; }

/// A slot is one chunk of one sequence. Which it is follows from the shape and, packed, from cu_seqlens on the device
/// (cuda_slots.cuh); there are a few more slots than chunks then.
struct Slots {
  int64_t chunks = 0;    // of a sequence that is not packed
  int64_t count = 0;     // upper bound of all
  int64_t channels = 0;  // d
  int64_t groups = 0;    // upper bound of all groups: kGroup chunks of a sequence, its last may have fewer

  static constexpr int64_t kGroup = 32;

  explicit Slots(const WindowShape& s)
      : chunks(chunks_of(s.time)),
        count(s.packed ? s.time / kChunk + s.batch : s.batch * chunks),
        channels(s.channels),
        groups(s.packed ? count / kGroup + s.batch : s.batch * groups_of(chunks)) {}

  static constexpr int64_t chunks_of(int64_t time) { return (time + kChunk - 1) / kChunk; }
  static constexpr int64_t groups_of(int64_t chunks) { return (chunks + kGroup - 1) / kGroup; }
};

/// Running sums at every chunk in two parts: over the chunks of its group, and over the groups before.
template <typename T>
struct ChunkSums {
  T* chunks = nullptr;  // [slots][3][d]
  T* groups = nullptr;  // [groups][3][d]

  ChunkSums() = default;
  ChunkSums(const Slots& slots, cuda::Workspace& workspace)
      : chunks(workspace.take<T>(slots.count * kSumParts * slots.channels)),
        groups(workspace.take<T>(slots.groups * kSumParts * slots.channels)) {}
};

template <typename E>
struct ForwardMemory {
  using T = Accumulate<E>;

  ChunkSums<T> before;  // of the sources before each chunk, with a band before its first window
  ChunkSums<T> after;   // after its last window, not causal with a band
  T* ends;              // [B][3][d]: of all sources of a sequence, before its last window

  ForwardMemory(const WindowShape& s, Pass pass, cuda::Workspace& workspace) {
    const Slots slots(s);
    if (pass == Pass::kForward || !saves_sums(s)) before = ChunkSums<T>(slots, workspace);
    if (s.has_band && !s.causal) after = ChunkSums<T>(slots, workspace);
    ends = workspace.take<T>(s.batch * kSumParts * s.channels);
  }
};

template <typename E>
struct BackwardMemory : ForwardMemory<E> {
  using T = Accumulate<E>;

  ChunkSums<T> later;  // of b and a of the targets after each chunk
  T* at_start;         // [B][3][d]: of all targets of a sequence, for the initial state

  BackwardMemory(const WindowShape& s, cuda::Workspace& workspace)
      : ForwardMemory<E>(s, Pass::kBackward, workspace),
        later(Slots(s), workspace),
        at_start(workspace.take<T>(s.batch * kSumParts * s.channels)) {}
};

/// Strips of 64 channels that make a head.
constexpr int64_t strip_count(const WindowShape& s) { return (s.channels / s.heads + 63) / 64; }

/// Blocks that make a head, where one does so many strips, one after another with the same weights.
constexpr int64_t band_groups(const WindowShape& s, int64_t strips) { return (strip_count(s) + strips - 1) / strips; }

/// Of the sums after a wave, over the groups and over the chunks of the group it ends in: maximum, den, num, and what
/// rounding has added to each of the two.
constexpr int64_t kCarryParts = 10;

/// Whether the backward with a band goes through the targets once.
constexpr bool goes_once(const WindowShape& s) { return s.causal && !s.packed; }

/// Strips that a block with targets does in the backward: a wave has few slots.
constexpr int kBackwardStrips = 2;

/// With a band, a and b of targets are kept for some slots at a time, a wave, and for those before it that its sources'
/// windows reach into. That takes a 32nd of q, k, v and y, or 64 MiB if that is more, and at least what a window needs;
/// a wave's blocks with targets are then as many as 132 multiprocessors hold, or some times as many.
template <typename E>
struct Waves {
  static constexpr int64_t kResident = 264;

  int64_t overlap = 0;  // slots before a wave
  int64_t slots = 0;    // of a wave
  int64_t count = 0;

  explicit Waves(const WindowShape& s) {
    const Slots all(s);
    overlap = Slots::chunks_of(std::min(s.left + s.right, s.time)) + (s.causal ? 0 : 1);
    const int64_t of_slot = kChunk * (3 * s.channels + band_groups(s, kBackwardStrips) * s.heads * columns(s)) *
                            int64_t{sizeof(Accumulate<E>)};
    const int64_t tensor = (s.packed ? 1 : s.batch) * s.time * s.channels * int64_t{sizeof(E)};
    const int64_t room = std::max(int64_t{1} << 26, tensor / 8);
    const int64_t least = std::min(all.count, 2 * overlap + 1), blocks = s.heads * band_groups(s, kBackwardStrips);
    slots = std::max(least, room / std::max<int64_t>(of_slot, 1));
    if ((slots + overlap) * blocks > kResident) {
      slots = std::max(least, (slots + overlap) * blocks / kResident * kResident / blocks - overlap);
    }
    slots = std::min(slots, all.count);
    count = slots == 0 ? 0 : (all.count + slots - 1) / slots;
  }
  static int64_t columns(const WindowShape& s) { return s.left + 1 + s.right; }
};

template <typename E>
struct BandBackwardMemory : BackwardMemory<E> {
  using T = Accumulate<E>;

  ChunkSums<T> earlier;  // not causal: as later, of the targets before each chunk
  T* carry = nullptr;    // [B][kCarryParts][d], where targets are gone through once: the sums of those after a wave
  T* rows;               // [slots of a wave and those before it][kChunk][3][d]: a, b and the exponent of D
  T* pairs;              // [slots of a wave][blocks of a head][kChunk][H][J]: the gradient of the band from each row
  T* slot_pairs;         // [slots][H][J]: from each slot, where all positions share the band's row
  T* sequence_pairs;     // [B][H][J]: the same from a sequence
  T* key_parts;          // [tokens + B left][H][strips]: dk of a key that its head shares

  BandBackwardMemory(const WindowShape& s, cuda::Workspace& workspace) : BackwardMemory<E>(s, workspace) {
    const Slots all(s);
    const Waves<E> waves(s);
    const int64_t band = s.heads * waves.columns(s), tokens = (s.packed ? 1 : s.batch) * s.time;
    if (goes_once(s)) carry = workspace.take<T>(s.batch * kCarryParts * s.channels);
    if (!s.causal) earlier = ChunkSums<T>(all, workspace);
    rows = workspace.take<T>((waves.slots + waves.overlap) * kChunk * 3 * s.channels);
    pairs = workspace.take<T>(waves.slots * band_groups(s, kBackwardStrips) * kChunk * band);
    slot_pairs = workspace.take<T>(all.count * band);
    sequence_pairs = workspace.take<T>(s.batch * band);
    key_parts =
        workspace.take<T>(s.key_channels == s.channels ? 0 : (tokens + s.batch * s.left) * s.heads * strip_count(s));
  }
};

}  // namespace aft::ops::window
