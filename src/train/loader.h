#pragma once

#include <torch/types.h>

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "data/data_set.h"
#include "data/epoch_order.h"
#include "train/batch.h"

namespace aft {

/// Batches of training examples on a device. Threads read those that come next while the step runs; what a batch holds
/// depends on its position alone, and so not on how many they are.
class Loader {
 public:
  /// `size`: examples in a batch. `threads`: that read ahead; 0: take() reads. `data` outlives this.
  Loader(const DataSet& data, EpochOrder order, int64_t size, c10::Device device, int64_t threads);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The examples from the run's `position` on. Throws what reading them threw.
  Batch take(int64_t position);

  /// Sends to the device what will be taken next, while it still computes; on the CPU there is nothing to win.
  void send_ahead(int64_t position);

 private:
  struct Read {
    bool done = false;
    Batch batch;
    std::exception_ptr failure;
  };
  [[nodiscard]] Batch read(int64_t position) const;
  [[nodiscard]] Batch send(int64_t position);
  void work();
  void read_from(int64_t position);

  const DataSet& data_;
  EpochOrder order_;
  int64_t size_;
  c10::Device device_;
  int64_t ahead_position_ = -1;
  Batch ahead_;

  // Positions that are read or being read, at most two a thread.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int64_t, Read> reads_;
  int64_t next_ = -1;  // to be read; -1: nothing is asked for yet
  size_t most_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace aft
