#include <memory>
#include <string>

#include "aft/runtime.h"
#include "commands.h"
#include "common/options.h"
#include "common/progress.h"
#include "input.h"
#include "output.h"

namespace aft::app {
namespace {

struct EvalOptions {
  std::string model;
  std::string file;
  bool json = false;
  int64_t threads = 0;
};

void run_eval(const EvalOptions& options) {
  const std::vector<uint8_t> text = read_text(options.file);
  const auto pool = std::make_shared<runtime::ThreadPool>(options.threads);
  const runtime::Model model = runtime::Model::load(options.model, *pool);
  WorkProgress progress("bytes", std::ssize(text));
  const runtime::Evaluation result = runtime::evaluate(model, text, pool, [&](int64_t done) { progress.done(done); });
  const double seconds = progress.finish();
  if (!options.json) {
    write_out(fixed(result.bits_per_byte, 4) + " bits per byte over " + grouped(result.predicted) + " predicted of " +
              grouped(result.bytes) + " bytes, in " + fixed(seconds, 1) + " s\n");
  }
  write_json({{"bits_per_byte", result.bits_per_byte},
              {"bytes", result.bytes},
              {"predicted", result.predicted},
              {"seconds", seconds}});
}

}  // namespace

void add_eval(CLI::App& app) {
  const auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand("eval", "Measure how well a model predicts a text, in bits per byte");
  add_text(*command, "MODEL", options->model, "A model file or a run folder")->required();
  add_text(*command, "FILE", options->file, "The text: any bytes, plain or .xz; - reads standard input")->required();
  command->add_flag("--json", options->json, "Only the last line: one JSON object");
  add_threads(*command, options->threads);
  command->footer(
      "The text is cut into windows of the model's context, each read from the neutral state; in a window every byte\n"
      "after the first is predicted once. The last line of output is a JSON object.\n"
      "Example:\n  aft eval runs/quickstart data/valid.txt --json");
  command->callback([options] { run_eval(*options); });
}

}  // namespace aft::app
