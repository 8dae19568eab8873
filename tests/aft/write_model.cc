// write_model MIXER FILE [SEED [COLORS]]: a small random model of bytes, or with COLORS of pixels, for tests of the
// program.

#include <cstdlib>

#include "random_model.h"

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const aft::ModelConfig config =
      argc > 4 ? aft::test::small_pixel_config(argv[1], std::atoi(argv[4])) : aft::test::small_config(argv[1]);
  const uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  aft::test::write_model(argv[2], config, aft::test::random_tensors(config, seed));
  return 0;
}
