// What went wrong last, in words: the entry points return numbers only.

#ifndef MOBILENET_TVM_EMULATED_ERRORS_H_
#define MOBILENET_TVM_EMULATED_ERRORS_H_

#include <cuda.h>
#include <cuda_runtime.h>

#include <string>

namespace mobilenet_tvm_emulated {

// Keep the words of an error for who asks for its name, and return it.
cudaError_t Error(cudaError_t code, std::string words);
CUresult Error(CUresult code, std::string words);
// The words kept last in this thread for the error, else only what it is.
const char* Words(int code);

}  // namespace mobilenet_tvm_emulated

#endif  // MOBILENET_TVM_EMULATED_ERRORS_H_
