#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/ops/run.h"

namespace aft::ops::test {

/// One array of a call amid guard elements, all full of one particular NaN until it is filled. An output that is not
/// written stays NaN; a write to anything but an output shows. On a device it is mirrored by the host's.
class Buffer {
 public:
  static constexpr int64_t kGuard = 64;

  Buffer(std::string name, DeviceMemory* memory, int64_t elements, size_t element_size);
  ~Buffer();
  Buffer(const Buffer&) = delete;

  /// Element i, for the host and for the kernels.
  std::byte* host(int64_t i) const { return host_ + (kGuard + i) * element_; }
  std::byte* device(int64_t i) const { return device_ + (kGuard + i) * element_; }
  void may_be_written(int64_t begin, int64_t size) {
    std::fill_n(writable_.begin() + kGuard + begin, size, uint8_t{1});
  }

  void copy_in();
  /// Fails the test where anything was written that must not be.
  void copy_out_and_check();

 private:
  std::string name_;
  DeviceMemory* memory_;
  size_t element_;
  std::vector<uint8_t> writable_;
  size_t bytes_;
  std::unique_ptr<std::byte[]> storage_, before_;  // before_: as it was handed over
  std::byte *host_, *device_;
};

/// Elements [outer, inner, width] of a buffer.
template <typename X>
struct View {
  Buffer* buffer = nullptr;
  int64_t offset = 0, outer = 0, inner = 0, width = 0, outer_stride = 0, inner_stride = 0;

  X* data() const { return reinterpret_cast<X*>(buffer->device(offset)); }
  /// f(element in the host's memory, its index in the dense array)
  template <class F>
  void for_each(const F& f) const {
    X* first = reinterpret_cast<X*>(buffer->host(offset));
    int64_t i = 0;
    for (int64_t a = 0; a < outer; ++a) {
      for (int64_t b = 0; b < inner; ++b) {
        X* row = first + a * outer_stride + b * inner_stride;
        for (int64_t c = 0; c < width; ++c) f(row[c], i++);
      }
    }
  }
  void put(const std::vector<Accumulate<X>>& dense) const {
    for_each([&](X& x, int64_t i) { x = element<X>(dense[i]); });
  }
  std::vector<Accumulate<X>> get() const {
    std::vector<Accumulate<X>> dense(outer * inner * width);
    for_each([&](X& x, int64_t i) { dense[i] = number<X>(x); });
    return dense;
  }
  void may_be_written() const {
    for (int64_t i = 0; i < outer * inner; ++i) {
      buffer->may_be_written(offset + i / inner * outer_stride + i % inner * inner_stride, width);
    }
  }
  operator Rows<X>() const { return {data(), outer_stride, inner_stride}; }
  operator Rows<const X>() const { return {data(), outer_stride, inner_stride}; }
};

/// The device argument where the reference is called.
struct Reference {};

/// All memory that the calls of one run are handed.
class Memory {
 public:
  explicit Memory(const RunOptions& options) : options_(options) {}

  /// Arrays [outer, inner, width] side by side, as views of one larger tensor.
  struct Extent {
    int64_t inner, width;
  };
  template <typename X>
  std::vector<View<X>> place(const std::string& name, int64_t outer, const std::vector<Extent>& extents) {
    const bool dense = options_.shift == 0;
    int64_t row = dense ? 0 : 3, longest = 0;
    for (const Extent& e : extents) row += e.width, longest = std::max(longest, e.inner);
    const int64_t stride = (longest + (dense ? 0 : 1)) * row;
    Buffer* buffer = add(name, options_.shift + outer * stride, sizeof(X));
    std::vector<View<X>> views;
    int64_t at = options_.shift;
    for (const Extent& e : extents) {
      views.push_back({buffer, at, outer, e.inner, e.width, stride, row});
      at += e.width;
    }
    return views;
  }
  template <typename X>
  View<X> place(const std::string& name, int64_t outer, int64_t inner, int64_t width) {
    return place<X>(name, outer, std::vector<Extent>{{inner, width}})[0];
  }

