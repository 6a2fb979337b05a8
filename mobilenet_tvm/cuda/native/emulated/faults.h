// Faults of a kernel, caught while it runs.

#ifndef MOBILENET_TVM_EMULATED_FAULTS_H_
#define MOBILENET_TVM_EMULATED_FAULTS_H_

#include <cstdint>

namespace mobilenet_tvm_emulated {

struct Fault {
  int signal = 0;
  std::uintptr_t address = 0;
  bool has_address = false;  // the CPU does not tell it for an unaligned vector
  bool write = false;
};

// While one lives, a fault of this thread between `Arm` and `Disarm` calls `caught`, on a stack of
// its own; `caught` does not return. Any other fault goes where it went before.
class FaultGuard {
 public:
  explicit FaultGuard(void (*caught)(const Fault&));
  ~FaultGuard();
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;

  static void Arm();
  static void Disarm();
};

}  // namespace mobilenet_tvm_emulated

#endif  // MOBILENET_TVM_EMULATED_FAULTS_H_
