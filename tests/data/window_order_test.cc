#include "window_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "aft/error.h"
#include "data/data.h"

namespace aft {
namespace {

std::vector<int64_t> epoch(const WindowOrder& order, int64_t number) {
  std::vector<int64_t> starts;
  for (int64_t i = 0; i < order.windows(); ++i) starts.push_back(order.start(number * order.windows() + i));
  return starts;
}

TEST(WindowOrder, EveryByteAfterTheFirstIsATargetInEveryEpoch) {
  for (const int64_t context : {1, 2, 7, 64}) {
    for (const int64_t bytes :
         {context + 1, context + 2, 2 * context, 2 * context + 1, 5 * context + 3, int64_t{1031}}) {
      if (bytes < context + 1) continue;
      const WindowOrder order(bytes, context, 3);
      for (const int64_t number : {0, 1, 5}) {
        std::vector<int> visits(static_cast<size_t>(bytes));
        for (const int64_t start : epoch(order, number)) {
          ASSERT_GE(start, 0);
          ASSERT_LE(start + context + 1, bytes);
          for (int64_t t = 1; t <= context; ++t) ++visits[static_cast<size_t>(start + t)];
        }
        EXPECT_EQ(visits[0], 0);
        // Once, but for the bytes that the last window, moved back, shares with its neighbour.
        int64_t twice = 0;
        for (size_t i = 1; i < visits.size(); ++i) {
          ASSERT_GE(visits[i], 1) << "byte " << i << " of " << bytes << ", context " << context;
          ASSERT_LE(visits[i], 2);
          twice += visits[i] == 2;
        }
        EXPECT_EQ(twice, order.windows() * context - (bytes - 1));
        EXPECT_LT(twice, context);
      }
    }
  }
}

TEST(WindowOrder, OrderDependsOnSeedAndEpochAndIsMixed) {
  const WindowOrder a(100001, 100, 1);
  const WindowOrder b(100001, 100, 2);
  EXPECT_EQ(a.windows(), 1000);
  EXPECT_EQ(epoch(a, 0), epoch(WindowOrder(100001, 100, 1), 0));
  EXPECT_NE(epoch(a, 0), epoch(b, 0));
  EXPECT_NE(epoch(a, 0), epoch(a, 1));
  // A random permutation of 1000 has about one fixed point and 499500 / 2 inversions with a deviation of 5270.
  const auto starts = epoch(a, 0);
  int64_t inversions = 0;
  for (size_t i = 0; i < starts.size(); ++i) {
    for (size_t j = i + 1; j < starts.size(); ++j) inversions += starts[i] > starts[j];
  }
  EXPECT_NEAR(static_cast<double>(inversions), 249750, 6 * 5270);
}

struct Known {
  int64_t bytes;
  int64_t context;
  uint64_t seed;
  std::vector<int64_t> starts;
};

// Runs that were begun go on: these orders must never change.
TEST(WindowOrder, FirstThreeEpochsAreAsTheyAlwaysWere) {
  const std::vector<Known> all = {
      {2, 1, 0, {0, 0, 0}},
      {9, 8, 7, {0, 0, 0}},
      {10, 8, 1, {0, 1, 1, 0, 1, 0}},
      {17, 8, 3, {8, 0, 0, 8, 8, 0}},
      {18, 8, 3, {8, 0, 9, 0, 8, 9, 9, 0, 8}},
      {98, 8, ~uint64_t{0}, {24, 64, 56, 48, 40, 32, 8, 80, 16, 72, 0,  88, 89, 80, 32, 0,  16, 64, 89, 88,
                             56, 40, 72, 24, 8,  48, 0, 64, 24, 48, 16, 8,  32, 80, 56, 72, 40, 88, 89}},
  };
  for (const Known& known : all) {
    const WindowOrder order(known.bytes, known.context, known.seed);
    ASSERT_EQ(static_cast<size_t>(3 * order.windows()), known.starts.size());
    for (size_t i = 0; i < known.starts.size(); ++i) {
      EXPECT_EQ(order.start(static_cast<int64_t>(i)), known.starts[i]) << known.bytes << ", position " << i;
    }
  }
}

TEST(WindowOrder, LongOrdersAreAsTheyAlwaysWere) {
  struct Sum {
    int64_t bytes;
    int64_t context;
    uint64_t seed;
    int64_t windows;
    uint64_t sum;
  };
  for (const Sum& known : {Sum{1031, 1, 5, 1030, 9632748293340205795U},
                           {1115394, 256, 1, 4358, 9384122239627726336U},
                           {67695077, 1024, 42, 66109, 5362294485167763456U},
                           {int64_t{1} << 40, 7, 9, 157073089683, 17090773284293026818U}}) {
    const WindowOrder order(known.bytes, known.context, known.seed);
    EXPECT_EQ(order.windows(), known.windows);
    uint64_t sum = 0;
    for (int64_t i = 0; i < 1000; ++i) {
      sum = sum * 31 + static_cast<uint64_t>(order.start(i * order.windows() / 7 * 3 + i * i));
    }
    EXPECT_EQ(sum, known.sum) << known.bytes;
  }
}

TEST(WindowOrder, TooLittleDataIsAnError) {
  EXPECT_THROW(WindowOrder(8, 8, 0), Error);
  EXPECT_NO_THROW(WindowOrder(9, 8, 0));
  EXPECT_THROW(WindowOrder(9, 0, 0), Error);
}

}  // namespace
}  // namespace aft
