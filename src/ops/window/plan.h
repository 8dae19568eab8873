#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aft/ops/window.h"

// How the windowed operator is cut into tasks and chunks. All of it depends on window, width, heads and dtype alone,
// except the split of channels in split_channels and what tasks_at_once walks together. Both change no bit: channels
// never meet outside the band's gradient, which is summed in an order of its own.

namespace aft::ops::window {

/// Target rows computed together in registers. 2 and 8 measured slower: 2 is bound by loads, 8 by the rows' staggered
/// windows and, on AVX2, by registers.
constexpr int64_t kRows = 4;

/// Channels of a task start at multiples of a cache line of elements, which are whole vectors: lanes group the same way
/// on every split.
template <typename E>
constexpr int64_t kChannelAlign = 64 / static_cast<int64_t>(sizeof(E));

/// Rows between two boundaries, where running sums are kept: 3 / chunk of a tensor, which the causal forward saves for
/// the backward. Without `causal`, where the backward walks all rows twice unless they are one chunk, longer ones
/// measured 4 to 16 % faster.
inline int64_t chunk_rows(const WindowShape& s) {
  return s.causal ? std::clamp<int64_t>((s.left + 63) / 64 * 64, 64, 256) : 256;
}

inline int64_t chunk_count(const WindowShape& s, int64_t time) { return (time + chunk_rows(s) - 1) / chunk_rows(s); }

/// Rows of the blocks that cover `rows`.
inline int64_t whole_blocks(int64_t rows) { return (rows + kRows - 1) / kRows * kRows; }

/// Boundaries between the chunks of a sequence: where the forward saves its sums. Those of packed sequences are no more
/// than those of one sequence of all tokens: floor((a - 1) / c) + floor((b - 1) / c) <= floor((a + b - 1) / c).
inline int64_t chunk_boundaries(const WindowShape& s, int64_t time) {
  return std::max<int64_t>(0, chunk_count(s, time) - 1);
}

/// Positions, vectors of channels, chunks: [begin, end).
struct Range {
  int64_t begin = 0, end = 0;

  int64_t size() const { return end - begin; }
};

/// One sequence: its rows lie in batch row `row` of the tensors, from position `first` on.
struct Sequence {
  int64_t index, row, first, time;
  int64_t boundary;  // where its chunk boundaries are saved, one after another
};

/// Calls visit(sequence) for every sequence in order.
template <class Visit>
void for_each_sequence(const WindowShape& s, const int64_t* cu_seqlens, const Visit& visit) {
  for (int64_t b = 0; b < s.batch; ++b) {
    visit(s.packed ? Sequence{b, 0, cu_seqlens[b], cu_seqlens[b + 1] - cu_seqlens[b], cu_seqlens[b] / chunk_rows(s)}
                   : Sequence{b, b, 0, s.time, b * chunk_boundaries(s, s.time)});
  }
}

/// The first row of a sequence; null stays null.
template <typename E>
constexpr E* first_row(const Rows<E>& rows, const Sequence& s) {
  return rows.data == nullptr ? nullptr : rows.data + s.row * rows.batch_stride + s.first * rows.time_stride;
}

/// One sequence, one head, channels [begin, end).
struct WindowTask {
  Sequence sequence;
  int64_t head, begin, end;
};

/// Heads that are tasks of their own: those of a band or of keys they share. Other heads differ in nothing.
inline int64_t separate_heads(const WindowShape& s) { return s.has_band || s.key_channels != s.channels ? s.heads : 1; }

inline std::vector<WindowTask> window_tasks(const WindowShape& s, const int64_t* cu_seqlens, int64_t width) {
  std::vector<WindowTask> tasks;
  const int64_t heads = separate_heads(s);
  const int64_t head_width = s.channels / heads;
  for_each_sequence(s, cu_seqlens, [&](const Sequence& sequence) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t c = 0; c < head_width; c += width) {
        tasks.push_back({sequence, h, h * head_width + c, h * head_width + std::min(c + width, head_width)});
      }
    }
  });
  return tasks;
}

/// The shape of one sequence alone.
inline WindowShape alone(WindowShape s, const Sequence& sequence) {
  s.batch = 1;
  s.time = sequence.time;
  s.packed = false;
  return s;
}

