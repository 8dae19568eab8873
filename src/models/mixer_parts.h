#pragma once

#include <torch/nn/modules/linear.h>

#include <array>

#include "models/model.h"

// What the mixers that AFT is compared with have in common. `mixer` is the name that an error bears.

namespace aft {

/// Each throws aft::Error with the argument, what was expected, what came and the remedy.
void check_positive(const char* mixer, const char* name, int64_t value);
void check_heads(const char* mixer, int64_t heads, int64_t channels);
/// x must be [B, T, channels], B and T at least 1.
void check_sequence(const char* mixer, const torch::Tensor& x, int64_t channels);
/// `end` positions, those before the state included, must have a place in the tables.
void check_positions(const char* mixer, int64_t end, int64_t positions);
/// Only causal mixers have a state.
void check_causal(const char* mixer, bool causal);
void check_state(const char* mixer, const MixerState& state, size_t tensors);

/// [B, T, d] -> [B, heads, T, d / heads].
torch::Tensor split_heads(const torch::Tensor& x, int64_t heads);
/// [B, heads, T, d / heads] -> [B, T, d].
torch::Tensor join_heads(const torch::Tensor& x);
/// Query, key and value of a projection [B, T, 3 d], split by heads.
std::array<torch::Tensor, 3> split_qkv(const torch::Tensor& qkv, int64_t heads);

/// `cached` [B, heads, positions, d / heads], then `x` behind it.
torch::Tensor append(const torch::Tensor& cached, const torch::Tensor& x);
/// Such a cache with no position in it, for a mixer whose state follows the dtype and device of `layer`.
torch::Tensor empty_cache(int64_t batch, int64_t heads, int64_t channels, const torch::nn::Linear& layer);

}  // namespace aft
