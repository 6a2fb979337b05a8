// The device's memory: every buffer stands alone, between pages that nobody may touch, and begins
// its life full of NaN.

#ifndef MOBILENET_TVM_EMULATED_MEMORY_H_
#define MOBILENET_TVM_EMULATED_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace mobilenet_tvm_emulated {

// A byte of which float, double and half made of it alone are NaN, and integers are -1.
constexpr unsigned char kPoison = 0xFF;

// Memory that ends, but for a few bytes to be aligned, where its guard begins.
class Guarded {
 public:
  // `capacity` bytes at most, `alignment` a power of two; `Ok()` says whether there was memory.
  Guarded(std::size_t capacity, std::size_t guard, std::size_t alignment);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  bool Ok() const { return mapping_ != nullptr; }
  std::size_t capacity() const { return room_; }
  // Make it `bytes` long; all that may be read is poison then.
  unsigned char* Begin(std::size_t bytes);
  // Fill it with poison once more.
  void Poison();
  unsigned char* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  // Whether an address is in the memory, the gaps around it or the guards around those.
  bool Near(std::uintptr_t address) const;
  // An address between it and its guards that was written to; then makes that good.
  std::optional<std::uintptr_t> WrittenGap();

 private:
  unsigned char* mapping_ = nullptr;
  unsigned char* data_ = nullptr;
  std::size_t mapped_ = 0, room_ = 0, bytes_ = 0, guard_ = 0, alignment_ = 1;
};

// As cudaMalloc and cudaFree; null where memory is out, false where it is no buffer.
void* Allocate(std::size_t bytes);
bool Free(void* pointer);
std::size_t AllocatedBytes();
// Whether [pointer, pointer + bytes) is in one buffer.
bool Holds(const void* pointer, std::size_t bytes);
// Words for an access to `address`: "12 bytes past the end of a buffer of 40 bytes". `begin` is
// set to the buffer's, where there is one.
std::string Describe(std::uintptr_t address, void** begin);
// The same of a buffer whose gap was written to, nothing where none was.
std::optional<std::string> DescribeWrittenGap(void** begin);

// "12 bytes past the end of WHAT", "4 bytes before WHAT", "at byte 4 of WHAT".
std::string Where(std::uintptr_t address, std::uintptr_t begin, std::size_t bytes,
                  const std::string& what);

}  // namespace mobilenet_tvm_emulated

#endif  // MOBILENET_TVM_EMULATED_MEMORY_H_
