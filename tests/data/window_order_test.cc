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

TEST(WindowOrder, TooLittleDataIsAnError) {
  EXPECT_THROW(WindowOrder(8, 8, 0), Error);
  EXPECT_NO_THROW(WindowOrder(9, 8, 0));
  EXPECT_THROW(WindowOrder(9, 0, 0), Error);
}

}  // namespace
}  // namespace aft
