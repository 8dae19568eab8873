#include <cstdlib>
#include <exception>
#include <iostream>
#include <new>

#include "aft/error.h"
#include "commands.h"
#include "output.h"

namespace {

/// OpenBLAS reads this when it is initialised, after constructors of a higher priority: our pool has the threads.
__attribute__((constructor(101))) void no_blas_threads() { ::setenv("OPENBLAS_NUM_THREADS", "1", 0); }

constexpr int kFailure = 1;
constexpr int kBadInput = 2;

int run(int argc, char** argv) {
  CLI::App app{"Attention-free transformers: run, measure and look into trained models, without LibTorch"};
  app.set_version_flag("--version", "aft " AFT_VERSION);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  app.footer(
      "MODEL is a run folder or the model.safetensors in it. Exit code 0: done, 1: failed, 2: bad input or usage.\n"
      "Example:\n  aft generate runs/quickstart --prompt 'ROMEO:'");
  aft::app::add_info(app);
  aft::app::add_generate(app);
  aft::app::add_eval(app);
  aft::app::add_bench(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : kBadInput;
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const aft::app::ClosedPipe&) {
    return 0;
  } catch (const aft::Error& e) {
    std::cerr << "aft: " << e.what() << '\n';
    return kBadInput;
  } catch (const std::bad_alloc&) {
    std::cerr << "aft: out of memory\n";
    return kFailure;
  } catch (const std::exception& e) {
    std::cerr << "aft: " << e.what() << '\n';
    return kFailure;
  }
}
