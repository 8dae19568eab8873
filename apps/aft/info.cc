#include <memory>
#include <string>

#include "aft/runtime/model_file.h"
#include "commands.h"
#include "common/options.h"
#include "config/architecture.h"
#include "output.h"

namespace aft::app {
namespace {

struct InfoOptions {
  std::string model;
  bool json = false;
};

/// ", window 32, factor_channels 64"
template <typename Owner>
std::string options_of(std::span<const Field<Owner>> fields, const Owner& owner) {
  std::string text;
  for (const Field<Owner>& field : fields) {
    text += std::string(", ") + field.name + ' ';
    std::visit(
        [&](auto member) {
          if constexpr (std::is_same_v<decltype(member), std::string Owner::*>) {
            text += owner.*member;
          } else {
            text += nlohmann::json(owner.*member).dump();
          }
        },
        field.member);
  }
  return text;
}

void run_info(const InfoOptions& options) {
  const runtime::ModelFile file(options.model);
  const ModelConfig& c = file.config();
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(file.path()));
  const std::string kind = file.is_checkpoint() ? "checkpoint" : "model";
  if (options.json) {
    nlohmann::ordered_json tensors;
    for (const auto& [name, tensor] : file.tensors()) tensors[name] = tensor.shape;
    write_json({{"file", file.path().string()},
                {"kind", kind},
                {"bytes", bytes},
                {"format_version", file.format_version()},
                {"library_version", file.library_version()},
                {"parameters", file.parameters()},
                {"config", nlohmann::ordered_json::parse(to_json(c))},
                {"tensors", tensors}});
    return;
  }
  std::string text = "file        " + file.path().string() + " (" + grouped(bytes) + " bytes, written by aft " +
                     file.library_version() + ")\n";
  if (file.is_checkpoint()) text += "kind        checkpoint of a run, with its latest weights\n";
  text += "parameters  " + grouped(file.parameters()) + " (f32)\n";
  text += "model       " + c.model + options_of<ModelConfig>(model_entry(c.model).options, c) + "\n";
  text += "mixer       " + c.mixer.name + options_of<MixerConfig>(mixer_entry(c.mixer.name).options, c.mixer) + "\n";
  text += "layers      " + std::to_string(c.layers) + "\nchannels    " + std::to_string(c.channels) + " (MLP " +
          std::to_string(c.mlp_channels) + ")\npositions   " + grouped(positions(c)) + "\n";
  write_out(text);
}

}  // namespace

void add_info(CLI::App& app) {
  const auto options = std::make_shared<InfoOptions>();
  CLI::App* command = app.add_subcommand("info", "Show what a model file holds");
  add_text(*command, "MODEL", options->model, "A model file or a run folder")->required();
  command->add_flag("--json", options->json, "One JSON object with config, parameters and the shape of every tensor");
  command->footer("Example:\n  aft info runs/quickstart");
  command->callback([options] { run_info(*options); });
}

}  // namespace aft::app
