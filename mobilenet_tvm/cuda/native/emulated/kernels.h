// CUDA C as C++: what the source of an image is compiled with. There is no C++ library here, and
// no header of the host's, whose names TVM's CUDA C takes for its own.
//
// `__shared__` arrays and the table of kernels are written by emulator_source.py. Not there: mma
// and other inline assembly, textures, dynamic parallelism, bfloat16 and fp8. Products and sums
// are never contracted to an FMA, as a GPU's compiler does it.

#ifndef MOBILENET_TVM_EMULATED_KERNELS_H_
#define MOBILENET_TVM_EMULATED_KERNELS_H_

#include "image.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __CUDA_ARCH__ 800
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 0

namespace mobilenet_tvm_emulated {

static Place place;
static const Device* device;
static unsigned char* shared[MOBILENET_TVM_SHARED_ARRAYS + 1];

template <typename T>
inline unsigned long long Bits(T value) {
  static_assert(sizeof(T) <= sizeof(unsigned long long), "a warp exchanges 8 bytes at most");
  unsigned long long bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
inline T Shuffle(WarpOp op, int line, unsigned mask, T value, unsigned operand,
                 unsigned width = 32) {
  const unsigned long long bits = device->warp(op, mask, Bits(value), operand, width, line);
  T result;
  __builtin_memcpy(&result, &bits, sizeof(T));
  return result;
}

inline unsigned Warp(WarpOp op, int line, unsigned mask = 0xFFFFFFFF, bool predicate = false) {
  return static_cast<unsigned>(device->warp(op, mask, predicate, 0, 32, line));
}

template <unsigned... I>
struct Indices {};
template <unsigned N, unsigned... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <unsigned... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

template <typename T>
struct IsPointer {
  static constexpr bool value = false;
};
template <typename T>
struct IsPointer<T*> {
  static constexpr bool value = true;
};

// From the driver's array of pointers to arguments to a call.
template <typename F, F function>
struct Entry;
template <typename... P, void (*function)(P...)>
struct Entry<void (*)(P...), function> {
  static constexpr unsigned parameters = sizeof...(P);
  // One more, for a kernel may have none.
  static constexpr unsigned bytes[] = {sizeof(P)..., 0};
  static constexpr bool is_pointer[] = {IsPointer<P>::value..., false};

  template <unsigned... I>
  static inline void Unpack(void** arguments, Indices<I...>) {
    function(*static_cast<P*>(arguments[I])...);
  }
  static void Call(void** arguments) {
    Unpack(arguments, typename MakeIndices<sizeof...(P)>::type());
  }
};

}  // namespace mobilenet_tvm_emulated

#define threadIdx (mobilenet_tvm_emulated::place.thread)
#define blockIdx (mobilenet_tvm_emulated::place.block)
#define blockDim (mobilenet_tvm_emulated::place.block_size)
#define gridDim (mobilenet_tvm_emulated::place.grid_size)
#define warpSize 32

// The line tells calls apart, whatever the compiler makes of them.
#define MOBILENET_TVM_WARP(function, op, ...) \
  mobilenet_tvm_emulated::function(mobilenet_tvm_emulated::WarpOp::op, __LINE__, __VA_ARGS__)
// TVM's untuned schedules run one thread a block, and come to a barrier twice for every product.
#define __syncthreads()                           \
  (mobilenet_tvm_emulated::place.alone ? (void)0 \
                                       : mobilenet_tvm_emulated::device->barrier(__LINE__))
#define __shfl_sync(...) MOBILENET_TVM_WARP(Shuffle, kShuffle, __VA_ARGS__)
#define __shfl_up_sync(...) MOBILENET_TVM_WARP(Shuffle, kShuffleUp, __VA_ARGS__)
#define __shfl_down_sync(...) MOBILENET_TVM_WARP(Shuffle, kShuffleDown, __VA_ARGS__)
#define __shfl_xor_sync(...) MOBILENET_TVM_WARP(Shuffle, kShuffleXor, __VA_ARGS__)
#define __ballot_sync(mask, predicate) MOBILENET_TVM_WARP(Warp, kBallot, mask, (predicate) != 0)
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0)
#define __all_sync(mask, predicate) \
  (MOBILENET_TVM_WARP(Warp, kBallot, mask, (predicate) == 0) == 0)
#define __activemask() \
  mobilenet_tvm_emulated::Warp(mobilenet_tvm_emulated::WarpOp::kActive, __LINE__)
#define __syncwarp(...) \
  ((void)mobilenet_tvm_emulated::Warp(mobilenet_tvm_emulated::WarpOp::kSync, __LINE__, \
                                      ##__VA_ARGS__))
#define __trap() (mobilenet_tvm_emulated::device->trap("calls __trap()"))

// What one block, or the whole device, sees of the others: they run one after the other.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

template <typename T>
inline T __ldg(const T* pointer) {
  return *pointer;
}

#define MOBILENET_TVM_ATOMIC(name, result)    \
  template <typename T>                       \
  inline T name(T* address, decltype(T{}) value) { \
    const T old = *address;                   \
    *address = result;                        \
    return old;                               \
  }
MOBILENET_TVM_ATOMIC(atomicAdd, old + value)
MOBILENET_TVM_ATOMIC(atomicSub, old - value)
MOBILENET_TVM_ATOMIC(atomicExch, value)
MOBILENET_TVM_ATOMIC(atomicMin, value < old ? value : old)
MOBILENET_TVM_ATOMIC(atomicMax, value > old ? value : old)

#include "cuda_vectors.h"
#include "cuda_math.h"

#endif  // MOBILENET_TVM_EMULATED_KERNELS_H_
