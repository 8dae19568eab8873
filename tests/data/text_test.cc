#include "data/text.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "data/data.h"
#include "examples.h"
#include "message.h"
#include "scratch.h"
#include "window_order.h"

namespace aft {
namespace {

Bytes text(const std::string& bytes) { return Bytes({bytes.begin(), bytes.end()}); }

std::vector<std::string> all(const DataSet& set, Split split) {
  std::vector<std::string> examples;
  for (int64_t i = 0; i < set.size(split); ++i) {
    const auto [bytes, label] = example(set, split, i);
    EXPECT_EQ(label, Label{});
    examples.emplace_back(bytes.begin(), bytes.end());
  }
  return examples;
}

using Strings = std::vector<std::string>;

TEST(TextData, TrainIsCutIntoWholeWindowsThatShareAByte) {
  for (const auto& [bytes, expected] :
       {std::pair("abcd", Strings{"abcd"}), std::pair("abcde", Strings{"abcd", "bcde"}),
        std::pair("abcdef", Strings{"abcd", "cdef"}), std::pair("abcdefg", Strings{"abcd", "defg"}),
        std::pair("abcdefgh", Strings{"abcd", "defg", "efgh"})}) {
    EXPECT_EQ(all(TextData({text(bytes), {}, {}}, 3), Split::kTrain), expected);
  }
  EXPECT_EQ(all(TextData({text("ab"), {}, {}}, 1), Split::kTrain), Strings{"ab"});
}

TEST(TextData, WindowsAreThoseOfWindowOrder) {
  for (const int64_t context : {1, 2, 7, 64}) {
    for (const int64_t bytes : {context + 1, context + 2, 2 * context + 1, 5 * context + 3, int64_t{1031}}) {
      std::vector<uint8_t> values;
      for (int64_t i = 0; i < bytes; ++i) values.push_back(static_cast<uint8_t>(i * 37 % 251));
      const Bytes train(values);
      const TextData set({train, {}, {}}, context);
      const WindowOrder windows(bytes, context, 9);
      const EpochOrder order(set.size(Split::kTrain), 9);
      for (int64_t i = 0; i < 2 * order.count(); ++i) {
        const auto expected = train.read(windows.start(i), context + 1);
        ASSERT_EQ(example(set, Split::kTrain, order.at(i).index, order.draw(i)).first, expected);
      }
    }
  }
}

TEST(TextData, ValidAndTestHoldEveryByteOnce) {
  for (const Split split : {Split::kValid, Split::kTest}) {
    for (const auto& [bytes, expected] :
         {std::pair("", Strings{}), std::pair("a", Strings{"a"}), std::pair("ab", Strings{"ab"}),
          std::pair("abc", Strings{"abc"}), std::pair("abcd", Strings{"abc", "d"}),
          std::pair("abcdef", Strings{"abc", "def"}), std::pair("abcdefgh", Strings{"abc", "def", "gh"})}) {
      DataSplits splits{text("0123456789"), {}, {}};
      (split == Split::kValid ? splits.valid : splits.test) = text(bytes);
      const TextData set(splits, 3);
      EXPECT_EQ(all(set, split), expected);
      EXPECT_EQ(set.size(split == Split::kValid ? Split::kTest : Split::kValid), 0);
    }
  }
}

TEST(TextData, ChecksumIsThatOfTheBytes) {
  const TextData set({text("123456789"), text("12345"), {}}, 4);
  // CRC-64/XZ of "123456789", from the catalogue of parametrised CRC algorithms.
  EXPECT_EQ(set.checksum(Split::kTrain), 0x995dc9bbdf1939faULL);
  EXPECT_EQ(set.checksum(Split::kValid), checksum(text("12345")));
  EXPECT_EQ(set.checksum(Split::kTest), 0U);
}

TEST(TextData, BadArgumentsAreErrors) {
  EXPECT_EQ(message([] {
              TextData({text("abcd"), {}, {}}, 4);
            }),
            "data: expected at least one training window of context + 1 = 5 bytes, got 4; give more data or a smaller "
            "model.context");
  EXPECT_EQ(message([] { TextData({text("abcd"), {}, {}}, 0); }), "context: expected at least 1, got 0");
  const TextData set({text("abcdefgh"), text("abcd"), {}}, 3);
  EXPECT_EQ(message([&] { static_cast<void>(set.bytes(Split::kTrain, 3)); }),
            "index: expected one of the 3 examples of train, counted from 0, got 3");
  EXPECT_EQ(message([&] { static_cast<void>(set.bytes(Split::kValid, -1)); }),
            "index: expected one of the 2 examples of valid, counted from 0, got -1");
  EXPECT_EQ(message([&] { static_cast<void>(set.bytes(Split::kTest, 0)); }),
            "index: expected one of the 0 examples of test, counted from 0, got 0");
  std::vector<uint8_t> room(3);
  EXPECT_EQ(message([&] { set.read(Split::kValid, 1, {}, room); }),
            "out: expected the 1 bytes of example 1 of valid, got room for 3");
  EXPECT_EQ(message([&] { set.read(Split::kTest, 0, {}, room); }),
            "index: expected one of the 0 examples of test, counted from 0, got 0");
}

TEST(TextData, AFileThatBecameShorterIsNamed) {
  const Scratch scratch;
  const auto file = scratch.write("shrinks.txt", std::string(100, 'x'));
  const TextData set({Bytes::load(file), {}, {}}, 9);
  std::filesystem::resize_file(file, 50);
  EXPECT_EQ(example(set, Split::kTrain, 4).first.size(), 10U);
  EXPECT_EQ(message([&] { example(set, Split::kTrain, 5); }),
            "data: cannot read " + file.string() + ": it has become shorter since it was opened; restore it");
}

}  // namespace
}  // namespace aft
