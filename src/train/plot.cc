#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "aft/error.h"
#include "io/write_file.h"
#include "train/metrics.h"
#include "train/train.h"

extern char** environ;

namespace aft {
namespace {

namespace fs = std::filesystem;

double x_of(const Metric& metric, const std::string& x) {
  if (x == "seconds") return metric.seconds;
  return static_cast<double>(x == "tokens" ? metric.tokens : metric.step);
}

std::string axis_label(const std::string& x) {
  if (x == "seconds") return "seconds of training";
  return x == "tokens" ? "tokens trained on" : "step";
}

/// Inside double quotes of gnuplot; control characters would end the command.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  }
  return out + "\"";
}

/// Removes what it names when it goes out of scope.
struct ScratchFolder {
  fs::path path;
  ScratchFolder() {
    std::string name = (fs::temp_directory_path() / "aft-plot-XXXXXX").string();
    if (!mkdtemp(name.data())) {
      throw SystemError("plot: cannot make a folder in " + fs::temp_directory_path().string());
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

struct Curve {
  std::string title;
  std::string data;
  bool valid = false;
  size_t color = 0;
};

/// The last parts of the folders' paths, as many as tell them apart.
std::vector<std::string> names_of(const std::vector<fs::path>& folders) {
  std::vector<std::vector<std::string>> parts;  // of each, from the last to the first
  for (const auto& folder : folders) {
    auto& reversed = parts.emplace_back();
    for (const auto& part : fs::absolute(folder).lexically_normal()) {
      if (part.has_filename() && part != "/") reversed.insert(reversed.begin(), part.string());
    }
  }
  std::vector<std::string> names(folders.size());
  for (size_t depth = 0;; ++depth) {
    bool deeper = false;
    for (size_t i = 0; i < folders.size(); ++i) {
      if (depth >= parts[i].size()) continue;
      names[i] = depth == 0 ? parts[i][0] : parts[i][depth] + "/" + names[i];
      deeper = true;
    }
    if (!deeper || std::set<std::string>(names.begin(), names.end()).size() == names.size()) return names;
  }
}

/// "bits_per_byte" -> "bits per byte"
std::string in_words(std::string name) {
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

/// `what`: the metric that is drawn, the first of the first line; it must be that of all runs.
std::vector<Curve> curves_of(const std::vector<fs::path>& folders, const std::string& x, std::string& what) {
  std::vector<Curve> curves;
  const auto names = names_of(folders);
  for (size_t i = 0; i < folders.size(); ++i) {
    const auto metrics = read_metrics(folders[i] / "metrics.jsonl");
    const size_t before = curves.size();
    for (const char* split : {"train", "valid"}) {
      std::ostringstream data;
      data.precision(10);
      size_t points = 0;
      for (const auto& metric : metrics) {
        if (metric.split != split || metric.values.empty()) continue;
        const auto& [name, value] = metric.values.front();
        if (what.empty()) what = name;
        if (name != what) {
          throw Error("plot: expected runs of one task, got " + what + " and, in " + folders[i].string() + ", " + name +
                      "; plot them apart");
        }
        data << x_of(metric, x) << ' ' << value << '\n';
        ++points;
      }
      if (points > 0) curves.push_back({names[i] + " " + split, data.str(), std::string(split) == "valid", i + 1});
    }
    if (curves.size() == before) {
      throw Error("plot: " + folders[i].string() +
                  " holds no metrics.jsonl with a train or valid line; give a run folder");
    }
  }
  return curves;
}

}  // namespace

bool gnuplot_exists() {
  const char* path = std::getenv("PATH");
  std::stringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (access((fs::path(folder) / "gnuplot").c_str(), X_OK) == 0) return true;
  }
  return false;
}

void plot_runs(const std::vector<fs::path>& folders, const fs::path& png, const std::string& x) {
  if (x != "step" && x != "seconds" && x != "tokens") {
    throw Error("plot: x: expected step, seconds or tokens, got " + x);
  }
  std::string what;
  const auto curves = curves_of(folders, x, what);
  if (!gnuplot_exists()) throw Error("plot: gnuplot is not on PATH; install the package gnuplot-nox");
  const ScratchFolder scratch;
  const fs::path image = scratch.path / "loss.png";
  std::ostringstream script;
  script << "set terminal pngcairo size 960,600 noenhanced font 'sans,11'\nset output " << quoted(image.string())
         << "\nset xlabel " << quoted(axis_label(x)) << "\nset ylabel " << quoted(in_words(what))
         << "\nset grid\nset key top right\n";
  for (size_t i = 0; i < curves.size(); ++i) script << "$c" << i << " << EOD\n" << curves[i].data << "EOD\n";
  script << "plot ";
  for (size_t i = 0; i < curves.size(); ++i) {
    const Curve& curve = curves[i];
    script << (i ? ", " : "") << "$c" << i << " using 1:2 with " << (curve.valid ? "linespoints pt 7 ps 0.6" : "lines")
           << " lw " << (curve.valid ? "2" : "1") << (curve.valid ? "" : " dt 2") << " lc " << curve.color << " title "
           << quoted(curve.title);
  }
  script << "\n";
  const std::string commands = script.str();
  const fs::path script_file = scratch.path / "loss.gp";
  const fs::path log = scratch.path / "log";
  write_file_atomically(script_file, commands.data(), commands.size());
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
