#pragma once

namespace aft::app {

// What both programs end with: the table of docs/cli.md.
constexpr int kOk = 0;
constexpr int kFailed = 1;       // the system failed, or the run itself: a full disk, lost output, no memory
constexpr int kBadInput = 2;     // bad input or usage
constexpr int kSignalled = 128;  // plus the signal that ended it

}  // namespace aft::app
