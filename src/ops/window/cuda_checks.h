#pragma once

#include "aft/ops/window.h"

// What a CUDA kernel must not be handed.

namespace aft::ops::window {

/// The checks of check.h, where the caller asks for them (Cuda::check_values): it copies positions and cu_seqlens to
/// the host and waits for the stream.
template <typename E>
void check_values(WindowInputs<E> in, const Cuda& cuda);

}  // namespace aft::ops::window
