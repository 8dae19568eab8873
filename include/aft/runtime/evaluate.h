#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "aft/runtime/model.h"
#include "aft/runtime/thread_pool.h"

namespace aft::runtime {

struct Evaluation {
  double bits_per_byte = 0;
  int64_t bytes = 0;      // of the text
  int64_t predicted = 0;  // all but the first of each window
};

/// How many bytes of a text are predicted where it is cut into windows of `context` bytes: all but the first of each.
int64_t predicted_bytes(int64_t bytes, int64_t context);

/// The same, where there must be some: throws aft::Error.
int64_t require_predicted_bytes(int64_t bytes, int64_t context);

/// Cuts the text into windows of `context` bytes, the last as long as what is left; each starts from the neutral state
/// and predicts every byte after its first once. bits_per_byte is the total -log2 p over the number predicted.
/// `progress`, if given, is told the bytes done now and then. A text in which nothing is predicted throws aft::Error.
Evaluation evaluate(const Model& model, std::span<const uint8_t> text, const std::shared_ptr<ThreadPool>& pool,
                    const std::function<void(int64_t)>& progress = {});

}  // namespace aft::runtime
