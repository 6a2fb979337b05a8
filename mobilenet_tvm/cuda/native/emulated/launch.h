// Runs kernels: one block after the other, the threads of a block in turns from barrier to barrier.

#ifndef MOBILENET_TVM_EMULATED_LAUNCH_H_
#define MOBILENET_TVM_EMULATED_LAUNCH_H_

#include <cuda.h>

#include <cstddef>
#include <string>

#include "image.h"

namespace mobilenet_tvm_emulated {

// Of the GPU that is emulated. `threads_per_block` 0: there is none yet.
struct Limits {
  std::string arch;
  std::size_t threads_per_block = 0;
  std::size_t threads_per_multiprocessor = 0;
  std::size_t registers_per_block = 0;
  std::size_t shared_per_block = 0;         // unasked
  std::size_t shared_per_block_optin = 0;   // with cuFuncSetAttribute
  std::size_t shared_per_multiprocessor = 0;
  std::size_t multiprocessors = 0;
  std::size_t l2_bytes = 0;
  std::size_t clock_khz = 0;
  std::size_t memory_bytes = 0;
  std::size_t major = 0, minor = 0;
};

Limits& TheLimits();

// Of every GPU since compute capability 3.0.
constexpr unsigned kWarp = 32;
constexpr unsigned kMaxGrid[] = {0x7FFFFFFF, 65535, 65535};
constexpr unsigned kMaxBlock[] = {1024, 1024, 64};

struct Function {
  const Image* image;
  const Kernel* kernel;
  unsigned registers;  // of a thread, 0: not known
  std::size_t dynamic_limit;  // bytes of shared memory that were asked for
};

// What went wrong, in words that begin with the driver's name of it; `code` is CUDA_SUCCESS and
// `message` empty where nothing did.
struct Outcome {
  CUresult code = CUDA_SUCCESS;
  std::string message;
};

Outcome Launch(const Function& function, Index grid, Index block, std::size_t dynamic_bytes,
               void** arguments);

// Whether blocks, and the threads of a block, run last to first.
void SetReverse(bool reverse);

}  // namespace mobilenet_tvm_emulated

#endif  // MOBILENET_TVM_EMULATED_LAUNCH_H_
