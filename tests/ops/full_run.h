#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "aft/ops/full.h"
#include "tests/ops/window_run.h"

// Cases of the dense operator, and its runs as dense numbers in, dense numbers out: through the kernels (strided views
// inside larger buffers filled with NaN), through the reference, and plainly.

namespace aft::ops::test {

/// How the weights are given.
enum class Weights { kTable, kTablePerHead, kTablePerBatch, kTablePerBatchAndHead, kFactors, kFactorsPerHead };

struct FullCase {
  std::string input = "normal";  // class of input
  int64_t batch = 1;
  int64_t targets = 0;
  int64_t sources = 0;  // without causal; targets if 0 is given for a causal case
  int64_t channels = 1;
  int64_t heads = 1;
  bool key_per_head = false;
  bool causal = true;
  Gate gate = Gate::kSigmoid;
  Weights weights = Weights::kTable;
  int64_t width = 3;                  // of factors
  bool state = false;                 // starts from a state, its rows at different positions
  bool masked = false;                // a key padding mask; row 0 masks everything
  std::vector<int64_t> lengths = {};  // packed sequences
  uint64_t seed = 0;
};

std::string describe(const FullCase& c);

/// Every case of ordinary input that the operator is judged over.
std::vector<FullCase> full_cases();
/// Hard numbers of a class (hard_inputs()).
std::vector<FullCase> full_hard_cases(const std::string& input);

/// All arrays dense. T is the accumulation type of E, or what judges it.
template <typename T>
struct FullInputs {
  FullShape shape;
  Weights weights = Weights::kTable;
  int64_t rows = 0, columns = 0, width = 0;  // of the weights
  std::vector<T> q, k, v, grad_y;
  std::vector<T> table, u, w;  // w: the second factor
  std::vector<uint8_t> mask;
  std::vector<int64_t> cu_seqlens;
  StateData<T> initial;  // position empty: none
  bool has_final = false;
  StateData<T> grad_final;  // ring_key, ring_value

  int64_t tensor_rows() const { return cu_seqlens.empty() ? shape.batch : 1; }
  bool has_factors() const { return weights == Weights::kFactors || weights == Weights::kFactorsPerHead; }
  bool per_batch() const { return weights == Weights::kTablePerBatch || weights == Weights::kTablePerBatchAndHead; }
  /// Heads that have weights of their own.
  int64_t weight_heads() const {
    const bool per_head = weights == Weights::kTablePerHead || weights == Weights::kTablePerBatchAndHead ||
                          weights == Weights::kFactorsPerHead;
    return per_head ? shape.heads : 1;
  }
  int64_t table_index(int64_t b, int64_t h, int64_t target, int64_t source) const {
    const int64_t matrix = (per_batch() ? b * weight_heads() : 0) + (weight_heads() > 1 ? h : 0);
    return (matrix * rows + target) * columns + source;
  }
  int64_t u_index(int64_t h, int64_t target, int64_t f) const { return (h * rows + target) * width + f; }
  int64_t w_index(int64_t h, int64_t source, int64_t f) const { return (h * columns + source) * width + f; }
};

enum FullOutput {
  kFullY,
  kFullGradQ,
  kFullGradK,
  kFullGradV,
  kFullGradTable,
  kFullGradU,
  kFullGradW,
  kFullGradRingKey,
  kFullGradRingValue,
  kFullOutputs
};
constexpr std::array<const char*, kFullOutputs> kFullOutputNames = {
    "y", "grad_q", "grad_k", "grad_v", "grad_table", "grad_u", "grad_v of weights", "grad_ring_key", "grad_ring_value"};

/// True of tensors of the element type, false of those of the accumulation type.
inline bool is_tensor(FullOutput o) { return o <= kFullGradV; }

template <typename T>
struct FullOutputs {
  std::array<std::vector<T>, kFullOutputs> of;
  StateData<T> final;
};

/// Numbers of the case, rounded to E.
template <typename E>
FullInputs<Accumulate<E>> make_full_inputs(const FullCase& c);

template <typename R, typename T>
FullInputs<R> convert(const FullInputs<T>& in);

struct FullOptions {
  ParallelFor parallel = {};
  RedoCount* redone = nullptr;
  bool backward = true;
  int64_t shift = 1;         // elements between the start of a buffer and its first row
  bool alias_state = false;  // final_state is the initial state's own memory
};

template <typename E>
FullOutputs<Accumulate<E>> run_full(const FullInputs<Accumulate<E>>& in, const FullOptions& options = {});

/// Position by position from the state: forward only.
template <typename E>
FullOutputs<Accumulate<E>> run_full_steps(const FullInputs<Accumulate<E>>& in, const FullOptions& options = {});

/// T: double or long double.
template <typename T>
FullOutputs<T> run_full_reference(const FullInputs<T>& in);

/// The plain computation (window_plain.h says what that is), the state left out. Factors give a dense w, and take their
/// gradients from a dense dw.
template <typename E>
struct FullPlain {
  FullOutputs<Accumulate<E>> outputs;
  std::array<std::vector<double>, kFullOutputs> scale;  // of the error of every output element (plain_number.h)
};

template <typename E>
FullPlain<E> run_full_plain(const FullInputs<Accumulate<E>>& in);

/// Positions [begin, end) of every row, starting from `state`.
template <typename T>
FullInputs<T> slice_time(const FullInputs<T>& in, int64_t begin, int64_t end, const StateData<T>& state);

/// Row b of the batch, or packed sequence b, alone.
template <typename T>
FullInputs<T> slice_batch(const FullInputs<T>& in, int64_t b);

}  // namespace aft::ops::test
