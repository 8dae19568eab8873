#include <gtest/gtest.h>
#include <lzma.h>

#include "data/data.h"
#include "message.h"
#include "scratch.h"
#include "xz.h"

namespace aft {
namespace {

std::string load(const std::filesystem::path& path) {
  const Bytes bytes = Bytes::load(path);
  const auto all = bytes.read(0, bytes.size());
  return {all.begin(), all.end()};
}

std::string long_text() {
  std::string text;
  for (int i = 0; i < 40000; ++i) text += std::to_string(i * 7919) + (i % 13 ? " " : "\n");
  return text + std::string("\0\xff", 2);
}

std::string refusal(const std::filesystem::path& path) {
  return message([&] { Bytes::load(path); });
}

TEST(Bytes, PlainFileIsReadAsItIs) {
  const Scratch scratch;
  EXPECT_EQ(load(scratch.write("a.txt", long_text())), long_text());
  EXPECT_EQ(load(scratch.write("empty", "")), "");
}

TEST(Bytes, XzIsDecodedAlsoOfSeveralStreams) {
  const Scratch scratch;
  EXPECT_EQ(load(scratch.write("a.xz", xz(long_text()))), long_text());
  EXPECT_EQ(load(scratch.write("b.xz", xz("one ") + xz("two"))), "one two");
}

TEST(Bytes, FolderIsJoinedInSortedOrderWithoutHiddenFiles) {
  const Scratch scratch;
  scratch.write("d/b.txt", "second ");
  scratch.write("d/a.txt.xz", xz("first "));
  scratch.write("d/c/z.txt", "third");
  scratch.write("d/.hidden", "no");
  scratch.write("d/.git/x", "no");
  EXPECT_EQ(load(scratch.path() / "d"), "first second third");
}

TEST(Bytes, BadFilesAreNamed) {
  const Scratch scratch;
  const std::string whole = xz(long_text());
  EXPECT_NE(refusal(scratch.path() / "none").find("no such file"), std::string::npos);
  EXPECT_NE(refusal(scratch.write("cut.xz", whole.substr(0, whole.size() / 2))).find("truncated"), std::string::npos);
  EXPECT_NE(refusal(scratch.write("plain.xz", "just text, long enough")).find("not an .xz"), std::string::npos);
  std::string broken = whole;
  broken[broken.size() / 2] ^= 1;
  EXPECT_NE(refusal(scratch.write("broken.xz", broken)).find("corrupt"), std::string::npos);
  EXPECT_NE(refusal(scratch.write("empty.xz", "")).find("empty.xz"), std::string::npos);
}

TEST(Bytes, PartsOfAFileAndOfMemoryAreTheSame) {
  const Scratch scratch;
  const std::string text = long_text();
  for (const Bytes& bytes : {Bytes::load(scratch.write("a.txt", text)), Bytes({text.begin(), text.end()})}) {
    const Bytes part = bytes.slice(1000, 500).slice(7, 400);
    EXPECT_EQ(part.size(), 400);
    const auto read = part.read(11, 300);
    EXPECT_EQ(std::string(read.begin(), read.end()), text.substr(1018, 300));
    EXPECT_EQ(part.read(400, 0), std::vector<uint8_t>{});
  }
}

TEST(Bytes, AFileThatShrinksIsAnErrorThatNamesIt) {
  const Scratch scratch;
  const auto file = scratch.write("shrinks.txt", long_text());
  const Bytes bytes = Bytes::load(file);
  std::filesystem::resize_file(file, 100);
  EXPECT_EQ(bytes.read(0, 100).size(), 100U);
  EXPECT_EQ(message([&] { static_cast<void>(bytes.read(90, 20)); }),
            "data: cannot read " + file.string() + ": it has become shorter since it was opened; restore it");
}

TEST(Bytes, FoldersInWhichARunIsKeptAreNoData) {
  const Scratch scratch;
  scratch.write("d/a.txt", "data");
  scratch.write("d/runs/x/recipe.toml", "recipe");
  scratch.write("d/runs/x/metrics.jsonl", "metrics");
  scratch.write("d/runs/x/sample.txt", "sample");
  scratch.write("d/recipe.toml", " and a recipe");
  EXPECT_EQ(load(scratch.path() / "d"), "data and a recipe");
}

TEST(Checksum, TellsBytesApart) {
  EXPECT_NE(checksum(Bytes({1, 2, 3})), checksum(Bytes({1, 3, 2})));
  // CRC-64/XZ of "123456789", from the catalogue of parametrised CRC algorithms.
  const std::string digits = "123456789";
  EXPECT_EQ(checksum(Bytes({digits.begin(), digits.end()})), 0x995dc9bbdf1939faULL);
  // Over more than one block: the sum of all is the sum of the parts, continued.
  const std::string text = long_text() + std::string(3 << 20, 'x');
  EXPECT_EQ(checksum(Bytes({text.begin(), text.end()})),
            lzma_crc64(reinterpret_cast<const uint8_t*>(text.data()), text.size(), 0));
}

}  // namespace
}  // namespace aft
