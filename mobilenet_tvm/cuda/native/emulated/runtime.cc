// NVIDIA's runtime library, as much of it as TVM's runtime calls. None of it is exported: a real
// one may be in the process, too.

#include <cuda_runtime.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "errors.h"
#include "hidden.h"
#include "launch.h"
#include "memory.h"
#include "stream.h"

using mobilenet_tvm_emulated::Error;
using mobilenet_tvm_emulated::Holds;
using mobilenet_tvm_emulated::Limits;
using mobilenet_tvm_emulated::Submit;
using mobilenet_tvm_emulated::TheLimits;

struct CUevent_st {
  std::chrono::steady_clock::time_point recorded;
};

namespace {

bool There() { return TheLimits().threads_per_block > 0; }

cudaError_t NoDevice() {
  return Error(cudaErrorNoDevice,
               "no CUDA device: the emulator is loaded and was not told which GPU it is "
               "(mobilenet_tvm.cuda.activate() does)");
}

cudaError_t Device(int device) {
  if (!There()) return NoDevice();
  if (device == 0) return cudaSuccess;
  return Error(cudaErrorInvalidDevice,
               "no CUDA device " + std::to_string(device) + ": the emulator is device 0");
}

cudaError_t OutOfRange(const char* what, const char* side, std::size_t bytes) {
  return Error(cudaErrorInvalidValue, std::string(what) + " of " + std::to_string(bytes) +
                                          " bytes: its " + side + " is not in one buffer");
}

cudaError_t Copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (to_device && !Holds(to, bytes)) return OutOfRange("copy", "destination", bytes);
  if (from_device && !Holds(from, bytes)) return OutOfRange("copy", "source", bytes);
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaGetDeviceCount(int* count) {
  *count = There() ? 1 : 0;
  return There() ? cudaSuccess : NoDevice();
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return Device(0);
}

cudaError_t cudaSetDevice(int device) { return Device(device); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (cudaError_t error = Device(device)) return error;
  const Limits& limits = TheLimits();
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = static_cast<int>(limits.threads_per_block);
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = mobilenet_tvm_emulated::kWarp;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(limits.shared_per_block);
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = static_cast<int>(limits.major);
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = static_cast<int>(limits.minor);
      return cudaSuccess;
    case cudaDevAttrClockRate:
      *value = static_cast<int>(limits.clock_khz);
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = static_cast<int>(limits.multiprocessors);
      return cudaSuccess;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
    case cudaDevAttrMaxBlockDimZ:
      *value = mobilenet_tvm_emulated::kMaxBlock[attribute - cudaDevAttrMaxBlockDimX];
      return cudaSuccess;
    case cudaDevAttrMaxRegistersPerBlock:
      *value = static_cast<int>(limits.registers_per_block);
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = static_cast<int>(limits.l2_bytes);
      return cudaSuccess;
    default:
      return Error(cudaErrorNotSupported, "the emulator does not know device attribute " +
                                              std::to_string(static_cast<int>(attribute)));
  }
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (cudaError_t error = Device(device)) return error;
  const Limits& limits = TheLimits();
  *properties = {};
  std::strncpy(properties->name, ("CUDA emulator (" + limits.arch + ")").c_str(),
               sizeof(properties->name) - 1);
  properties->totalGlobalMem = limits.memory_bytes;
  properties->sharedMemPerBlock = limits.shared_per_block;
  properties->sharedMemPerBlockOptin = limits.shared_per_block_optin;
  properties->sharedMemPerMultiprocessor = limits.shared_per_multiprocessor;
  properties->regsPerBlock = static_cast<int>(limits.registers_per_block);
  properties->warpSize = mobilenet_tvm_emulated::kWarp;
  properties->maxThreadsPerBlock = static_cast<int>(limits.threads_per_block);
  properties->maxThreadsPerMultiProcessor = static_cast<int>(limits.threads_per_multiprocessor);
  for (int i = 0; i < 3; ++i) {
    properties->maxThreadsDim[i] = static_cast<int>(mobilenet_tvm_emulated::kMaxBlock[i]);
    properties->maxGridSize[i] = static_cast<int>(mobilenet_tvm_emulated::kMaxGrid[i]);
  }
  properties->clockRate = static_cast<int>(limits.clock_khz);
  properties->major = static_cast<int>(limits.major);
  properties->minor = static_cast<int>(limits.minor);
  properties->multiProcessorCount = static_cast<int>(limits.multiprocessors);
  properties->l2CacheSize = static_cast<int>(limits.l2_bytes);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  if (!There()) return NoDevice();
  const std::size_t used = mobilenet_tvm_emulated::AllocatedBytes();
  *total = TheLimits().memory_bytes;
  *free = *total > used ? *total - used : 0;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  if (!There()) return NoDevice();
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  *pointer = bytes <= free ? mobilenet_tvm_emulated::Allocate(bytes) : nullptr;
  if (*pointer != nullptr) return cudaSuccess;
  return Error(cudaErrorMemoryAllocation,
               "out of memory: " + std::to_string(bytes) + " bytes wanted, " +
                   std::to_string(free) + " of " + std::to_string(total) + " are free");
}

