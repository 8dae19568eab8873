#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace aft {

/// Of a name of a device: nothing for "cpu", 0 for "cuda", N for "cuda:N". Throws aft::Error, which names `key`, for
/// what is no such name.
std::optional<int8_t> cuda_index(const std::string& key, const std::string& name);

}  // namespace aft
