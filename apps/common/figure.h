#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "drawing/draw.h"

// Pictures drawn by models: both kinds of `aft sample`, and `aft-train figure samples` and `completions`.

namespace aft::app {

struct FigureArguments {
  std::string out;
  bool force = false;
  std::string complete;   // a JPEG or PNG file or the folder of a data set
  int64_t originals = 8;  // that are taken of a data set
  int64_t count = 0;      // 0: kSamples or kCompletions
  int64_t threads = 0;
  FigureOptions options;
};
constexpr int64_t kSamples = 16;
constexpr int64_t kCompletions = 3;

/// --out and --force: where a file is written.
void add_out(CLI::App& command, std::string& out, bool& force, const std::string& help);

/// How images are drawn: --temperature, --top-p, --top-k, --seed, --batch, --threads.
void add_drawing(CLI::App& command, FigureArguments& arguments);

CLI::Option* add_count(CLI::App& command, FigureArguments& arguments, const std::string& help);
CLI::Option* add_columns(CLI::App& command, FigureArguments& arguments);
/// `name`: of the option that says where originals come from.
CLI::Option* add_originals(CLI::App& command, FigureArguments& arguments, const std::string& name);

/// What was drawn.
struct Figure {
  ImageShape shape;    // of the picture
  int64_t images = 0;  // that the models drew
  int64_t values = 0;  // that they drew or read
  double seconds = 0;
};

/// Gives the images of this shape that are to be completed.
using Originals = std::function<std::vector<Picture>(const ImageShape&)>;

/// Draws completions of the originals by the models, or without originals samples, with a progress bar, and writes the
/// picture to `out`. Throws aft::Error, before anything is drawn, if a file is there that is not to be replaced.
Figure write_figure(const std::vector<std::string>& models, const FigureArguments& arguments,
                    const Originals& originals = {});

}  // namespace aft::app