/// Channels per task: whole rows unless threads would idle (stripes of 128 channels measured half as fast: memory likes
/// whole rows). A key that serves its whole head keeps the head together.
template <typename E>
int64_t split_channels(const WindowShape& s, int64_t threads) {
  const int64_t heads = separate_heads(s);
  const int64_t width = s.channels / heads;
  const bool key_per_head = s.key_channels != s.channels;
  const int64_t rows = std::max<int64_t>(1, s.batch * heads);
  if (key_per_head || rows >= threads) return width;
  const int64_t pieces = (threads + rows - 1) / rows;
  const int64_t piece = (width + pieces - 1) / pieces;
  return (piece + kChannelAlign<E> - 1) / kChannelAlign<E> * kChannelAlign<E>;
}

/// How long the sequences of some tasks are.
struct Lengths {
  int64_t sequences = 0, longest = 0, total = 0;

  void add(int64_t time) {
    ++sequences;
    longest = std::max(longest, time);
    total += time;
  }
};

/// Tasks of a causal band that are walked together: heads of a sequence, as many as make 2 KiB of a row in the
/// accumulation type and leave no thread idle for long. A divisor of the tasks; it changes no bit.
template <typename E>
int64_t tasks_at_once(const WindowShape& s, const Lengths& lengths, int64_t tasks, int64_t threads) {
  constexpr int64_t kEnough = 4;  // for each thread: then it matters little who ends last
  constexpr int64_t kRowChannels = 2048 / static_cast<int64_t>(sizeof(Accumulate<E>));
  if (!s.has_band || !s.causal || lengths.longest == 0 || tasks != lengths.sequences * s.heads) return 1;
  threads = std::max<int64_t>(1, threads);
  const bool alike = lengths.total == lengths.sequences * lengths.longest;
  const int64_t width = s.channels / s.heads;
  const int64_t padded = (width + kChannelAlign<E> - 1) / kChannelAlign<E> * kChannelAlign<E>;
  for (int64_t heads = std::min(s.heads, kRowChannels / padded); heads > 1; --heads) {
    if (s.heads % heads != 0) continue;
    const int64_t groups = s.heads / heads * (lengths.total / lengths.longest);  // as long as the longest
    if ((alike && groups % threads == 0) || groups >= kEnough * threads) return heads;
  }
  return 1;
}

/// Channels of a panel for tensors of E. A task does a chunk's rows panel by panel, so that all a chunk needs stays in
/// the second-level cache (512 bytes a row: about half of 1 MiB in the backward), while memory still sees whole rows
/// within a chunk. The band's gradient is summed over the channels of a panel, then panel by panel in order: the order
/// of the sum is fixed, however the panels are dealt out to tasks.
template <typename E>
constexpr int64_t kPanelChannels = 512 / static_cast<int64_t>(sizeof(Accumulate<E>));

template <typename E>
int64_t panel_count(int64_t width) {
  return (width + kPanelChannels<E> - 1) / kPanelChannels<E>;
}

/// Channels per task of a backward that wants the band's gradient: split_channels in whole panels.
template <typename E>
int64_t split_band_channels(const WindowShape& s, int64_t threads) {
  return panel_count<E>(split_channels<E>(s, threads)) * kPanelChannels<E>;
}

/// Tokens of all sequences.
inline int64_t token_count(const WindowShape& s) { return s.packed ? s.time : s.batch * s.time; }

/// Whether a task's output rows may be written past the caches: a tensor of this size does not stay in a second-level
/// cache anyway, and every store is a whole vector on its own boundary, so that no line is fetched to be written.
/// Measured with a reader of the outputs right behind: with a band a sixth faster from 2 MiB on; without, where little
/// else is done, slower below 16 MiB, unless threads write parts of the same rows: there a core fetches ahead, past its
/// part, lines that another is about to write, and backwards took up to 2.5 times as long.
template <typename E>
bool streams_past_caches(const WindowShape& s, int64_t tokens, const E* first, int64_t stride, int64_t width) {
  const int64_t least_bytes = int64_t{s.has_band || width < s.channels ? 2 : 16} << 20;
  constexpr int64_t kLine = 64;
  const auto whole = [](int64_t elements) { return elements * static_cast<int64_t>(sizeof(E)) % kLine == 0; };
  return tokens * s.channels * static_cast<int64_t>(sizeof(E)) >= least_bytes &&
         reinterpret_cast<uintptr_t>(first) % kLine == 0 && whole(stride) && whole(width);
}

}  // namespace aft::ops::window
