#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tests/ops/case.h"
#include "tests/ops/element.h"

// What an operator takes and gives, as dense arrays of numbers by name.

namespace aft::ops::test {

/// What the elements of an array belong to: each target, source or sequence has `width` of them, or there are `width`
/// in all.
enum class Along { kTargets, kSources, kSequences, kNothing };

/// Whether an array is a tensor of elements, not of their accumulation type.
inline bool is_tensor(Along along) { return along == Along::kTargets || along == Along::kSources; }

template <typename T>
struct Array {
  Along along = Along::kNothing;
  int64_t width = 0;
  std::vector<T> x;
};

/// The elements [begin, end) of an array that belong to sequence b.
struct Part {
  int64_t begin, end;
};
Part part_of(const Case& c, Along along, int64_t width, int64_t b);

template <typename T>
class Arrays {
 public:
  bool has(std::string_view name) const { return all_.find(name) != all_.end(); }
  Array<T>& array(std::string_view name) { return find(all_, name); }
  const Array<T>& array(std::string_view name) const { return find(all_, name); }
  std::vector<T>& operator[](std::string_view name) { return array(name).x; }
  const std::vector<T>& operator[](std::string_view name) const { return array(name).x; }
  void set(std::string_view name, Array<T> to) { all_.insert_or_assign(std::string(name), std::move(to)); }
  void remove(std::string_view name) { all_.erase(std::string(name)); }

  auto begin() { return all_.begin(); }
  auto end() { return all_.end(); }
  auto begin() const { return all_.begin(); }
  auto end() const { return all_.end(); }

 private:
  template <class Map>
  static auto& find(Map& all, std::string_view name) {
    const auto at = all.find(name);
    if (at == all.end()) throw std::out_of_range("no array of this name: " + std::string(name));
    return at->second;
  }
  std::map<std::string, Array<T>, std::less<>> all_;
};

/// Parts of a State but its position, as in "initial_den", "final_den", "grad_initial_den" and "grad_final_den".
constexpr const char* kStateParts[] = {"max", "den", "num", "ring_key", "ring_value"};

/// Inputs of one call on tensors of E, whose numbers are kept in the accumulation type. What an operator or a case does
/// not have is not there:
/// - q, k, v, grad_y: [B, T, width]; packed: [tokens, width]
/// - key_mask: [B, T], 0: not seen
/// - weights: [H, rows, columns] of local, conv1d (one row) and conv2d; [B or 1, H or 1, rows, columns] of full
/// - u, w: [H or 1, rows, factors] and [H or 1, columns, factors], factors of full in place of weights
/// - initial_...: the initial state; grad_final_...: the gradient of the final one
/// - u, v, grad_band: of local_bias, which has no others
template <typename E>
struct Inputs : Arrays<Accumulate<E>> {
  using T = Accumulate<E>;
  Case c;
  int64_t rows = 0, columns = 0;  // of the weights
  int64_t ring = 0;               // positions that a state's ring holds
  bool has_final = false;         // the final state is wanted
  std::vector<int64_t> position;  // of the initial state; empty: none

  bool has_initial() const { return !position.empty(); }
  /// Elements that a sequence has of a part of the state.
  int64_t state_width(std::string_view part) const;
  /// Where the weight of a pair lies, by absolute positions; -1: outside the window, where w = 0.
  int64_t weight_index(int64_t b, int64_t head, int64_t target, int64_t source) const;
};

/// True if ring slot `slot` holds a source when the sequence stands at `position`.
inline bool slot_holds_source(int64_t position, int64_t ring, int64_t slot) { return slot < ring && slot < position; }

/// What an operator gives: y, final_..., and the gradient of every input, grad_...; local_bias: band, grad_u, grad_v.
/// Ring slots that never held a source are 0.
template <typename E>
struct Outputs : Arrays<Accumulate<E>> {
  std::vector<int64_t> position;  // of the final state
};

/// Inputs of the case's class, rounded to E. Keys of operators whose state has sums keep clear of the points where
/// round(k log2 e) could differ between precisions, so that the maximum of a state is one exact number.
template <typename E>
Inputs<E> make_inputs(const Case& c);

/// The same numbers as tensors of R.
template <typename R, typename E>
Inputs<R> convert(const Inputs<E>& in);

/// The sequences given, in this order, as a batch; one alone is not packed.
template <typename E>
Inputs<E> batch_of(const Inputs<E>& in, const std::vector<int64_t>& sequences);

/// Positions [begin, end) of every row; weights stay whole, their rows are indexed absolutely.
template <typename E>
Inputs<E> cut_time(const Inputs<E>& in, int64_t begin, int64_t end);

/// The call starts from the state that `before` ended in.
template <typename E>
void start_from(Inputs<E>& in, const Outputs<E>& before);
/// The call starts from the neutral state.
template <typename E>
void start_anew(Inputs<E>& in);

}  // namespace aft::ops::test
