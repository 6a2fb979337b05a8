// CUDA's vector types, with its alignments.

#ifndef MOBILENET_TVM_EMULATED_CUDA_VECTORS_H_
#define MOBILENET_TVM_EMULATED_CUDA_VECTORS_H_

#define MOBILENET_TVM_VECTORS(name, type, align2, align4)                             \
  struct name##1 {                                                                    \
    type x;                                                                           \
  };                                                                                  \
  struct __align__(align2) name##2 {                                                  \
    type x, y;                                                                        \
  };                                                                                  \
  struct name##3 {                                                                    \
    type x, y, z;                                                                     \
  };                                                                                  \
  struct __align__(align4) name##4 {                                                  \
    type x, y, z, w;                                                                  \
  };                                                                                  \
  inline name##1 make_##name##1(type x) { return {x}; }                               \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                    \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }         \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

MOBILENET_TVM_VECTORS(char, signed char, 2, 4)
MOBILENET_TVM_VECTORS(uchar, unsigned char, 2, 4)
MOBILENET_TVM_VECTORS(short, short, 4, 8)
MOBILENET_TVM_VECTORS(ushort, unsigned short, 4, 8)
MOBILENET_TVM_VECTORS(int, int, 8, 16)
MOBILENET_TVM_VECTORS(uint, unsigned, 8, 16)
MOBILENET_TVM_VECTORS(long, long, 16, 16)
MOBILENET_TVM_VECTORS(ulong, unsigned long, 16, 16)
MOBILENET_TVM_VECTORS(longlong, long long, 16, 16)
MOBILENET_TVM_VECTORS(ulonglong, unsigned long long, 16, 16)
MOBILENET_TVM_VECTORS(float, float, 8, 16)
MOBILENET_TVM_VECTORS(double, double, 16, 16)

using dim3 = uint3;

#endif  // MOBILENET_TVM_EMULATED_CUDA_VECTORS_H_
