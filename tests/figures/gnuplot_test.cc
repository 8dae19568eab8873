#include "figures/gnuplot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "../io/temporary_folder.h"
#include "aft/error.h"
#include "figures/panels.h"
#include "image/read_picture.h"

namespace aft {
namespace {

class Gnuplot : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!gnuplot_exists()) GTEST_SKIP() << "gnuplot is not installed";
  }
  test::TemporaryFolder folder;
  const std::filesystem::path png = folder / "figure.png";
};

TEST_F(Gnuplot, PanelsShowTheirNumbersAsColours) {
  // Two panels beside each other: all of one is its largest, the other is negative everywhere.
  draw_panels({{"a", 2, 3, std::vector<double>(6, 0.25)}, {"b", 1, 1, {-7}}}, 2, "\"title\" \\ %", Colours::kAroundZero,
              png);
  const Picture picture = read_picture(png);
  ASSERT_EQ(picture.shape.channels, 3);
  const auto pixel = [&](int64_t y, int64_t x) {
    const auto* value = picture.values.data() + (y * picture.shape.width + x) * 3;
    return std::array<int, 3>{value[0], value[1], value[2]};
  };
  const int64_t y = picture.shape.height - 40;
  EXPECT_EQ(pixel(y, picture.shape.width / 4), (std::array<int, 3>{0x67, 0x00, 0x1f}));
  EXPECT_EQ(pixel(y, picture.shape.width * 3 / 4), (std::array<int, 3>{0x05, 0x30, 0x61}));
}

TEST_F(Gnuplot, RowZeroIsAbove) {
  draw_panels({{"", 2, 1, {1, 0}}}, 1, "", Colours::kFromZero, png);
  const Picture picture = read_picture(png);
  const auto red = [&](int64_t y) { return picture.values[static_cast<size_t>((y * picture.shape.width + 75) * 3)]; };
  EXPECT_EQ(red(picture.shape.height - 10), 0x44);   // the smallest, dark
  EXPECT_EQ(red(picture.shape.height - 100), 0xfd);  // the largest
}

TEST_F(Gnuplot, TitlesAreNotCutOff) {
  draw_panels({{"share of the weight within 12.5 patches", 2, 2, {1, 2, 3, 4}}}, 1,
              "all layers down, all their heads across", Colours::kFromZero, png);
  const Picture picture = read_picture(png);
  const auto is_white = [&](int64_t y, int64_t x) {
    const auto* value = picture.values.data() + (y * picture.shape.width + x) * 3;
    return std::min({value[0], value[1], value[2]}) == 255;
  };
  bool written = false;
  for (int64_t y = 0; y < 60; ++y) {  // above the panel
    for (const int64_t edge : {int64_t{0}, int64_t{1}, picture.shape.width - 2, picture.shape.width - 1}) {
      EXPECT_TRUE(is_white(y, edge)) << y << ", " << edge;
    }
    for (int64_t x = 2; x + 2 < picture.shape.width; ++x) written = written || !is_white(y, x);
  }
  EXPECT_TRUE(written);
}

TEST_F(Gnuplot, BadPanelsAndCommandsAreErrors) {
  EXPECT_THROW(draw_panels({}, 1, "", Colours::kFromZero, png), Error);
  EXPECT_THROW(draw_panels({{"", 2, 2, {1, 2, 3}}}, 1, "", Colours::kFromZero, png), Error);
  EXPECT_THROW(draw_by_gnuplot("plot nonsense(", {100, 100}, png), SystemError);
  EXPECT_FALSE(std::filesystem::exists(png));
}

}  // namespace
}  // namespace aft
