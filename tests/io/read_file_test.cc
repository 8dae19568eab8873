#include "io/read_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "aft/error.h"
#include "io/file_descriptor.h"
#include "temporary_folder.h"

namespace aft {
namespace {

bool is_open(int file) { return ::fcntl(file, F_GETFD) >= 0; }

TEST(FileDescriptor, IsClosedOnceAndByItsLastOwner) {
  const test::TemporaryFolder folder;
  test::write_all(folder / "a", "a");
  std::optional<FileDescriptor> first(open_to_read(folder / "a"));
  const int file = first->get();
  ASSERT_TRUE(is_open(file));
  std::optional<FileDescriptor> second(std::move(*first));
  first.reset();
  EXPECT_EQ(second->get(), file);
  EXPECT_TRUE(is_open(file));

  std::optional<FileDescriptor> third(open_to_read(folder / "a"));
  const int other = third->get();
  *third = std::move(*second);
  second.reset();
  EXPECT_EQ(third->get(), file);
  EXPECT_TRUE(is_open(file));
  EXPECT_FALSE(is_open(other));
  third.reset();
  EXPECT_FALSE(is_open(file));
}

TEST(ReadFile, ReadsAllUpToTheMost) {
  const test::TemporaryFolder folder;
  std::string text(100000, 'a');  // more than is read at a time
  text += 'b';
  test::write_all(folder / "a", text);
  const std::vector<uint8_t> bytes = read_file(folder / "a", text.size());
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), text);
  test::write_all(folder / "empty", "");
  EXPECT_TRUE(read_file(folder / "empty", 0).empty());
  for (const auto& [name, most] : {std::pair("a", size_t{100000}), std::pair("none", size_t{9})}) {
    try {
      read_file(folder / name, most);
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_TRUE(std::string(error.what()).starts_with((folder / name).string() + ": ")) << error.what();
    }
  }
}

TEST(ReadAt, ReadsWhatThereIsFromTheOffsetOn) {
  const test::TemporaryFolder folder;
  test::write_all(folder / "a", "0123456789");
  const FileDescriptor file = open_to_read(folder / "a");
  struct Case {
    uint64_t offset;
    size_t bytes;
    std::string read;
  };
  for (const Case& c :
       {Case{0, 10, "0123456789"}, {3, 4, "3456"}, {7, 4, "789"}, {10, 1, ""}, {1000, 3, ""}, {5, 0, ""}}) {
    std::string out(12, '.');
    EXPECT_EQ(read_at(file.get(), c.offset, c.bytes, out.data()), static_cast<ssize_t>(c.read.size())) << c.offset;
    EXPECT_EQ(out, c.read + std::string(12 - c.read.size(), '.')) << c.offset;
  }
}

TEST(ReadAt, ReturnsTheSystemsError) {
  const test::TemporaryFolder folder;
  const FileDescriptor file = open_to_read(folder.path());
  char byte = '.';
  EXPECT_EQ(read_at(file.get(), 0, 1, &byte), -1);
  EXPECT_EQ(errno, EISDIR);
  EXPECT_EQ(byte, '.');
}

TEST(ReadSome, TakesAStreamInPartsToItsEnd) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const FileDescriptor from(ends[0]);
  std::optional<FileDescriptor> to(ends[1]);
  std::array<uint8_t, 4> block = {};
  ASSERT_EQ(::write(to->get(), "abcdef", 6), 6);
  EXPECT_EQ(read_some(from.get(), "pipe", block), 4U);
  EXPECT_EQ(std::string(block.begin(), block.end()), "abcd");
  EXPECT_EQ(read_some(from.get(), "pipe", block), 2U);  // does not wait for more
  EXPECT_EQ(std::string(block.begin(), block.end()), "efcd");
  to.reset();
  EXPECT_EQ(read_some(from.get(), "pipe", block), 0U);
}

TEST(ReadSome, AnErrorNamesTheFile) {
  const test::TemporaryFolder folder;
  const FileDescriptor file = open_to_read(folder.path());
  std::array<uint8_t, 4> block = {};
  try {
    read_some(file.get(), "the folder", block);
    FAIL() << "read a folder";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "the folder: cannot be read: Is a directory");
  }
}

}  // namespace
}  // namespace aft
