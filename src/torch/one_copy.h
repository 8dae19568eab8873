#pragma once

#include <torch/library.h>

// A process holds the operators of one copy of this library. A second one, loaded from another file, registers nothing
// and says so: an exception would end the process, since nothing can catch it while a library is loaded.

namespace aft::dispatch {

/// Whether no other copy has registered the operators. Hidden: each copy asks for itself.
__attribute__((visibility("hidden"))) bool is_first_copy();

}  // namespace aft::dispatch

/// AFT_REGISTER(m) { m.def(...); }, once a file: registers its operators, when the library is loaded, with m.
#define AFT_REGISTER(m)                                              \
  void register_operators(torch::Library& m);                        \
  TORCH_LIBRARY_FRAGMENT(aft, library) {                             \
    if (aft::dispatch::is_first_copy()) register_operators(library); \
  }                                                                  \
  void register_operators(torch::Library& m)
