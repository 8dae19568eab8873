// Tensors of more than 2^31 elements on a CUDA device: the last sequence is what it is alone, bit for bit, forward and
// backward. Their numbers never lie in the host's memory as a whole.

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "aft/ops/full.h"
#include "aft/ops/grid.h"
#include "aft/ops/local_bias.h"
#include "aft/ops/window.h"
#include "tests/ops/backend.h"

namespace aft::ops::test {
namespace {

constexpr int64_t kMany = int64_t{1} << 31;

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

/// Memory of the device, NaN throughout (all bits are set).
template <typename X>
class OnDevice {
 public:
  explicit OnDevice(int64_t count) : count_(count) {
    check(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()));
    check(cudaMemset(data_, 0xFF, bytes()));
  }
  ~OnDevice() { (void)cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;

  [[nodiscard]] X* at(int64_t i = 0) const { return data_ + i; }
  [[nodiscard]] size_t bytes() const { return std::max<int64_t>(count_, 1) * sizeof(X); }
  /// A million numbers over and over, of which no row has a whole number.
  void fill(uint64_t seed, int64_t begin, int64_t count) const {
    constexpr int64_t kPeriod = 1'000'003;
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<float> uniform(-2, 2);
    std::vector<X> numbers(std::min(kPeriod, count));
    for (X& x : numbers) {
      const float value = uniform(random);
      if constexpr (sizeof(X) == sizeof(float)) {
        x = value;
      } else {
        x = {static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16)};
      }
    }
    check(cudaMemcpy(at(begin), numbers.data(), numbers.size() * sizeof(X), cudaMemcpyHostToDevice));
    for (int64_t filled = static_cast<int64_t>(numbers.size()); filled < count;) {
      const int64_t more = std::min(filled, count - filled);
      check(cudaMemcpy(at(begin + filled), at(begin), more * sizeof(X), cudaMemcpyDeviceToDevice));
      filled += more;
    }
  }

 private:
  int64_t count_;
  X* data_ = nullptr;
};

/// The same bits in all that was written, and every element written.
template <typename X>
void expect_same(const X* a, const X* b, int64_t count, const std::string& what) {
  constexpr int64_t kPiece = int64_t{1} << 24;
  using Bits = std::conditional_t<sizeof(X) == 2, uint16_t, uint32_t>;
  std::vector<Bits> x(std::min(kPiece, count)), y(x.size());
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t size = std::min(kPiece, count - begin);
    check(cudaMemcpy(x.data(), a + begin, size * sizeof(X), cudaMemcpyDeviceToHost));
    check(cudaMemcpy(y.data(), b + begin, size * sizeof(X), cudaMemcpyDeviceToHost));
    if (std::memcmp(x.data(), y.data(), size * sizeof(X)) != 0) {
      const auto differ = std::mismatch(x.begin(), x.begin() + size, y.begin()).first - x.begin();
      FAIL() << what << ": element " << begin + differ << " differs";
    }
    const auto unwritten = std::find(x.begin(), x.begin() + size, static_cast<Bits>(~Bits{0}));
    ASSERT_EQ(unwritten - x.begin(), size) << what << ": was not written";
  }
}

/// Why a test that takes so much of the device's memory cannot run; empty if it can.
std::string lacking(size_t bytes) {
  size_t free_bytes = 0, all = 0;
  check(cudaMemGetInfo(&free_bytes, &all));
  bytes += size_t{1} << 30;  // what CUDA itself takes
  if (bytes <= free_bytes) return "";
  const auto gib = [](size_t x) { return std::to_string(x >> 30) + " GiB"; };
  return "takes " + gib(bytes) + " of the device's memory, of which " + gib(free_bytes) + " are free";
}

using E = BFloat16;

/// Tensors [batch, time, width] that lie so far apart, row behind row.
struct Layout {
  int64_t batch, time, width, batch_stride;
  [[nodiscard]] int64_t row() const { return time * width; }
  [[nodiscard]] int64_t elements() const { return (batch - 1) * batch_stride + row(); }
};

