#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/common.h>
#include <torch/nn/modules/container/any_value.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>

#include "aft/error.h"
#include "aft/ops/device.h"
#include "aft/ops/operands.h"

// The operators and layers for LibTorch (libaft_torch.so). Every function calls the dispatcher: the same operators are
// torch.ops.aft.* in Python, where docs/ops.md documents their schemas. q, k, v are f32, f64, bf16 or f16, on the CPU;
// of 16-bit ones the weights may be f32, and the state is. Bad input throws aft::Error.
//
// key_mask: bool [B, T], a source where it is false is absent and gets no gradient. cu_seqlens: int64 [N + 1], q, k, v
// [1, total, d] are then N sequences one after another, sequence n at [cu_seqlens[n], cu_seqlens[n + 1]); states are
// [N, ...].

namespace aft {

using ops::Gate;

/// What a causal layer remembers of the positions it has seen, as ops::State. Gradients flow through den, num and the
/// ring; position and max are constants. Made by initial_state(), never by hand.
struct State {
  torch::Tensor position;    // int64 [B], rows may stand at different places
  torch::Tensor max;         // [B, K]
  torch::Tensor den;         // [B, K]
  torch::Tensor num;         // [B, d]
  torch::Tensor ring_key;    // [B, left, K], left 0 where there is no window
  torch::Tensor ring_value;  // [B, left, d]

