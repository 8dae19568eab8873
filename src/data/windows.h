#pragma once

#include <cstdint>

namespace aft {

/// How a text is cut into training windows: `context` inputs and, one byte later, `context` targets, so a window spans
/// context + 1 bytes and shares its last byte with the next one. The last window is moved back so that it is whole.
class Windows {
 public:
  /// `bytes`: length of the text; none has no window. Throws aft::Error if some hold less than one.
  Windows(int64_t bytes, int64_t context);

  [[nodiscard]] int64_t count() const { return count_; }
  /// Bytes of a window: context + 1.
  [[nodiscard]] int64_t length() const { return context_ + 1; }
  /// First byte of window `index`, 0 <= index < count().
  [[nodiscard]] int64_t start(int64_t index) const;

 private:
  int64_t bytes_;
  int64_t context_;
  int64_t count_ = 0;
};

}  // namespace aft
