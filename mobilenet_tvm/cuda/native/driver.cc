// The driver's entry points that TVM's CUDA runtime calls, forwarded to libcuda.so.1 when one is
// first called: so the plug-in loads, and compiles, on a machine with no driver.

#include <dlfcn.h>

// Hidden, or they would stand for the driver's in whatever else this process loads.
#pragma GCC visibility push(hidden)
#include <cuda.h>
#pragma GCC visibility pop

namespace {

template <typename F>
F Entry(const char* name) {
  static void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  return driver == nullptr ? nullptr : reinterpret_cast<F>(dlsym(driver, name));
}

template <typename... Parameters, typename... Arguments>
CUresult Forward(const char* name, CUresult (*)(Parameters...), Arguments... arguments) {
  auto entry = Entry<CUresult (*)(Parameters...)>(name);
  return entry == nullptr ? CUDA_ERROR_NOT_INITIALIZED : entry(arguments...);
}

}  // namespace

// cuda.h maps some names to the newest version of an entry point: so does this, by the macro.
#define MOBILENET_TVM_TEXT(name) #name
#define MOBILENET_TVM_NAME(name) MOBILENET_TVM_TEXT(name)
#define FORWARD(function, ...) \
  return Forward(MOBILENET_TVM_NAME(function), function, __VA_ARGS__)

CUresult CUDAAPI cuGetErrorName(CUresult error, const char** text) {
  auto entry = Entry<CUresult (*)(CUresult, const char**)>("cuGetErrorName");
  if (entry != nullptr) return entry(error, text);
  *text = "no NVIDIA driver (libcuda.so.1) on this machine";
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleLoadData(CUmodule* module, const void* image) {
  FORWARD(cuModuleLoadData, module, image);
}

CUresult CUDAAPI cuModuleUnload(CUmodule module) { FORWARD(cuModuleUnload, module); }

CUresult CUDAAPI cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  FORWARD(cuModuleGetFunction, function, module, name);
}

CUresult CUDAAPI cuModuleGetGlobal(CUdeviceptr* pointer, size_t* bytes, CUmodule module,
                                   const char* name) {
  FORWARD(cuModuleGetGlobal, pointer, bytes, module, name);
}

CUresult CUDAAPI cuMemsetD32(CUdeviceptr pointer, unsigned int value, size_t count) {
  FORWARD(cuMemsetD32, pointer, value, count);
}

CUresult CUDAAPI cuDeviceGetName(char* name, int length, CUdevice device) {
  FORWARD(cuDeviceGetName, name, length, device);
}

CUresult CUDAAPI cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute,
                                    int value) {
  FORWARD(cuFuncSetAttribute, function, attribute, value);
}

CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                                unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                                void** parameters, void** extra) {
  FORWARD(cuLaunchKernel, function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes,
          stream, parameters, extra);
}
