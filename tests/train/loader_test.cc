#include "train/loader.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "aft/error.h"

namespace aft {
namespace {

/// Example i is three times the byte i, plus what the draw says; number `broken` cannot be read.
class Counted : public DataSet {
 public:
  explicit Counted(int64_t count, int64_t broken = -1) : count_(count), broken_(broken) {}
  [[nodiscard]] int64_t size(Split split) const override { return split == Split::kTrain ? count_ : 0; }
  [[nodiscard]] int64_t bytes(Split /*split*/, int64_t /*index*/) const override { return 3; }
  Label read(Split /*split*/, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const override {
    ++reads;
    std::this_thread::sleep_for(std::chrono::microseconds(index % 7 * 100));  // threads overtake each other
    if (index == broken_) throw Error("example " + std::to_string(index) + " is gone");
    for (uint8_t& byte : out) byte = static_cast<uint8_t>(static_cast<uint64_t>(index) + draw.value() % 100);
    return {.first = index};
  }
  [[nodiscard]] uint64_t checksum(Split /*split*/) const override { return 0; }
  mutable std::atomic<int64_t> reads = 0;

 private:
  int64_t count_;
  int64_t broken_;
};

TEST(Loader, GivesTheSameWithAnyNumberOfThreads) {
  const Counted data(23);
  const EpochOrder order(23, 5);
  for (const int64_t threads : {0, 1, 3, 8}) {
    Loader loader(data, order, 4, torch::kCPU, threads);
    for (int64_t position = 0; position < 60; position += 4) {
      const Batch batch = loader.take(position);
      ASSERT_EQ(batch.bytes.sizes(), (std::vector<int64_t>{4, 3}));
      for (int64_t row = 0; row < 4; ++row) {
        const int64_t index = order.at(position + row).index;
        EXPECT_EQ(batch.labels[row].item<int64_t>(), index) << threads;
        const auto value = static_cast<uint8_t>(static_cast<uint64_t>(index) + order.draw(position + row) % 100);
        EXPECT_EQ(batch.bytes[row][2].item<uint8_t>(), value) << threads;
      }
    }
  }
}

TEST(Loader, GoesAnywhereInTheRun) {
  const Counted data(23);
  const EpochOrder order(23, 5);
  for (const int64_t threads : {0, 1, 3}) {
    Loader loader(data, order, 2, torch::kCPU, threads);
    for (const int64_t position : {10, 12, 14, 12, 12, 100, 102, 0, 2, 31, 33, 35, 37, 45, 4}) {
      EXPECT_EQ(loader.take(position).labels[1].item<int64_t>(), order.at(position + 1).index) << position;
    }
  }
}

TEST(Loader, ReadsAheadAndNoFurther) {
  const Counted data(1000);
  Loader loader(data, EpochOrder(1000, 1), 5, torch::kCPU, 2);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(data.reads, 0) << "before anybody says where the run stands";
  loader.take(0);
  for (int i = 0; i < 200 && data.reads < 25; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(data.reads, 25) << "the batch taken, and two a thread";
}

TEST(Loader, AnErrorComesOutWhereItsBatchIsTaken) {
  const Counted data(20, 7);
  const EpochOrder order(20, 3);
  for (const int64_t threads : {0, 1, 3}) {
    Loader loader(data, order, 1, torch::kCPU, threads);
    for (int64_t position = 0; position < 20; ++position) {
      if (order.at(position).index == 7) {
        EXPECT_THROW(loader.take(position), Error);
      } else {
        EXPECT_EQ(loader.take(position).labels[0].item<int64_t>(), order.at(position).index);
      }
    }
  }
}

}  // namespace
}  // namespace aft
