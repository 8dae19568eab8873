#pragma once

#include <string>

#include "aft/error.h"

namespace aft {

/// What the aft::Error says that `call` throws; empty if it throws none.
template <typename Call>
std::string message(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace aft
