#pragma once

#include <torch/types.h>

#include <string_view>
#include <tuple>

#include "window_arguments.h"

// The operators as C++ functions: each calls the dispatcher, which picks autograd, the device or Meta.

namespace aft::dispatch {

using StateTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using YAndState = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using YStateSaved =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

at::Tensor simple(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, bool causal, std::string_view gate,
                  int64_t heads);
std::tuple<at::Tensor, at::Tensor> simple_forward(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                                                  bool causal, std::string_view gate, int64_t heads);
std::tuple<at::Tensor, at::Tensor, at::Tensor> simple_backward(const at::Tensor& grad_y, const OptionalTensor& q,
                                                               const at::Tensor& k, const at::Tensor& v,
                                                               const at::Tensor& saved, bool causal,
                                                               std::string_view gate, int64_t heads);
void simple_backward_out(const at::Tensor& grad_y, const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& saved, bool causal, std::string_view gate, int64_t heads,
                         const OptionalTensor& grad_q, const at::Tensor& grad_k, const at::Tensor& grad_v);
YAndState simple_with_state(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, at::TensorList state,
                            std::string_view gate, int64_t heads);
at::Tensor simple_step(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, at::TensorList state,
                       std::string_view gate, int64_t heads);

at::Tensor local(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias, bool causal,
                 std::string_view gate);
std::tuple<at::Tensor, at::Tensor> local_forward(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                                                 const at::Tensor& bias, bool causal, std::string_view gate);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> local_backward(const at::Tensor& grad_y,
                                                                          const OptionalTensor& q, const at::Tensor& k,
                                                                          const at::Tensor& v, const at::Tensor& bias,
                                                                          const at::Tensor& saved, bool causal,
                                                                          std::string_view gate);
void local_backward_out(const at::Tensor& grad_y, const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& bias, const at::Tensor& saved, bool causal, std::string_view gate,
                        const OptionalTensor& grad_q, const at::Tensor& grad_k, const at::Tensor& grad_v,
                        const at::Tensor& grad_bias);
YAndState local_with_state(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                           at::TensorList state, std::string_view gate);
at::Tensor local_step(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                      at::TensorList state, std::string_view gate);

YStateSaved window_with_state_forward(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const OptionalTensor& bias, at::TensorList state, std::string_view gate,
                                      int64_t heads);
YStateSaved window_with_state_backward(const at::Tensor& grad_y, const at::Tensor& grad_den, const at::Tensor& grad_num,
                                       const at::Tensor& grad_ring_key, const at::Tensor& grad_ring_value,
                                       const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const OptionalTensor& bias, at::TensorList state, const at::Tensor& saved,
                                       std::string_view gate, int64_t heads);

StateTensors initial_state(const at::Tensor& k, const at::Tensor& v, int64_t left);

at::Tensor local_bias(const at::Tensor& u, const at::Tensor& v, int64_t left, int64_t right);
std::tuple<at::Tensor, at::Tensor> local_bias_backward(const at::Tensor& grad_bias, const at::Tensor& u,
                                                       const at::Tensor& v, int64_t left, int64_t right);

}  // namespace aft::dispatch
