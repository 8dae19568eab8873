#pragma once

#include <c10/util/Exception.h>

#include <new>
#include <string>

#include "aft/error.h"

namespace aft {

/// What body() returns. LibTorch's errors come out as aft::SystemError without their backtraces; where memory ran out,
/// which its allocator reports as any other error, with the text of out_of_memory().
template <typename Body, typename Text>
auto with_plain_errors(const Body& body, const Text& out_of_memory) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    throw SystemError(out_of_memory());
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    throw SystemError(what.find("memory") != std::string::npos ? out_of_memory() : what);
  }
}

}  // namespace aft
