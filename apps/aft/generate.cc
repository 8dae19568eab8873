#include <unistd.h>

#include <memory>
#include <string>

#include "aft/error.h"
#include "aft/runtime.h"
#include "commands.h"
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

std::vector<uint8_t> read_prompt(const GenerateOptions& options) {
  const bool piped = options.prompt_given ? options.prompt == "-" : standard_input_is_piped();
  if (piped) return read_standard_input();
  return {options.prompt.begin(), options.prompt.end()};
}

void run_generate(const GenerateOptions& options) {
  runtime::Sampler sampler(options.sampler);  // complains before the model is loaded
  std::vector<uint8_t> prompt = read_prompt(options);
  const auto pool = std::make_shared<runtime::ThreadPool>(options.threads);
  const runtime::Model model = runtime::Model::load(options.model, *pool);
  runtime::RollingSession session(model, pool);

  if (options.echo) write_out({reinterpret_cast<const char*>(prompt.data()), prompt.size()});
  if (prompt.empty()) prompt = {'\n'};  // a text begins as after the end of a line
  for (int64_t i = 0; i < options.tokens; ++i) {
    const uint8_t byte = sampler.draw(session.feed(prompt));
    write_out({reinterpret_cast<const char*>(&byte), 1});
    prompt = {byte};
  }
  if (::isatty(STDOUT_FILENO) != 0) write_out("\n");
}

}  // namespace

void add_generate(CLI::App& app) {
  const auto not_negative = [](const std::string& text) {
    return text.rfind('-', 0) == 0 ? "expected a number >= 0, got " + text : std::string();
  };
  const auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "Write text, byte by byte as it comes");
  command->add_option("MODEL", options->model, "A model file or a run folder")->required();
  CLI::Option* prompt = command->add_option(
      "--prompt", options->prompt,
      "The text to continue; - reads it from standard input. Without it, what is piped in; else the start of a line");
  command->add_flag("--echo", options->echo, "Write the prompt first");
  command->add_option("--tokens", options->tokens, "Bytes to write")->check(not_negative)->capture_default_str();
  command->add_option("--temperature", options->sampler.temperature, "0: always the most likely byte")
      ->capture_default_str();
  command->add_option("--top-p", options->sampler.top_p, "Draw from the fewest most likely bytes that reach this share")
      ->capture_default_str();
  command->add_option("--top-k", options->sampler.top_k, "Draw from the K most likely bytes; 0: from all")
      ->capture_default_str();
  command->add_option("--seed", options->sampler.seed, "The same seed writes the same text")
      ->check(not_negative)
      ->capture_default_str();
  command->add_option("--threads", options->threads, "0: as many as the machine runs")->capture_default_str();
  command->footer(
      "Past the model's context it reads the last half of the context again and goes on.\n"
      "Example:\n  aft generate runs/quickstart --prompt 'ROMEO:' --tokens 500 --seed 1");
  command->callback([options, prompt] {
    options->prompt_given = prompt->count() > 0;
    run_generate(*options);
  });
}

}  // namespace aft::app
