#include <memory>
#include <string>

#include "commands.h"
#include "common/figure.h"
#include "common/options.h"
#include "drawing/originals.h"
#include "output.h"

namespace aft::app {
namespace {

struct SampleOptions {
  std::string model;
  bool json = false;
  FigureArguments figure;
};

void run_sample(const SampleOptions& options) {
  const FigureArguments& arguments = options.figure;
  const auto originals = [&](const ImageShape& shape) {
    return read_originals(arguments.complete, shape, arguments.originals);
  };
  const Figure figure =
      write_figure({options.model}, arguments, arguments.complete.empty() ? Originals() : Originals(originals));
  if (is_standard_output(arguments.out)) return;
  if (!options.json) {
    say_written(arguments.out);
    return;
  }
  write_json({{"file", arguments.out},
              {"height", figure.shape.height},
              {"width", figure.shape.width},
              {"images", figure.images},
              {"values", figure.values},
              {"seconds", figure.seconds},
              {"values_per_second", static_cast<double>(figure.values) / std::max(1e-9, figure.seconds)}});
}

}  // namespace

void add_sample(CLI::App& app) {
  const auto options = std::make_shared<SampleOptions>();
  FigureArguments& figure = options->figure;
  CLI::App* command = app.add_subcommand("sample", "Draw images, or complete halves of them, into a PNG file");
  add_text(*command, "MODEL", options->model, "A model file or a run folder")->required();
  add_out(*command, figure.out, figure.force, "PNG file to write");
  add_count(*command, figure,
            "Images to draw; with --complete, completions of each image. 0: " + std::to_string(kSamples) + ", or " +
                std::to_string(kCompletions));
  CLI::Option* complete = add_text(*command, "--complete", figure.complete,
                                   "Complete upper halves: of a JPEG or PNG file, or of the images in the folder of a "
                                   "data set (CIFAR-10 binary, IDX, a folder a class)");
  add_columns(*command, figure)->excludes(complete);
  add_originals(*command, figure, "--complete")->needs(complete);
  add_drawing(*command, figure);
  command->add_flag("--json", options->json, "One JSON object instead of the name of the file");
  command->footer(
      "With --complete a row is an image: its upper half over grey, the completions, and the image itself.\n"
      "Example:\n  aft sample runs/cifar10-pixels-aft-local --out grid.png --count 64 --seed 1");
  command->callback([options] { run_sample(*options); });
}

}  // namespace aft::app
