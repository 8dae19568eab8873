#pragma once

#include <torch/types.h>

#include <string_view>
#include <tuple>

#include "window_arguments.h"

// The operators as C++ functions: each calls the dispatcher, which picks the variant's front, autograd, the device or
// Meta. key_mask and cu_seqlens may be left out.

namespace aft::dispatch {

using at::Tensor;
using at::TensorList;
using StateTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using YAndState = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using YStateSaved = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using WindowGrads = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // q, k, v, band; absent ones of size [0]

Tensor simple(const OptionalTensor& q, const Tensor& k, const Tensor& v, bool causal, std::string_view gate,
              int64_t heads, const OptionalTensor& key_mask = std::nullopt,
              const OptionalTensor& cu_seqlens = std::nullopt);
YAndState simple_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, TensorList state,
                            std::string_view gate, int64_t heads, const OptionalTensor& key_mask = std::nullopt,
                            const OptionalTensor& cu_seqlens = std::nullopt);
Tensor simple_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, TensorList state, std::string_view gate,
                   int64_t heads);

Tensor local(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, bool causal,
             std::string_view gate, const OptionalTensor& key_mask = std::nullopt,
             const OptionalTensor& cu_seqlens = std::nullopt);
YAndState local_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                           TensorList state, std::string_view gate, const OptionalTensor& key_mask = std::nullopt,
                           const OptionalTensor& cu_seqlens = std::nullopt);
Tensor local_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, TensorList state,
                  std::string_view gate);

Tensor conv1d(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel, bool causal,
              std::string_view gate, const OptionalTensor& key_mask = std::nullopt,
              const OptionalTensor& cu_seqlens = std::nullopt);
YAndState conv1d_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel,
                            TensorList state, std::string_view gate, const OptionalTensor& key_mask = std::nullopt,
                            const OptionalTensor& cu_seqlens = std::nullopt);
Tensor conv1d_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel, TensorList state,
                   std::string_view gate);

Tensor window(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band, bool causal,
              std::string_view gate, int64_t heads, const OptionalTensor& key_mask = std::nullopt,
              const OptionalTensor& cu_seqlens = std::nullopt);
std::tuple<Tensor, Tensor> window_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                          const OptionalTensor& band, bool causal, std::string_view gate, int64_t heads,
                                          const OptionalTensor& key_mask = std::nullopt,
                                          const OptionalTensor& cu_seqlens = std::nullopt);
WindowGrads window_backward(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                            const OptionalTensor& band, const Tensor& saved, bool causal, std::string_view gate,
                            int64_t heads, const OptionalTensor& key_mask = std::nullopt,
                            const OptionalTensor& cu_seqlens = std::nullopt, bool weights_gradient = true);
void window_backward_out(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                         const OptionalTensor& band, const Tensor& saved, bool causal, std::string_view gate,
                         int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens,
                         const OptionalTensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                         const OptionalTensor& grad_band);
YAndState window_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band,
                            TensorList state, std::string_view gate, int64_t heads,
                            const OptionalTensor& key_mask = std::nullopt,
                            const OptionalTensor& cu_seqlens = std::nullopt);
Tensor window_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band,
                   TensorList state, std::string_view gate, int64_t heads);
YStateSaved window_with_state_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                      const OptionalTensor& band, TensorList state, std::string_view gate,
                                      int64_t heads, const OptionalTensor& key_mask = std::nullopt,
                                      const OptionalTensor& cu_seqlens = std::nullopt);
YStateSaved window_with_state_backward(const Tensor& grad_y, const Tensor& grad_den, const Tensor& grad_num,
                                       const Tensor& grad_ring_key, const Tensor& grad_ring_value,
                                       const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                       const OptionalTensor& band, TensorList state, const Tensor& saved,
                                       std::string_view gate, int64_t heads,
                                       const OptionalTensor& key_mask = std::nullopt,
                                       const OptionalTensor& cu_seqlens = std::nullopt, bool weights_gradient = true);

using Conv2dGrads = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // q, k, v, kernel; an absent one of size [0]

Tensor conv2d(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel, c10::SymIntArrayRef grid,
              const OptionalTensor& key_mask, std::string_view gate);
Conv2dGrads conv2d_backward(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                            const Tensor& kernel, c10::SymIntArrayRef grid, const OptionalTensor& key_mask,
                            std::string_view gate, bool weights_gradient);
void conv2d_backward_out(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& kernel, c10::SymIntArrayRef grid, const OptionalTensor& key_mask,
                         std::string_view gate, const OptionalTensor& grad_q, const Tensor& grad_k,
                         const Tensor& grad_v, const OptionalTensor& grad_kernel);

// q, k, v, bias, u, w, ring_key, ring_value; absent ones of size [0].
using FullGrads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using YSavedState = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensor full(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
            const OptionalTensor& u, const OptionalTensor& w, bool causal, std::string_view gate, int64_t heads,
            const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens);
YAndState full_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                          const OptionalTensor& u, const OptionalTensor& w, TensorList state, std::string_view gate,
                          int64_t heads, const OptionalTensor& key_mask);
Tensor full_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                 const OptionalTensor& u, const OptionalTensor& w, TensorList state, std::string_view gate,
                 int64_t heads);
YSavedState full_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                         const OptionalTensor& u, const OptionalTensor& w, TensorList state, bool causal,
                         std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                         const OptionalTensor& cu_seqlens);
FullGrads full_backward(const Tensor& grad_y, const OptionalTensor& grad_ring_key,
                        const OptionalTensor& grad_ring_value, const OptionalTensor& q, const Tensor& k,
                        const Tensor& v, const OptionalTensor& bias, const OptionalTensor& u, const OptionalTensor& w,
                        TensorList state, const Tensor& saved, bool causal, std::string_view gate, int64_t heads,
                        const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens, bool weights_gradient);

StateTensors initial_state(const Tensor& k, const Tensor& v, int64_t left);

Tensor reference(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& w, bool causal,
                 std::string_view gate, int64_t heads, const OptionalTensor& key_mask);
Tensor local_weights(const Tensor& bias, c10::SymInt time, int64_t left, int64_t right);
Tensor conv2d_weights(const Tensor& kernel, c10::SymIntArrayRef grid);

Tensor local_bias(const Tensor& u, const Tensor& v, int64_t left, int64_t right);
std::tuple<Tensor, Tensor> local_bias_backward(const Tensor& grad_bias, const Tensor& u, const Tensor& v, int64_t left,
                                               int64_t right);

}  // namespace aft::dispatch
