#pragma once

#include <cstdint>

#include "ops/common/scratch.h"

namespace aft::ops {

/// Vectors of channels in memory, each of kParts parts: [vectors][kParts][kLanes].
template <typename T, int64_t kParts, int64_t kLanes>
struct VectorView {
  static constexpr int64_t kStride = kParts * kLanes;  // elements from one to the next

  T* data = nullptr;

  VectorView() = default;
  explicit VectorView(T* memory) : data(memory) {}
  VectorView(int64_t vectors, Scratch& scratch) : data(scratch.take<T>(vectors * kStride)) {}

  T* at(int64_t i, int64_t part = 0) const { return data + (i * kParts + part) * kLanes; }
  VectorView from(int64_t i) const { return VectorView(at(i)); }
};

/// The same in rows and columns: [rows][columns][kParts][kLanes]. Rows and columns are counted from first_row and
/// first_column, so that what holds a part of them is asked for them by their own numbers.
template <typename T, int64_t kParts, int64_t kLanes>
struct VectorMatrix {
  T* data = nullptr;
  int64_t columns = 0;
  int64_t first_row = 0, first_column = 0;

  VectorMatrix() = default;
  VectorMatrix(int64_t rows, int64_t matrix_columns, Scratch& scratch)
      : data(scratch.take<T>(rows * matrix_columns * kParts * kLanes)), columns(matrix_columns) {}

  T* at(int64_t i, int64_t j, int64_t part = 0) const {
    return data + (((i - first_row) * columns + j - first_column) * kParts + part) * kLanes;
  }
};

}  // namespace aft::ops
