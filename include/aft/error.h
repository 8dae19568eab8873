#pragma once

#include <stdexcept>
#include <string>

namespace aft {

/// Thrown by every layer for bad input: names the argument, what was expected, what came and the remedy.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace aft
