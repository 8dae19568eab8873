#include "data/data.h"

namespace aft {

WindowOrder::WindowOrder(int64_t bytes, int64_t context, uint64_t seed)
    : windows_(bytes, context), order_(windows_.count(), seed) {}

int64_t WindowOrder::start(int64_t position) const { return windows_.start(order_.at(position).index); }

}  // namespace aft
