#include "data/epoch_order.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

#include "message.h"
#include "numbers/mix.h"

namespace aft {
namespace {

std::vector<int64_t> indices(const EpochOrder& order, int64_t epoch) {
  std::vector<int64_t> all;
  for (int64_t i = 0; i < order.count(); ++i) {
    const auto place = order.at(epoch * order.count() + i);
    EXPECT_EQ(place.epoch, epoch);
    all.push_back(place.index);
  }
  return all;
}

TEST(Mix, IsSplitmix64) {
  // The first three numbers of the published generator for this seed.
  EXPECT_EQ(mix(1234567), 6457827717110365317U);
  EXPECT_EQ(mix(1234567 + kMixStep), 3203168211198807973U);
  EXPECT_EQ(mix(1234567 + 2 * kMixStep), 9817491932198370423U);
}

TEST(EpochOrder, EveryIndexOnceAnEpoch) {
  for (const int64_t count : {1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 1031}) {
    for (const int64_t epoch : {0, 1, 2, 1000}) {
      std::vector<int> visits(static_cast<size_t>(count));
      for (const int64_t index : indices(EpochOrder(count, 7), epoch)) {
        ASSERT_GE(index, 0);
        ASSERT_LT(index, count);
        ++visits[static_cast<size_t>(index)];
      }
      EXPECT_EQ(visits, std::vector<int>(static_cast<size_t>(count), 1)) << count << ", epoch " << epoch;
    }
  }
}

TEST(EpochOrder, SeedAndEpochDecide) {
  EXPECT_EQ(indices(EpochOrder(1000, 1), 3), indices(EpochOrder(1000, 1), 3));
  EXPECT_NE(indices(EpochOrder(1000, 1), 3), indices(EpochOrder(1000, 2), 3));
  EXPECT_NE(indices(EpochOrder(1000, 1), 3), indices(EpochOrder(1000, 1), 4));
}

TEST(EpochOrder, PlacesAndDrawsAreAsTheyAlwaysWere) {
  // From the definition, written down a second time in another language.
  const EpochOrder order(5, 11);
  const std::vector<int64_t> expected = {3, 0, 2, 4, 1, 3, 2, 0, 4, 1, 4, 3};
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(order.at(static_cast<int64_t>(i)).index, expected[i]);
  const std::vector<uint64_t> draws = {7646821082104366248U,  18259300995051000429U, 2491542334940487229U,
                                       15968082850953502737U, 2398851675298127437U,  534153163539902782U};
  for (size_t i = 0; i < draws.size(); ++i) EXPECT_EQ(order.draw(static_cast<int64_t>(i)), draws[i]);
  const EpochOrder large(50000, 1);
  EXPECT_EQ(large.at(123456789).epoch, 2469);
  EXPECT_EQ(large.at(123456789).index, 26897);
  EXPECT_EQ(large.draw(123456789), 5126266702627226007U);
}

TEST(EpochOrder, EveryVisitHasADrawOfItsOwn) {
  std::set<uint64_t> draws;
  for (const uint64_t seed : {1, 2}) {
    for (int64_t i = 0; i < 3000; ++i) draws.insert(EpochOrder(1000, seed).draw(i));
  }
  EXPECT_EQ(draws.size(), 6000U);
}

TEST(EpochOrder, NoExamplesAreAnError) {
  EXPECT_EQ(message([] { EpochOrder(0, 1); }), "count: expected at least one example, got 0");
  EXPECT_EQ(message([] { EpochOrder(-1, 1); }), "count: expected at least one example, got -1");
  EXPECT_EQ(message([] { EpochOrder(1, 1); }), "");
}

}  // namespace
}  // namespace aft
