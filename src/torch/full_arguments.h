#pragma once

#include <torch/types.h>

#include <string_view>

#include "aft/ops/full.h"
#include "arguments.h"

// What every implementation of the dense operator (CPU, Meta) asks of its arguments, in one place.

namespace aft::dispatch {

/// What a call is handed, checked, before any size must be a number.
struct FullArguments {
  OptionalTensor q;
  at::Tensor k, v;
  OptionalTensor bias, u, w;  // bias [B or 1, H or 1, rows, columns]; or factors [H or 1, rows, width]
  bool causal = true;
  ops::Gate gate = ops::Gate::kSigmoid;
  c10::SymInt heads;
  OptionalTensor key_mask, cu_seqlens;

  [[nodiscard]] c10::SymInt batch() const { return v.sym_size(0); }
  [[nodiscard]] c10::SymInt targets() const;
  /// Of y, of its gradient and of q's.
  [[nodiscard]] c10::SymDimVector y_shape() const { return {batch(), targets(), v.sym_size(2)}; }
  [[nodiscard]] ops::FullShape shape(int64_t capacity) const;
};

/// Checks q, k, v, the weights (a matrix, or both factors), the mask [batch, sources] and the packing [sequences + 1]
/// (batch 1). Heads are those of the weights, `heads` where they are shared. Of 16-bit q, k, v the weights may be
/// float32.
FullArguments check_full(std::string_view op, const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                         const OptionalTensor& bias, const OptionalTensor& u, const OptionalTensor& w, bool causal,
                         std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                         const OptionalTensor& cu_seqlens);

/// Checks the six tensors of a state against the call. Its ring holds as many positions as it was made with.
void check_state(std::string_view op, const FullArguments& a, at::TensorList state);

}  // namespace aft::dispatch