  /// The same values, cut off the graph: what truncated back-propagation through time carries on.
  [[nodiscard]] State detach() const;
};

/// The neutral state of `batch` rows before position 0. left is bias.size(-1) - 1 for local, 0 for simple and for an
/// empty bias; key_channels is d, or the number of heads.
State initial_state(int64_t batch, int64_t channels, int64_t key_channels, int64_t left,
                    const torch::TensorOptions& options = {});

/// AFT-simple: y[t] = gate(q[t]) * sum_t' e^k[t'] v[t'] / sum_t' e^k[t'] over t' <= t (all t' if not causal).
/// q, v, y [B, T, d]; k [B, T, d] or [B, T, heads] (one key per head). q is std::nullopt with Gate::kNone only. Not
/// causal and not packed, q and y may have another length than k and v.
torch::Tensor simple(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                     bool causal = true, Gate gate = Gate::kSigmoid, int64_t heads = 1,
                     const std::optional<torch::Tensor>& key_mask = std::nullopt,
                     const std::optional<torch::Tensor>& cu_seqlens = std::nullopt);

/// AFT-local: the weights become e^(k[t'] + bias[h, t, j]) inside the window, t' = t - left + j; e^k[t'] outside.
/// bias [H, rows, J] or [rows, J] (H = 1), rows >= T, indexed by absolute position. Causal: left = J - 1, right = 0.
/// Not causal: J odd, left = right = (J - 1) / 2. J = 0 is simple.
torch::Tensor local(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                    const torch::Tensor& bias, bool causal = true, Gate gate = Gate::kSigmoid,
                    const std::optional<torch::Tensor>& key_mask = std::nullopt,
                    const std::optional<torch::Tensor>& cu_seqlens = std::nullopt);

/// AFT-conv, 1-D: as local, with one row of weights a head that every position shares: e^(k[t'] + kernel[h, j]).
/// kernel [H, J]. Causal: t' = t - J + 1 + j. Not causal: J odd, centred on t. k [B, T, d] or [B, T, H].
torch::Tensor conv1d(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                     const torch::Tensor& kernel, bool causal = true, Gate gate = Gate::kSigmoid,
                     const std::optional<torch::Tensor>& key_mask = std::nullopt,
                     const std::optional<torch::Tensor>& cu_seqlens = std::nullopt);

/// AFT-conv, 2-D: positions are a grid of grid[0] rows and grid[1] columns, t = row * grid[1] + column. The weights
/// become e^(k[t'] + kernel[h, r + dy, r + dx]) where source t' lies dy rows and dx columns from t, both within
/// r = (s - 1) / 2; e^k[t'] elsewhere. Never causal. q, v, y [B, T, d]; k [B, T, d] or [B, T, H]; kernel [H, s, s], s
/// odd; key_mask bool [B, T], false where a source is absent. The grid need not be the one that was trained on.
torch::Tensor conv2d(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                     const torch::Tensor& kernel, std::array<int64_t, 2> grid,
                     const std::optional<torch::Tensor>& key_mask = std::nullopt, Gate gate = Gate::kSigmoid);

/// The weights of AFT-full: either bias, a matrix [rows, columns], [H, rows, columns] or [B or 1, H or 1, rows,
/// columns] whose -inf forbids a pair; or factors u and w, [positions, d'] or [H, positions, d'], which stand for u w^T
/// without it ever being in memory. Rows are targets and columns sources, both by absolute position; more than are used
/// is allowed.
struct FullWeights {
  std::optional<torch::Tensor> bias;
  std::optional<torch::Tensor> u, w;
};

/// AFT-full: the weights are e^(k[t'] + w[t, t']) for every pair. q, y [B, Tq, d]; k [B, Tk, d] or [B, Tk, H]; v [B,
/// Tk, d]; Tq = Tk if causal, and the rows of the weights where there is neither a causal order nor a q. key_mask bool
/// [B, Tk]. cu_seqlens: each sequence counts rows and columns of the weights from 0 on.
torch::Tensor full(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                   const FullWeights& weights, bool causal = true, Gate gate = Gate::kSigmoid, int64_t heads = 1,
                   const std::optional<torch::Tensor>& key_mask = std::nullopt,
                   const std::optional<torch::Tensor>& cu_seqlens = std::nullopt);

/// The window's weights from their factors: bias[h, t, j] = u[h, t] . v[h, t - left + j], 0 outside the table.
/// u, v [rows, d'] -> [rows, left + 1 + right], or [H, rows, d'] -> [H, rows, left + 1 + right].
torch::Tensor local_bias(const torch::Tensor& u, const torch::Tensor& v, int64_t left, int64_t right = 0);

/// Causal, going on from `state`: (y, the state after T more positions). The state given is left as it is.
std::tuple<torch::Tensor, State> simple(const std::optional<torch::Tensor>& q, const torch::Tensor& k,
                                        const torch::Tensor& v, const State& state, Gate gate = Gate::kSigmoid,
                                        int64_t heads = 1, const std::optional<torch::Tensor>& key_mask = std::nullopt,
                                        const std::optional<torch::Tensor>& cu_seqlens = std::nullopt);
std::tuple<torch::Tensor, State> local(const std::optional<torch::Tensor>& q, const torch::Tensor& k,
                                       const torch::Tensor& v, const torch::Tensor& bias, const State& state,
                                       Gate gate = Gate::kSigmoid,
                                       const std::optional<torch::Tensor>& key_mask = std::nullopt,
                                       const std::optional<torch::Tensor>& cu_seqlens = std::nullopt);
std::tuple<torch::Tensor, State> conv1d(const std::optional<torch::Tensor>& q, const torch::Tensor& k,
                                        const torch::Tensor& v, const torch::Tensor& kernel, const State& state,
                                        Gate gate = Gate::kSigmoid,
                                        const std::optional<torch::Tensor>& key_mask = std::nullopt,
                                        const std::optional<torch::Tensor>& cu_seqlens = std::nullopt);

/// The state holds every key and value so far, in a ring of as many positions as `left` of initial_state() says.
std::tuple<torch::Tensor, State> full(const std::optional<torch::Tensor>& q, const torch::Tensor& k,
                                      const torch::Tensor& v, const FullWeights& weights, const State& state,
                                      Gate gate = Gate::kSigmoid, int64_t heads = 1);

/// One position (T = 1), `state` edited in place. Without gradient.
torch::Tensor simple_step(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                          State& state, Gate gate = Gate::kSigmoid, int64_t heads = 1);
torch::Tensor local_step(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                         const torch::Tensor& bias, State& state, Gate gate = Gate::kSigmoid);
torch::Tensor conv1d_step(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                          const torch::Tensor& kernel, State& state, Gate gate = Gate::kSigmoid);
torch::Tensor full_step(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                        const FullWeights& weights, State& state, Gate gate = Gate::kSigmoid, int64_t heads = 1);

/// Every operator of the family in plain torch operations, of any floating dtype and device, differentiable as often as
/// wanted: y[t] = gate(q[t]) * sum_t' e^(k[t'] + w[t, t']) v[t'] / sum_t' e^(k[t'] + w[t, t']). Slow and obvious: it
/// takes O(B Tq Tk d) memory. q, y [B, Tq, d]; k [B, Tk, d] or [B, Tk, H]; v [B, Tk, d]; w [Tq, Tk], [H, Tq, Tk] or [B,
/// H, Tq, Tk], 0 where absent, -inf forbids a pair; H is `heads` where w does not say it. Causal needs Tq = Tk.
/// key_mask: bool [B, Tk], true where a source is there. Rows with nothing to see are 0, with zero gradient.
torch::Tensor reference(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                        const std::optional<torch::Tensor>& w = std::nullopt, bool causal = true,
                        Gate gate = Gate::kSigmoid, int64_t heads = 1,
                        const std::optional<torch::Tensor>& key_mask = std::nullopt);

/// reference's w for a window: w[h, t, t'] = bias[h, t, t' - t + left] inside it, 0 outside. bias [H, rows, J] or
/// [rows, J], J = left + 1 + right, rows >= time, or 1 that all positions share: conv1d's kernel.unsqueeze(1). [H, T,
/// T].
torch::Tensor local_weights(const torch::Tensor& bias, int64_t time, int64_t left, int64_t right = 0);

/// reference's w for conv2d: kernel [H, s, s], s odd, centred on the target on a grid of [rows, columns] whose
/// positions are read row by row; 0 outside. [H, T, T] with T = rows columns.
torch::Tensor conv2d_weights(const torch::Tensor& kernel, std::array<int64_t, 2> grid);

/// How many (row, channel) pairs the exact redo took over, of all computed since the process began, by all operators.
ops::RedoCount redo_count();

/// The layers: modules as those of torch::nn, so they clone(), go into torch::nn::Sequential, and work in every dtype
/// that the operators take (layer->to(torch::kBFloat16)) and under autocast; states have the dtype of the sums.
namespace nn {

struct AFTSimpleOptions {
  int64_t channels = 0;  // d
  bool causal = true;
  Gate gate = Gate::kSigmoid;
};

/// AFT-simple between projections. Parameters: qkv.weight [3d, d] and .bias [3d] (rows: query, key, value; [2d, d] key,
/// value with Gate::kNone), output.weight [d, d] and .bias [d].
class AFTSimpleImpl : public torch::nn::Cloneable<AFTSimpleImpl> {
 public:
  explicit AFTSimpleImpl(const AFTSimpleOptions& options_);
  void reset() override;

