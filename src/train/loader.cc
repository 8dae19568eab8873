#include "train/loader.h"

#include <utility>

namespace aft {

Loader::Loader(const DataSet& data, EpochOrder order, int64_t size, c10::Device device, int64_t threads)
    : data_(data), order_(order), size_(size), device_(device), most_(2 * static_cast<size_t>(threads)) {
  for (int64_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

Batch Loader::take(int64_t position) {
  const bool sent = std::exchange(ahead_position_, -1) == position;
  return sent ? std::exchange(ahead_, {}) : send(position);
}

void Loader::send_ahead(int64_t position) {
  if (device_.is_cpu()) return;
  ahead_ = send(position);
  ahead_position_ = position;
}

Batch Loader::send(int64_t position) {
  Batch batch;
  if (threads_.empty()) {
    batch = read(position);
  } else {
    std::unique_lock lock(mutex_);
    reads_.erase(reads_.begin(), reads_.lower_bound(position));
    if (!reads_.contains(position) && next_ != position) read_from(position);
    changed_.notify_all();
    changed_.wait(lock, [&] {
      const auto found = reads_.find(position);
      return found != reads_.end() && found->second.done;
    });
    const auto node = reads_.extract(position);
    lock.unlock();
    changed_.notify_all();
    if (node.mapped().failure) std::rethrow_exception(node.mapped().failure);
    batch = node.mapped().batch;
  }
  // A batch is a tenth of a megabyte: a stream of its own for the copy would win nothing.
  return batch.to(device_);
}

Batch Loader::read(int64_t position) const {
  std::vector<Visit> visits;
  for (int64_t i = position; i < position + size_; ++i) visits.push_back({order_.at(i).index, order_.draw(i)});
  return read_batch(data_, Split::kTrain, visits, !device_.is_cpu());
}

/// The mutex is held. A step that is computed once more asks for what was taken before.
void Loader::read_from(int64_t position) {
  reads_.clear();
  next_ = position;
  changed_.notify_all();
}

void Loader::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stop_ || (next_ >= 0 && reads_.size() < most_); });
    if (stop_) return;
    const int64_t position = std::exchange(next_, next_ + size_);
    reads_[position] = {};
    lock.unlock();
    Read result;
    try {
      result.batch = read(position);
    } catch (...) {
      result.failure = std::current_exception();
    }
    result.done = true;
    lock.lock();
    // Nobody wants it any more where reading began anew in between.
    if (const auto found = reads_.find(position); found != reads_.end()) found->second = std::move(result);
    changed_.notify_all();
  }
}

}  // namespace aft
