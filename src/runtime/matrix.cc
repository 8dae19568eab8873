#include "runtime/matrix.h"

#include <cblas.h>
#include <sys/mman.h>

#include <mutex>
#include <new>
#include <vector>

// OpenBLAS's own: the scratch memory of one call, kept for the next.
extern "C" void* blas_memory_alloc(int);
extern "C" void blas_memory_free(void*);

namespace aft::runtime {
namespace {

void sgemm(CBLAS_TRANSPOSE transpose_b, Matrix<const float> a, Matrix<const float> b, int64_t m, int64_t n, int64_t k,
           float beta, Matrix<float> c) {
  const auto size = [](int64_t value) { return static_cast<blasint>(value); };
  cblas_sgemm(CblasRowMajor, CblasNoTrans, transpose_b, size(m), size(n), size(k), 1.0F, a.data, size(a.stride), b.data,
              size(b.stride), beta, c.data, size(c.stride));
}

}  // namespace

void prepare_products(int64_t threads) {
  constexpr size_t kScratch = size_t{160} << 20;  // above the 128 MiB that a call maps, of which it touches a few
  static std::mutex mutex;
  static int64_t prepared = 0;
  const std::lock_guard lock(mutex);
  if (threads <= prepared) return;
  openblas_set_num_threads(1);  // BLAS threads beside the pool's would fight for the cores
  std::vector<void*> scratch;
  scratch.reserve(static_cast<size_t>(threads));
  bool enough = true;
  for (int64_t i = 0; i < threads && enough; ++i) {
    void* const trial = ::mmap(nullptr, kScratch, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    enough = trial != MAP_FAILED;
    if (enough) {
      ::munmap(trial, kScratch);
      scratch.push_back(blas_memory_alloc(0));
    }
  }
  for (void* const memory : scratch) blas_memory_free(memory);
  if (!enough) throw std::bad_alloc();
  prepared = threads;
}

void multiply_transposed(Matrix<const float> a, Matrix<const float> b, int64_t m, int64_t n, int64_t k, float beta,
                         Matrix<float> c) {
  sgemm(CblasTrans, a, b, m, n, k, beta, c);
}

void multiply(Matrix<const float> a, Matrix<const float> b, int64_t m, int64_t n, int64_t k, Matrix<float> c) {
  sgemm(CblasNoTrans, a, b, m, n, k, 0.0F, c);
}

}  // namespace aft::runtime
