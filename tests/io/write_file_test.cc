#include "io/write_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "aft/error.h"
#include "temporary_folder.h"

namespace aft {
namespace {

int64_t files_in(const std::filesystem::path& folder) {
  return std::distance(std::filesystem::directory_iterator(folder), std::filesystem::directory_iterator());
}

TEST(WriteFileAtomically, ReplacesTheFileAndLeavesNothingElse) {
  const test::TemporaryFolder folder;
  write_file_atomically(folder / "a", "old text", 8);
  EXPECT_EQ(test::read_all(folder / "a"), "old text");
  write_file_atomically(folder / "a", "new", 3);
  EXPECT_EQ(test::read_all(folder / "a"), "new");
  write_file_atomically(folder / "a", nullptr, 0);
  EXPECT_EQ(test::read_all(folder / "a"), "");
  EXPECT_EQ(files_in(folder.path()), 1);
}

TEST(WriteFileAtomically, ALeftoverOfAKilledProcessIsNoObstacle) {
  const test::TemporaryFolder folder;
  test::write_all(folder / "a.tmp", "a longer half-written file");
  write_file_atomically(folder / "a", "new", 3);
  EXPECT_EQ(test::read_all(folder / "a"), "new");
  EXPECT_EQ(files_in(folder.path()), 1);
}

TEST(WriteFileAtomically, MissingFolderIsAnErrorWithTheReason) {
  const test::TemporaryFolder folder;
  try {
    write_file_atomically(folder / "none" / "a", "x", 1);
    FAIL() << "expected an Error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("No such file or directory"), std::string::npos) << e.what();
  }
}

TEST(WriteFileAtomically, RenameThatFailsLeavesNoTemporary) {
  const test::TemporaryFolder folder;
  std::filesystem::create_directories(folder / "a" / "b");  // a file cannot replace a folder
  EXPECT_THROW(write_file_atomically(folder / "a", "x", 1), Error);
  EXPECT_EQ(files_in(folder.path()), 1);
}

TEST(WriteFileAtomically, SymbolicLinksAreWrittenThrough) {
  const test::TemporaryFolder folder;
  std::filesystem::create_directory(folder / "sub");
  test::write_all(folder / "sub/file", "old");
  std::filesystem::create_symlink("sub/file", folder / "link");
  std::filesystem::create_symlink("link", folder / "link of link");
  write_file_atomically(folder / "link of link", "new", 3);
  EXPECT_EQ(test::read_all(folder / "sub/file"), "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link of link"));
  EXPECT_FALSE(std::filesystem::is_symlink(folder / "sub/file"));

  std::filesystem::create_symlink(folder / "sub" / "later", folder / "dangling");
  write_file_atomically(folder / "dangling", "made", 4);
  EXPECT_EQ(test::read_all(folder / "sub/later"), "made");
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "dangling"));

  std::filesystem::create_symlink("b", folder / "a");
  std::filesystem::create_symlink("a", folder / "b");
  EXPECT_THROW(write_file_atomically(folder / "a", "x", 1), Error);
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "a"));
  EXPECT_EQ(files_in(folder / "sub"), 2);
}

TEST(WriteFileAtomically, PermissionsOfTheOldFileStay) {
  const test::TemporaryFolder folder;
  test::write_all(folder / "a", "old");
  ::chmod((folder / "a").c_str(), 0640);
  write_file_atomically(folder / "a", "new", 3);
  struct stat status = {};
  ASSERT_EQ(::stat((folder / "a").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0640U);
  EXPECT_EQ(test::read_all(folder / "a"), "new");
}

TEST(WriteFileAtomically, StreamsAreWrittenTo) {
  const test::TemporaryFolder folder;
  const std::string fifo = folder / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  std::string got;
  std::thread reader([&] { got = test::read_all(fifo); });
  write_file_atomically(fifo, "through", 7);
  reader.join();
  EXPECT_EQ(got, "through");
  EXPECT_TRUE(std::filesystem::is_fifo(fifo));

  write_file_atomically("/dev/null", "gone", 4);
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  std::filesystem::create_symlink("/dev/null", folder / "link");
  write_file_atomically(folder / "link", "gone", 4);
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));

  // A name of a file that is open already: what is written follows what was written before.
  const int fd = ::open((folder / "open").c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_EQ(::write(fd, "one ", 4), 4);
  write_file_atomically("/dev/fd/" + std::to_string(fd), "two", 3);
  ::close(fd);
  EXPECT_EQ(test::read_all(folder / "open"), "one two");

  std::filesystem::create_directory(folder / "folder");
  EXPECT_THROW(write_file_atomically(folder / "folder", "x", 1), Error);
  EXPECT_EQ(files_in(folder.path()), 4);
}

TEST(WriteFileAtomically, AFullDeviceIsAFailureOfTheSystemAndAMissingFolderIsNot) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  EXPECT_THROW(write_file_atomically("/dev/full", "x", 1), SystemError);
  const test::TemporaryFolder folder;
  try {
    write_file_atomically(folder / "none" / "a", "x", 1);
    FAIL() << "expected an Error";
  } catch (const SystemError& e) {
    FAIL() << e.what();
  } catch (const Error&) {
  }
}

// The kernel refuses to write past the limit as a full disk would; in a child, as the limit cannot be raised again.
TEST(WriteFileAtomically, FailedWriteKeepsTheOldFileAndRemovesTheTemporary) {
  const test::TemporaryFolder folder;
  write_file_atomically(folder / "a", "old", 3);
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string large(5000, 'x');
    try {
      write_file_atomically(folder / "a", large.data(), large.size());
    } catch (const SystemError& e) {
      ::_exit(std::string(e.what()).find("File too large") != std::string::npos ? 7 : 8);
    }
    ::_exit(9);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(test::read_all(folder / "a"), "old");
  EXPECT_EQ(files_in(folder.path()), 1);
}

}  // namespace
}  // namespace aft
