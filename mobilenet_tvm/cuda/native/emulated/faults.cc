#include "faults.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstring>

namespace mobilenet_tvm_emulated {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr int kSignalCount = sizeof(kSignals) / sizeof(*kSignals);
constexpr std::size_t kStackBytes = 128 << 10;

// One launch runs at a time (launch.cc), so there is one of each; only its thread is armed.
struct sigaction g_before[kSignalCount];
stack_t g_stack_before;
void* g_stack = nullptr;
void (*g_caught)(const Fault&) = nullptr;
thread_local volatile bool t_armed = false;

bool IsWrite([[maybe_unused]] const ucontext_t* context) {
#if defined(__x86_64__)
  return (context->uc_mcontext.gregs[REG_ERR] & 2) != 0;
#elif defined(__aarch64__)
  // The syndrome register stands in one of the records behind the registers.
  constexpr std::uint32_t kSyndrome = 0x45535201;
  const unsigned char* at = context->uc_mcontext.__reserved;
  for (;;) {
    std::uint32_t head[2];
    std::memcpy(head, at, sizeof(head));
    if (head[0] == 0 || head[1] == 0) return false;
    if (head[0] == kSyndrome) {
      std::uint64_t value;
      std::memcpy(&value, at + sizeof(head), sizeof(value));
      return (value >> 6 & 1) != 0;
    }
    at += head[1];
  }
#else
  return false;
#endif
}

void Handle(int number, siginfo_t* info, void* context) {
  if (t_armed) {
    t_armed = false;
    Fault fault;
    fault.signal = number;
    fault.address = reinterpret_cast<std::uintptr_t>(info->si_addr);
    fault.has_address = number == SIGSEGV && info->si_code != SI_KERNEL;
    fault.write = IsWrite(static_cast<const ucontext_t*>(context));
    g_caught(fault);
    return;
  }
  for (int i = 0; i < kSignalCount; ++i) {
    if (kSignals[i] != number) continue;
    const struct sigaction& before = g_before[i];
    if (before.sa_flags & SA_SIGINFO) {
      before.sa_sigaction(number, info, context);
    } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
      // It happens again as soon as this returns, and then ends the process.
      signal(number, SIG_DFL);
    } else {
      before.sa_handler(number);
    }
  }
}

}  // namespace

FaultGuard::FaultGuard(void (*caught)(const Fault&)) {
  g_caught = caught;
  if (g_stack == nullptr) {
    void* stack =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack != MAP_FAILED) g_stack = stack;
  }
  stack_t stack = {};
  stack.ss_sp = g_stack;
  stack.ss_size = kStackBytes;
  sigaltstack(&stack, &g_stack_before);
  struct sigaction action = {};
  action.sa_sigaction = Handle;
  // The handler is left by a switch of stacks: the signal must not stay blocked then.
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &action, &g_before[i]);
}

FaultGuard::~FaultGuard() {
  Disarm();
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &g_before[i], nullptr);
  sigaltstack(&g_stack_before, nullptr);
}

void FaultGuard::Arm() { t_armed = true; }
void FaultGuard::Disarm() { t_armed = false; }

}  // namespace mobilenet_tvm_emulated
