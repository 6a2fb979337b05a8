// What the emulator and a compiled image of kernels know of each other. No header of the C++
// library is used, for images are compiled without any.

#ifndef MOBILENET_TVM_EMULATED_IMAGE_H_
#define MOBILENET_TVM_EMULATED_IMAGE_H_

namespace mobilenet_tvm_emulated {

struct Index {
  unsigned x, y, z;
};

// Where the thread that runs now is.
struct Place {
  Index thread, block, block_size, grid_size;
  bool alone;  // in its block
};

enum class WarpOp { kShuffle, kShuffleUp, kShuffleDown, kShuffleXor, kBallot, kSync, kActive };

// What a kernel asks of the emulator. `line` is the call's in the CUDA source: calls of one line
// belong together, whatever the compiler made of them.
struct Device {
  void (*barrier)(int line);
  // Returns what `value` is elsewhere in the warp (shuffles), or a mask of lanes.
  unsigned long long (*warp)(WarpOp op, unsigned mask, unsigned long long value, unsigned operand,
                             unsigned width, int line);
  void (*trap)(const char* why);
};

struct SharedArray {
  const char* name;
  unsigned long long bytes;  // 0: as many as the launch says
};

struct Kernel {
  const char* name;
  void (*call)(void** arguments);
  unsigned parameters;
  const unsigned* parameter_bytes;
  const bool* parameter_is_pointer;
  unsigned launch_bound;  // 0: none was declared
  unsigned shared_count;
  const SharedArray* shared;
};

struct Image {
  unsigned kernel_count;
  const Kernel* kernels;
  Place* place;
  unsigned char** shared;  // the running kernel's arrays
  const Device** device;
};

// The one symbol of an image.
using ImageFunction = const Image* (*)();
inline constexpr const char* kImageSymbol = "mobilenet_tvm_emulated_image";

}  // namespace mobilenet_tvm_emulated

#endif  // MOBILENET_TVM_EMULATED_IMAGE_H_
