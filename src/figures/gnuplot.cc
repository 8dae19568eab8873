#include "figures/gnuplot.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <vector>

#include "aft/error.h"
#include "io/write_file.h"

extern char** environ;

namespace aft {
namespace {

namespace fs = std::filesystem;

/// Removes what it names when it goes out of scope.
struct ScratchFolder {
  fs::path path;
  ScratchFolder() {
    std::string name = (fs::temp_directory_path() / "aft-figure-XXXXXX").string();
    if (!mkdtemp(name.data())) {
      throw SystemError("figure: cannot make a folder in " + fs::temp_directory_path().string());
    }
    path = name;
  }
  ~ScratchFolder() {
    std::error_code error;
    fs::remove_all(path, error);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
};

/// Exit status of a program found on PATH; -1 if it cannot be started. Its output goes to `log`.
int run_program(const std::vector<std::string>& words, const fs::path& log) {
  std::vector<char*> arguments;
  for (const auto& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t child = -1;
  const int failed = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) return -1;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

std::string file_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

std::string gnuplot_text(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  }
  return out + "\"";
}

bool gnuplot_exists() {
  const char* path = std::getenv("PATH");
  std::stringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (access((fs::path(folder) / "gnuplot").c_str(), X_OK) == 0) return true;
  }
  return false;
}

void draw_by_gnuplot(const std::string& commands, std::array<int64_t, 2> size, const fs::path& png) {
  if (!gnuplot_exists()) throw Error("plot: gnuplot is not on PATH; install the package gnuplot-nox");
  const ScratchFolder scratch;
  const fs::path image = scratch.path / "figure.png";
  const std::string script = "set terminal pngcairo size " + std::to_string(size[0]) + "," + std::to_string(size[1]) +
                             " noenhanced font 'sans,11'\nset output " + gnuplot_text(image.string()) + "\n" + commands;
  const fs::path script_file = scratch.path / "figure.gp";
  const fs::path log = scratch.path / "log";
  write_file_atomically(script_file, script.data(), script.size());
  const int status = run_program({"gnuplot", script_file.string()}, log);
  const std::string picture = file_text(image);
  if (status != 0) throw SystemError("plot: gnuplot failed: " + file_text(log));
  // On a full disk gnuplot stops writing, and reports nothing.
  if (!picture.ends_with(std::string_view("IEND\xae\x42\x60\x82", 8))) {
    throw SystemError("plot: gnuplot wrote no whole picture in " + scratch.path.string() + "; is there space left? " +
                      file_text(log));
  }
  write_file_atomically(png, picture.data(), picture.size());
}

}  // namespace aft
