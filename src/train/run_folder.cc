#include "train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <sstream>

#include "aft/error.h"
#include "train/recipe_fields.h"

namespace aft {
namespace {

std::string text(const std::string& value) { return value.empty() ? "nothing" : value; }
std::string text(const std::vector<double>& values) {
  std::ostringstream out;
  for (size_t i = 0; i < values.size(); ++i) out << (i ? ", " : "[") << values[i];
  return out.str() + "]";
}
template <typename T>
std::string text(const T& value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

}  // namespace

RunFolder::~RunFolder() {
  if (lock_ >= 0) close(lock_);
}

void RunFolder::check(bool resume, bool force) const {
  std::error_code error;
  const auto status = std::filesystem::status(folder_, error);
  if (!std::filesystem::exists(status)) return;
  const std::string name = folder_.string();
  if (!std::filesystem::is_directory(status)) throw Error("run.folder: " + name + " is a file, expected a folder");
  if (resume || force || std::filesystem::is_empty(folder_, error)) return;
  throw Error("run.folder: " + name +
              " exists; go on with --resume, replace it with --force, or set another run.folder");
}

void RunFolder::open() {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  lock_ = error ? -1 : ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0) {
    throw Error("run.folder: cannot make " + folder_.string() + ": " +
                (error ? error.message() : std::strerror(errno)));
  }
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw Error("run.folder: another process is training in " + folder_.string() +
                "; wait for it or set another folder");
  }
}

void RunFolder::clear() const {
  for (const auto& file : {checkpoint(), model(), metrics(), recipe(), plot(), folder_ / "sample.txt"}) {
    std::error_code error;
    std::filesystem::remove(file, error);
    if (error) throw Error("run.folder: cannot remove " + file.string() + ": " + error.message());
  }
}

void check_same_run(const Recipe& saved, const Recipe& now) {
  constexpr std::array<const char*, 6> kFree = {"train.steps",     "train.eval_every", "train.checkpoint_every",
                                                "train.log_every", "train.threads",    "run.folder"};
  // The saved values, in the order of the fields, to compare with.
  std::vector<std::string> values;
  visit_fields(saved, [&](const char*, const auto& value) { values.push_back(text(value)); });
  size_t i = 0;
  visit_fields(now, [&](const char* key, const auto& value) {
    const std::string& before = values[i++];
    if (std::find_if(kFree.begin(), kFree.end(), [&](const char* free) { return std::string(free) == key; }) !=
        kFree.end()) {
      return;
    }
    if (text(value) != before) {
      throw Error(std::string(key) + ": the run to resume has " + before + ", the recipe says " + text(value) +
                  "; give the same value, or begin a new run in another run.folder");
    }
  });
}

}  // namespace aft
