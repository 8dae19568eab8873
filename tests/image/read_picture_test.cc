#include "image/read_picture.h"

#include <gtest/gtest.h>

#include <string>

#include "../data/message.h"
#include "../io/temporary_folder.h"
#include "image/png.h"

namespace aft {
namespace {

using Values = std::vector<uint8_t>;

TEST(ReadPicture, GoesByTheFirstBytesWhateverTheName) {
  const test::TemporaryFolder folder;
  write_png(folder / "a.jpg", {{1, 2, 1}, {7, 9}});
  EXPECT_EQ(read_picture(folder / "a.jpg").values, (Values{7, 9}));
  const std::filesystem::path grey = std::filesystem::path(AFT_PICTURES) / "grey.jpg";
  test::write_all(folder / "b.png", test::read_all(grey));
  EXPECT_EQ(read_picture(folder / "b.png").values, read_picture(grey).values);
  EXPECT_EQ(read_picture(grey).shape, (ImageShape{13, 19, 1}));
}

TEST(ReadPicture, WhatIsNoPictureIsNamed) {
  const test::TemporaryFolder folder;
  const auto refusal = [&](const std::string& bytes) {
    test::write_all(folder / "a", bytes);
    return message([&] { read_picture(folder / "a"); });
  };
  const std::string expected = (folder / "a").string() + ": expected a JPEG or PNG file, got ";
  const std::string remedy = "; convert it to one of them";
  EXPECT_EQ(refusal(""), expected + "an empty file" + remedy);
  EXPECT_EQ(refusal("x"), expected + "one that begins with \"x\"" + remedy);
  EXPECT_EQ(refusal("GIF89a\"\\ and more"), expected + "one that begins with \"GIF89a\\x22\\x5c\"" + remedy);
  EXPECT_EQ(refusal("\xff\xd8\x01\n"), expected + "one that begins with \"\\xff\\xd8\\x01\\x0a\"" + remedy);
  EXPECT_NE(message([&] { read_picture(folder / "none"); }).find("none: cannot be read"), std::string::npos);
  EXPECT_NE(message([&] { read_picture(folder.path()); }).find(folder.path().string()), std::string::npos);
}

}  // namespace
}  // namespace aft
