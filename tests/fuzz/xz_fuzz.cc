// Any bytes as a file of data, by the name of an .xz file and by a plain one: read the same twice, or refused in words.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "aft/error.h"
#include "io/read_bytes.h"
#include "memory_file.h"

namespace {

/// What is wrong with the file; empty if its bytes were appended.
std::string append(int file, const char* name, std::vector<uint8_t>& out) {
  require(lseek(file, 0, SEEK_SET) == 0);
  try {
    aft::append_bytes(file, name, out);
    return {};
  } catch (const aft::Error& error) {
    return error.what();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile file(std::string_view(reinterpret_cast<const char*>(data), size));
  for (const char* name : {"data.xz", "data.txt"}) {
    std::vector<uint8_t> first;
    std::vector<uint8_t> second;
    const std::string error = append(file.descriptor(), name, first);
    require(append(file.descriptor(), name, second) == error && first == second);
  }
  return 0;
}
