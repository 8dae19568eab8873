#pragma once

#include <c10/util/Exception.h>

#include <new>
#include <string>

#include "aft/error.h"

namespace aft {

/// What body() returns. LibTorch's errors come out as aft::SystemError without their backtraces; where memory ran out,
/// which its allocators and the libraries it calls report as any other error, with the text of out_of_memory().
template <typename Body, typename Text>
auto with_plain_errors(const Body& body, const Text& out_of_memory) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    throw SystemError(out_of_memory());
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    const auto says = [&](const char* text) { return what.find(text) != std::string::npos; };
    // "An illegal memory access" of CUDA is a defect, not a lack.
    const bool lack = (says("memory") && !says("memory access")) || says("ALLOC_FAILED");
    throw SystemError(lack ? out_of_memory() : what);
  }
}

}  // namespace aft
