#include "common/figure.h"

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "aft/error.h"
#include "commands.h"
#include "common/options.h"
#include "common/output.h"
#include "drawing/originals.h"
#include "train/train.h"

namespace aft::app {
namespace {

namespace fs = std::filesystem;

struct CurveArguments {
  std::vector<std::string> runs;
  std::string out;
  bool force = false;
  std::string x = "step";
};

void draw_curves(const CurveArguments& arguments) {
  const std::vector<fs::path> folders(arguments.runs.begin(), arguments.runs.end());
  fs::path png = arguments.out;
  if (png.empty() && folders.size() == 1) {
    png = folders[0] / "loss.png";  // the run's own, which each drawing replaces
  } else {
    if (png.empty()) png = "loss.png";
    require_new("--out", png, arguments.force);
  }
  plot_runs(folders, png, arguments.x);
  say_written(png);
}

void add_runs(CLI::App& command, std::vector<std::string>& runs, const std::string& help) {
  add_texts(command, "RUN", runs, help)->required();
}

void add_x(CLI::App& command, CurveArguments& arguments) {
  add_choice(command, "--x", arguments.x, {"step", "seconds", "tokens"}, "what to draw the curves over");
}

struct DrawArguments {
  std::vector<std::string> runs;
  FigureArguments figure;
};

/// Images of --data, or of the data that the first run names.
std::vector<Picture> originals_of(const DrawArguments& arguments, const ImageShape& shape) {
  const FigureArguments& figure = arguments.figure;
  if (!figure.complete.empty()) return read_originals(figure.complete, shape, figure.originals);
  const fs::path recipe = fs::path(arguments.runs.front()) / "recipe.toml";
  std::error_code error;
  if (!fs::exists(recipe, error)) {
    throw Error("--data: expected a JPEG or PNG file or the folder of a data set, as " + arguments.runs.front() +
                " is not a run folder");
  }
  return first_pictures(*load_images(load_data_config(recipe), {shape}), figure.originals);
}

void add_curves(CLI::App& figure) {
  const auto arguments = std::make_shared<CurveArguments>();
  CLI::App* command = figure.add_subcommand("curves", "the curves of runs, as plot draws them");
  add_runs(*command, arguments->runs, "run folders");
  add_out(*command, arguments->out, arguments->force, "PNG file to write");
  add_x(*command, *arguments);
  command->callback([arguments] { draw_curves(*arguments); });
}

void add_samples(CLI::App& figure) {
  const auto arguments = std::make_shared<DrawArguments>();
  CLI::App* command = figure.add_subcommand("samples", "images drawn by the models of runs, a run under the other");
  add_runs(*command, arguments->runs, "run folders or model files, of pixel_lm");
  add_out(*command, arguments->figure.out, arguments->figure.force, "PNG file to write");
  add_count(*command, arguments->figure, "images of each run; 0: " + std::to_string(kSamples));
  add_columns(*command, arguments->figure);
  add_drawing(*command, arguments->figure);
  command->callback([arguments] {
    write_figure(arguments->runs, arguments->figure);
    say_written(arguments->figure.out);
  });
}

void add_completions(CLI::App& figure) {
  const auto arguments = std::make_shared<DrawArguments>();
  CLI::App* command = figure.add_subcommand("completions", "upper halves of images, completed by the models of runs");
  add_runs(*command, arguments->runs, "run folders or model files, of pixel_lm");
  add_out(*command, arguments->figure.out, arguments->figure.force, "PNG file to write");
  add_text(*command, "--data", arguments->figure.complete,
           "JPEG or PNG file, or folder of a data set (CIFAR-10 binary, IDX, a folder a class); default: the data of "
           "the first run");
  add_originals(*command, arguments->figure, "--data");
  add_count(*command, arguments->figure, "completions of each image by each run; 0: " + std::to_string(kCompletions));
  add_drawing(*command, arguments->figure);
  command->callback([arguments] {
    write_figure(arguments->runs, arguments->figure,
                 [&](const ImageShape& shape) { return originals_of(*arguments, shape); });
    say_written(arguments->figure.out);
  });
}

}  // namespace

void add_plot(CLI::App& app) {
  const auto arguments = std::make_shared<CurveArguments>();
  CLI::App* command = app.add_subcommand("plot", "draw the curves of one or several runs");
  add_runs(*command, arguments->runs, "run folders");
  add_text(*command, "--out", arguments->out, "PNG file; default: loss.png in the run folder, or here for several");
  command->add_flag("--force", arguments->force, "replace an existing file");
  add_x(*command, *arguments);
  command->footer("Example: aft-train plot runs/a runs/b --x seconds --out both.png");
  command->callback([arguments] { draw_curves(*arguments); });
}

void add_figure(CLI::App& app) {
  CLI::App* command = app.add_subcommand("figure", "draw what runs and models did and learned into a PNG file");
  command->require_subcommand(1);
  add_curves(*command);
  add_samples(*command);
  add_completions(*command);
  add_grid_figures(*command);
  command->footer("Example: aft-train figure completions runs/a runs/b --images 8 --out halves.png");
}

}  // namespace aft::app
