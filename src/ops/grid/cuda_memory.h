#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/common/cuda/workspace.h"
#include "ops/grid/plan.h"

// How the grid operator is cut on a CUDA device, and the workspaces of its passes: by shape and element type alone.

namespace aft::ops::grid {

constexpr int kLanes = 32;  // channels of a group at most: a thread of a warp has one
constexpr int kWarps = 14;  // of a block: two tasks each at 14 x 14

/// Two numbers of a position and channel, which are summed with the same weights.
template <typename T>
struct alignas(2 * sizeof(T)) Two {
  T first, second;
};

/// Groups of channels. Where a head shares its key a group has whole heads, or a part of one that is wider.
struct Groups {
  int64_t channels = 0, head_width = 1;
  int64_t width = kLanes;  // of a group
  int64_t parts = 0;       // groups of a head that is wider than one and shares its key, else 0
  int64_t count = 0;

  explicit Groups(const GridShape& s) : channels(s.channels), head_width(std::max<int64_t>(1, s.channels / s.heads)) {
    if (s.key_channels != s.channels) {
      if (head_width > kLanes)
        parts = (head_width + kLanes - 1) / kLanes;
      else
        width = kLanes / head_width * head_width;
    }
    count = parts > 0 ? s.heads * parts : (channels + width - 1) / width;
  }
  constexpr int64_t first(int64_t g) const {
    return parts > 0 ? g / parts * head_width + g % parts * width : g * width;
  }
  constexpr int64_t size(int64_t g) const {
    const int64_t rest = parts > 0 ? head_width - g % parts * width : channels - g * width;
    return rest < width ? rest : width;
  }
};

/// A unit is a group of channels of one image. Positions are done in blocks of R targets of a grid row.
struct Cut {
  GridShape shape;
  GridReach reach;
  Groups groups;
  int64_t targets;  // R of the kernels
  int64_t blocks;   // of a row
  int64_t chunk;    // images whose sums of the kernel's gradient are added up before they are stored

  /// A chunk's sums are worth a fortieth of its q, k, v and y.
  template <typename E>
  static Cut of(const GridShape& s) {
    Cut c = {s, grid_reach(s), Groups(s), s.width % 7 == 0 ? 7 : 4, 0, 0};
    c.blocks = (s.width + c.targets - 1) / c.targets;
    const int64_t time = std::max<int64_t>(1, s.time());
    constexpr int64_t kWider = sizeof(Accumulate<E>) / sizeof(E);
    c.chunk = (10 * kWider * c.reach.size() + time - 1) / time;
    return c;
  }
  constexpr int64_t units() const { return shape.batch * groups.count; }
  constexpr int64_t tasks() const { return shape.height * blocks; }
  int64_t chunks() const { return (shape.batch + chunk - 1) / chunk; }
};

/// What a unit holds while it is done, each [...][kLanes]: in shared memory, or in the workspace where it has no room.
/// A position takes hundreds of bytes, so the positions of an image can be counted in an int.
template <typename T>
struct Unit {
  Two<T>* sources;  // [T]: K, KV
  Two<T>* targets;  // [T]: a, b; of the backward
  Two<T>* side;     // [height][blocks]: sums of a row left and right of all windows of a block; before, sums of warps
  Two<T>* above;    // [height]: sums of a row and all above it
  Two<T>* below;    // [height]: sums of a row and all below it
  Two<T>* scales;   // [2]: M, X; centre, G
  /// A bit a lane, not [kLanes]. Forward, [T]: whether the row failed; backward, [1]: whether the image did.
  uint32_t* failed;

  constexpr Unit(Two<T>* memory, const Cut& c, bool backward) {
    const int64_t time = c.shape.time();
    sources = memory;
    targets = sources + time * kLanes;
    side = targets + (backward ? time * kLanes : 0);
    above = side + side_size(c) * kLanes;
    below = above + c.shape.height * kLanes;
    scales = below + c.shape.height * kLanes;
    failed = reinterpret_cast<uint32_t*>(scales + 2 * kLanes);
  }
  /// In Two<T>.
  static constexpr int64_t size(const Cut& c, bool backward) {
    const int64_t time = c.shape.time(), words = backward ? 1 : time, per_two = sizeof(Two<T>) / sizeof(uint32_t);
    return (time * (backward ? 2 : 1) + side_size(c) + 2 * c.shape.height + 2) * kLanes +
           (words + per_two - 1) / per_two;
  }

 private:
  static constexpr int64_t side_size(const Cut& c) { return c.tasks() < 2 * kWarps ? 2 * kWarps : c.tasks(); }
};

/// Weights of the channels of all groups, and units in waves where shared memory has no room for one. A wave is worth a
/// fortieth of q, k, v and y, but one unit at least.
template <typename E>
struct ForwardMemory {
  using T = Accumulate<E>;
  T* weights;     // [groups][reach.size()][kLanes]: e^w 2^-W
  T* outside;     // [groups][kLanes]: 2^-W
  int64_t wave;   // units
  Two<T>* units;  // [wave]

  ForwardMemory(const Cut& c, cuda::Workspace& workspace, bool backward = false)
      : weights(workspace.take<T>(c.groups.count * c.reach.size() * kLanes)),
        outside(workspace.take<T>(c.groups.count * kLanes)),
        wave(wave_of(c, backward)),
        units(workspace.take<Two<T>>(wave * Unit<T>::size(c, backward))) {}

 private:
  static int64_t wave_of(const Cut& c, bool backward) {
    const int64_t tensors = c.shape.batch * c.shape.time() * c.shape.channels * 4 * static_cast<int64_t>(sizeof(E));
    const int64_t unit = Unit<T>::size(c, backward) * static_cast<int64_t>(sizeof(Two<T>));
    return std::min(c.units(), std::max<int64_t>(1, tensors / 40 / unit));
  }
};

template <typename E>
struct BackwardMemory : ForwardMemory<E> {
  Accumulate<E>* kernel;  // [chunks][reach.size()][channels]: the kernel's gradient
  Accumulate<E>* keys;    // [B][T][groups]: dk, summed over a group, where several share a key

  BackwardMemory(const Cut& c, cuda::Workspace& workspace)
      : ForwardMemory<E>(c, workspace, true),
        kernel(workspace.take<Accumulate<E>>(c.chunks() * c.reach.size() * c.shape.channels)),
        keys(workspace.take<Accumulate<E>>(c.groups.parts > 0 ? c.shape.time() * c.units() : 0)) {}
};

}  // namespace aft::ops::grid
