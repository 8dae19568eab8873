#include <charconv>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "aft/error.h"
#include "commands.h"
#include "common/options.h"
#include "common/output.h"
#include "models/import_vit.h"

namespace aft::app {
namespace {

struct ImportArguments {
  std::string from;
  std::string out;
  bool force = false;
  std::string norm_eps = "1e-6";
  std::string mean = "0.485,0.456,0.406";
  std::string deviation = "0.229,0.224,0.225";
  std::string crop = "0.9";
  std::string class_names;
  ImportOptions options;
};

/// "0.485,0.456" as it is read, not through f32.
std::vector<double> numbers(const char* option, const std::string& text) {
  std::vector<double> values;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    const auto [next, error] = std::from_chars(at, end, values.emplace_back());
    if (error != std::errc() || (next != end && *next != ',')) {
      throw Error(std::string(option) + ": expected numbers with commas between them, got " + text);
    }
    if (next == end) return values;
    at = next + 1;
  }
}

double number(const char* option, const std::string& text) {
  const std::vector<double> values = numbers(option, text);
  if (values.size() != 1) throw Error(std::string(option) + ": expected one number, got " + text);
  return values[0];
}

std::vector<std::string> lines_of(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Error("--class-names: " + path + ": cannot be read; expected a file with a name a line");
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    lines.push_back(line);
  }
  return lines;
}

void run_import(ImportArguments arguments) {
  ImportOptions& options = arguments.options;
  options.norm_eps = number("--norm-eps", arguments.norm_eps);
  options.mean = numbers("--mean", arguments.mean);
  options.deviation = numbers("--deviation", arguments.deviation);
  options.crop = number("--crop", arguments.crop);
  if (!arguments.class_names.empty()) options.class_names = lines_of(arguments.class_names);
  require_new("--out", arguments.out, arguments.force);
  import_vit(arguments.from, arguments.out, options);
  say_written(arguments.out);
}

}  // namespace

void add_import(CLI::App& app) {
  const auto arguments = std::make_shared<ImportArguments>();
  CLI::App* command = app.add_subcommand("import", "make a model file of a vision transformer with timm's names");
  add_text(*command, "FILE", arguments->from, "safetensors file, as timm and the Hugging Face hub keep them")
      ->required();
  add_text(*command, "--out", arguments->out, "model file to write")->required();
  command->add_flag("--force", arguments->force, "replace an existing file");
  add_integer(*command, "--heads", arguments->options.heads, 0, int64_t{1} << 20,
              "heads of attention; 0: as many as make them 64 channels wide");
  add_text(*command, "--norm-eps", arguments->norm_eps, "of the layer norms");
  add_text(*command, "--mean", arguments->mean, "of values in [0, 1], one or one a colour");
  add_text(*command, "--deviation", arguments->deviation, "of values in [0, 1], one or one a colour");
  add_choice(*command, "--resampling", arguments->options.resampling, {"nearest", "bilinear", "bicubic"},
             "how images are brought to size");
  add_text(*command, "--crop", arguments->crop, "share of the shorter side of an image that is seen");
  add_text(*command, "--class-names", arguments->class_names, "file with a name a line, one for each class");
  command->footer(
      "Example: aft-train import vit_small_patch16_224.safetensors --out vit.safetensors\n"
      "The model is for images of the size that its table of positions was made for; eval, classify and\n"
      "figure take --size for another.");
  command->callback([arguments] { run_import(*arguments); });
}

}  // namespace aft::app
