#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace aft::app {

/// Thrown by both functions when whoever reads our output has gone: the program ends, quietly.
struct ClosedPipe {};

/// Writes to standard output at once. Throws ClosedPipe, or aft::SystemError for what else goes wrong.
void write_out(std::string_view bytes);

/// Writes what printf() has kept, and throws as write_out() does if any of it was lost.
void finish_output();

/// Nothing a user made is replaced unasked: throws aft::Error if `path`, which `option` named, is a file and not to be
/// replaced (`force`), is a folder, or lies in one that is not there. Devices and pipes are written to as they are.
void require_new(const std::string& option, const std::filesystem::path& path, bool force);

/// Whether the file is where standard output goes.
bool is_standard_output(const std::filesystem::path& path);

/// Names the file that was written, unless that is a stream or standard output itself, where it would join the bytes.
void say_written(const std::filesystem::path& path);

}  // namespace aft::app
