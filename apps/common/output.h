#pragma once

#include <string_view>

namespace aft::app {

/// Thrown by both functions when whoever reads our output has gone: the program ends, quietly.
struct ClosedPipe {};

/// Writes to standard output at once. Throws ClosedPipe, or aft::SystemError for what else goes wrong.
void write_out(std::string_view bytes);

/// Writes what printf() has kept, and throws as write_out() does if any of it was lost.
void finish_output();

}  // namespace aft::app
