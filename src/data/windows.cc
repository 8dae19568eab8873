#include "data/windows.h"

#include <algorithm>
#include <string>

#include "aft/error.h"

namespace aft {

Windows::Windows(int64_t bytes, int64_t context) : bytes_(bytes), context_(context) {
  if (context < 1) throw Error("context: expected at least 1, got " + std::to_string(context));
  if (bytes == 0) return;
  if (bytes <= context) {
    throw Error("data: expected at least one training window of context + 1 = " + std::to_string(context + 1) +
                " bytes, got " + std::to_string(bytes) + "; give more data or a smaller model.context");
  }
  count_ = (bytes - 2) / context + 1;
}

int64_t Windows::start(int64_t index) const { return std::min(index * context_, bytes_ - context_ - 1); }

}  // namespace aft
