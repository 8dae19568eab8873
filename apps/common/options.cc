#include "common/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <sstream>
#include <system_error>

#include "aft/error.h"
#include "runtime/nearest.h"

namespace aft::app {
namespace {

using Read = std::function<void(const std::string&)>;

/// CLI11 takes [a,b] apart where an argument may be repeated. Words in brackets go past it behind this mark.
constexpr char kMark = '\x01';
std::string marked(const std::string& word) {
  return word.starts_with('[') || word.starts_with(kMark) ? kMark + word : word;
}
std::string as_typed(const std::string& word) { return word.starts_with(kMark) ? word.substr(1) : word; }

[[noreturn]] void refuse(const std::string& name, const std::string& expected, const std::string& got) {
  throw Error(name + ": expected " + expected + ", got " + (got.empty() ? "nothing" : got));
}

CLI::Option* add(CLI::App& command, const std::string& name, const std::string& help, const std::string& type,
                 const std::string& standard, const Read& read) {
  const CLI::callback_t callback = [read](const CLI::results_t& texts) {
    for (const std::string& text : texts) read(as_typed(text));
    return true;
  };
  return command.add_option(name, callback, help)->type_name(type)->default_str(standard);
}

/// All of `text` as a T, in decimal: no sign but '-', no space, nothing that T does not hold.
template <typename T>
bool read_decimal(const std::string& text, T& value) {
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

template <typename T>
CLI::Option* add_whole(CLI::App& command, const std::string& name, T& value, T least, T most, const std::string& help) {
  return add(command, name, help, "INT", std::to_string(value), [=, &value](const std::string& text) {
    T number = 0;
    if (!read_decimal(text, number) || number < least || number > most) {
      refuse(name, "a whole number from " + std::to_string(least) + " to " + std::to_string(most), text);
    }
    value = number;
  });
}

std::string shortest(float number) {
  std::ostringstream text;
  text << number;
  return text.str();
}

/// Names of the options, or of the commands.
std::vector<std::string> names_in(const CLI::App& app, bool options) {
  std::vector<std::string> names;
  if (options) {
    for (const CLI::Option* option : app.get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    }
  } else {
    for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  }
  return names;
}

/// The words of the command line, values apart from their options: --name=value becomes two words. Otherwise CLI11
/// takes the empty value of --name= for a missing one, and the next word for the value.
std::vector<std::string> split_words(const CLI::App& app, int argc, char** argv) {
  const std::vector<std::string> given(argv + 1, argv + argc);
  std::vector<std::string> words;
  const CLI::App* command = nullptr;
  for (size_t i = 0; i < given.size(); ++i) {
    const std::string& word = given[i];
    const CLI::App& scope = command == nullptr ? app : *command;
    if (word == "--") {
      words.insert(words.end(), given.begin() + static_cast<std::ptrdiff_t>(i), given.end());
      break;
    }
    if (word.starts_with("--")) {
      const size_t equals = word.find('=');
      const std::string name = word.substr(0, equals);
      const CLI::Option* option = scope.get_option_no_throw(name);
      if (option == nullptr) {
        throw Error("unknown option " + name + "; did you mean " + nearest(name, names_in(scope, true)) + "?");
      }
      words.push_back(name);
      const bool takes_value = option->get_items_expected_max() > 0;
      if (equals != std::string::npos) {
        if (!takes_value) throw Error(name + ": takes no value, got " + word.substr(equals + 1));
        words.push_back(word.substr(equals + 1));
      } else if (takes_value && i + 1 < given.size()) {
        words.push_back(given[++i]);
      }
      continue;
    }
    if (!scope.get_subcommands({}).empty() && !word.starts_with('-')) {
      const auto commands = scope.get_subcommands([&](const CLI::App* known) { return known->get_name() == word; });
      if (commands.empty()) {
        throw Error("unknown command " + word + "; did you mean " + nearest(word, names_in(scope, false)) + "?");
      }
      command = commands.front();
    }
    words.push_back(marked(word));
  }
  return words;
}

}  // namespace

CLI::Option* add_text(CLI::App& command, const std::string& name, std::string& value, const std::string& help) {
  return add(command, name, help, "TEXT", value, [&value](const std::string& text) { value = text; });
}

CLI::Option* add_texts(CLI::App& command, const std::string& name, std::vector<std::string>& values,
                       const std::string& help) {
  CLI::Option* option = add(command, name, help, "TEXT", "", [&](const std::string& text) { values.push_back(text); });
  option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  return option->get_positional() ? option->expected(-1) : option->allow_extra_args(false);
}

CLI::Option* add_choice(CLI::App& command, const std::string& name, std::string& value,
                        const std::vector<std::string>& choices, const std::string& help) {
  return add(command, name, help, "TEXT", value, [=, &value](const std::string& text) {
    if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
      std::string all;
      for (const std::string& choice : choices) all += (all.empty() ? "" : ", ") + choice;
      refuse(name, "one of " + all, text);
    }
    value = text;
  });
}

CLI::Option* add_integer(CLI::App& command, const std::string& name, int64_t& value, int64_t least, int64_t most,
                         const std::string& help) {
  return add_whole(command, name, value, least, most, help);
}

CLI::Option* add_integer(CLI::App& command, const std::string& name, uint64_t& value, const std::string& help) {
  return add_whole(command, name, value, uint64_t{0}, std::numeric_limits<uint64_t>::max(), help);
}

CLI::Option* add_threads(CLI::App& command, int64_t& threads) {
  constexpr int64_t kMost = 1024;
  return add_integer(command, "--threads", threads, 0, kMost, "0: as many as the process has CPUs");
}

CLI::Option* add_number(CLI::App& command, const std::string& name, float& value, const Interval& interval,
                        const std::string& help) {
  return add(command, name, help, "FLOAT", shortest(value), [=, &value](const std::string& text) {
    float number = 0;
    if (!read_decimal(text, number) || !std::isfinite(number) || number > interval.most || number < interval.least ||
        (interval.open && number == interval.least)) {
      std::string expected = (interval.open ? "a number above " : "a number from ") + shortest(interval.least);
      expected += interval.most < Interval().most ? (interval.open ? ", at most " : " to ") + shortest(interval.most)
                                                  : (interval.open ? "" : " on");
      refuse(name, expected, text);
    }
    value = number;
  });
}

void add_sampler(CLI::App& command, runtime::SamplerOptions& sampler, const std::string& token,
                 const std::string& seed_help) {
  constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
  add_number(command, "--temperature", sampler.temperature, {}, "0: always the most likely " + token);
  add_number(command, "--top-p", sampler.top_p, {.least = 0, .most = 1, .open = true},
             "Draw from the fewest most likely " + token + "s that reach this share");
  add_integer(command, "--top-k", sampler.top_k, 0, kAny, "Draw from the K most likely " + token + "s; 0: from all");
  add_integer(command, "--seed", sampler.seed, seed_help);
}

void parse(CLI::App& app, int argc, char** argv) {
  std::vector<std::string> words = split_words(app, argc, argv);
  std::reverse(words.begin(), words.end());  // as CLI11 wants them
  try {
    app.parse(std::move(words));
  } catch (const CLI::ExtrasError&) {  // lists them backwards
    std::string extras;
    for (const std::string& word : app.remaining(true)) extras += " " + as_typed(word);
    throw Error("arguments that no one asked for:" + extras);
  }
}

}  // namespace aft::app
