#include "data/data_set.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "data/epoch_order.h"
#include "data/images.h"
#include "data/text.h"
#include "examples.h"
#include "message.h"
#include "scratch.h"

namespace aft {
namespace {

TEST(DataSet, SplitsHaveNames) {
  EXPECT_STREQ(name_of(Split::kTrain), "train");
  EXPECT_STREQ(name_of(Split::kValid), "valid");
  EXPECT_STREQ(name_of(Split::kTest), "test");
}

std::vector<uint8_t> bytes(int64_t count) {
  std::vector<uint8_t> all(static_cast<size_t>(count));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint8_t>(i * i / 7 + i);
  return all;
}

/// Two epochs of train, and both other splits, as this thread reads them: backwards if asked.
std::vector<Example> read_all(const DataSet& set, bool backwards) {
  const EpochOrder order(set.size(Split::kTrain), 3);
  const int64_t train = 2 * order.count();
  const int64_t valid = set.size(Split::kValid);
  const int64_t count = train + valid + set.size(Split::kTest);
  std::vector<Example> all(static_cast<size_t>(count));
  for (int64_t n = 0; n < count; ++n) {
    const int64_t i = backwards ? count - 1 - n : n;
    Example& read = all[static_cast<size_t>(i)];
    if (i < train) {
      read = example(set, Split::kTrain, order.at(i).index, order.draw(i));
    } else if (i < train + valid) {
      read = example(set, Split::kValid, i - train);
    } else {
      read = example(set, Split::kTest, i - train - valid);
    }
  }
  return all;
}

void expect_same_from_threads(const DataSet& set) {
  const auto expected = read_all(set, false);
  std::vector<std::vector<Example>> got(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < got.size(); ++i) {
    threads.emplace_back([&, i] { got[i] = read_all(set, i % 2 != 0); });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& one : got) EXPECT_EQ(one, expected);
}

TEST(DataSet, SeveralThreadsReadTheSame) {
  expect_same_from_threads(Images({5, 7, 3}, 10, {bytes(200 * 105), std::vector<uint8_t>(200, 9)},
                                  {bytes(11 * 105), std::vector<uint8_t>(11, 1)}, 31, {true, 40}));
  const Scratch scratch;
  const auto text = bytes(20011);
  const auto file = scratch.write("text", {text.begin(), text.end()});
  expect_same_from_threads(TextData({Bytes::load(file), Bytes({1, 2, 3, 4}), Bytes(bytes(700))}, 61));
}

}  // namespace
}  // namespace aft
