#include "launch.h"

#include <signal.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "faults.h"
#include "fiber.h"
#include "memory.h"

namespace mobilenet_tvm_emulated {
namespace {

constexpr std::size_t kSharedGuardBytes = 256 << 10;
constexpr std::size_t kSharedAlignment = 16;

enum class State { kNew, kReady, kAtBarrier, kInWarp, kDone };

struct Thread {
  Fiber* fiber = nullptr;
  State state = State::kNew;
  int line = 0;
  // Of the warp operation it waits in, and what comes of it.
  WarpOp op = WarpOp::kSync;
  unsigned mask = 0, operand = 0, width = 0;
  std::uint64_t value = 0, result = 0;
};

bool FromEnvironment() {
  const char* order = std::getenv("MOBILENET_TVM_CUDA_ORDER");
  return order != nullptr && std::string_view(order) == "reverse";
}

std::string Text(const Index& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string Count(std::size_t n, const char* noun) {
  return std::to_string(n) + " " + noun + (n == 1 ? "" : "s");
}

// The GPU. One kernel runs at a time, so there is one of all that it needs.
class Machine {
 public:
  Outcome Launch(const Function& function, Index grid, Index block, std::size_t dynamic_bytes,
                 void** arguments);

  bool reverse = FromEnvironment();

 private:
  static void FiberMain();
  static void Barrier(int line);
  static unsigned long long Warp(WarpOp op, unsigned mask, unsigned long long value,
                                 unsigned operand, unsigned width, int line);
  static void Trap(const char* why);
  static void Caught(const Fault& fault);

  Outcome Check(Index grid, Index block, std::size_t dynamic_bytes) const;
  bool PrepareShared(std::size_t dynamic_bytes);
  bool RunBlock();
  // Resume a fiber until it suspends; false if its thread went wrong.
  bool Resume(Fiber* fiber);
  void Wait();
  bool ReleaseWarps();
  bool ReleaseWarp(std::size_t first, std::size_t last, bool active_only);
  void Complete(std::size_t first, std::uint32_t lanes);
  bool ReleaseBarrier();
  void Enter(std::size_t number);
  Fiber* Take();
  void Abandon();
  void CheckGaps();
  void Fail(CUresult code, const char* name, const std::string& words);
  std::string Argument(const void* begin) const;
  std::string Explain(const Fault& fault) const;

  std::mutex mutex_;
  const Function* function_ = nullptr;
  Place* place_ = nullptr;
  void** arguments_ = nullptr;
  void (*call_)(void**) = nullptr;
  std::vector<Thread> threads_;
  std::size_t count_ = 0, started_ = 0, done_ = 0, in_warp_ = 0, current_ = 0;
  Fiber* running_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::vector<std::unique_ptr<Guarded>> shared_;
  Outcome outcome_;

  friend Machine& TheMachine();
};

Machine& TheMachine() {
  static Machine* machine = new Machine;
  return *machine;
}

void Machine::FiberMain() {
  Machine& machine = TheMachine();
  for (;;) {
    // Threads that meet no barrier run here one after the other; only one that waits needs a
    // fiber to itself.
    while (machine.started_ < machine.count_) {
      const std::size_t at = machine.started_++;
      const std::size_t number = machine.reverse ? machine.count_ - 1 - at : at;
      machine.threads_[number].fiber = machine.running_;
      machine.Enter(number);
      machine.call_(machine.arguments_);
      // Another one may be current since: this thread's fiber is this one all the same.
      machine.threads_[machine.current_].state = State::kDone;
      ++machine.done_;
    }
    machine.running_->Suspend();
  }
}

void Machine::Enter(std::size_t number) {
  current_ = number;
  const Index& size = place_->block_size;
  const auto n = static_cast<unsigned>(number);
  place_->thread = {n % size.x, n / size.x % size.y, n / (size.x * size.y)};
}

void Machine::Wait() { running_->Suspend(); }

void Machine::Barrier(int line) {
  Machine& machine = TheMachine();
  Thread& thread = machine.threads_[machine.current_];
  thread.state = State::kAtBarrier;
  thread.line = line;
  machine.Wait();
}

unsigned long long Machine::Warp(WarpOp op, unsigned mask, unsigned long long value,
                                 unsigned operand, unsigned width, int line) {
  Machine& machine = TheMachine();
  Thread& thread = machine.threads_[machine.current_];
  thread.state = State::kInWarp;
  thread.line = line;
  thread.op = op;
  thread.mask = mask;
  thread.value = value;
  thread.operand = operand;
  thread.width = width;
  ++machine.in_warp_;
  machine.Wait();
  return thread.result;
}

void Machine::Trap(const char* why) {
  Machine& machine = TheMachine();
  FaultGuard::Disarm();
  machine.Fail(CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED",
               std::string(why) + " in thread " + Text(machine.place_->thread) + " of block " +
                   Text(machine.place_->block));
  machine.Wait();
}

void Machine::Caught(const Fault& fault) {
  Machine& machine = TheMachine();
  machine.Fail(fault.signal == SIGSEGV ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_ERROR_LAUNCH_FAILED,
               fault.signal == SIGSEGV ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_LAUNCH_FAILED",
               machine.Explain(fault) + ", in thread " + Text(machine.place_->thread) +
                   " of block " + Text(machine.place_->block));
  machine.Wait();  // and is not resumed
}

void Machine::Fail(CUresult code, const char* name, const std::string& words) {
  outcome_.code = code;
  outcome_.message = std::string(name) + ": kernel " + function_->kernel->name + " " + words;
}

std::string Machine::Argument(const void* begin) const {
  const Kernel& kernel = *function_->kernel;
  std::string found;
  for (unsigned i = 0; i < kernel.parameters; ++i) {
    if (!kernel.parameter_is_pointer[i]) continue;
    void* value;
    std::memcpy(&value, arguments_[i], sizeof(value));
    if (value != begin) continue;
    found += (found.empty() ? " (argument " : ", ") + std::to_string(i);
  }
  return found.empty() ? found : found + ")";
}

std::string Machine::Explain(const Fault& fault) const {
  if (fault.signal == SIGFPE) return "divides an integer by zero";
  if (fault.signal == SIGILL) return "comes to an instruction that cannot be executed";
  const std::string verb = fault.write ? "writes " : "reads ";
  if (!fault.has_address) {
    return "reads or writes a vector at an address that is not aligned to it, or no address at all";
  }
  if (running_->Overflows(fault.address)) {
    return "needs more than " + std::to_string(kStackBytes >> 10) +
           " KiB of local memory for a thread";
  }
  const Kernel& kernel = *function_->kernel;
  for (unsigned i = 0; i < kernel.shared_count; ++i) {
    const Guarded& array = *shared_[i];
    if (!array.Near(fault.address)) continue;
    return verb + Where(fault.address, reinterpret_cast<std::uintptr_t>(array.data()),
                        array.bytes(), std::string("the shared array ") + kernel.shared[i].name);
  }
  void* begin = nullptr;
  const std::string where = Describe(fault.address, &begin);
  return verb + where + Argument(begin);
}

Fiber* Machine::Take() {
  if (idle_.empty()) {
    auto made = std::make_unique<Fiber>(static_cast<int>(fibers_.size()), FiberMain);
    if (!made->Ok()) return nullptr;
    idle_.push_back(made.get());
    fibers_.push_back(std::move(made));
  }
  Fiber* fiber = idle_.back();
  idle_.pop_back();
  return fiber;
}

// After a fault, or with threads left waiting: no fiber is to be resumed where it is.
void Machine::Abandon() {
  idle_.clear();
  for (auto& fiber : fibers_) {
    fiber->Reset();
    idle_.push_back(fiber.get());
  }
}

bool Machine::Resume(Fiber* fiber) {
  running_ = fiber;
  FaultGuard::Arm();
  fiber->Resume();
  FaultGuard::Disarm();
  if (outcome_.code != CUDA_SUCCESS) return false;
  if (threads_[current_].state == State::kDone) idle_.push_back(fiber);
  return true;
}

bool Machine::RunBlock() {
  started_ = done_ = in_warp_ = 0;
  for (std::size_t i = 0; i < count_; ++i) threads_[i].state = State::kNew;
  while (started_ < count_) {
    Fiber* fiber = Take();
    if (fiber == nullptr) {
      Fail(CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY",
           "finds no memory for the stacks of its threads");
      return false;
    }
    if (!Resume(fiber)) return false;
  }
  while (done_ < count_) {
    // All that can run has run.
    if (!(in_warp_ > 0 && ReleaseWarps()) && !ReleaseBarrier()) return false;
    for (std::size_t i = 0; i < count_; ++i) {
      const std::size_t number = reverse ? count_ - 1 - i : i;
      if (threads_[number].state != State::kReady) continue;
      Enter(number);
      if (!Resume(threads_[number].fiber)) return false;
    }
  }
  return true;
}

// The lanes of each warp that wait for each other go on; false if there are none.
bool Machine::ReleaseWarps() {
  bool released = false;
  for (const bool active_only : {false, true}) {
    for (std::size_t first = 0; first < count_; first += kWarp) {
      const std::size_t last = std::min<std::size_t>(first + kWarp, count_);
      released |= ReleaseWarp(first, last, active_only);
    }
    // Who asks which lanes are active waits until nobody else can come.
    if (released) return true;
  }
  return false;
}

bool Machine::ReleaseWarp(std::size_t first, std::size_t last, bool active_only) {
  bool released = false;
  std::uint32_t alive = 0;
  for (std::size_t i = first; i < last; ++i) {
    if (threads_[i].state != State::kDone) alive |= 1u << (i - first);
  }
  // Lines in their order: what comes later may be where lanes meet again.
  int line = 0;
  for (;;) {
    int next = 0;
    for (std::size_t i = first; i < last; ++i) {
      const Thread& thread = threads_[i];
      if (thread.state != State::kInWarp || thread.line <= line) continue;
      if ((thread.op == WarpOp::kActive) != active_only) continue;
      if (next == 0 || thread.line < next) next = thread.line;
    }
    if (next == 0) return released;
    line = next;
    for (std::size_t i = first; i < last; ++i) {
      const Thread& thread = threads_[i];
      if (thread.state != State::kInWarp || thread.line != line) continue;
      if ((thread.op == WarpOp::kActive) != active_only) continue;
      std::uint32_t here = 0;
      for (std::size_t j = first; j < last; ++j) {
        const Thread& other = threads_[j];
        if (other.state == State::kInWarp && other.line == line && other.op == thread.op &&
            other.mask == thread.mask) {
          here |= 1u << (j - first);
        }
      }
      const std::uint32_t wanted = active_only ? here : thread.mask & alive;
      if (wanted != here) continue;
      Complete(first, here);
      released = true;
      if (active_only) return released;
    }
  }
}

void Machine::Complete(std::size_t first, std::uint32_t lanes) {
  std::uint32_t ballot = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((lanes >> lane & 1) && threads_[first + lane].value != 0) ballot |= 1u << lane;
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    Thread& thread = threads_[first + lane];
    const unsigned begin = lane & ~(thread.width - 1), end = begin + thread.width;
    long source = lane;
    switch (thread.op) {
      case WarpOp::kShuffle:
        source = begin + (thread.operand & (thread.width - 1));
        break;
      case WarpOp::kShuffleUp:
        source = static_cast<long>(lane) - thread.operand;
        if (source < begin) source = lane;
        break;
      case WarpOp::kShuffleDown:
        source = static_cast<long>(lane) + thread.operand;
        if (source >= end) source = lane;
        break;
      case WarpOp::kShuffleXor:
        source = lane ^ thread.operand;
        if (source >= end) source = lane;
        break;
      case WarpOp::kBallot:
        thread.result = ballot;
        break;
      case WarpOp::kActive:
        thread.result = lanes;
        break;
      case WarpOp::kSync:
        break;
    }
    if (thread.op <= WarpOp::kShuffleXor) {
      // What a lane that takes no part would give is undefined.
      const bool there = lanes >> source & 1;
      thread.result = there ? threads_[first + source].value : ~std::uint64_t{0};
    }
    thread.state = State::kReady;
    --in_warp_;
  }
}

bool Machine::ReleaseBarrier() {
  const Thread* sample = nullptr;
  std::size_t waiting = 0, elsewhere = 0, in_warp = 0;
  int other_line = 0;
  for (std::size_t i = 0; i < count_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == State::kInWarp) ++in_warp;
    if (thread.state != State::kAtBarrier) continue;
    ++waiting;
    if (sample == nullptr) sample = &thread;
    if (thread.line != sample->line) {
      ++elsewhere;
      other_line = thread.line;
    }
  }
  if (waiting == count_ && elsewhere == 0) {
    for (std::size_t i = 0; i < count_; ++i) threads_[i].state = State::kReady;
    return true;
  }
  std::string words;
  if (waiting > 0) {
    words = Count(waiting - elsewhere, "thread") + " at the __syncthreads() of line " +
            std::to_string(sample->line);
  }
  if (elsewhere > 0) {
    words += ", " + std::to_string(elsewhere) + " at that of line " + std::to_string(other_line);
  }
  if (in_warp > 0) {
    words += (words.empty() ? "" : ", ") + Count(in_warp, "thread") + " in a warp operation that ";
    words += "lanes of its mask do not come to";
  }
  if (done_ > 0) words += ", " + std::to_string(done_) + " at the end";
  Fail(CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED",
       "has threads that wait for each other at different places: " + words + ", in block " +
           Text(place_->block));
  return false;
}

Outcome Machine::Check(Index grid, Index block, std::size_t dynamic_bytes) const {
  const Limits& limits = TheLimits();
  const Kernel& kernel = *function_->kernel;
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  auto refuse = [&](CUresult code, const char* name, const std::string& words) {
    return Outcome{code, std::string(name) + ": kernel " + kernel.name + " " + words};
  };
  auto invalid = [&](const std::string& words) {
    return refuse(CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", words);
  };
  auto has_at_most = [&](std::size_t most) {
    return ", " + limits.arch + " has at most " + std::to_string(most);
  };
  const unsigned grids[] = {grid.x, grid.y, grid.z}, blocks[] = {block.x, block.y, block.z};
  for (int i = 0; i < 3; ++i) {
    const std::string axis(1, "xyz"[i]);
    if (grids[i] == 0 || blocks[i] == 0) return invalid("is launched with nothing along " + axis);
    if (grids[i] > kMaxGrid[i]) {
      return invalid("wants " + Count(grids[i], "block") + " along " + axis +
                     has_at_most(kMaxGrid[i]));
    }
    if (blocks[i] > kMaxBlock[i] && threads <= limits.threads_per_block) {
      return invalid("wants " + Count(blocks[i], "thread") + " a block along " + axis +
                     has_at_most(kMaxBlock[i]));
    }
  }
  if (threads > limits.threads_per_block) {
    return invalid("wants " + Count(threads, "thread") + " a block" +
                   has_at_most(limits.threads_per_block));
  }
  if (kernel.launch_bound > 0 && threads > kernel.launch_bound) {
    return invalid("wants " + Count(threads, "thread") + " a block, its __launch_bounds__ say at " +
                   "most " + std::to_string(kernel.launch_bound));
  }
  std::size_t fixed = 0;
  for (unsigned i = 0; i < kernel.shared_count; ++i) {
    fixed = (fixed + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
    fixed += kernel.shared[i].bytes;
  }
  // More than the usual is only for who asked, and only at run time.
  const std::size_t most =
      function_->dynamic_limit == 0
          ? limits.shared_per_block
          : std::min(fixed + function_->dynamic_limit, limits.shared_per_block_optin);
  if (fixed > limits.shared_per_block || fixed + dynamic_bytes > most) {
    return invalid("wants " + Count(fixed + dynamic_bytes, "byte") +
                   " of shared memory a block" +
                   has_at_most(fixed > limits.shared_per_block ? limits.shared_per_block : most));
  }
  // A warp gets its registers in lots of 256.
  const std::size_t warps = (threads + kWarp - 1) / kWarp;
  const std::size_t registers = (function_->registers * kWarp + 255) / 256 * 256 * warps;
  if (registers > limits.registers_per_block) {
    return refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
                  "wants " + Count(registers, "register") + " a block" +
                      has_at_most(limits.registers_per_block));
  }
  return {};
}

bool Machine::PrepareShared(std::size_t dynamic_bytes) {
  const Kernel& kernel = *function_->kernel;
  for (unsigned i = 0; i < kernel.shared_count; ++i) {
    const std::size_t bytes = kernel.shared[i].bytes > 0 ? kernel.shared[i].bytes : dynamic_bytes;
    if (shared_.size() <= i) shared_.emplace_back();
    if (shared_[i] == nullptr || shared_[i]->capacity() < bytes) {
      shared_[i] = std::make_unique<Guarded>(bytes, kSharedGuardBytes, kSharedAlignment);
      if (!shared_[i]->Ok()) return false;
    }
    function_->image->shared[i] = shared_[i]->Begin(bytes);
  }
  return true;
}

Outcome Machine::Launch(const Function& function, Index grid, Index block,
                        std::size_t dynamic_bytes, void** arguments) {
  static const Device device = {Barrier, Warp, Trap};
  std::lock_guard<std::mutex> lock(mutex_);
  const Kernel& kernel = *function.kernel;
  function_ = &function;
  if (Outcome refused = Check(grid, block, dynamic_bytes); refused.code != CUDA_SUCCESS) {
    return refused;
  }
  outcome_ = {};
  if (!PrepareShared(dynamic_bytes)) {
    return {CUDA_ERROR_OUT_OF_MEMORY,
            std::string("CUDA_ERROR_OUT_OF_MEMORY: no memory for kernel ") + kernel.name};
  }
  *function.image->device = &device;
  place_ = function.image->place;
  place_->block_size = block;
  place_->grid_size = grid;
  place_->alone = std::size_t{block.x} * block.y * block.z == 1;
  arguments_ = arguments;
  call_ = kernel.call;
  count_ = std::size_t{block.x} * block.y * block.z;
  if (threads_.size() < count_) threads_.resize(count_);

  FaultGuard guard(Caught);
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t number = reverse ? blocks - 1 - i : i;
    place_->block = {static_cast<unsigned>(number % grid.x),
                     static_cast<unsigned>(number / grid.x % grid.y),
                     static_cast<unsigned>(number / grid.x / grid.y)};
    if (i > 0) {
      for (unsigned k = 0; k < kernel.shared_count; ++k) shared_[k]->Poison();
    }
    if (!RunBlock()) {
      Abandon();
      break;
    }
  }
  CheckGaps();
  return outcome_;
}

// Writes too near to a buffer for its guard to see them; where they are looked at, all is made
// good again.
void Machine::CheckGaps() {
  const Kernel& kernel = *function_->kernel;
  auto wrote = [&](const std::string& words) {
    if (outcome_.code != CUDA_SUCCESS) return;
    Fail(CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "wrote " + words);
  };
  for (unsigned k = 0; k < kernel.shared_count; ++k) {
    if (auto at = shared_[k]->WrittenGap()) {
      wrote(Where(*at, reinterpret_cast<std::uintptr_t>(shared_[k]->data()), shared_[k]->bytes(),
                  std::string("the shared array ") + kernel.shared[k].name));
    }
  }
  void* begin = nullptr;
  while (auto where = DescribeWrittenGap(&begin)) wrote(*where + Argument(begin));
}

}  // namespace

Limits& TheLimits() {
  static Limits* limits = new Limits;
  return *limits;
}

Outcome Launch(const Function& function, Index grid, Index block, std::size_t dynamic_bytes,
               void** arguments) {
  return TheMachine().Launch(function, grid, block, dynamic_bytes, arguments);
}

void SetReverse(bool reverse) { TheMachine().reverse = reverse; }

}  // namespace mobilenet_tvm_emulated
