#pragma once

// Inference without LibTorch: a model file, sessions that read and write text, sampling, evaluation.
//
//   auto pool = std::make_shared<aft::runtime::ThreadPool>(2);
//   const auto model = aft::runtime::Model::load("runs/quickstart", *pool);
//   aft::runtime::RollingSession session(model, pool);
//   aft::runtime::Sampler sampler({.temperature = 0.8F, .seed = 1});
//   for (uint8_t byte = '\n';; byte = sampler.draw(session.feed({&byte, 1}))) std::cout << byte;

#include "aft/config/model_config.h"  // IWYU pragma: export
#include "aft/error.h"                // IWYU pragma: export
#include "aft/io/safetensors.h"       // IWYU pragma: export
#include "aft/runtime/classifier.h"   // IWYU pragma: export
#include "aft/runtime/evaluate.h"     // IWYU pragma: export
#include "aft/runtime/model.h"        // IWYU pragma: export
#include "aft/runtime/model_file.h"   // IWYU pragma: export
#include "aft/runtime/sampler.h"      // IWYU pragma: export
#include "aft/runtime/session.h"      // IWYU pragma: export
#include "aft/runtime/thread_pool.h"  // IWYU pragma: export
