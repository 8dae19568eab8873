#include "train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "aft/error.h"
#include "train/recipe_fields.h"

namespace aft {
RunFolder::~RunFolder() {
  if (lock_ >= 0) close(lock_);
}

void RunFolder::check(bool resume, bool force) const {
  std::error_code error;
  const auto status = std::filesystem::status(folder_, error);
  if (!std::filesystem::exists(status)) return;
  const std::string name = folder_.string();
  if (!std::filesystem::is_directory(status)) throw Error("run.folder: " + name + " is a file, expected a folder");
  if (force || std::filesystem::is_empty(folder_, error)) return;
  if (!resume) {
    throw Error("run.folder: " + name +
                " exists; go on with --resume, replace it with --force, or set another run.folder");
  }
  if (!std::filesystem::exists(checkpoint(), error) && std::filesystem::exists(model(), error)) {
    throw Error("run.folder: " + name + " holds a trained model but no checkpoint to go on from; put " +
                checkpoint().filename().string() + " back, replace the model with --force, or set another run.folder");
  }
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

void RunFolder::require_not(const std::filesystem::path& recipe_file, const std::string& toml) const {
  std::error_code error;
  if (recipe_file.empty() || !std::filesystem::equivalent(recipe_file, recipe(), error)) return;
  std::ifstream file(recipe_file, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (text.str() == toml) return;
  throw Error("run.folder: the run would replace the recipe given, " + recipe_file.string() +
              ", by its resolved form; set another run.folder, or give a copy of the recipe");
}

void RunFolder::clear() const {
  for (const auto& file : {checkpoint(), model(), metrics(), recipe(), plot(), folder_ / "sample.txt"}) {
    std::error_code error;
    std::filesystem::remove(file, error);
    if (error) throw Error("run.folder: cannot remove " + file.string() + ": " + error.message());
  }
}

void check_same_run(const Recipe& saved, const Recipe& now) {
  static const std::set<std::string> kFree = {"train.steps",     "train.eval_every", "train.checkpoint_every",
                                              "train.log_every", "train.loaders",    "train.threads",
                                              "train.device",    "train.init",       "data.path",
                                              "data.split",      "data.train",       "data.valid",
                                              "data.test",       "data.broken",      "run.folder"};
  const auto listed = recipe_values(saved);
  const std::map<std::string, std::string> before(listed.begin(), listed.end());
  for (const auto& [key, value] : recipe_values(now)) {
    const auto found = before.find(key);  // there, unless the model or mixer differs, which come first
    if (kFree.contains(key) || (found != before.end() && found->second == value)) continue;
    throw Error(key + ": the run to resume has " + (found == before.end() ? "none" : found->second) +
                ", the recipe says " + value + "; give the same value, or begin a new run in another run.folder");
  }
}

}  // namespace aft
