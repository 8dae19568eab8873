#include "data/image_folder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "examples.h"
#include "image/crop.h"
#include "image/png.h"
#include "message.h"
#include "scratch.h"

namespace aft {
namespace {

using Values = std::vector<uint8_t>;

constexpr ImageShape kGrey{2, 2, 1};

std::string png(const Picture& picture) {
  const std::vector<uint8_t> bytes = encode_png(picture);
  return {bytes.begin(), bytes.end()};
}

/// 2 x 2 pixels, all of one value.
std::string flat(int value) { return png(plain_picture(kGrey, static_cast<uint8_t>(value))); }

class ImageFolderTest : public testing::Test {
 protected:
  /// `count` images of a class, of the values first, first + 1, ...
  void write_class(const std::string& folder, int first, int count) const {
    for (int i = 0; i < count; ++i) {
      scratch_.write("set/" + folder + "/" + std::to_string(100 + i) + ".png", flat(first + i));
    }
  }
  [[nodiscard]] std::filesystem::path path() const { return scratch_.path() / "set"; }
  [[nodiscard]] ImageFolder load(int64_t holdout = -1, Broken broken = Broken::kStop, ImageShape shape = kGrey) const {
    return {path(), {shape}, holdout, {}, broken};
  }
  [[nodiscard]] std::string refusal(int64_t holdout = -1) const {
    return message([&] { static_cast<void>(load(holdout)); });
  }
  /// What `text` says of a path below the folder.
  [[nodiscard]] std::string of(const std::string& below, const std::string& text) const {
    return (below.empty() ? path() : path() / below).string() + text;
  }

