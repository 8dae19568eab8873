#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "aft/ops/full.h"
#include "aft/ops/grid.h"
#include "aft/ops/window.h"

namespace aft::ops::test {

enum class Operator { kSimple, kLocal, kConv1d, kConv2d, kFull, kLocalBias };

/// What is tested alike: operators of one kernel family.
enum class Family { kWindow, kGrid, kFull, kLocalBias };
constexpr const char* kFamilyNames[] = {"window", "grid", "full", "local_bias"};

/// How the dense operator is given its weights.
enum class Weights { kTable, kTablePerHead, kTablePerBatch, kTablePerBatchAndHead, kFactors, kFactorsPerHead };

/// One call of an operator: its sizes, its options and the class of its numbers. What an operator has not stays as it
/// is here.
struct Case {
  Operator op = Operator::kSimple;
  std::string input = "normal";  // class of input: input_classes.h
  int64_t batch = 1;             // packed: sequences
  int64_t time = 0;              // targets. Packed: tokens of all sequences; on a grid: height * width
  int64_t sources = -1;          // full, not causal. -1: as many as targets
  int64_t height = 0, width = 0;
  int64_t channels = 1;
  int64_t heads = 1;
  bool key_per_head = false;
  bool causal = true;
  int64_t left = 0, right = 0;        // reach of local and conv1d
  int64_t kernel = 1;                 // of conv2d
  Weights weights = Weights::kTable;  // of full
  int64_t factors = 3;                // width of the factors of full and local_bias
  Gate gate = Gate::kSigmoid;
  bool state = false;                 // starts from a state, its rows at different positions
  bool masked = false;                // a key padding mask, which hides the whole of the first sequence
  std::vector<int64_t> lengths = {};  // of packed sequences
  uint64_t seed = 0;

  Family family() const;
  bool packed() const { return !lengths.empty(); }
  int64_t key_channels() const { return key_per_head ? heads : channels; }
  bool has_factors() const { return weights == Weights::kFactors || weights == Weights::kFactorsPerHead; }
  bool weights_per_batch() const {
    return weights == Weights::kTablePerBatch || weights == Weights::kTablePerBatchAndHead;
  }
  /// Heads that have weights of their own.
  int64_t weight_heads() const {
    const bool shared =
        weights == Weights::kTable || weights == Weights::kTablePerBatch || weights == Weights::kFactors;
    return op == Operator::kFull && shared ? 1 : heads;
  }
  /// The head that a channel belongs to, and its key channel.
  int64_t head(int64_t c) const { return c / (channels / heads); }
  int64_t key_channel(int64_t c) const { return key_per_head ? head(c) : c; }
  /// Batch rows that tensors have.
  int64_t rows() const { return packed() ? 1 : batch; }
  int64_t source_count() const { return sources < 0 ? time : sources; }
  /// Targets and sources of sequence b, and of all before it.
  int64_t targets_of(int64_t b) const { return packed() ? lengths[b] : time; }
  int64_t sources_of(int64_t b) const { return packed() ? lengths[b] : source_count(); }
  int64_t targets_before(int64_t b) const { return packed() ? packed_before(b) : b * time; }
  int64_t sources_before(int64_t b) const { return packed() ? packed_before(b) : b * source_count(); }

 private:
  int64_t packed_before(int64_t b) const;
};

/// Window s of AFT-local: sources abs(t - t') < s, those with t' <= t if causal; 0: none, which is simple.
void set_window(Case& c, int64_t s);
void set_grid(Case& c, int64_t height, int64_t width, int64_t kernel);
void pack(Case& c, const std::vector<int64_t>& lengths);

/// Under sanitizers, which look for what a kernel does to memory, of sizes that cut the work alike the costliest are
/// left out, and fewer cases are drawn: other builds judge all results.
#ifdef AFT_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

/// A case as one line, and back: what differs from Case() by name, as in "local input=wide T=4 left=2 gate=none".
std::string describe(const Case& c);
Case parse_case(const std::string& line);

/// What errors are pooled by, beside output, dtype and class of input.
std::string operator_name(const Case& c);

/// The lists of cases of ordinary input that a family is judged over,
std::vector<Case> cases(Family family);
/// and of a class of hard numbers.
std::vector<Case> hard_cases(Family family, const std::string& input);
/// Those classes: input_classes.h.
std::vector<std::string> hard_inputs();

/// Part of the windowed list: windows of unequal reach, a row of weights shared by all positions, widths past several
/// vectors.
std::vector<Case> other_window_cases();

}  // namespace aft::ops::test
