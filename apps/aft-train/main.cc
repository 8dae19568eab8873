#include <malloc.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>

#include "aft/error.h"
#include "aft/ops/device.h"
#include "commands.h"
#include "common/exit_codes.h"
#include "common/options.h"
#include "common/output.h"
#include "common/program.h"
#include "config/architecture.h"
#include "progress.h"
#include "train/train.h"

namespace {

using aft::app::kFailed;
using aft::app::kOk;
using aft::app::kSignalled;
using aft::app::require_new;
using aft::app::say_written;

using Json = nlohmann::ordered_json;

std::atomic<bool> stop_requested{false};
std::atomic<int> stop_signal{0};

void request_stop(int signal) {
  stop_signal = signal;
  stop_requested = true;
  std::signal(signal, SIG_DFL);  // a second one ends at once
}

/// These stop the training with a checkpoint, unless they were ignored when the program started, as by nohup.
void watch_signals() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction now {};
    if (sigaction(signal, nullptr, &now) == 0 && now.sa_handler != SIG_IGN) std::signal(signal, request_stop);
  }
}

void print_json(const Json& json) { std::printf("%s\n", json.dump().c_str()); }

/// Options of all subcommands; each uses its own.
struct Arguments {
  std::string program;  // as typed
  std::string recipe;
  std::vector<std::string> set;
  aft::TrainOptions train;
  bool force = false;  // of init
  bool dry_run = false;
  bool json = false;
  std::string checkpoint;
  aft::EvaluateOptions evaluate;
  std::string out;
};

std::string megabytes(int64_t bytes) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.1f MB", static_cast<double>(bytes) / 1e6);
  return text;
}

int dry_run(const aft::Recipe& recipe, bool json) {
  const auto estimate = aft::estimate_memory(recipe);
  if (json) {
    print_json({{"parameters", estimate.parameters},
                {"state_bytes", estimate.state_bytes},
                {"activation_bytes", estimate.activation_bytes},
                {"mixers", aft::mixers_of(aft::model_entry(recipe.model.model))},
                {"recipe", aft::to_toml(recipe)}});
    return kOk;
  }
  std::printf("# parameters: %lld\n", static_cast<long long>(estimate.parameters));
  std::printf("# memory: %s weights, gradient and moments + about %s activations, on %s\n",
              megabytes(estimate.state_bytes).c_str(), megabytes(estimate.activation_bytes).c_str(),
              recipe.train.device.c_str());
  std::printf("%s", aft::to_toml(recipe).c_str());
  return kOk;
}

/// A word as a shell reads it back.
std::string quoted(const std::string& word) {
  constexpr const char* kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

/// The command that goes on with this run, for the user to copy.
std::string resume_command(const Arguments& arguments) {
  std::string command = quoted(arguments.program) + " train " + quoted(arguments.recipe);
  for (const auto& text : arguments.set) command += " --set " + quoted(text);
  return command + " --resume";
}

int train(const Arguments& arguments) {
  const aft::Recipe recipe = aft::load_recipe(arguments.recipe, arguments.set);
  aft::validate(recipe, true);
  if (arguments.dry_run) return dry_run(recipe, arguments.json);
  aft::TrainOptions options = arguments.train;
  options.stop = &stop_requested;
  options.profile = arguments.out;
  if (!arguments.out.empty()) require_new("--profile", arguments.out, options.force);
  options.recipe_file = arguments.recipe;
  aft::Trainer trainer(recipe, options);
  watch_signals();
  std::signal(SIGPIPE, SIG_IGN);  // a reader that went away is no reason to stop training
  aft::TrainOutcome outcome;
  try {
    aft::Progress progress;
    outcome = trainer.run(progress);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "aft-train: %s\n", error.what());
    return kFailed;
  }
  if (arguments.json) {
    Json json = {{"folder", recipe.run.folder}, {"step", outcome.step}, {"finished", outcome.finished}};
    for (const auto& [name, value] : outcome.best_valid) json["valid_" + name] = value;
    for (const auto& [name, value] : outcome.test) json["test_" + name] = value;
    if (outcome.device_bytes) json["device_bytes"] = *outcome.device_bytes;
    print_json(json);
  } else {
    std::printf("%s at step %lld of %lld in %s", outcome.finished ? "finished" : "stopped",
                static_cast<long long>(outcome.step), static_cast<long long>(recipe.train.steps),
                recipe.run.folder.c_str());
    if (!outcome.best_valid.empty()) std::printf("; best validation %s", aft::values_text(outcome.best_valid).c_str());
    if (!outcome.test.empty()) std::printf("; test %s", aft::values_text(outcome.test).c_str());
    if (outcome.device_bytes) {
      std::printf("; %s of %s", megabytes(*outcome.device_bytes).c_str(), recipe.train.device.c_str());
    }
    std::printf("\n");
  }
  if (!outcome.finished) {
    std::fprintf(stderr, "the checkpoint is written; go on with: %s\n", resume_command(arguments).c_str());
    if (stop_requested) return kSignalled + stop_signal;
  }
  return kOk;
}

int eval(const Arguments& arguments) {
  const auto result = aft::evaluate_checkpoint(arguments.checkpoint, arguments.evaluate);
  for (const std::string& text : result.skipped) std::fprintf(stderr, "skipped image: %s\n", text.c_str());
  if (!arguments.json) {
    std::printf("%s over %lld predicted %s in %.1f s\n", aft::values_text(result.values).c_str(),
                static_cast<long long>(result.predicted), result.unit.c_str(), result.seconds);
  }
  Json json = {{"loss", result.loss}};
  for (const auto& [name, value] : result.values) json[name] = value;
  json["bytes"] = result.bytes;
  json["predicted"] = result.predicted;
  json["seconds"] = result.seconds;
  json["tokens_per_second"] = static_cast<double>(result.predicted) / std::max(1e-9, result.seconds);
  print_json(json);
  return kOk;
}

