#include <algorithm>
#include <set>
#include <sstream>

#include "aft/error.h"
#include "figures/gnuplot.h"
#include "train/metrics.h"
#include "train/train.h"

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

void plot_runs(const std::vector<fs::path>& folders, const fs::path& png, const std::string& x) {
  if (x != "step" && x != "seconds" && x != "tokens") {
    throw Error("plot: x: expected step, seconds or tokens, got " + x);
  }
  std::string what;
  const auto curves = curves_of(folders, x, what);
  std::ostringstream script;
  script << "set xlabel " << gnuplot_text(axis_label(x)) << "\nset ylabel " << gnuplot_text(in_words(what))
         << "\nset grid\nset key top right\n";
  for (size_t i = 0; i < curves.size(); ++i) script << "$c" << i << " << EOD\n" << curves[i].data << "EOD\n";
  script << "plot ";
  for (size_t i = 0; i < curves.size(); ++i) {
    const Curve& curve = curves[i];
    script << (i ? ", " : "") << "$c" << i << " using 1:2 with " << (curve.valid ? "linespoints pt 7 ps 0.6" : "lines")
           << " lw " << (curve.valid ? "2" : "1") << (curve.valid ? "" : " dt 2") << " lc " << curve.color << " title "
           << gnuplot_text(curve.title);
  }
  script << "\n";
  draw_by_gnuplot(script.str(), {960, 600}, png);
}

}  // namespace aft
