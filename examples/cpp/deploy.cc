// Runs a .so of mobilenet_tvm's with nothing but TVM's runtime library.
//
//   deploy MODEL.so [INPUT.f32]     raw float32 for the first input; zeros without it
//
// It calls TVM by its C interface: what that takes does not depend on the compiler or on its C++
// library, so zig's or any other will do for the libtvm_runtime.so of the wheel. How it is built:
// ../README.md.
#include <dlpack/dlpack.h>
#include <tvm/runtime/c_runtime_api.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

namespace {

void check(int status) {
  if (status != 0) {
    fprintf(stderr, "error: %s\n", TVMGetLastError());
    exit(3);
  }
}

// A function of a module, called with at most one argument.
TVMValue call(TVMModuleHandle module, const char* name, TVMValue argument = {}, int type = -1) {
  TVMFunctionHandle function = nullptr;
  check(TVMModGetFunction(module, name, 0, &function));
  if (function == nullptr) {
    fprintf(stderr, "error: the module has no function %s\n", name);
    exit(3);
  }
  TVMValue result = {};
  int result_type = 0;
  check(TVMFuncCall(function, &argument, &type, type < 0 ? 0 : 1, &result, &result_type));
  check(TVMFuncFree(function));
  return result;
}

DLTensor* tensor(TVMModuleHandle executor, const char* name) {
  TVMValue first = {};
  first.v_int64 = 0;
  return static_cast<DLTensor*>(call(executor, name, first, kDLInt).v_handle);
}

float* data(const DLTensor* t) {
  return reinterpret_cast<float*>(static_cast<char*>(t->data) + t->byte_offset);
}

int64_t size(const DLTensor* t) {
  int64_t product = 1;
  for (int axis = 0; axis < t->ndim; ++axis) product *= t->shape[axis];
  return product;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    fprintf(stderr, "usage: %s MODEL.so [INPUT.f32]\n", argv[0]);
    return 2;
  }
  TVMModuleHandle library = nullptr;
  check(TVMModLoadFromFile(argv[1], "so", &library));
  TVMValue cpu = {};
  cpu.v_device = DLDevice{kDLCPU, 0};
  TVMModuleHandle executor = call(library, "default", cpu, kDLDevice).v_handle;

  DLTensor* input = tensor(executor, "get_input");
  for (int64_t i = 0; i < size(input); ++i) data(input)[i] = 0;
  if (argc == 3) {
    FILE* file = fopen(argv[2], "rb");
    const size_t wanted = static_cast<size_t>(size(input));
    if (file == nullptr || fread(data(input), sizeof(float), wanted, file) != wanted) {
      fprintf(stderr, "error: %s does not hold %zu float32\n", argv[2], wanted);
      return 2;
    }
    fclose(file);
  }
  call(executor, "run");
  const DLTensor* output = tensor(executor, "get_output");
  int64_t best = 0;
  for (int64_t i = 1; i < size(output); ++i) {
    if (data(output)[i] > data(output)[best]) best = i;
  }
  printf("class %lld, score %.4f\n", static_cast<long long>(best), data(output)[best]);
  check(TVMModFree(executor));
  check(TVMModFree(library));
  return 0;
}