int init(const Arguments& arguments) {
  const aft::Recipe recipe = aft::load_recipe(arguments.recipe, arguments.set);
  aft::validate(recipe, false);
  require_new("--out", arguments.out, arguments.force);
  aft::write_untrained_model(recipe, arguments.out);
  say_written(arguments.out);
  return kOk;
}

void add_recipe(CLI::App& command, Arguments& arguments) {
  aft::app::add_text(command, "RECIPE", arguments.recipe, "recipe (TOML), see docs/recipes.md")->required();
  aft::app::add_texts(command, "--set", arguments.set, "override a key: --set train.lr=1e-3 (may be repeated)");
}

CLI::App* add_train(CLI::App& app, Arguments& arguments) {
  auto* command = app.add_subcommand("train", "train a model");
  add_recipe(*command, arguments);
  command->add_flag("--resume", arguments.train.resume,
                    "go on from the run folder's checkpoint (or begin, where nothing is trained)");
  command->add_flag("--force", arguments.train.force, "replace an existing run");
  aft::app::add_integer(*command, "--until", arguments.train.until, 0, std::numeric_limits<int64_t>::max(),
                        "stop after this step, with a checkpoint");
  aft::app::add_text(*command, "--profile", arguments.out, "write a trace of steps 11 to 15 (JSON for Perfetto)");
  command->add_flag("--dry-run", arguments.dry_run, "print parameters, memory and the resolved recipe; train nothing");
  command->add_flag("--json", arguments.json, "print the outcome as JSON");
  command->footer(
      "Example: aft-train train recipes/quickstart.toml --set train.lr=1e-3\n"
      "Exit code: 0 done, 1 failed, 2 bad input or usage, 128 + the signal that stopped it (with a checkpoint).");
  return command;
}

CLI::App* add_eval(CLI::App& app, Arguments& arguments) {
  auto* command = app.add_subcommand("eval", "measure a model on data: bits per byte of a text, ...");
  aft::app::add_text(*command, "CHECKPOINT", arguments.checkpoint, "run folder or model file")->required();
  aft::app::add_text(*command, "--data", arguments.evaluate.data,
                     "file or folder, a text plain or .xz; default: the run's own data");
  aft::app::add_choice(*command, "--split", arguments.evaluate.split, {"train", "valid", "test"},
                       "which part, but of a text in --data, which is taken whole");
  aft::app::add_choice(*command, "--format", arguments.evaluate.format, {"cifar10", "idx", "folder"},
                       "of images in --data; default: as the run has them");
  aft::app::add_integer(*command, "--size", arguments.evaluate.size, 0, 4096,
                        "of a classifier: pixels on a side that images are brought to; 0: as it was trained");
  aft::app::add_text(*command, "--device", arguments.evaluate.device,
                     "cpu, cuda or cuda:N, whatever trained the model");
  aft::app::add_threads(*command, arguments.evaluate.threads);
  command->add_flag("--json", arguments.json, "print nothing but the JSON line");
  command->footer("Example: aft-train eval runs/quickstart --data book.txt\nThe last line of output is a JSON object.");
  return command;
}

CLI::App* add_init(CLI::App& app, Arguments& arguments) {
  auto* command = app.add_subcommand("init", "write an untrained model");
  add_recipe(*command, arguments);
  aft::app::add_text(*command, "--out", arguments.out, "model file to write")->required();
  command->add_flag("--force", arguments.force, "replace an existing file");
  command->footer("Example: aft-train init recipes/bench-aft-local-512.toml --out untrained.safetensors");
  return command;
}

/// Activations of one step are a few megabytes each. By default glibc gives such blocks back to the kernel at once and
/// takes fresh pages, to be zeroed, for the next one; keeping them makes a step of a small model far faster.
void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

/// OpenMP's threads wait for each other spinning, for so long that next to any other busy process a training step takes
/// many times its time: on two cores with three more processes 2,000 bytes/s instead of 19,000. A short spin costs
/// nothing where the machine is idle. The library reads this when it is loaded, so the program starts once more; where
/// that is not possible it goes on as it is.
void spin_briefly(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;
  setenv("GOMP_SPINCOUNT", "1000", 1);
  execv("/proc/self/exe", argv);
}

/// The version, the GPUs compiled for and the devices here.
std::string version() {
  const std::string compiled = aft::ops::cuda_architectures();
  std::string text = "aft-train " AFT_VERSION "\nCUDA kernels: ";
  text += compiled.empty() ? "none, built without CUDA" : "compiled for " + compiled;
  text += "\ndevices: cpu";
  const std::vector<std::string> devices = aft::ops::cuda_devices();
  for (size_t i = 0; i < devices.size(); ++i) text += ", cuda:" + std::to_string(i) + " " + devices[i];
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();
  CLI::App app("aft-train: trains attention-free transformers", "aft-train");
  app.set_version_flag("--version", version);
  app.require_subcommand(1);
  Arguments arguments;
  arguments.program = argv[0];
  CLI::App* train_command = add_train(app, arguments);
  CLI::App* eval_command = add_eval(app, arguments);
  CLI::App* init_command = add_init(app, arguments);
  aft::app::add_plot(app);
  aft::app::add_figure(app);
  aft::app::add_import(app);
  return aft::app::run_program(app, argc, argv, [&] {
    if (train_command->parsed() || eval_command->parsed()) spin_briefly(argv);
    if (train_command->parsed()) return train(arguments);
    if (eval_command->parsed()) return eval(arguments);
    if (init_command->parsed()) return init(arguments);
    return kOk;  // the others are callbacks
  });
}
