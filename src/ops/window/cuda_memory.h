#pragma once

#include "ops/common/cuda/workspace.h"
#include "ops/window/plan.h"

// How the windowed operator is cut on a CUDA device, and the workspaces of its passes.

namespace aft::ops::window {

constexpr int64_t kSumParts = 3;  // of running sums in memory: max, den, num, each [channels]

/// A slot is one chunk of one sequence. Which it is follows from the shape and, packed, from cu_seqlens on the device
/// (cuda_slots.cuh); there are a few more slots than chunks then.
struct Slots {
  int64_t chunk = 0;     // rows of one
  int64_t chunks = 0;    // of a sequence that is not packed
  int64_t count = 0;     // upper bound of all
  int64_t channels = 0;  // d

  explicit Slots(const WindowShape& s)
      : chunk(chunk_rows(s)),
        chunks(chunk_count(s, s.time)),
        count(s.packed ? s.time / chunk + s.batch : s.batch * chunks),
        channels(s.channels) {}
};

template <typename E>
struct ForwardMemory {
  Accumulate<E>* before;  // [slots][3][d]: what each chunk adds, then the sums of all sources before it
  Accumulate<E>* after;   // the same from the right, not causal with a band
  Accumulate<E>* ends;    // [B][3][d]: of all sources of a sequence, before its last window

  ForwardMemory(const WindowShape& s, cuda::Workspace& workspace) {
    const int64_t size = Slots(s).count * kSumParts * s.channels;
    before = workspace.take<Accumulate<E>>(size);
    after = workspace.take<Accumulate<E>>(s.has_band && !s.causal ? size : 0);
    ends = workspace.take<Accumulate<E>>(s.batch * kSumParts * s.channels);
  }
};

template <typename E>
struct BackwardMemory : ForwardMemory<E> {
  Accumulate<E>* targets;   // [slots][3][d]: the sums of b and a of each chunk's targets, then of all after it
  Accumulate<E>* at_start;  // [B][3][d]: of all targets of a sequence, for the initial state

  BackwardMemory(const WindowShape& s, cuda::Workspace& workspace)
      : ForwardMemory<E>(s, workspace),
        targets(workspace.take<Accumulate<E>>(Slots(s).count * kSumParts * s.channels)),
        at_start(workspace.take<Accumulate<E>>(s.batch * kSumParts * s.channels)) {}
};

/// With a band, a and b of targets are kept for some slots at a time, a wave, and for those whose windows reach into
/// it. That takes a 32nd of q, k, v and y, or 32 MiB if that is more, and at least what a window needs.
template <typename E>
struct Waves {
  int64_t overlap = 0;  // slots to either side
  int64_t slots = 0;    // of a wave
  int64_t count = 0;

  explicit Waves(const WindowShape& s) {
    const Slots all(s);
    const auto reach = [&](int64_t rows) { return (std::min(rows, s.time) + all.chunk - 1) / all.chunk; };
    overlap = 2 * std::max(reach(s.left), reach(s.right));
    const int64_t of_slot = all.chunk * (3 * s.channels + s.heads * columns(s)) * int64_t{sizeof(Accumulate<E>)};
    const int64_t tensor = (s.packed ? 1 : s.batch) * s.time * s.channels * int64_t{sizeof(E)};
    const int64_t room = std::max(int64_t{1} << 25, tensor / 8);
    slots = std::clamp<int64_t>(room / std::max<int64_t>(of_slot, 1), std::min(all.count, 2 * overlap + 1), all.count);
    count = slots == 0 ? 0 : (all.count + slots - 1) / slots;
  }
  static int64_t columns(const WindowShape& s) { return s.left + 1 + s.right; }
};

template <typename E>
struct BandBackwardMemory : BackwardMemory<E> {
  Accumulate<E>* earlier;        // [slots][3][d], not causal: as targets, of all before each chunk
  Accumulate<E>* rows;           // [slots of a wave and its overlaps][chunk][3][d]: a, b and the exponent of D
  Accumulate<E>* partial;        // [slots of a wave][chunk][H][J]: the gradient of the band from each chunk
  Accumulate<E>* sequence_sums;  // [H][J]: of one sequence, where all positions share the band's row
  Accumulate<E>* key_parts;      // [tokens + B left][H][strips]: dk of a key that its head shares

  BandBackwardMemory(const WindowShape& s, int64_t strips, cuda::Workspace& workspace)
      : BackwardMemory<E>(s, workspace) {
    using T = Accumulate<E>;
    const Slots all(s);
    const Waves<E> waves(s);
    earlier = workspace.take<T>(s.causal ? 0 : all.count * kSumParts * s.channels);
    rows = workspace.take<T>((waves.slots + 2 * waves.overlap) * all.chunk * 3 * s.channels);
    partial = workspace.take<T>(waves.slots * all.chunk * s.heads * waves.columns(s));
    sequence_sums = workspace.take<T>(s.heads * waves.columns(s));
    const int64_t tokens = (s.packed ? 1 : s.batch) * s.time;
    key_parts = workspace.take<T>(s.key_channels == s.channels ? 0 : (tokens + s.batch * s.left) * s.heads * strips);
  }
};

constexpr int kBandThreads = 128;

/// Threads of a block with a band, and blocks that make a head.
struct Strips {
  int64_t threads, count;

  explicit Strips(const WindowShape& s)
      : threads(std::min<int64_t>(kBandThreads, (s.channels / s.heads + 31) / 32 * 32)),
        count((s.channels / s.heads + threads - 1) / threads) {}
};

}  // namespace aft::ops::window