  /// Tensors of the inputs by name, as views of one; what is not there is empty.
  template <typename E>
  std::vector<Rows<const E>> tensors(const Inputs<E>& in, const std::vector<std::string>& names) {
    const std::vector<View<E>> views = place_like<E>(in, names);
    std::vector<Rows<const E>> rows(names.size());
    for (size_t i = 0; i < names.size(); ++i) {
      if (!in.has(names[i])) continue;
      views[i].put(in[names[i]]);
      rows[i] = views[i];
    }
    return rows;
  }
  /// Tensors to be written: of each input given its gradient, of a gradient given what it is of.
  template <typename E>
  std::vector<Rows<E>> results(const Inputs<E>& in, const std::vector<std::string>& names, Outputs<E>& out) {
    const std::vector<View<E>> views = place_like<E>(in, names);
    std::vector<Rows<E>> rows(names.size());
    for (size_t i = 0; i < names.size(); ++i) {
      if (!in.has(names[i])) continue;
      rows[i] = views[i];
      take(views[i], in.array(names[i]), names[i], out);
    }
    return rows;
  }
  /// A view to be written, of the layout of input `name`, whose gradient it is (or the other way round).
  template <typename X, typename E>
  void take(const View<X>& view, const Array<Accumulate<E>>& like, const std::string& name, Outputs<E>& out) {
    view.may_be_written();
    const std::string other = name.rfind("grad_", 0) == 0 ? name.substr(5) : "grad_" + name;
    const Along along = like.along;
    const int64_t width = like.width;
    reads_.push_back([view, along, width, other, &out] { out.set(other, {along, width, view.get()}); });
  }

  /// A dense array of the inputs; null where it is not there.
  template <typename E>
  const Accumulate<E>* dense(const Inputs<E>& in, const std::string& name) {
    if (!in.has(name)) return nullptr;
    const auto view = place<Accumulate<E>>(name, 1, 1, in[name].size());
    view.put(in[name]);
    return view.data();
  }
  /// A dense array to be written, the gradient of input `name` or what that is the gradient of; null where that is not
  /// there.
  template <typename E>
  Accumulate<E>* dense_result(const Inputs<E>& in, const std::string& name, Outputs<E>& out) {
    if (!in.has(name)) return nullptr;
    const auto view = place<Accumulate<E>>("gradient of " + name, 1, 1, in[name].size());
    take(view, in.array(name), name, out);
    return view.data();
  }
  /// Numbers that are no elements: positions, lengths, bytes of a mask.
  template <typename X>
  X* plain(const std::string& name, const std::vector<X>& from, bool written = false) {
    Buffer* buffer = add(name, from.size(), sizeof(X));
    if (!from.empty()) std::memcpy(buffer->host(0), from.data(), from.size() * sizeof(X));
    if (written) buffer->may_be_written(0, from.size());
    return reinterpret_cast<X*>(buffer->device(0));
  }
  /// Memory for the kernels' own use, held by nothing yet: NaN in every type.
  template <typename X>
  X* uninitialised(const std::string& name, int64_t size) {
    Buffer* buffer = add(name, size, sizeof(X));
    std::memset(buffer->host(0), 0xFF, size * sizeof(X));
    buffer->may_be_written(0, size);
    return reinterpret_cast<X*>(buffer->device(0));
  }

  /// A state: the initial one of `in`, or one not written yet; read into `out` after the run, or not to be written.
  /// Ring slots that hold no source keep their NaN: nothing may read them.
  template <typename E>
  State<Accumulate<E>> state(const Inputs<E>& in, bool initial, Outputs<E>* out);

  /// Runs call(device) on the backend. workspace(): bytes that a call on CUDA takes.
  template <typename E, class Workspace, class Call>
  void run(const Workspace& workspace, const Call& call);

