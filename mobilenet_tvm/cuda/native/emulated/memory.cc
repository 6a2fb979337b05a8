#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>

namespace mobilenet_tvm_emulated {
namespace {

// Wide enough for a row or a channel too many; only addresses are spent.
constexpr std::size_t kGuardBytes = 1 << 20;
// TVM refuses an input that is less aligned (kAllocAlignment); what is left of it between a
// buffer and its guards holds poison, and is looked at after each launch.
constexpr std::size_t kAlignment = 64;
// Buffers freed last, whose addresses are kept from new ones so that a use of them is seen.
constexpr std::size_t kFreedKept = 64;

std::size_t RoundUp(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

struct Freed {
  void* mapping;
  std::size_t mapped;
};

struct Heap {
  std::mutex mutex;
  std::map<std::uintptr_t, std::unique_ptr<Guarded>> buffers;
  std::size_t bytes = 0;
};

// Never destroyed: TVM frees what it holds while the process ends.
Heap& TheHeap() {
  static Heap* heap = new Heap;
  return *heap;
}

std::deque<Freed>& TheFreed() {
  static std::deque<Freed>* freed = new std::deque<Freed>;
  return *freed;
}

}  // namespace

Guarded::Guarded(std::size_t capacity, std::size_t guard, std::size_t alignment)
    : alignment_(alignment) {
  const std::size_t page = sysconf(_SC_PAGESIZE);
  guard_ = RoundUp(guard, page);
  room_ = RoundUp(std::max<std::size_t>(capacity, 1), page);
  mapped_ = room_ + 2 * guard_;
  void* mapping = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
  if (mapping == MAP_FAILED) return;
  if (mprotect(static_cast<unsigned char*>(mapping) + guard_, room_, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, mapped_);
    return;
  }
  mapping_ = static_cast<unsigned char*>(mapping);
}

Guarded::~Guarded() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_);
}

unsigned char* Guarded::Begin(std::size_t bytes) {
  unsigned char* end = mapping_ + guard_ + room_;
  bytes_ = bytes;
  data_ = end - RoundUp(bytes, alignment_);
  std::memset(mapping_ + guard_, kPoison, room_);
  return data_;
}

void Guarded::Poison() { std::memset(data_, kPoison, bytes_); }

bool Guarded::Near(std::uintptr_t address) const {
  const auto begin = reinterpret_cast<std::uintptr_t>(mapping_);
  return begin <= address && address < begin + mapped_;
}

std::optional<std::uintptr_t> Guarded::WrittenGap() {
  unsigned char* const room = mapping_ + guard_;
  unsigned char* const gaps[][2] = {{data_ + bytes_, room + room_}, {room, data_}};
  std::optional<std::uintptr_t> found;
  for (const auto& [from, to] : gaps) {
    const std::size_t bytes = to - from;
    // All are the first one's equals where each equals the one before.
    if (bytes == 0 || (*from == kPoison && std::memcmp(from, from + 1, bytes - 1) == 0)) continue;
    unsigned char* at = from;
    while (*at == kPoison) ++at;
    if (!found) found = reinterpret_cast<std::uintptr_t>(at);
    std::memset(from, kPoison, bytes);
  }
  return found;
}

void* Allocate(std::size_t bytes) {
  auto made = std::make_unique<Guarded>(bytes, kGuardBytes, kAlignment);
  if (!made->Ok()) return nullptr;
  Heap& heap = TheHeap();
  std::lock_guard<std::mutex> lock(heap.mutex);
  // A buffer of no bytes has an address of its own, too.
  unsigned char* const begin = made->Begin(std::max<std::size_t>(bytes, 1));
  heap.bytes += made->bytes();
  heap.buffers[reinterpret_cast<std::uintptr_t>(begin)] = std::move(made);
  return begin;
}

bool Free(void* pointer) {
  Heap& heap = TheHeap();
  std::lock_guard<std::mutex> lock(heap.mutex);
  auto found = heap.buffers.find(reinterpret_cast<std::uintptr_t>(pointer));
  if (found == heap.buffers.end()) return false;
  heap.bytes -= found->second->bytes();
  const std::size_t bytes = found->second->capacity();
  heap.buffers.erase(found);
  // Where the buffer was, nobody else may be for a while. (Should another thread's mapping have
  // come between, the hint is not taken, and nothing is kept.)
  const auto first =
      reinterpret_cast<std::uintptr_t>(pointer) / sysconf(_SC_PAGESIZE) * sysconf(_SC_PAGESIZE);
  void* kept = mmap(reinterpret_cast<void*>(first), bytes, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (kept != MAP_FAILED) {
    TheFreed().push_back({kept, bytes});
    if (TheFreed().size() > kFreedKept) {
      munmap(TheFreed().front().mapping, TheFreed().front().mapped);
      TheFreed().pop_front();
    }
  }
  return true;
}

std::size_t AllocatedBytes() {
  Heap& heap = TheHeap();
  std::lock_guard<std::mutex> lock(heap.mutex);
  return heap.bytes;
}

bool Holds(const void* pointer, std::size_t bytes) {
  Heap& heap = TheHeap();
  std::lock_guard<std::mutex> lock(heap.mutex);
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  auto after = heap.buffers.upper_bound(address);
  if (after == heap.buffers.begin()) return false;
  const auto& [begin, buffer] = *std::prev(after);
  return address - begin <= buffer->bytes() && bytes <= buffer->bytes() - (address - begin);
}

std::string Where(std::uintptr_t address, std::uintptr_t begin, std::size_t bytes,
                  const std::string& what) {
  auto count = [](std::size_t n) {
    return std::to_string(n) + (n == 1 ? " byte" : " bytes");
  };
  const std::string whole = what + " of " + count(bytes);
  if (address < begin) return count(begin - address) + " before " + whole;
  if (address >= begin + bytes) return count(address - begin - bytes) + " past the end of " + whole;
  return "at byte " + std::to_string(address - begin) + " of " + whole;
}

std::string Describe(std::uintptr_t address, void** begin) {
  Heap& heap = TheHeap();
  std::lock_guard<std::mutex> lock(heap.mutex);
  for (const auto& [at, buffer] : heap.buffers) {
    if (!buffer->Near(address)) continue;
    *begin = reinterpret_cast<void*>(at);
    return Where(address, at, buffer->bytes(), "a buffer");
  }
  for (const Freed& freed : TheFreed()) {
    const auto at = reinterpret_cast<std::uintptr_t>(freed.mapping);
    if (at <= address && address < at + freed.mapped) return "in a buffer that was freed";
  }
  return "where no buffer is";
}

std::optional<std::string> DescribeWrittenGap(void** begin) {
  Heap& heap = TheHeap();
  std::lock_guard<std::mutex> lock(heap.mutex);
  for (const auto& [at, buffer] : heap.buffers) {
    if (auto address = buffer->WrittenGap()) {
      *begin = reinterpret_cast<void*>(at);
      return Where(*address, at, buffer->bytes(), "a buffer");
    }
  }
  return std::nullopt;
}

}  // namespace mobilenet_tvm_emulated
