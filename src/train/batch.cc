#include "train/batch.h"

#include <vector>

namespace aft {
namespace {

torch::Tensor sent(const torch::Tensor& tensor, c10::Device device) {
  return tensor.defined() ? tensor.to(device, /*non_blocking=*/true) : tensor;
}

}  // namespace

Batch Batch::to(c10::Device device) const {
  return {sent(bytes, device), sent(labels, device), {sent(mixed.second, device), sent(mixed.share, device)}};
}

Batch read_batch(const DataSet& data, Split split, std::span<const Visit> visits, bool pinned) {
  const auto count = static_cast<int64_t>(visits.size());
  const int64_t length = data.bytes(split, visits.front().index);
  const auto room = [&](at::IntArrayRef shape, torch::ScalarType dtype) {
    return torch::empty(shape, torch::TensorOptions(dtype).pinned_memory(pinned));
  };
  Batch batch = {room({count, length}, torch::kUInt8), room({count}, torch::kInt64), {}};
  auto* const bytes = batch.bytes.mutable_data_ptr<uint8_t>();
  auto* const labels = batch.labels.mutable_data_ptr<int64_t>();
  std::vector<Label> read;
  bool mixed = false;
  for (int64_t row = 0; row < count; ++row) {
    const Visit& visit = visits[static_cast<size_t>(row)];
    const Label& label = read.emplace_back(
        data.read(split, visit.index, visit.draw, {bytes + row * length, static_cast<size_t>(length)}));
    labels[row] = label.first;
    mixed = mixed || label.second != -1;
  }
  if (!mixed) return batch;
  batch.mixed = {room({count}, torch::kInt64), room({count}, torch::kFloat32)};
  auto* second = batch.mixed.second.mutable_data_ptr<int64_t>();
  auto* share = batch.mixed.share.mutable_data_ptr<float>();
  for (const Label& label : read) {
    *second++ = label.second == -1 ? label.first : label.second;
    *share++ = label.share;
  }
  return batch;
}

}  // namespace aft
