#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "aft/error.h"
#include "aft/runtime/safetensors.h"
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
    } catch (const Error& e) {
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
