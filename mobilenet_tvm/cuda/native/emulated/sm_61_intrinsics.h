// CUDA's header of this name: what it declares is in cuda_math.h.
