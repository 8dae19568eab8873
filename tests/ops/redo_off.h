#pragma once

#include "ops/common/redo.h"

namespace aft::ops::test {

/// The exact redo is off while this lives.
struct RedoOff {
  RedoOff() { set_redo(false); }
  ~RedoOff() { set_redo(true); }
};

}  // namespace aft::ops::test
