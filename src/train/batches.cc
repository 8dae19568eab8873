#include "train/batches.h"

#include <utility>

namespace aft {

Batches::Batches(Bytes text, WindowOrder order, int64_t size, int64_t length, c10::Device device)
    : text_(std::move(text)), order_(order), size_(size), length_(length), device_(device) {}

torch::Tensor Batches::take(int64_t position) {
  const bool sent = std::exchange(ahead_position_, -1) == position;
  return (sent ? std::exchange(ahead_, {}) : send(position)).to(torch::kInt64);
}

void Batches::send_ahead(int64_t position) {
  if (device_.is_cpu()) return;
  ahead_ = send(position);
  ahead_position_ = position;
}

torch::Tensor Batches::send(int64_t position) const {
  // Pinned, and so copied without waiting; LibTorch uses the memory again only once it is copied. The bytes are widened
  // on the device. A batch is a tenth of a megabyte: a stream of its own for the copy would win nothing.
  auto windows = torch::empty({size_, length_}, torch::TensorOptions(torch::kUInt8).pinned_memory(!device_.is_cpu()));
  auto* out = windows.mutable_data_ptr<uint8_t>();
  for (int64_t row = 0; row < size_; ++row) {
    text_.read(order_.start(position + row), {out + row * length_, static_cast<size_t>(length_)});
  }
  return windows.to(device_, /*non_blocking=*/true);
}

}  // namespace aft
