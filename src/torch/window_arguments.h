#pragma once

#include <torch/types.h>

#include <string_view>
#include <vector>

#include "aft/ops/local_bias.h"
#include "aft/ops/window.h"
#include "arguments.h"

// What every implementation of the windowed operator and of local_bias (CPU, Meta) asks of its arguments, in one place.

namespace aft::dispatch {

/// ops::WindowShape before its sizes are known as numbers.
struct WindowSizes {
  c10::SymInt batch, time, channels, heads, key_channels;
  c10::SymInt sequences;  // batch, or the number of packed ones
  c10::SymInt span = 0;   // J, columns of the band; 0: simple
  c10::SymInt left = 0, right = 0;
  bool packed = false;
  bool causal = true;
  ops::Gate gate = ops::Gate::kSigmoid;

  [[nodiscard]] ops::WindowShape shape() const;
};

/// Checks q, k, v, the mask [batch, time], the packing [sequences + 1] (batch 1) and the band, which the operator named
/// `op` calls `band_name`: [heads, rows, J], or [heads, J] where every position shares one row. Heads are its first
/// size, `heads` where there is none. Of 16-bit q, k, v the band may be float32.
WindowSizes check_window(std::string_view op, const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                         const OptionalTensor& band, bool causal, std::string_view gate, int64_t heads,
                         const OptionalTensor& key_mask = std::nullopt, const OptionalTensor& cu_seqlens = std::nullopt,
                         std::string_view band_name = "band");

/// Checks the six tensors of a state against the sizes of the call.
void check_state(std::string_view op, const WindowSizes& sizes, const at::Tensor& v, at::TensorList state);

/// Checks the gradients of the four tensors of a state that have one.
void check_state_gradients(std::string_view op, const at::Tensor& grad_den, const at::Tensor& grad_num,
                           const at::Tensor& grad_ring_key, const at::Tensor& grad_ring_value, at::TensorList state);

/// Where window_backward.out writes, checked against the inputs.
std::vector<GradientOutput> window_gradients(std::string_view op, const OptionalTensor& q, const at::Tensor& k,
                                             const at::Tensor& v, const OptionalTensor& band,
                                             const OptionalTensor& grad_q, const at::Tensor& grad_k,
                                             const at::Tensor& grad_v, const OptionalTensor& grad_band);

/// The sizes of the state that initial_state(k, v, left) makes.
WindowSizes check_initial_state(const at::Tensor& k, const at::Tensor& v, int64_t left);

/// Elements that a forward of this shape saves for its backward; of packed sequences the most that any packing takes.
c10::SymInt saved_size(const WindowSizes& sizes);

struct LocalBiasSizes {
  c10::SymInt heads, rows, width;
  int64_t left = 0, right = 0;

  [[nodiscard]] ops::LocalBiasShape shape() const;
};

LocalBiasSizes check_local_bias(std::string_view op, const at::Tensor& u, const at::Tensor& v, int64_t left,
                                int64_t right);

/// Where local_bias_backward.out writes, checked against the inputs.
std::vector<GradientOutput> local_bias_gradients(std::string_view op, const at::Tensor& u, const at::Tensor& v,
                                                 const at::Tensor& grad_u, const at::Tensor& grad_v);

/// The shape of local_bias(u, ...): u's with its last size replaced by left + 1 + right.
c10::SymDimVector local_bias_shape(const at::Tensor& u, int64_t left, int64_t right);

}  // namespace aft::dispatch