/// What every operator of sequences takes and gives.
struct Tensors {
  static constexpr int64_t kTensors = 8;
  explicit Tensors(const Layout& as)
      : layout(as),
        q(as.elements()),
        k(as.elements()),
        v(as.elements()),
        y(as.elements()),
        grad_y(as.elements()),
        grad_q(as.elements()),
        grad_k(as.elements()),
        grad_v(as.elements()) {}
  void fill() const {
    uint64_t seed = 0;
    for (const auto* x : {&q, &k, &v, &grad_y}) {
      if (layout.batch_stride == layout.row()) {
        x->fill(++seed, 0, layout.elements());
      } else {
        for (int64_t b = 0; b < layout.batch; ++b) x->fill(++seed, b * layout.batch_stride, layout.row());
      }
    }
  }
  /// The one sequence of these as the last of `all`.
  void take_last(const Tensors& all) const {
    const int64_t last = (all.layout.batch - 1) * all.layout.batch_stride;
    const auto copy = [&](const OnDevice<E>& to, const OnDevice<E>& from) {
      check(cudaMemcpy(to.at(), from.at(last), layout.row() * sizeof(E), cudaMemcpyDeviceToDevice));
    };
    copy(q, all.q), copy(k, all.k), copy(v, all.v), copy(grad_y, all.grad_y);
  }
  [[nodiscard]] Rows<const E> in(const OnDevice<E>& x) const { return {x.at(), layout.batch_stride, layout.width}; }
  [[nodiscard]] Rows<E> out(const OnDevice<E>& x) const { return {x.at(), layout.batch_stride, layout.width}; }

  Layout layout;
  OnDevice<E> q, k, v, y, grad_y, grad_q, grad_k, grad_v;
};

/// Both passes on `x`. Op has shape(layout), give(inputs) and the operator's functions.
template <class Op>
void run(const Op& op, const Tensors& x) {
  const auto shape = op.shape(x.layout);
  const OnDevice<float> saved(op.saved_size(shape));
  const auto in_workspace = [&](Pass pass, const auto& call) {
    const OnDevice<char> workspace(op.workspace(shape, pass));
    call(Cuda{.workspace = workspace.at()});
    check(cudaDeviceSynchronize());
  };
  typename Op::Forward forward;
  forward.in.shape = shape;
  forward.in.q = x.in(x.q), forward.in.k = x.in(x.k), forward.in.v = x.in(x.v);
  op.give(forward.in);
  forward.y = x.out(x.y);
  if constexpr (requires { forward.saved; }) forward.saved = saved.at();
  in_workspace(Pass::kForward, [&](const Cuda& cuda) { op.forward(forward, cuda); });
  typename Op::Backward backward;
  backward.in = forward.in;
  if constexpr (requires { backward.saved; }) backward.saved = saved.at();
  backward.grad_y = x.in(x.grad_y);
  backward.grad_q = x.out(x.grad_q), backward.grad_k = x.out(x.grad_k), backward.grad_v = x.out(x.grad_v);
  in_workspace(Pass::kBackward, [&](const Cuda& cuda) { op.backward(backward, cuda); });
}

