#pragma once

#include "aft/ops/parallel.h"

namespace aft::dispatch {

/// LibTorch's own threads (at::set_num_threads, torch.set_num_threads), for the operators.
ops::ParallelFor torch_threads();

}  // namespace aft::dispatch
