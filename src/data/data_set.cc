#include "data/data_set.h"

#include <string>

#include "aft/error.h"

namespace aft {

const char* name_of(Split split) {
  switch (split) {
    case Split::kTrain:
      return "train";
    case Split::kValid:
      return "valid";
    case Split::kTest:
      return "test";
  }
  throw Error("split: expected train, valid or test, got " + std::to_string(static_cast<int>(split)));
}

void DataSet::require_index(Split split, int64_t index) const {
  if (index < 0 || index >= size(split)) {
    throw Error("index: expected one of the " + std::to_string(size(split)) + " examples of " + name_of(split) +
                ", counted from 0, got " + std::to_string(index));
  }
}

void DataSet::require_room(Split split, int64_t index, size_t room) const {
  require_index(split, index);
  if (room != static_cast<size_t>(bytes(split, index))) {
    throw Error("out: expected the " + std::to_string(bytes(split, index)) + " bytes of example " +
                std::to_string(index) + " of " + name_of(split) + ", got room for " + std::to_string(room));
  }
}

}  // namespace aft