cudaError_t cudaFree(void* pointer) {
  if (pointer == nullptr || mobilenet_tvm_emulated::Free(pointer)) return cudaSuccess;
  return Error(cudaErrorInvalidValue, "cudaFree of what cudaMalloc did not return");
}

cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  if (posix_memalign(pointer, 4096, bytes > 0 ? bytes : 1) == 0) return cudaSuccess;
  return Error(cudaErrorMemoryAllocation, "out of host memory");
}

cudaError_t cudaFreeHost(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return Submit(stream, [=] { return Copy(to, from, bytes, kind); });
}

cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device,
                                std::size_t bytes, cudaStream_t stream) {
  if (cudaError_t error = Device(to_device)) return error;
  if (cudaError_t error = Device(from_device)) return error;
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}

cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t bytes, cudaStream_t stream) {
  return Submit(stream, [=] {
    if (!Holds(pointer, bytes)) return OutOfRange("memset", "destination", bytes);
    std::memset(pointer, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream == nullptr || stream->recording == nullptr) return cudaSuccess;
  return Error(cudaErrorStreamCaptureUnsupported,
               "a stream is waited for while a graph is recorded on it");
}

cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->recorded = std::chrono::steady_clock::now();
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds =
      std::chrono::duration<float, std::milli>(end->recorded - start->recorded).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || stream->recording != nullptr) {
    return Error(cudaErrorStreamCaptureUnsupported,
                 "a graph cannot be recorded on the default stream, nor twice on one");
  }
  stream->recording = new CUgraph_st;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream == nullptr || stream->recording == nullptr) {
    return Error(cudaErrorIllegalState, "no graph is recorded on this stream");
  }
  *graph = stream->recording;
  stream->recording = nullptr;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  if (nodes != nullptr) {
    return Error(cudaErrorNotSupported, "the emulator only counts the nodes of a graph");
  }
  *count = graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  *made = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (const auto& node : graph->nodes) {
    if (cudaError_t error = node()) return error;
  }
  return cudaSuccess;
}

// Nothing is left broken by an error: what the kernel did wrong stays in its launch.
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) { return mobilenet_tvm_emulated::Words(error); }

HIDDEN(cudaGetDeviceCount);
HIDDEN(cudaGetDevice);
HIDDEN(cudaSetDevice);
HIDDEN(cudaDeviceGetAttribute);
HIDDEN(cudaGetDeviceProperties);
HIDDEN(cudaMemGetInfo);
HIDDEN(cudaMalloc);
HIDDEN(cudaFree);
HIDDEN(cudaMallocHost);
HIDDEN(cudaFreeHost);
HIDDEN(cudaMemcpyAsync);
HIDDEN(cudaMemcpyPeerAsync);
HIDDEN(cudaMemsetAsync);
HIDDEN(cudaStreamCreateWithFlags);
HIDDEN(cudaStreamDestroy);
HIDDEN(cudaStreamSynchronize);
HIDDEN(cudaStreamWaitEvent);
HIDDEN(cudaEventCreate);
HIDDEN(cudaEventDestroy);
HIDDEN(cudaEventRecord);
HIDDEN(cudaEventSynchronize);
HIDDEN(cudaEventElapsedTime);
HIDDEN(cudaStreamBeginCapture);
HIDDEN(cudaStreamEndCapture);
HIDDEN(cudaGraphGetNodes);
HIDDEN(cudaGraphInstantiate);
HIDDEN(cudaGraphLaunch);
HIDDEN(cudaPeekAtLastError);
HIDDEN(cudaGetErrorString);
