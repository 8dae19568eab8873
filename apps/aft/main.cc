#include <cstdlib>

#include "commands.h"
#include "common/exit_codes.h"
#include "common/program.h"

namespace {

/// OpenBLAS reads this when it is initialised, after constructors of a higher priority: our pool has the threads.
__attribute__((constructor(101))) void no_blas_threads() { ::setenv("OPENBLAS_NUM_THREADS", "1", 0); }

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Attention-free transformers: run, measure and look into trained models, without LibTorch", "aft"};
  app.set_version_flag("--version", "aft " AFT_VERSION);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  app.footer(
      "MODEL is a run folder or the model.safetensors in it. Exit code 0: done, 1: failed, 2: bad input or usage.\n"
      "Example:\n  aft generate runs/quickstart --prompt 'ROMEO:'");
  aft::app::add_info(app);
  aft::app::add_generate(app);
  aft::app::add_sample(app);
  aft::app::add_classify(app);
  aft::app::add_eval(app);
  aft::app::add_bench(app);
  return aft::app::run_program(app, argc, argv, [] { return aft::app::kOk; });  // each command is a callback
}