template <class Op>
void expect_last_row_alone(const Op& op, const Layout& layout) {
  const Layout one = {1, layout.time, layout.width, layout.row()};
  const auto shape = op.shape(layout);
  const int64_t bytes = Tensors::kTensors * sizeof(E) * (layout.elements() + one.elements()) +
                        std::max(op.workspace(shape, Pass::kForward), op.workspace(shape, Pass::kBackward)) +
                        sizeof(float) * op.saved_size(shape);
  ASSERT_GT(layout.elements(), kMany);
  if (const std::string why = lacking(bytes); !why.empty()) GTEST_SKIP() << why;
  const Tensors all(layout), alone(one);
  all.fill();
  alone.take_last(all);
  run(op, all);
  run(op, alone);
  const int64_t last = (layout.batch - 1) * layout.batch_stride;
  const auto expect = [&](const char* name, const OnDevice<E>& of_all, const OnDevice<E>& of_one) {
    expect_same(of_all.at(last), of_one.at(), layout.row(), name);
  };
  expect("y", all.y, alone.y);
  expect("grad_q", all.grad_q, alone.grad_q);
  expect("grad_k", all.grad_k, alone.grad_k);
  expect("grad_v", all.grad_v, alone.grad_v);
}

struct Window {
  using Forward = WindowForward<E>;
  using Backward = WindowBackward<E>;
  static constexpr int64_t kHeads = 4;
  int64_t left = 0;
  bool shared_row = false;  // conv1d
  int64_t time = 0;
  OnDevice<float> band{left == 0 ? 0 : kHeads * (shared_row ? 1 : time) * (left + 1)};

  [[nodiscard]] WindowShape shape(const Layout& x) const {
    return {.batch = x.batch,
            .time = x.time,
            .channels = x.width,
            .heads = kHeads,
            .key_channels = x.width,
            .has_band = left > 0,
            .left = left};
  }
  void give(WindowInputs<E>& in) const {
    if (left == 0) return;
    const int64_t rows = shared_row ? 1 : time;
    band.fill(7, 0, kHeads * rows * (left + 1));
    in.band = {band.at(), rows * (left + 1), shared_row ? 0 : left + 1, rows};
  }
  static int64_t saved_size(const WindowShape& s) { return window_saved_size(s); }
  static int64_t workspace(const WindowShape& s, Pass pass) { return window_workspace<E>(s, pass); }
  static void forward(const Forward& p, const Cuda& cuda) { window_forward(p, cuda); }
  static void backward(const Backward& p, const Cuda& cuda) { window_backward(p, cuda); }
};

struct Full {
  using Forward = FullForward<E>;
  using Backward = FullBackward<E>;
  int64_t time = 0;
  OnDevice<float> table{time * time};

  [[nodiscard]] FullShape shape(const Layout& x) const {
    return {.batch = x.batch, .targets = x.time, .sources = x.time, .channels = x.width, .key_channels = x.width};
  }
  void give(FullInputs<E>& in) const {
    table.fill(7, 0, time * time);
    in.weights.table = table.at();
    in.weights.row_stride = in.weights.rows = in.weights.columns = time;
  }
  static int64_t saved_size(const FullShape& s) { return full_saved_size(s); }
  static int64_t workspace(const FullShape& s, Pass pass) { return full_workspace<E>(s, pass); }
  static void forward(const Forward& p, const Cuda& cuda) { full_forward(p, cuda); }
  static void backward(const Backward& p, const Cuda& cuda) { full_backward(p, cuda); }
};

struct Grid {
  using Forward = GridForward<E>;
  using Backward = GridBackward<E>;
  static constexpr int64_t kSide = 14, kKernel = 3, kHeads = 4;
  OnDevice<float> kernel{kHeads * kKernel * kKernel};

  static GridShape shape(const Layout& x) {
    return {.batch = x.batch,
            .height = x.time / kSide,
            .width = kSide,
            .channels = x.width,
            .heads = kHeads,
            .key_channels = x.width,
            .kernel = kKernel};
  }
  void give(GridInputs<E>& in) const {
    kernel.fill(7, 0, kHeads * kKernel * kKernel);
    in.kernel = kernel.at();
  }
  static int64_t saved_size(const GridShape&) { return 0; }
  static int64_t workspace(const GridShape& s, Pass pass) { return grid_workspace<E>(s, pass); }
  static void forward(const Forward& p, const Cuda& cuda) { grid_forward(p, cuda); }
  static void backward(const Backward& p, const Cuda& cuda) { grid_backward(p, cuda); }
};

