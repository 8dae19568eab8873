#include "data/data_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "gzip.h"
#include "io/read_file.h"
#include "message.h"
#include "scratch.h"
#include "xz.h"

namespace aft {
namespace {

std::string read(const std::filesystem::path& path) {
  const auto bytes = read_data_file(open_to_read(path).get(), path);
  return {bytes.begin(), bytes.end()};
}

std::string refusal(const std::filesystem::path& path) {
  return message([&] { read(path); });
}

std::string long_text() {
  std::string text;
  for (int i = 0; i < 40000; ++i) text += std::to_string(i * 7919) + (i % 13 ? " " : "\n");
  return text + std::string("\0\xff", 2);
}

TEST(DataFile, IsUnpackedByItsName) {
  const Scratch scratch;
  for (const std::string& text :
       {std::string(), std::string("x"), std::string(1 << 16, 'y'), long_text(), std::string(10 << 20, '\0')}) {
    EXPECT_TRUE(read(scratch.write("a", text)) == text);
    EXPECT_TRUE(read(scratch.write("a.gz", gzip(text))) == text);
    EXPECT_TRUE(read(scratch.write("a.xz", xz(text))) == text);
  }
  EXPECT_EQ(read(scratch.write("several.gz", gzip("one ") + gzip("") + gzip("two"))), "one two");
}

TEST(DataFile, BrokenGzipIsRefusedByName) {
  const Scratch scratch;
  const std::string whole = gzip(long_text());
  // Wherever it is cut, in the header, the data or the checksum at the end, it is not a file that ends.
  for (const size_t size : {size_t{0}, size_t{1}, size_t{9}, size_t{10}, whole.size() / 2, whole.size() - 9,
                            whole.size() - 8, whole.size() - 4, whole.size() - 1}) {
    const auto path = scratch.write("cut.gz", whole.substr(0, size));
    EXPECT_EQ(refusal(path), path.string() + ": cannot be read: the .gz stream is truncated") << size;
  }
  std::string broken = whole;
  broken[whole.size() - 6] ^= 1;
  auto path = scratch.write("checksum.gz", broken);
  EXPECT_EQ(refusal(path), path.string() + ": cannot be read: the .gz stream is corrupt (incorrect data check)");
  path = scratch.write("plain.gz", "just text, long enough");
  EXPECT_EQ(refusal(path), path.string() + ": cannot be read: the .gz stream is corrupt (incorrect header check)");
  path = scratch.write("more.gz", whole + "more");
  EXPECT_EQ(refusal(path), path.string() + ": cannot be read: the .gz stream is corrupt (incorrect header check)");
  // A raw zlib stream is none.
  path = scratch.write("zlib.gz", "\x78\x9c\x03\x00\x00\x00\x00\x01");
  EXPECT_NE(refusal(path).find("zlib.gz: cannot be read: the .gz stream is corrupt"), std::string::npos);
}

TEST(DataFile, WhatCannotBeReadIsNamed) {
  const Scratch scratch;
  const auto none = scratch.path() / "none";
  EXPECT_EQ(refusal(none), none.string() + ": cannot be read: No such file or directory");
  std::filesystem::create_directory(scratch.path() / "folder.gz");
  for (const char* name : {"", "folder.gz"}) {
    EXPECT_NE(refusal(scratch.path() / name).find(": cannot be read: Is a directory"), std::string::npos);
  }
  const auto packed = scratch.write("packed", gzip("text"));
  EXPECT_NE(refusal(packed).find("packed: its content is compressed"), std::string::npos);
}

TEST(DataFile, IsFoundPlainOrPacked) {
  const Scratch scratch;
  const auto found = [&] { return find_data_file(scratch.path(), "a").value_or("").filename(); };
  EXPECT_EQ(found(), "");
  std::filesystem::create_symlink("nowhere", scratch.path() / "a.xz");
  EXPECT_EQ(found(), "a.xz");
  scratch.write("a.gz", "");
  EXPECT_EQ(found(), "a.gz");
  scratch.write("a", "");
  EXPECT_EQ(found(), "a");
  EXPECT_EQ(require_data_file(scratch.path(), "a", "b"), scratch.path() / "a");
  EXPECT_EQ(message([&] { require_data_file(scratch.path(), "c", "a set"); }),
            "data.path: expected a folder with c (plain, .gz or .xz), as of a set, got " + scratch.path().string() +
                ", which has none");
  EXPECT_EQ(message([&] { require_data_file(scratch.path() / "a", "c", "a set"); }),
            "data.path: expected a folder with c (plain, .gz or .xz), as of a set, got " +
                (scratch.path() / "a").string() + ", which is no folder");
}

}  // namespace
}  // namespace aft
