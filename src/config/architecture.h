#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "aft/config/model_config.h"

// The one table of architectures: of every model and mixer its options with their checks and its tensors with shape,
// initial values and whether weight decay applies. Parameter counts, initialisation, the optimiser's groups, the model
// file, recipes and the memory estimate follow from it. A new mixer is an entry in mixers.cc, and a file on each side
// that runs it (src/models/mixers.cc, src/runtime/mixer/).

namespace aft {

/// One value of a ModelConfig or MixerConfig: its name in recipes and model files, and what it may be.
template <typename Owner>
struct Field {
  const char* name;
  std::variant<int64_t Owner::*, double Owner::*, std::string Owner::*, bool Owner::*, std::vector<double> Owner::*,
               std::vector<std::string> Owner::*>
      member;
  int64_t smallest = 1;                 // of an integer
  std::vector<const char*> words = {};  // that a text may be
  bool includes_1 = false;              // a number may be in [0, 1], else in [0, 1)
};

/// Where a tensor's values begin.
enum class Init { kZeros, kOnes, kNormal, kConstant };

/// What the rows of a tensor stand for.
enum class RowsOf {
  kAnything,   // a model of another size has other ones
  kPositions,  // of a sequence: a longer one has the same rows and more
  kPlaces,     // of a grid of patches, after the class token's: another grid has interpolated ones
};

/// Rows of a tensor that have a meaning, and a name, of their own.
struct Part {
  std::string name;
  int64_t rows = 0;
};

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  Init init = Init::kNormal;
  double spread = 0;    // standard deviation of kNormal; the value of kConstant
  bool decays = false;  // whether weight decay applies: to the weights of linear layers alone
  RowsOf rows_of = RowsOf::kAnything;
  std::vector<Part> parts = {};  // that the rows consist of, in this order; none: the tensor is one
};

struct MixerEntry {
  const char* name;
  bool causal;      // whether a model that predicts the next token may use it
  bool not_causal;  // whether one that sees all positions may
  std::vector<Field<MixerConfig>> options;
  /// What options must hold beyond their ranges; throws aft::Error. Null: nothing.
  void (*check)(const ModelConfig& config);
  /// The tensors of one layer, by their names within the mixer ("qkv.weight").
  std::vector<TensorSpec> (*tensors)(const ModelConfig& config);
  /// Numbers that one position of one layer leaves for the backward, beside the inputs and outputs of projections.
  double (*kept)(const ModelConfig& config);
};

struct ModelEntry {
  const char* name;
  bool causal;  // predicts each token from those before it
  std::vector<Field<ModelConfig>> options;
  void (*check)(const ModelConfig& config);
  int64_t (*positions)(const ModelConfig& config);
  /// The tensors outside the layers.
  std::vector<TensorSpec> (*tensors)(const ModelConfig& config);
};

/// All of them, in the order in which messages list them.
std::span<const MixerEntry> mixer_entries();
std::span<const ModelEntry> model_entries();

/// The entry of this name. Throws aft::Error, with the names there are.
const MixerEntry& mixer_entry(std::string_view name);
const ModelEntry& model_entry(std::string_view name);

/// The fields that every model has.
std::span<const Field<ModelConfig>> common_fields();

/// The names of the mixers that such a model may have.
std::vector<std::string> mixers_of(const ModelEntry& model);

/// Whether the model of this config predicts each token from those before it.
bool is_causal(const ModelConfig& config);

/// Rows of the token table: the vocabulary, and for pixel_lm one more, the start, which stands before the first value.
int64_t token_rows(const ModelConfig& config);

/// Channels of the queries: d, or 0 where AFT has no gate.
int64_t query_channels(const ModelConfig& config);

/// Channels of the keys: d, or one a head for AFT-conv.
int64_t key_channels(const ModelConfig& config);

/// Rows of the qkv projection: queries, keys and values, in this order.
int64_t qkv_channels(const ModelConfig& config);

/// Rows and columns of a classifier's grid of patches.
std::array<int64_t, 2> patch_grid(const ModelConfig& config);

/// Every tensor of a model: part of the file format (docs/model-file.md).
std::vector<TensorSpec> model_tensors(const ModelConfig& config);

/// The metadata of a model file.
std::map<std::string, std::string> model_metadata(const ModelConfig& config);

/// A tensor, or one of its parts: what two models of different mixers may have in common.
struct TensorPiece {
  std::string name;    // the part's, else the tensor's
  std::string tensor;  // whose rows [row, row + shape[0]) it is
  int64_t row = 0;
  std::vector<int64_t> shape;
  RowsOf rows_of = RowsOf::kAnything;
};

/// Every tensor of a model, those with parts cut into them.
std::vector<TensorPiece> model_pieces(const ModelConfig& config);

/// Numbers in the model's tensors, whatever their count of layers. Throws aft::Error if there are more than 2^53.
int64_t parameter_count(const ModelConfig& config);

}  // namespace aft
