#include "image/png.h"

#include <gtest/gtest.h>

#include <string>

#include "../data/message.h"
#include "../io/random_bytes.h"
#include "../io/temporary_folder.h"
#include "png_bytes.h"

namespace aft {
namespace {

using test::chunk;
using test::png;
using Values = std::vector<uint8_t>;

Picture read(const std::string& bytes) {
  return decode_png({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "a.png");
}

std::string refusal(const std::string& bytes) {
  std::string text = message([&] { static_cast<void>(read(bytes)); });
  EXPECT_TRUE(text.empty() || text.starts_with("a.png: ")) << text;
  return text;
}

std::string bytes(std::initializer_list<int> values) {
  std::string text;
  for (const int value : values) text += static_cast<char>(value);
  return text;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Png, WhatIsWrittenIsRead) {
  const test::TemporaryFolder folder;
  for (const ImageShape shape : {ImageShape{1, 1, 1}, {1, 1, 3}, {5, 7, 3}, {3, 1, 1}, {1, 9, 1}, {33, 65, 3}}) {
    const Picture picture = {shape, test::random_bytes(shape.bytes(), 3)};
    write_png(folder / "b.png", picture);
    const Picture again = read(test::read_all(folder / "b.png"));
    EXPECT_EQ(again.shape, shape);
    EXPECT_EQ(again.values, picture.values);
    EXPECT_EQ(encode_png(picture), encode_png(picture));
  }
}

TEST(Png, ReadsEveryForm) {
  const Picture grey = read(png({2, 3}, bytes({0, 1, 2, 0, 250, 128, 0, 7, 255})));
  EXPECT_EQ(grey.shape, (ImageShape{3, 2, 1}));
  EXPECT_EQ(grey.values, (Values{1, 2, 250, 128, 7, 255}));
  // Filters: 1 adds the pixel to the left, 2 the one above, each channel its own.
  const Picture colors = read(png({2, 2, 8, 2}, bytes({1, 1, 2, 3, 1, 1, 1, 2, 5, 5, 5, 0, 0, 255})));
  EXPECT_EQ(colors.shape, (ImageShape{2, 2, 3}));
  EXPECT_EQ(colors.values, (Values{1, 2, 3, 2, 3, 4, 6, 7, 8, 2, 3, 3}));
  EXPECT_EQ(read(png({3, 1, 1}, bytes({0, 0b10100000}))).values, (Values{255, 0, 255}));
  EXPECT_EQ(read(png({4, 1, 2}, bytes({0, 0b00011011}))).values, (Values{0, 85, 170, 255}));
  EXPECT_EQ(read(png({2, 1, 4}, bytes({0, 0x3c}))).values, (Values{51, 204}));
  // Of 16 bits, v / 257.
  EXPECT_EQ(read(png({3, 1, 16}, bytes({0, 0x12, 0x34, 0xff, 0xff, 0x80, 0x10}))).values, (Values{18, 255, 128}));
  const std::string palette = chunk("PLTE", bytes({1, 2, 3, 200, 100, 0, 9, 9, 9}));
  const Picture indexed = read(png({3, 1, 2, 3}, bytes({0, 0b01100000}), palette));
  EXPECT_EQ(indexed.shape, (ImageShape{1, 3, 3}));
  EXPECT_EQ(indexed.values, (Values{200, 100, 0, 9, 9, 9, 1, 2, 3}));
  // The seven passes of a grid of 3 x 3 whose value is 10 row + column: one pixel; none; none; column 2 of row 0;
  // row 2 at columns 0 and 2; column 1 of rows 0 and 2; row 1.
  const std::string passes = bytes({0, 0, 0, 2, 0, 20, 22, 0, 1, 0, 21, 0, 10, 11, 12});
  EXPECT_EQ(read(png({3, 3, 8, 0, true}, passes)).values, (Values{0, 1, 2, 10, 11, 12, 20, 21, 22}));
  // Values are those that stand in the file, whatever it says of gamma.
  const std::string gamma = chunk("gAMA", test::big_endian(100000));
  EXPECT_EQ(read(png({2, 1}, bytes({0, 100, 200}), gamma)).values, (Values{100, 200}));
}

TEST(Png, TransparencyIsDropped) {
  // Grey and colours with alpha; a grey and a colour that are transparent; a palette with alpha. As Pillow's
  // convert("RGB") and convert("L") leave the colours.
  EXPECT_EQ(read(png({2, 1, 8, 4}, bytes({0, 5, 255, 6, 0}))).values, (Values{5, 6}));
  EXPECT_EQ(read(png({2, 1, 8, 6}, bytes({0, 5, 6, 7, 255, 8, 9, 10, 0}))).values, (Values{5, 6, 7, 8, 9, 10}));
  EXPECT_EQ(read(png({2, 1}, bytes({0, 5, 1}), chunk("tRNS", bytes({0, 1})))).values, (Values{5, 1}));
  const Picture keyed = read(png({1, 1, 8, 2}, bytes({0, 5, 6, 7}), chunk("tRNS", bytes({0, 5, 0, 6, 0, 7}))));
  EXPECT_EQ(keyed.shape, (ImageShape{1, 1, 3}));
  EXPECT_EQ(keyed.values, (Values{5, 6, 7}));
  const std::string palette = chunk("PLTE", bytes({1, 2, 3, 4, 5, 6})) + chunk("tRNS", bytes({9}));
  EXPECT_EQ(read(png({2, 1, 8, 3}, bytes({0, 0, 1}), palette)).values, (Values{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(read(png({1, 1, 16, 4}, bytes({0, 0x80, 0x10, 0, 0}))).values, Values{128});
}

TEST(Png, RefusesWhatIsNoPng) {
  for (const std::string& other : {std::string(), std::string("P5 1 1 255\n0"), std::string("\x89PNG\r\n"),
                                   std::string("\x89PNG\n\x1a\n and more", 16)}) {
    EXPECT_TRUE(contains(refusal(other), "expected a PNG file, got something else")) << other;
  }
}

TEST(Png, RefusesWhatIsCutShortOrCorrupt) {
  const std::string good = png({5, 4, 8, 2}, std::string(4 * 16, '\0'));
  for (size_t length = 8; length < good.size(); ++length) {
    EXPECT_TRUE(contains(refusal(good.substr(0, length)), "truncated")) << length;
  }
  int corrupt = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    try {  // a chunk that need not be known may be anything, but never another picture
      EXPECT_EQ(read(bad).values, Values(60, 0)) << i;
    } catch (const Error&) {
      ++corrupt;
    }
  }
  EXPECT_GT(corrupt, static_cast<int>(good.size()) - 8);
  const std::string few = png({5, 4, 8, 2}, std::string(3 * 16, '\0'));  // a row too few
  EXPECT_TRUE(contains(refusal(few), "corrupt"));
}

TEST(Png, RefusesHugeSizesBeforeTakingMemory) {
  EXPECT_TRUE(contains(refusal(png({1 << 19, 1 << 19, 16, 2}, bytes({0, 0}))), "expected at most 16777216 pixels"));
  EXPECT_TRUE(contains(refusal(png({4097, 4096}, bytes({0, 0}))), "got 4096 x 4097"));
  EXPECT_TRUE(contains(refusal(png({0x7fffffff, 1}, bytes({0, 0}))), "corrupt"));
  EXPECT_TRUE(contains(refusal(png({0, 1}, bytes({0, 0}))), "corrupt"));
}

TEST(Png, WritesWholeFilesOfWhatIsAPictureAlone) {
  const test::TemporaryFolder folder;
  EXPECT_TRUE(contains(message([] { encode_png({{1, 1, 2}, {1, 2}}); }), "1 or 3 channels"));
  EXPECT_TRUE(contains(message([] { encode_png({{1, 2, 1}, {1}}); }), "1 or 3 channels"));
  EXPECT_TRUE(contains(message([] { encode_png({{0, 2, 1}, {}}); }), "on a side"));
  EXPECT_TRUE(contains(message([] { encode_png({{1, 1'000'001, 1}, Values(1'000'001)}); }), "on a side"));
  EXPECT_TRUE(contains(message([&] { write_png(folder.path(), {{1, 1, 1}, {1}}); }), "got a folder"));
  write_png(folder / "c.png", {{1, 1, 1}, {1}});
  EXPECT_THROW(write_png(folder / "c.png", {{1, 1, 1}, {}}), Error);
  EXPECT_EQ(read(test::read_all(folder / "c.png")).values, Values{1});
}

}  // namespace
}  // namespace aft
