#include "fiber.h"

#include <sys/mman.h>

#ifndef MOBILENET_TVM_UCONTEXT
// Keeps what a called function must keep, on the stack that is left; `*left` is where. It leaves by
// a jump: the CPU expects of a return that it goes where the last call came from, and guesses wrong
// (8 against 45 ns there and back).
extern "C" __attribute__((visibility("hidden"))) void mobilenet_tvm_switch(void** left, void* to);
#endif

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl mobilenet_tvm_switch
.hidden mobilenet_tvm_switch
.type mobilenet_tvm_switch, @function
mobilenet_tvm_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size mobilenet_tvm_switch, .-mobilenet_tvm_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl mobilenet_tvm_switch
.hidden mobilenet_tvm_switch
.type mobilenet_tvm_switch, %function
mobilenet_tvm_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  br x30
.size mobilenet_tvm_switch, .-mobilenet_tvm_switch
)");
#endif

namespace mobilenet_tvm_emulated {
namespace {

// Wide, for an array in local memory is first touched anywhere.
constexpr std::size_t kGuardBytes = 1 << 20;

}  // namespace

Fiber::Fiber(int number, void (*main)()) : number_(number), main_(main) {
  void* stack = mmap(nullptr, kGuardBytes + kStackBytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) return;
  if (mprotect(static_cast<unsigned char*>(stack) + kGuardBytes, kStackBytes,
               PROT_READ | PROT_WRITE) != 0) {
    munmap(stack, kGuardBytes + kStackBytes);
    return;
  }
  stack_ = static_cast<unsigned char*>(stack);
  Reset();
}

Fiber::~Fiber() {
  if (stack_ != nullptr) munmap(stack_, kGuardBytes + kStackBytes);
}

bool Fiber::Overflows(std::uintptr_t address) const {
  const auto begin = reinterpret_cast<std::uintptr_t>(stack_);
  return begin <= address && address < begin + kGuardBytes;
}

#ifdef MOBILENET_TVM_UCONTEXT

void Fiber::Reset() {
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_ + kGuardBytes;
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  makecontext(&inside_, main_, 0);
}

void Fiber::Resume() { swapcontext(&outside_, &inside_); }
void Fiber::Suspend() { swapcontext(&inside_, &outside_); }

#else

void Fiber::Reset() {
  // Stacks are aligned alike: beginning all at their ends would crowd a few sets of the cache.
  unsigned char* top = stack_ + kGuardBytes + kStackBytes - 64 - number_ % 32 * 192;
#if defined(__x86_64__)
  // As `mobilenet_tvm_switch` leaves it: six registers, then where to return to, at whose entry
  // the stack is 8 bytes off its alignment of 16.
  void** saved = reinterpret_cast<void**>(top) - 6;
  for (int i = 0; i < 6; ++i) saved[i] = nullptr;
  saved[6] = reinterpret_cast<void*>(main_);
  saved[7] = nullptr;
#else
  void** saved = reinterpret_cast<void**>(top - 160);
  for (int i = 0; i < 20; ++i) saved[i] = nullptr;
  saved[11] = reinterpret_cast<void*>(main_);  // x30
#endif
  inside_ = saved;
}

void Fiber::Resume() { mobilenet_tvm_switch(&outside_, inside_); }
void Fiber::Suspend() { mobilenet_tvm_switch(&inside_, outside_); }

#endif

}  // namespace mobilenet_tvm_emulated
