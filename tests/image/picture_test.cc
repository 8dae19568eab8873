#include "image/picture.h"

#include <gtest/gtest.h>

#include <string>

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

TEST(Picture, ChannelsAsPillowTurnsThem) {
  const Picture grey = {{1, 2, 1}, {7, 250}};
  EXPECT_EQ(with_channels(grey, 3).shape, (ImageShape{1, 2, 3}));
  EXPECT_EQ(with_channels(grey, 3).values, (Values{7, 7, 7, 250, 250, 250}));
  EXPECT_EQ(with_channels(grey, 1).values, grey.values);
  // Of Pillow 13: Image.frombytes("RGB", (9, 1), ...).convert("L").
  const Picture colors = {{1, 9, 3}, {255, 255, 255, 255, 0, 0, 0, 255, 0,   0,   0,  255, 1,  2,
                                      3,   200, 100, 50,  0, 1, 0, 254, 255, 253, 12, 99,  201}};
  EXPECT_EQ(with_channels(colors, 1).shape, (ImageShape{1, 9, 1}));
  EXPECT_EQ(with_channels(colors, 1).values, (Values{255, 76, 150, 29, 2, 124, 1, 254, 85}));
  EXPECT_EQ(with_channels(colors, 3).values, colors.values);
  for (const int64_t number : {0, 2, 4}) {
    EXPECT_EQ(message([&] { with_channels(grey, number); }),
              "channels: expected 1 or 3, got " + std::to_string(number));
  }
  EXPECT_EQ(message([] { with_channels({{1, 1, 4}, {1, 2, 3, 4}}, 3); }), "channels: expected 1 or 3, got 4");
}

}  // namespace
}  // namespace aft