 private:
  Buffer* add(const std::string& name, int64_t elements, size_t element_size) {
    DeviceMemory* memory = options_.backend == nullptr ? nullptr : options_.backend->memory;
    buffers_.push_back(std::make_unique<Buffer>(name, memory, elements, element_size));
    return buffers_.back().get();
  }
  template <typename E>
  std::vector<View<E>> place_like(const Inputs<E>& in, const std::vector<std::string>& names) {
    std::vector<Extent> extents;
    for (const std::string& name : names) {
      if (in.has(name)) {
        const auto& like = in.array(name);
        extents.push_back({like.along == Along::kTargets ? in.c.time : in.c.source_count(), like.width});
      } else {
        extents.push_back({0, 0});
      }
    }
    return place<E>(names[0] + ", ...", in.c.rows(), extents);
  }

  const RunOptions& options_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<std::function<void()>> reads_;
};

template <typename E>
State<Accumulate<E>> Memory::state(const Inputs<E>& in, bool initial, Outputs<E>* out) {
  using T = Accumulate<E>;
  const int64_t batch = in.c.batch, ring = in.ring;
  Buffer* position = add("state.position", batch, sizeof(int64_t));
  const auto positions = [position] { return reinterpret_cast<int64_t*>(position->host(0)); };
  if (initial) std::copy(in.position.begin(), in.position.end(), positions());
  if (out != nullptr) {
    position->may_be_written(0, batch);
    reads_.push_back([=] { out->position.assign(positions(), positions() + batch); });
  }
  std::vector<T*> data;
  for (const std::string part : kStateParts) {
    const int64_t width = in.state_width(part);
    const bool in_ring = part.rfind("ring", 0) == 0;
    const auto held = [=](int64_t i) {
      return !in_ring || slot_holds_source(positions()[i / width], ring, i % width / (width / ring));
    };
    const View<T> view = place<T>("state." + part, 1, 1, batch * width);
    data.push_back(view.data());
    if (initial) {
      const std::vector<T>& from = in["initial_" + part];
      view.for_each([&](T& x, int64_t i) {
        if (held(i)) x = from[i];
      });
    }
    if (out == nullptr) continue;
    view.may_be_written();
    reads_.push_back([=] {
      std::vector<T> to = view.get();
      for (int64_t i = 0; i < batch * width; ++i) {
        if (!held(i)) to[i] = T(0);
      }
      out->set("final_" + part, {Along::kSequences, width, std::move(to)});
    });
  }
  return {reinterpret_cast<int64_t*>(position->device(0)), data[0], data[1], data[2], data[3], data[4]};
}

template <typename E, class Workspace, class Call>
void Memory::run(const Workspace& workspace, const Call& call) {
  const Backend* backend = options_.backend;
  const auto on = [&](const auto& device) {
    for (const auto& buffer : buffers_) buffer->copy_in();
    call(device);
    for (const auto& buffer : buffers_) buffer->copy_out_and_check();
  };
  if (backend == nullptr) {
    if constexpr (sizeof(E) >= sizeof(double)) on(Reference());
  } else if constexpr (!std::is_same_v<E, long double>) {
    const TargetScope scope(backend->target);
    if (backend->cuda) {
      auto* scratch = uninitialised<uint64_t>("workspace", (workspace() + 7) / 8);
      auto* redone = plain<int64_t>("redone", {0, 0}, true);
      const Buffer& counters = *buffers_.back();
      on(Cuda{.workspace = scratch, .redone = redone, .check_values = options_.check_values});
      if (options_.redone != nullptr) {
        const auto* counted = reinterpret_cast<const int64_t*>(counters.host(0));
        options_.redone->redone += counted[0], options_.redone->total += counted[1];
      }
    } else {
      on(Cpu{options_.parallel, options_.redone});
    }
  }
  for (const auto& read : reads_) read();
  reads_.clear();
}

}  // namespace aft::ops::test
