#include "data/text.h"

#include <algorithm>
#include <utility>

namespace aft {

TextData::TextData(DataSplits splits, int64_t context)
    : splits_(std::move(splits)), context_(context), train_(splits_.train.size(), context) {}

const Bytes& TextData::text(Split split) const {
  if (split == Split::kTrain) return splits_.train;
  return split == Split::kValid ? splits_.valid : splits_.test;
}

int64_t TextData::size(Split split) const {
  if (split == Split::kTrain) return train_.count();
  const int64_t bytes = text(split).size();
  return bytes / context_ + (bytes % context_ != 0);
}

int64_t TextData::bytes(Split split, int64_t index) const {
  require_index(split, index);
  return split == Split::kTrain ? train_.length() : std::min(context_, text(split).size() - index * context_);
}

Label TextData::read(Split split, int64_t index, std::optional<uint64_t> /*draw*/, std::span<uint8_t> out) const {
  require_room(split, index, out.size());
  text(split).read(split == Split::kTrain ? train_.start(index) : index * context_, out);
  return {};
}

uint64_t TextData::checksum(Split split) const { return aft::checksum(text(split)); }

}  // namespace aft
