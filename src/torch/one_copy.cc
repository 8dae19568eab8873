#include "one_copy.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <string>

namespace aft::dispatch {
namespace {

/// The file that this copy was loaded from.
std::string library_path() {
  static const char here = 0;
  Dl_info info{};
  return dladdr(&here, &info) != 0 ? info.dli_fname : "";
}

AFT_REGISTER(m) {
  m.def("library_path() -> str", [] { return library_path(); });
}

}  // namespace

bool is_first_copy() {
  static const bool is_first = [] {
    const auto other = c10::Dispatcher::singleton().findSchema({"aft::library_path", ""});
    if (other) {
      TORCH_WARN("aft: expected one copy of the library in a process, got ", library_path(), " after ",
                 other->typed<std::string()>().call(), ", whose operators stay; load one of the two");
    }
    return !other;
  }();
  return is_first;
}

}  // namespace aft::dispatch