  Scratch scratch_;
};

/// First values and labels of a split, in order.
std::vector<std::pair<int, int64_t>> all(const ImageFolder& set, Split split) {
  std::vector<std::pair<int, int64_t>> out;
  for (int64_t i = 0; i < set.size(split); ++i) {
    const Example read = example(set, split, i);
    out.emplace_back(read.first[0], read.second.first);
  }
  return out;
}

TEST_F(ImageFolderTest, ClassesAndFilesInOrderOfTheirNames) {
  write_class("train/b", 10, 2);
  write_class("train/a", 20, 1);
  write_class("val/b", 30, 1);
  write_class("test/a", 40, 1);
  scratch_.write("set/train/a/notes.txt", "no image");
  scratch_.write("set/train/a/.hidden.png", "no image");
  scratch_.write("set/train/.hidden/x.png", "no class");
  scratch_.write("set/train/a/deep/er/1.PNG", flat(21));
  scratch_.write("set/others/x.png", "neither");
  const ImageFolder set = load();
  const auto names = set.class_names();
  EXPECT_EQ(std::vector<std::string>(names.begin(), names.end()), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(set.classes(), 2);
  EXPECT_EQ(set.shape(), kGrey);
  EXPECT_EQ(set.bytes(Split::kTrain, 3), 4);
  EXPECT_EQ(all(set, Split::kTrain), (std::vector<std::pair<int, int64_t>>{{20, 0}, {21, 0}, {10, 1}, {11, 1}}));
  EXPECT_EQ(all(set, Split::kValid), (std::vector<std::pair<int, int64_t>>{{30, 1}}));
  EXPECT_EQ(all(set, Split::kTest), (std::vector<std::pair<int, int64_t>>{{40, 0}}));
  EXPECT_TRUE(set.skipped().empty());
}

TEST_F(ImageFolderTest, HoldsOutAShareOfEachClass) {
  write_class("a", 0, 40);
  write_class("b", 100, 20);
  write_class("c", 200, 1);
  for (const int64_t holdout : {-1, 0, 1, 7, 12, 58}) {
    SCOPED_TRACE(holdout);
    const ImageFolder set = load(holdout);
    const int64_t expected = holdout == -1 ? 6 : holdout;
    EXPECT_EQ(set.size(Split::kValid), expected);
    EXPECT_EQ(set.size(Split::kTest), 0);
    auto images = all(set, Split::kTrain);
    std::vector<int64_t> held(3);
    for (const auto& image : all(set, Split::kValid)) {
      images.push_back(image);
      ++held[static_cast<size_t>(image.second)];
    }
    EXPECT_EQ(std::set(images.begin(), images.end()).size(), 61U) << "each once";
    EXPECT_EQ(held[2], 0) << "the only one stays for train";
    EXPECT_LT(std::abs(static_cast<double>(held[0]) - static_cast<double>(expected) * 40 / 61), 1.01);
    EXPECT_LT(std::abs(static_cast<double>(held[1]) - static_cast<double>(expected) * 20 / 61), 1.01);
    EXPECT_EQ(all(load(holdout), Split::kValid), all(set, Split::kValid));
  }
  // Not the first or last of a class.
  const auto valid = all(load(30), Split::kValid);
  std::vector<int> values;
  for (const auto& [value, label] : valid) values.push_back(value);
  EXPECT_TRUE(std::is_sorted(values.begin(), values.end()));
  EXPECT_GT(values[19] - values[0], 24);
  EXPECT_EQ(refusal(59),
            "data.holdout: expected at most 58 of the 61 training images, so that each class keeps one, "
            "got 59");
}

TEST_F(ImageFolderTest, ImagesAreCutAtTheCentreAndResized) {
  // 2 x 6 pixels: the middle two columns are the centre. Grey becomes three equal channels.
  scratch_.write("set/a/wide.png", png({{2, 6, 1}, {0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15}}));
  scratch_.write("set/a/high.png", png({{4, 2, 1}, {0, 1, 2, 3, 4, 5, 6, 7}}));
  scratch_.write("set/b/same.png", png({{2, 2, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}));
  scratch_.write("set/b/large.png", png(plain_picture({9, 5, 3}, 77)));
  const ImageFolder set = load(0, Broken::kStop, {2, 2, 3});
  EXPECT_EQ(example(set, Split::kTrain, 0).first, (Values{2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5}));
  EXPECT_EQ(example(set, Split::kTrain, 1).first, (Values{2, 2, 2, 3, 3, 3, 12, 12, 12, 13, 13, 13}));
  EXPECT_EQ(example(set, Split::kTrain, 2).first, Values(12, 77));
  EXPECT_EQ(example(set, Split::kTrain, 3).first, (Values{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
  const ImageFolder grey = load(0, Broken::kStop, {1, 3, 1});  // a third of the height
  EXPECT_EQ(example(grey, Split::kTrain, 2).first, Values(3, 77));
}

TEST_F(ImageFolderTest, TrainingImagesAreAugmented) {
  scratch_.write("set/a/1.png", png({{1, 3, 1}, {10, 20, 30}}));
  scratch_.write("set/b/1.png", png({{1, 3, 1}, {10, 20, 30}}));
  const ImageFolder set(path(), {1, 3, 1}, 0, {true, 10}, Broken::kStop);
  const Images images({1, 3, 1}, 1, {{10, 20, 30}, {0}}, {}, 0, {true, 10});
  for (const uint64_t draw : {0, 2, 3}) {
    EXPECT_EQ(example(set, Split::kTrain, 1, draw).first, example(images, Split::kTrain, 0, draw).first);
  }
  EXPECT_EQ(example(set, Split::kTrain, 0).first, (Values{10, 20, 30}));
}

TEST_F(ImageFolderTest, RandomCropsAreOfTheWholePicture) {
  Picture wide = plain_picture({8, 30, 1}, 0);
  for (size_t i = 0; i < wide.values.size(); ++i) wide.values[i] = static_cast<uint8_t>(i % 30 * 8);
  scratch_.write("set/a/1.png", png(wide));
  scratch_.write("set/b/1.png", png(wide));
  const ImageFolder set(path(), {4, 4, 1}, 0, {.crop = CropScale{0.1, 0.2}}, Broken::kStop);
  EXPECT_EQ(example(set, Split::kTrain, 0).first, fit_for_evaluation(wide, 4, 4, 1, Resampling::kBicubic).values);
  int least = 255;
  int most = 0;
  for (uint64_t draw = 0; draw < 50; ++draw) {
    const Values values = example(set, Split::kTrain, 1, draw).first;
    EXPECT_EQ(values, augmented(wide, {4, 4, 1}, {.crop = CropScale{0.1, 0.2}}, draw).values);
    least = std::min<int>(least, values.front());
    most = std::max<int>(most, values.back());
  }
  // The middle is of values 88 to 144.
  EXPECT_LT(least, 40);
  EXPECT_GT(most, 200);
}

TEST_F(ImageFolderTest, ChecksumIsOfNamesSizesAndLabels) {
  write_class("train/a", 1, 2);
  write_class("train/b", 3, 1);
  write_class("val/a", 5, 1);
  const uint64_t train = load().checksum(Split::kTrain);
  const uint64_t valid = load().checksum(Split::kValid);
  EXPECT_NE(train, valid);
  EXPECT_EQ(load().checksum(Split::kTest), 0U);
  std::filesystem::rename(path(), scratch_.path() / "moved");
  EXPECT_EQ(ImageFolder(scratch_.path() / "moved", {9, 9, 3}, -1, {true, 1}, Broken::kSkip).checksum(Split::kTrain),
            train);
  std::filesystem::rename(scratch_.path() / "moved", path());
  scratch_.write("set/train/b/100.png", flat(3) + "longer");
  EXPECT_NE(load().checksum(Split::kTrain), train);
  scratch_.write("set/train/b/100.png", flat(3));
  EXPECT_EQ(load().checksum(Split::kTrain), train);
  std::filesystem::rename(path() / "train/b/100.png", path() / "train/b/101.png");
  EXPECT_NE(load().checksum(Split::kTrain), train);
  EXPECT_EQ(load().checksum(Split::kValid), valid);
}

TEST_F(ImageFolderTest, WhatIsNoSuchFolderIsRefused) {
  EXPECT_EQ(refusal(), "data.path: expected a folder of images, a folder a class, got " + path().string());
  scratch_.write("set/a.png", flat(1));
  EXPECT_EQ(refusal(), of("", ": expected a folder for each of at least two classes, got none"));
  write_class("train/a", 1, 2);
  EXPECT_EQ(refusal(), of("train", ": expected a folder for each of at least two classes, got that of a alone"));
  std::filesystem::create_directories(path() / "train/b");
  const std::string none =
      ": expected images (.jpg, .jpeg or .png) of the class, got none; add some, or remove the folder";
  EXPECT_EQ(refusal(), of("train/b", none));
  scratch_.write("set/train/b/1.gif", "GIF89a");
  EXPECT_EQ(refusal(), of("train/b", none));
  write_class("train/b", 1, 2);
  EXPECT_EQ(refusal(), "");
  write_class("val/c", 1, 1);
  EXPECT_EQ(refusal(), of("val/c", ": expected a class that train has too, got another; rename the folder"));
  std::filesystem::remove_all(path() / "val/c");
  EXPECT_EQ(refusal(), of("val", ": expected a folder for each class, got none"));
  write_class("val/b", 1, 1);
  EXPECT_EQ(refusal(0), "");
  EXPECT_EQ(refusal(1),
            "data.holdout: expected nothing, as " + path().string() + " has a folder for validation, got 1; remove it");
  write_class("valid/b", 1, 1);
  EXPECT_EQ(refusal(), of("", ": expected one of val and valid, got both; rename one of them"));
  std::filesystem::remove_all(path() / "valid");
  std::filesystem::rename(path() / "train", path() / "trian");
  EXPECT_EQ(refusal(), of("", ": expected a folder train beside that for validation, got none"));
}

TEST_F(ImageFolderTest, ABrokenFileIsNamed) {
  write_class("a", 1, 2);
  write_class("b", 3, 2);
  scratch_.write("set/b/100.png", flat(3).substr(0, 40));
  scratch_.write("set/a/101.png", "<html>");
  std::filesystem::remove(path() / "a/100.png");  // after the folder was read
  std::filesystem::create_symlink("nowhere", path() / "a/100.png");
  const ImageFolder set = load(0);
  const std::string remedy = "; or set data.broken = \"skip\", which takes another image instead";
  EXPECT_EQ(message([&] { example(set, Split::kTrain, 0); }),
            of("a/100.png", ": cannot be read: No such file or directory" + remedy));
  EXPECT_EQ(message([&] { example(set, Split::kTrain, 1); }),
            of("a/101.png",
               ": expected a JPEG or PNG file, got one that begins with \"<html>\"; convert it to one of "
               "them" +
                   remedy));
  EXPECT_EQ(message([&] { example(set, Split::kTrain, 2); }),
            of("b/100.png", ": expected a whole PNG file, got a truncated one; get it again" + remedy));
  EXPECT_EQ(example(set, Split::kTrain, 3).second, Label{1});
}

TEST_F(ImageFolderTest, BrokenFilesAreSkippedTheSameWayByAnyThread) {
  write_class("a", 1, 3);
  write_class("b", 11, 3);
  scratch_.write("set/a/102.png", "broken");
  scratch_.write("set/b/100.png", "broken");
  scratch_.write("set/b/102.png", "broken");
  const ImageFolder set = load(0, Broken::kSkip);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { all(set, Split::kTrain); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(all(set, Split::kTrain),
            (std::vector<std::pair<int, int64_t>>{{1, 0}, {2, 0}, {12, 1}, {12, 1}, {12, 1}, {1, 0}}));
  const std::vector<std::string> skipped = set.skipped();
  ASSERT_EQ(skipped.size(), 3U);
  for (const char* name : {"a/102.png", "b/100.png", "b/102.png"}) {
    EXPECT_TRUE(std::any_of(skipped.begin(), skipped.end(),
                            [&](const std::string& text) { return text.starts_with(of(name, ": expected")); }));
  }
  for (const char* name : {"a/100.png", "a/101.png", "b/101.png"}) scratch_.write(std::string("set/") + name, "x");
  EXPECT_EQ(message([&] { example(set, Split::kTrain, 4); }),
            of("", ": expected an image of train that can be read, got none"));
}

TEST_F(ImageFolderTest, IsLoadedByItsFormat) {
  write_class("a", 1, 2);
  write_class("b", 3, 2);
  DataConfig config;
  config.format = "folder";
  config.path = path().string();
  config.broken = "skip";
  const auto set = load_images(config, {kGrey});
  EXPECT_EQ(set->classes(), 2);
  EXPECT_EQ(set->size(Split::kValid), 1);
  EXPECT_EQ(load_any_images(path(), {kGrey})->size(Split::kTrain), 4);
  config.broken = "maybe";
  EXPECT_EQ(message([&] { load_images(config, {kGrey}); }),
            "data.broken: expected \"stop\" or \"skip\", got \"maybe\"");
  config.format = "idx";
  EXPECT_EQ(message([&] { load_images(config, {kGrey}); }),
            "data.broken: expected nothing with data.format = \"idx\", which is read before the run begins, got maybe; "
            "remove it");
}

}  // namespace
}  // namespace aft
