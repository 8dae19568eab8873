#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "aft/error.h"
#include "aft/runtime.h"
#include "commands.h"
#include "common/options.h"
#include "output.h"
#include "runtime/kernels.h"
#include "runtime/weights.h"

namespace aft::app {
namespace {

constexpr int64_t kPrefill = 512;
constexpr int64_t kTokens = 128;
constexpr int64_t kDepths[] = {0, 2048, 8192};

struct BenchOptions {
  std::string model;
  bool json = false;
  int64_t threads = 0;
};

template <typename Work>
double seconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size()) / 2, values.end());
  return values[values.size() / 2];
}

/// Bytes that no model predicts well, the same in every run.
std::vector<uint8_t> noise(int64_t count) {
  std::vector<uint8_t> bytes;
  for (int64_t i = 0; i < count; ++i) bytes.push_back(static_cast<uint8_t>(256 * runtime::uniform(1, i)));
  return bytes;
}

/// Reads memory of the size and kind of the weights with all threads: what a token cannot be faster than.
class Reader {
 public:
  Reader(int64_t bytes, runtime::ThreadPool& pool)
      : pool_(pool), floats_(bytes / static_cast<int64_t>(sizeof(float))), memory_(floats_) {
    data_ = memory_.take(floats_);
    std::fill_n(data_, floats_, 1.0F);  // an untouched page would read as a page of zeros that is always in the cache
  }
  double read() {
    const int64_t pieces = 4 * pool_.threads();
    const int64_t piece = (floats_ + pieces - 1) / pieces;
    sums_.assign(static_cast<size_t>(pieces), 0.0F);
    return seconds([&] {
      pool_.run(pieces, [&](int64_t i) {
        const int64_t begin = std::min(floats_, i * piece);
        sums_[static_cast<size_t>(i)] = runtime::kernels::stream_sum(data_ + begin, std::min(piece, floats_ - begin));
      });
    });
  }

 private:
  runtime::ThreadPool& pool_;
  int64_t floats_;
  runtime::WeightMemory memory_;
  float* data_;
  std::vector<float> sums_;
};

struct Depth {
  int64_t depth;
  runtime::Session session;
  std::vector<double> times;
};

double prefill_seconds(const runtime::Model& model, const std::shared_ptr<runtime::ThreadPool>& pool, int64_t tokens) {
  const std::vector<uint8_t> text = noise(tokens);
  runtime::Session session(model, pool);
  session.prefill(text);
  std::vector<double> times;
  for (int i = 0; i < 7; ++i) {
    session.reset();
    times.push_back(seconds([&] { session.prefill(text); }));
  }
  return median(times);
}

void run_bench(const BenchOptions& options) {
  const auto pool = std::make_shared<runtime::ThreadPool>(options.threads);
  const runtime::Model model = runtime::Model::load(options.model, *pool);
  const int64_t context = positions(model.config());
  const int64_t prefill_tokens = std::min(kPrefill, context);
  const double prefill = prefill_seconds(model, pool, prefill_tokens);
  const double prefill_flop =
      2.0 * static_cast<double>(model.matrix_parameters()) * static_cast<double>(prefill_tokens);

  std::vector<Depth> depths;
  for (const int64_t depth : kDepths) {
    if (depth + kTokens > context && depth > 0) continue;
    depths.push_back({depth, runtime::Session(model, pool), {}});
    if (depth > 0) depths.back().session.prefill(noise(depth));
  }
  // The depths take turns, token by token, with the measurement of the memory: what disturbs one disturbs all.
  Reader reader(model.weight_bytes_per_token(), *pool);
  reader.read();
  std::vector<double> reads;
  const std::vector<uint8_t> text = noise(kTokens);
  const int64_t tokens = std::min(kTokens, context);
  for (int64_t i = 0; i < tokens; ++i) {
    for (Depth& at : depths) {
      at.times.push_back(seconds([&] { at.session.step({&text[static_cast<size_t>(i)], 1}); }));
    }
    if (i % 2 == 0) reads.push_back(reader.read());
  }

  const auto bytes = static_cast<double>(model.weight_bytes_per_token());
  const double read = median(reads);
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  std::string table;
  for (const Depth& at : depths) {
    const double time = median(at.times);
    rows.push_back({{"depth", at.depth},
                    {"tokens", tokens},
                    {"ms_per_token", time * 1e3},
                    {"ms_min", *std::min_element(at.times.begin(), at.times.end()) * 1e3},
                    {"ms_max", *std::max_element(at.times.begin(), at.times.end()) * 1e3},
                    {"tokens_per_second", 1 / time},
                    {"multiple", time / read},
                    {"state_bytes", at.session.state_bytes()}});
    table += "decode " + std::to_string(tokens) + " after " + std::to_string(at.depth) + ": " + fixed(1 / time, 1) +
             " tokens/s, " + fixed(time * 1e3, 3) + " ms a token = " + fixed(time / read, 2) +
             " x weights / read bandwidth\n";
  }
  if (options.json) {
    write_json({{"model", options.model},
                {"config", nlohmann::ordered_json::parse(to_json(model.config()))},
                {"parameters", model.parameters()},
                {"threads", pool->threads()},
                {"simd", runtime::kernels::target_name()},
                {"weight_bytes_per_token", model.weight_bytes_per_token()},
                {"read_gb_per_s", bytes / read * 1e-9},
                {"prefill",
                 {{"tokens", prefill_tokens},
                  {"ms", prefill * 1e3},
                  {"tokens_per_second", static_cast<double>(prefill_tokens) / prefill},
                  {"gflops", prefill_flop / prefill * 1e-9}}},
                {"decode", rows}});
    return;
  }
  write_out(grouped(model.parameters()) + " parameters, " + std::to_string(pool->threads()) + " threads, " +
            runtime::kernels::target_name() + "; medians\nprefill " + std::to_string(prefill_tokens) + ": " +
            fixed(static_cast<double>(prefill_tokens) / prefill, 0) + " tokens/s, " +
            fixed(prefill_flop / prefill * 1e-9, 1) + " GFLOP/s\nweights " + fixed(bytes * 1e-6, 1) +
            " MB a token, memory read at " + fixed(bytes / read * 1e-9, 1) + " GB/s\n" + table);
}

}  // namespace

void add_bench(CLI::App& app) {
  const auto options = std::make_shared<BenchOptions>();
  CLI::App* command = app.add_subcommand("bench", "Measure prefill, and decoding after 0, 2048 and 8192 tokens");
  add_text(*command, "MODEL", options->model, "A model file or a run folder")->required();
  command->add_flag("--json", options->json, "One JSON object");
  add_threads(*command, options->threads);
  command->footer(
      "Decoding is bound by reading the weights: its time is given as a multiple of their size over the read "
      "bandwidth\n"
      "measured in the same run. Depths that the model's context does not hold are left out.\n"
      "Example:\n  aft bench runs/quickstart --threads 2 --json");
  command->callback([options] { run_bench(*options); });
}

}  // namespace aft::app
