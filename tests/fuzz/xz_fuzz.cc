// Any bytes as an .xz file: decoded the same twice, or refused in words.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "memory_file.h"
#include "runtime/read_bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile file(std::string_view(reinterpret_cast<const char*>(data), size));
  std::vector<uint8_t> bytes;
  const std::string error = aft::append_xz(file.descriptor(), bytes);
  const size_t first = bytes.size();
  require(lseek(file.descriptor(), 0, SEEK_SET) == 0 && aft::append_xz(file.descriptor(), bytes) == error);
  require(bytes.size() == 2 * first && std::equal(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(first),
                                                  bytes.begin() + static_cast<std::ptrdiff_t>(first)));
  return 0;
}