// Two long sequences; many short ones; two whose rows lie far apart.
constexpr Layout kLong = {2, 1'050'001, 1024, 1'050'001 * 1024};
constexpr Layout kFar = {2, 300, 72, kMany + 40};
constexpr Layout short_rows(int64_t time, int64_t width) {
  return {kMany / (time * width) + 2, time, width, time * width};
}

class Large : public ::testing::Test {
  void SetUp() override {
    if (cuda_memory() == nullptr) GTEST_SKIP() << "no CUDA device here";
  }
};

TEST_F(Large, Simple) {
  expect_last_row_alone(Window{}, kLong);
  expect_last_row_alone(Window{}, kFar);
}
TEST_F(Large, Local) {
  expect_last_row_alone(Window{.left = 31, .time = kLong.time}, kLong);
  expect_last_row_alone(Window{.left = 31, .time = kFar.time}, kFar);
}
TEST_F(Large, Conv1d) {
  expect_last_row_alone(Window{.left = 31, .shared_row = true}, kLong);
  expect_last_row_alone(Window{.left = 31, .shared_row = true}, kFar);
}
TEST_F(Large, Full) {
  expect_last_row_alone(Full{.time = 70}, short_rows(70, 512));
  expect_last_row_alone(Full{.time = kFar.time}, kFar);
}
TEST_F(Large, Conv2d) {
  expect_last_row_alone(Grid{}, short_rows(Grid::kSide * Grid::kSide, 384));
  expect_last_row_alone(Grid{}, {2, 20 * Grid::kSide, 72, kMany + 40});
}

// The last head of a table that is larger still.
TEST_F(Large, LocalBias) {
  constexpr int64_t kHeads = 33, kRows = int64_t{1} << 20, kWidth = 16, kColumns = 65;
  static_assert(kHeads * kRows * kColumns > kMany);
  constexpr int64_t kOperand = kRows * kWidth, kBand = kRows * kColumns;
  constexpr size_t kBytes = sizeof(float) * (kHeads + 1) * (4 * kOperand + 2 * kBand);
  if (const std::string why = lacking(kBytes); !why.empty()) GTEST_SKIP() << why;
  const OnDevice<float> u(kHeads * kOperand), v(kHeads * kOperand), grad_band(kHeads * kBand);
  u.fill(1, 0, kHeads * kOperand), v.fill(2, 0, kHeads * kOperand), grad_band.fill(3, 0, kHeads * kBand);
  const OnDevice<float> bands(kHeads * kBand), grads_u(kHeads * kOperand), grads_v(kHeads * kOperand);
  const OnDevice<float> band(kBand), grad_u(kOperand), grad_v(kOperand);
  const auto run = [&](int64_t heads, int64_t first, const auto& to, const auto& to_u, const auto& to_v) {
    LocalBiasForward<float> forward;
    forward.in.shape = {.heads = heads, .rows = kRows, .width = kWidth, .left = kColumns - 1};
    forward.in.u = u.at(first * kOperand), forward.in.v = v.at(first * kOperand);
    forward.band = to.at();
    local_bias_forward(forward, Cuda{});
    local_bias_backward(LocalBiasBackward<float>{forward.in, grad_band.at(first * kBand), to_u.at(), to_v.at()},
                        Cuda{});
    check(cudaDeviceSynchronize());
  };
  run(kHeads, 0, bands, grads_u, grads_v);
  run(1, kHeads - 1, band, grad_u, grad_v);
  expect_same(bands.at((kHeads - 1) * kBand), band.at(), kBand, "band");
  expect_same(grads_u.at((kHeads - 1) * kOperand), grad_u.at(), kOperand, "grad_u");
  expect_same(grads_v.at((kHeads - 1) * kOperand), grad_v.at(), kOperand, "grad_v");
}

}  // namespace
}  // namespace aft::ops::test
