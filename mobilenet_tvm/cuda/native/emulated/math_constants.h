// CUDA's header of this name, as much of it as TVM's code generator prints.

#ifndef MOBILENET_TVM_EMULATED_MATH_CONSTANTS_H_
#define MOBILENET_TVM_EMULATED_MATH_CONSTANTS_H_

#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_INF __builtin_inf()
#define CUDART_NAN __builtin_nan("")

#endif  // MOBILENET_TVM_EMULATED_MATH_CONSTANTS_H_