  /// x [B, T, d] -> [B, T, d].
  torch::Tensor forward(const torch::Tensor& x);
  /// Causal only: goes on from `state`.
  std::tuple<torch::Tensor, State> forward_with_state(const torch::Tensor& x, const State& state);
  [[nodiscard]] State initial_state(int64_t batch) const;

  AFTSimpleOptions options;
  torch::nn::Linear qkv{nullptr};
  torch::nn::Linear output{nullptr};
};
TORCH_MODULE(AFTSimple);

struct AFTLocalOptions {
  int64_t channels = 0;          // d
  int64_t context = 0;           // T: rows of u and v, the longest sequence
  int64_t window = 32;           // s: w is kept where t - s < t' <= t (not causal: |t - t'| < s); 0 is AFT-simple
  int64_t factor_channels = 64;  // d'
  bool causal = true;
  Gate gate = Gate::kSigmoid;
};

/// AFT-local between projections, w[t, t'] = u_t . v_t'. Parameters: those of AFTSimple and u, v [T, d'], initialised
/// N(0, 0.01^2) (present with window = 0 too, so that the names never depend on the window).
class AFTLocalImpl : public torch::nn::Cloneable<AFTLocalImpl> {
 public:
  explicit AFTLocalImpl(const AFTLocalOptions& options_);
  void reset() override;

  /// x [B, T, d] -> [B, T, d], T at most `context`.
  torch::Tensor forward(const torch::Tensor& x);
  /// Causal only: goes on from `state`; going past `context` throws.
  std::tuple<torch::Tensor, State> forward_with_state(const torch::Tensor& x, const State& state);
  [[nodiscard]] State initial_state(int64_t batch) const;

  AFTLocalOptions options;
  torch::nn::Linear qkv{nullptr};
  torch::nn::Linear output{nullptr};
  torch::Tensor u;
  torch::Tensor v;

 private:
  [[nodiscard]] std::optional<torch::Tensor> bias(int64_t rows) const;
};
TORCH_MODULE(AFTLocal);

struct AFTFullOptions {
  int64_t channels = 0;          // d
  int64_t context = 0;           // longest sequence: rows of the factors
  int64_t factor_channels = 64;  // d', width of the factors
  bool causal = true;
  Gate gate = Gate::kSigmoid;
};

/// AFT-full between its projections (Zhai et al. 2021, Eq. 2-3): w = u v^T, u and v [context, d'] learned, ~ N(0,
/// 0.01^2) at the start. Sequences may be shorter than the context.
class AFTFullImpl : public torch::nn::Cloneable<AFTFullImpl> {
 public:
  explicit AFTFullImpl(const AFTFullOptions& options_);
  void reset() override;
  /// x [B, T, d] -> [B, T, d], T <= context.
  torch::Tensor forward(const torch::Tensor& x);
  /// Causal, going on from `state`; at most context positions in all.
  std::tuple<torch::Tensor, State> forward_with_state(const torch::Tensor& x, const State& state);
  [[nodiscard]] State initial_state(int64_t batch) const;

