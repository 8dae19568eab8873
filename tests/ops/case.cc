#include "tests/ops/case.h"

#include <numeric>
#include <sstream>
#include <stdexcept>

namespace aft::ops::test {
namespace {

using Names = std::vector<std::string>;
const Names kOperatorNames = {"simple", "local", "conv1d", "conv2d", "full", "local_bias"};
const Names kWeightNames = {"table",   "table-per-head",  "table-per-batch", "table-per-batch-and-head",
                            "factors", "factors-per-head"};
const Names kGateNames = {"sigmoid", "relu", "none"};

// visit(name, value) or visit(name, value, names of an enum) for every field, C being Case or const Case.
template <class C, class Visit>
void for_each_field(C& c, const Visit& visit) {
  visit("op", c.op, kOperatorNames);
  visit("input", c.input);
  visit("B", c.batch);
  visit("T", c.time);
  visit("Tk", c.sources);
  visit("height", c.height);
  visit("width", c.width);
  visit("d", c.channels);
  visit("H", c.heads);
  visit("key-per-head", c.key_per_head);
  visit("causal", c.causal);
  visit("left", c.left);
  visit("right", c.right);
  visit("kernel", c.kernel);
  visit("weights", c.weights, kWeightNames);
  visit("factors", c.factors);
  visit("gate", c.gate, kGateNames);
  visit("state", c.state);
  visit("masked", c.masked);
  visit("packed", c.lengths);
  visit("seed", c.seed);
}

template <class X>
std::string text(const X& x) {
  std::ostringstream to;
  to << x;
  return to.str();
}
std::string text(const std::vector<int64_t>& list) {
  std::string all;
  for (const int64_t x : list) all += (all.empty() ? "" : ",") + std::to_string(x);
  return all;
}
template <class Enum>
std::string text(Enum x, const Names& names) {
  return names.at(static_cast<size_t>(x));
}

template <class X>
void read(const std::string& from, X& x) {
  std::istringstream(from) >> x;
}
void read(const std::string& from, std::vector<int64_t>& list) {
  std::istringstream words(from);
  for (std::string word; std::getline(words, word, ',');) list.push_back(std::stoll(word));
}
template <class Enum>
void read(const std::string& from, Enum& x, const Names& names) {
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == from) {
      x = static_cast<Enum>(i);
      return;
    }
  }
  throw std::invalid_argument("no such value in a case: " + from);
}

}  // namespace

Family Case::family() const {
  return op == Operator::kConv2d      ? Family::kGrid
         : op == Operator::kFull      ? Family::kFull
         : op == Operator::kLocalBias ? Family::kLocalBias
                                      : Family::kWindow;
}

int64_t Case::packed_before(int64_t b) const {
  return std::accumulate(lengths.begin(), lengths.begin() + b, int64_t{0});
}

std::string operator_name(const Case& c) { return text(c.op, kOperatorNames); }

std::string describe(const Case& c) {
  std::vector<std::string> usual;
  const Case nothing;
  for_each_field(nothing, [&](const char*, const auto&... value) { usual.push_back(text(value...)); });
  std::string line = operator_name(c);
  size_t n = 0;
  for_each_field(c, [&](const char* name, const auto&... value) {
    const std::string is = text(value...);
    if (n > 0 && is != usual[n]) line += std::string(" ") + name + "=" + is;
    ++n;
  });
  return line;
}

Case parse_case(const std::string& line) {
  Case c;
  std::istringstream words("op=" + line);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    bool known = false;
    for_each_field(c, [&](const char* name, auto&... value) {
      if (word.substr(0, equals) != name || equals == std::string::npos) return;
      read(word.substr(equals + 1), value...);
      known = true;
    });
    if (!known) throw std::invalid_argument("no such word in a case: " + word);
  }
  return c;
}

void set_window(Case& c, int64_t s) {
  c.op = s > 0 ? Operator::kLocal : Operator::kSimple;
  c.left = s > 0 ? s - 1 : 0;
  c.right = s > 0 && !c.causal ? s - 1 : 0;
}

void set_grid(Case& c, int64_t height, int64_t width, int64_t kernel) {
  c.op = Operator::kConv2d;
  c.causal = false;
  c.height = height, c.width = width, c.time = height * width, c.kernel = kernel;
}

void pack(Case& c, const std::vector<int64_t>& lengths) {
  c.lengths = lengths;
  c.batch = static_cast<int64_t>(lengths.size());
  c.time = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

}  // namespace aft::ops::test
