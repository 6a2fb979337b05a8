// Threads of a block as coroutines, each on a small stack of its own with a guard below it.

#ifndef MOBILENET_TVM_EMULATED_FIBER_H_
#define MOBILENET_TVM_EMULATED_FIBER_H_

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#define MOBILENET_TVM_UCONTEXT 1
#endif

namespace mobilenet_tvm_emulated {

// Local memory of a CUDA thread is 512 KiB at most.
constexpr std::size_t kStackBytes = 512 << 10;

class Fiber {
 public:
  // `number` tells fibers apart, so that their stacks begin at different lines of the cache.
  // `main` never returns.
  Fiber(int number, void (*main)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  bool Ok() const { return stack_ != nullptr; }
  // From outside all fibers: go on in this one until it suspends.
  void Resume();
  // In the fiber that runs: back to who resumed it. Also out of a signal handler.
  void Suspend();
  // Forget what it did: it begins anew.
  void Reset();
  // Whether an address is in the guard below its stack.
  bool Overflows(std::uintptr_t address) const;

 private:
#ifdef MOBILENET_TVM_UCONTEXT
  ucontext_t inside_, outside_;
#else
  void* inside_ = nullptr;
  void* outside_ = nullptr;
#endif
  unsigned char* stack_ = nullptr;
  int number_;
  void (*main_)();
};

}  // namespace mobilenet_tvm_emulated

#endif  // MOBILENET_TVM_EMULATED_FIBER_H_