  AFTFullOptions options;
  torch::nn::Linear qkv{nullptr};     // d -> 3 d (2 d without a gate)
  torch::nn::Linear output{nullptr};  // d -> d
  torch::Tensor u, v;                 // [context, d']
};
TORCH_MODULE(AFTFull);

struct AFTConv1dOptions {
  int64_t channels = 0;      // d
  int64_t heads = 1;         // H, divides d: each has its own kernel
  int64_t kernel = 32;       // s; odd if not causal
  bool key_per_head = true;  // one key channel a head, as in the paper; false: one a channel
  bool causal = true;
  Gate gate = Gate::kSigmoid;
};

/// AFT-conv between projections, 1-D (section 3.2 of the paper). The kernel is normalised and scaled per head:
/// w = gamma (weight - mean) / sqrt(var + 1e-5) + beta, var biased, over the s weights of the head. Parameters: those
/// of AFTSimple (qkv of 2 d + H rows with one key a head), weight [H, s] ~ N(0, 1), gamma and beta [H], 0: it starts as
/// AFT-simple.
class AFTConv1dImpl : public torch::nn::Cloneable<AFTConv1dImpl> {
 public:
  explicit AFTConv1dImpl(const AFTConv1dOptions& options_);
  void reset() override;

  /// x [B, T, d] -> [B, T, d], any T.
  torch::Tensor forward(const torch::Tensor& x);
  /// Causal only: goes on from `state`.
  std::tuple<torch::Tensor, State> forward_with_state(const torch::Tensor& x, const State& state);
  [[nodiscard]] State initial_state(int64_t batch) const;
  /// The plain kernel w [H, s] that the operator sees; of a layer in 16 bit it is f32.
  [[nodiscard]] torch::Tensor kernel() const;

  AFTConv1dOptions options;
  torch::nn::Linear qkv{nullptr};
  torch::nn::Linear output{nullptr};
  torch::Tensor weight;
  torch::Tensor gamma;
  torch::Tensor beta;

 private:
  [[nodiscard]] int64_t key_channels() const;
};
TORCH_MODULE(AFTConv1d);

struct AFTConv2dOptions {
  int64_t channels = 0;      // d
  int64_t heads = 1;         // H, divides d: each has its own kernel
  int64_t kernel = 11;       // s, odd
  bool key_per_head = true;  // one key channel a head, as in the paper; false: one a channel
  Gate gate = Gate::kSigmoid;
  std::array<int64_t, 2> grid = {0, 0};  // [height, width] of calls that do not say theirs
  bool reparameterised = true;           // false: weight is w itself, 0 at the start, and there is no gamma or beta
  bool global = true;                    // false: w = -inf outside the kernel, computed by `full` in O(T^2 d)
};

/// AFT-conv between projections, 2-D, over images (section 3.2 of the paper). The kernel is normalised and scaled per
/// head as that of AFTConv1d, over its s x s weights. Parameters: those of AFTSimple (qkv of 2 d + H rows with one key
/// a head), weight [H, s, s] ~ N(0, 1), gamma and beta [H], 0: it starts as AFT-simple. The last two options are the
/// paper's ablations.
class AFTConv2dImpl : public torch::nn::Cloneable<AFTConv2dImpl> {
 public:
  explicit AFTConv2dImpl(const AFTConv2dOptions& options_);
  void reset() override;

  /// x [B, T, d] -> [B, T, d], T = grid[0] * grid[1] positions row by row; any grid, {0, 0} stands for the option's.
  /// key_mask bool [B, T], false where a source is absent.
  torch::Tensor forward(const torch::Tensor& x, std::array<int64_t, 2> grid = {0, 0},
                        const std::optional<torch::Tensor>& key_mask = std::nullopt);
  /// The plain kernel w [H, s, s] that the operator sees; of a layer in 16 bit it is f32.
  [[nodiscard]] torch::Tensor kernel() const;

  AFTConv2dOptions options;
  torch::nn::Linear qkv{nullptr};
  torch::nn::Linear output{nullptr};
  torch::Tensor weight;
  torch::Tensor gamma;  // with reparameterised alone
  torch::Tensor beta;

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(std::array<int64_t, 2>{0, 0})},
                           {2, torch::nn::AnyValue(std::optional<torch::Tensor>())})
};
TORCH_MODULE(AFTConv2d);

}  // namespace nn
}  // namespace aft
