#pragma once

#include <atomic>
#include <optional>
#include <span>

#include "aft/models.h"
#include "aft/train.h"

namespace aft {

/// evaluate_checkpoint() for a model in memory; leaves it in training mode if it was. Nothing if *stop became true.
std::optional<Evaluation> evaluate(ByteLM& model, std::span<const uint8_t> text,
                                   const std::atomic<bool>* stop = nullptr);

/// Sets LibTorch's threads; 0: as many as the process has CPUs.
void use_threads(int64_t threads);

}  // namespace aft
