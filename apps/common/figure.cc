#include "common/figure.h"

#include <limits>
#include <memory>

#include "common/options.h"
#include "common/output.h"
#include "common/progress.h"
#include "image/png.h"

namespace aft::app {
namespace {

constexpr int64_t kMany = 1 << 20;
constexpr int64_t kMostSideBySide = 1024;

}  // namespace

void add_out(CLI::App& command, std::string& out, bool& force, const std::string& help) {
  add_text(command, "--out", out, help)->required();
  command.add_flag("--force", force, "Replace an existing file");
}

CLI::Option* add_count(CLI::App& command, FigureArguments& arguments, const std::string& help) {
  return add_integer(command, "--count", arguments.count, 0, kMany, help);
}

CLI::Option* add_columns(CLI::App& command, FigureArguments& arguments) {
  return add_integer(command, "--columns", arguments.options.columns, 0, kMany,
                     "Images in a row; 0: as many as rows, or one more");
}

CLI::Option* add_originals(CLI::App& command, FigureArguments& arguments, const std::string& name) {
  return add_integer(command, "--images", arguments.originals, 1, kMany,
                     "How many images of a data set in " + name + " to complete, its first of test");
}

void add_drawing(CLI::App& command, FigureArguments& arguments) {
  add_sampler(command, arguments.options.sampler, "value", "The same seed draws the same images");
  add_integer(command, "--batch", arguments.options.batch, 1, kMostSideBySide,
              "Images drawn side by side: changes time and memory, and no image");
  add_threads(command, arguments.threads);
}

Figure write_figure(const std::vector<std::string>& models, const FigureArguments& arguments,
                    const Originals& originals) {
  require_new("--out", arguments.out, arguments.force);
  const auto pool = std::make_shared<runtime::ThreadPool>(arguments.threads);
  std::vector<runtime::Model> loaded;
  loaded.reserve(models.size());
  for (const std::string& model : models) loaded.push_back(runtime::Model::load(model, *pool));
  std::vector<Picture> given;
  if (originals) given = originals(shape_of(loaded.front()));
  FigureOptions options = arguments.options;
  options.count = arguments.count > 0 ? arguments.count : originals ? kCompletions : kSamples;
  Figure figure;
  figure.images = std::ssize(models) * (originals ? std::ssize(given) : 1) * options.count;
  figure.values = values_of(loaded.front(), figure.images);
  WorkProgress progress("values", figure.values);
  const auto tell = [&](int64_t done) { progress.done(done); };
  const Picture picture =
      originals ? draw_completions(loaded, pool, given, options, tell) : draw_samples(loaded, pool, options, tell);
  figure.seconds = progress.finish();
  figure.shape = picture.shape;
  write_png(arguments.out, picture);
  return figure;
}

}  // namespace aft::app
