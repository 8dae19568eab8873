#include <unistd.h>

#include <limits>
#include <memory>
#include <span>
#include <string>

#include "aft/runtime.h"
#include "commands.h"
#include "common/options.h"
#include "input.h"
#include "output.h"

namespace aft::app {
namespace {

struct GenerateOptions {
  std::string model;
  std::string prompt;
  bool prompt_given = false;
  bool echo = false;
  int64_t tokens = 256;
  runtime::SamplerOptions sampler = {.temperature = 0.8F};
  int64_t threads = 0;
};

bool reads_standard_input(const GenerateOptions& options) {
  return options.prompt_given ? options.prompt == "-" : standard_input_is_piped();
}

/// What the session should read before it writes: of a long prompt, only what it would remember.
std::vector<uint8_t> read_prompt(const GenerateOptions& options, int64_t context) {
  std::vector<uint8_t> prompt;
  const auto add = [&](std::span<const uint8_t> bytes) {
    if (options.echo) write_out({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    prompt.insert(prompt.end(), bytes.begin(), bytes.end());
    prompt.erase(prompt.begin(), prompt.begin() + runtime::RollingSession::surplus(std::ssize(prompt), context));
  };
  if (reads_standard_input(options)) {
    read_standard_input(add);
  } else {
    add({reinterpret_cast<const uint8_t*>(options.prompt.data()), options.prompt.size()});
  }
  if (prompt.empty()) prompt = {'\n'};  // a text begins as after the end of a line
  return prompt;
}

void run_generate(const GenerateOptions& options) {
  runtime::Sampler sampler(options.sampler);
  const auto pool = std::make_shared<runtime::ThreadPool>(options.threads);
  const runtime::Model model = runtime::Model::load(options.model, *pool);
  model.require("byte_lm", "generate");
  runtime::RollingSession session(model, pool);
  std::vector<uint8_t> prompt = read_prompt(options, positions(model.config()));
  for (int64_t i = 0; i < options.tokens; ++i) {
    const uint8_t byte = sampler.draw(session.feed(prompt));
    write_out({reinterpret_cast<const char*>(&byte), 1});
    prompt = {byte};
  }
  if (::isatty(STDOUT_FILENO) != 0) write_out("\n");
}

}  // namespace

void add_generate(CLI::App& app) {
  const auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "Write text, byte by byte as it comes");
  add_text(*command, "MODEL", options->model, "A model file or a run folder")->required();
  CLI::Option* prompt = add_text(
      *command, "--prompt", options->prompt,
      "The text to continue; - reads it from standard input. Without it, what is piped in; else the start of a line");
  command->add_flag("--echo", options->echo, "Write the prompt first");
  add_integer(*command, "--tokens", options->tokens, 0, std::numeric_limits<int64_t>::max(), "Bytes to write");
  add_sampler(*command, options->sampler, "byte", "The same seed writes the same text");
  add_threads(*command, options->threads);
  command->footer(
      "Past the model's context it reads the last half of the context again and goes on.\n"
      "Example:\n  aft generate runs/quickstart --prompt 'ROMEO:' --tokens 500 --seed 1");
  command->callback([options, prompt] {
    options->prompt_given = prompt->count() > 0;
    run_generate(*options);
  });
}

}  // namespace aft::app
