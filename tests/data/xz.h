#pragma once

#include <gtest/gtest.h>
#include <lzma.h>

#include <string>

namespace aft {

/// `bytes` as an .xz file.
inline std::string xz(const std::string& bytes) {
  std::string out(lzma_stream_buffer_bound(bytes.size()), '\0');
  size_t size = 0;
  EXPECT_EQ(LZMA_OK,
            lzma_easy_buffer_encode(1, LZMA_CHECK_CRC64, nullptr, reinterpret_cast<const uint8_t*>(bytes.data()),
                                    bytes.size(), reinterpret_cast<uint8_t*>(out.data()), &size, out.size()));
  out.resize(size);
  return out;
}

}  // namespace aft
