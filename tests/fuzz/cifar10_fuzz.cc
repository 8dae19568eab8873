// Any bytes as a batch of CIFAR-10: every value is where it belongs, or aft::Error is thrown.

#include <cstdint>
#include <string_view>
#include <vector>

#include "aft/error.h"
#include "data/cifar10.h"
#include "memory_file.h"

namespace {

constexpr size_t kPlane = 32 * 32;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile file(std::string_view(reinterpret_cast<const char*>(data), size));
  aft::LabelledImages images{std::vector<uint8_t>(3 * kPlane, 1), {9}};
  try {
    aft::append_cifar10(file.descriptor(), "data.bin", images);
  } catch (const aft::Error&) {
    return 0;
  }
  const size_t count = images.labels.size();
  require(count > 1 && images.pixels.size() == count * 3 * kPlane);
  require(images.labels[0] == 9 && images.pixels[3 * kPlane - 1] == 1);
  for (const uint8_t label : images.labels) require(label < 10);
  if (data[0] == 0xfd) return 0;  // .xz
  const uint8_t* from = data;
  for (size_t image = 1; image < count; ++image) {
    require(images.labels[image] == *from++);
    for (size_t channel = 0; channel < 3; ++channel) {
      for (size_t pixel = 0; pixel < kPlane; ++pixel) {
        require(images.pixels[(image * kPlane + pixel) * 3 + channel] == *from++);
      }
    }
  }
  require(from == data + size);
  return 0;
}
