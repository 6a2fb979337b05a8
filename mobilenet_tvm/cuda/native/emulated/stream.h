// Streams. All work is done at once, so that a stream is only what is being recorded on it.

#ifndef MOBILENET_TVM_EMULATED_STREAM_H_
#define MOBILENET_TVM_EMULATED_STREAM_H_

#include <cuda_runtime.h>

#include <functional>
#include <vector>

// The types that NVIDIA's headers leave open.
struct CUgraph_st {
  std::vector<std::function<cudaError_t()>> nodes;
};
struct CUgraphExec_st {
  std::vector<std::function<cudaError_t()>> nodes;
};
struct CUstream_st {
  CUgraph_st* recording = nullptr;
};

namespace mobilenet_tvm_emulated {

// Do the work, or keep it for the graph that is being recorded on the stream.
inline cudaError_t Submit(cudaStream_t stream, std::function<cudaError_t()> work) {
  if (stream == nullptr || stream->recording == nullptr) return work();
  stream->recording->nodes.push_back(std::move(work));
  return cudaSuccess;
}

}  // namespace mobilenet_tvm_emulated

#endif  // MOBILENET_TVM_EMULATED_STREAM_H_
