#include "image/picture.h"

#include <gtest/gtest.h>

#include "../data/message.h"

namespace aft {
namespace {

using Values = std::vector<uint8_t>;

TEST(Picture, GridByHand) {
  const std::vector<Picture> three = {{{1, 2, 1}, {1, 2}}, {{1, 2, 1}, {3, 4}}, {{1, 2, 1}, {5, 6}}};
  const uint8_t w = 255;
  const Picture two = grid(three, 2);
  EXPECT_EQ(two.shape, (ImageShape{5, 7, 1}));
  EXPECT_EQ(two.values, (Values{w, w, w, w, w, w, w,  //
                                w, 1, 2, w, 3, 4, w,  //
                                w, w, w, w, w, w, w,  //
                                w, 5, 6, w, w, w, w,  //
                                w, w, w, w, w, w, w}));
  EXPECT_EQ(grid(three, 1).shape, (ImageShape{7, 4, 1}));
  EXPECT_EQ(grid(three, 9).shape, (ImageShape{3, 10, 1}));  // no wider than they are
  const std::vector<Picture> color = {{{2, 1, 3}, {1, 2, 3, 4, 5, 6}}};
  EXPECT_EQ(grid(color, 1).values, (Values{w, w, w, w, w, w, w, w, w,  //
                                           w, w, w, 1, 2, 3, w, w, w,  //
                                           w, w, w, 4, 5, 6, w, w, w,  //
                                           w, w, w, w, w, w, w, w, w}));
}

TEST(Picture, GridRefuses) {
  const std::vector<Picture> one = {{{1, 2, 1}, {1, 2}}};
  EXPECT_EQ(message([&] { grid(one, 0); }), "columns: expected at least 1, got 0");
  EXPECT_EQ(message([] { grid({}, 1); }), "pictures: expected at least one for a grid, got none");
  for (const Picture& other : {Picture{{2, 1, 1}, {1, 2}}, Picture{{1, 2, 1}, {1}}}) {
    EXPECT_NE(message([&] {
                grid(std::vector<Picture>{one[0], other}, 1);
              }).find("1 x 2 pixels of 1 value"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace aft
