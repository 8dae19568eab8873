#pragma once

#include <string>
#include <vector>

#include "config/architecture.h"

// Tensors that several architectures have.

namespace aft::specs {

/// weight [outputs, inputs], N(0, 0.02^2), which decays; bias [outputs], 0.
std::vector<TensorSpec> linear(const std::string& name, int64_t outputs, int64_t inputs);

/// A linear layer that ends a residual branch: its weights are divided by sqrt(2 layers).
std::vector<TensorSpec> branch_end(const std::string& name, int64_t outputs, int64_t inputs, const ModelConfig& config);

/// The projection to queries, keys and values: a linear layer whose rows are these three parts.
std::vector<TensorSpec> qkv(const ModelConfig& config);

/// weight [channels], 1; bias [channels], 0.
std::vector<TensorSpec> norm(const std::string& name, int64_t channels);

std::vector<TensorSpec> join(std::vector<TensorSpec> first, const std::vector<TensorSpec>& second);

/// The list with `prefix` before every name.
std::vector<TensorSpec> under(const std::string& prefix, std::vector<TensorSpec> list);

constexpr double kSpread = 0.02;  // of linear and embedding weights

}  // namespace aft::specs
