#pragma once

#include "aft/ops/device.h"

namespace aft::dispatch {

/// LibTorch's own threads (at::set_num_threads, torch.set_num_threads), for the operators.
ops::ParallelFor torch_threads();

/// Of all operators since the process began.
ops::RedoCount& redo_counters();

}  // namespace aft::dispatch
