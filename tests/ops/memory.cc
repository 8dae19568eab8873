#include "tests/ops/memory.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace aft::ops::test {
namespace {

// The particular NaN of every size of element.
std::vector<std::byte> poison(size_t element) {
  std::vector<std::byte> bytes(element, std::byte{0xCD});
  const uint16_t half = 0x7fcd;
  const uint32_t single = 0x7fc0beef;
  const uint64_t whole = 0x7ff8beefbeefbeef;
  const long double longest = std::numeric_limits<long double>::quiet_NaN();
  if (element == sizeof(half)) std::memcpy(bytes.data(), &half, element);
  if (element == sizeof(single)) std::memcpy(bytes.data(), &single, element);
  if (element == sizeof(whole)) std::memcpy(bytes.data(), &whole, element);
  if (element == sizeof(longest)) std::memcpy(bytes.data(), &longest, element);
  return bytes;
}

}  // namespace

Buffer::Buffer(std::string name, DeviceMemory* memory, int64_t elements, size_t element_size)
    : name_(std::move(name)),
      memory_(memory),
      element_(element_size),
      writable_(elements + 2 * kGuard, 0),
      bytes_(writable_.size() * element_) {
  constexpr size_t kLine = 64;
  size_t space = bytes_ + kLine;
  storage_ = std::make_unique_for_overwrite<std::byte[]>(space);
  before_ = std::make_unique_for_overwrite<std::byte[]>(bytes_);
  void* first = storage_.get();
  host_ = static_cast<std::byte*>(std::align(kLine, bytes_, first, space));
  device_ = memory_ == nullptr ? host_ : static_cast<std::byte*>(memory_->allocate(bytes_));
  std::memcpy(host_, poison(element_).data(), element_);
  for (size_t filled = element_; filled < bytes_; filled *= 2) {
    std::memcpy(host_ + filled, host_, std::min(filled, bytes_ - filled));
  }
}

Buffer::~Buffer() {
  if (memory_ != nullptr) memory_->release(device_);
}

void Buffer::copy_in() {
  std::memcpy(before_.get(), host_, bytes_);
  if (memory_ != nullptr) memory_->copy_in(device_, host_, bytes_);
}

void Buffer::copy_out_and_check() {
  if (memory_ != nullptr) memory_->copy_out(host_, device_, bytes_);
  const auto same = [&](size_t begin, size_t end) {
    return std::memcmp(host_ + begin * element_, &before_[begin * element_], (end - begin) * element_) == 0;
  };
  const size_t size = writable_.size();
  for (size_t begin = 0, end = 0; begin < size; begin = end) {  // stretches of one kind
    end = std::find(writable_.begin() + begin, writable_.end(), 1 - writable_[begin]) - writable_.begin();
    if (writable_[begin] != 0 || same(begin, end)) continue;
    while (same(begin, begin + 1)) ++begin;
    ADD_FAILURE() << name_ << ": element " << static_cast<int64_t>(begin) - kGuard
                  << " of its buffer was written, which is no part of an output";
    return;
  }
}

const std::vector<Backend>& backends() {
  static const std::vector<Backend> all = [] {
    std::vector<Backend> list;
    const char* only = std::getenv("AFT_TEST_BACKEND");
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      const std::string name = hwy::TargetName(target);
      // The first is what the library chooses.
      if (only == nullptr || name == only) list.push_back({.name = name, .target = list.empty() ? 0 : target});
    }
#ifdef AFT_CUDA
    DeviceMemory* cuda = only == nullptr || std::string(only) == "cuda" ? cuda_memory() : nullptr;
    if (cuda != nullptr) list.push_back({.name = "cuda", .cuda = true, .memory = cuda});
#endif
    if (list.empty()) throw std::invalid_argument(std::string("AFT_TEST_BACKEND: no such backend here: ") + only);
    return list;
  }();
  return all;
}

namespace {
const Backend* current = nullptr;  // null: the first
}  // namespace

const Backend& current_backend() { return current == nullptr ? backends().front() : *current; }
BackendScope::BackendScope(const Backend& backend) : before_(current) { current = &backend; }
BackendScope::~BackendScope() { current = before_; }

}  // namespace aft::ops::test
