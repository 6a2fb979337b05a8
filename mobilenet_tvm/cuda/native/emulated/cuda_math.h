// CUDA's functions of numbers. The fast ones (`__expf`) are the exact ones here.

#ifndef MOBILENET_TVM_EMULATED_CUDA_MATH_H_
#define MOBILENET_TVM_EMULATED_CUDA_MATH_H_

#define MOBILENET_TVM_UNARY(name)      \
  extern "C" float name##f(float);     \
  extern "C" double name(double);      \
  inline float name(float x) { return name##f(x); }
#define MOBILENET_TVM_BINARY(name)          \
  extern "C" float name##f(float, float);   \
  extern "C" double name(double, double);   \
  inline float name(float x, float y) { return name##f(x, y); }

MOBILENET_TVM_UNARY(acos)
MOBILENET_TVM_UNARY(acosh)
MOBILENET_TVM_UNARY(asin)
MOBILENET_TVM_UNARY(asinh)
MOBILENET_TVM_UNARY(atan)
MOBILENET_TVM_UNARY(atanh)
MOBILENET_TVM_UNARY(cbrt)
MOBILENET_TVM_UNARY(ceil)
MOBILENET_TVM_UNARY(cos)
MOBILENET_TVM_UNARY(cosh)
MOBILENET_TVM_UNARY(erf)
MOBILENET_TVM_UNARY(exp)
MOBILENET_TVM_UNARY(exp2)
MOBILENET_TVM_UNARY(expm1)
MOBILENET_TVM_UNARY(fabs)
MOBILENET_TVM_UNARY(floor)
MOBILENET_TVM_UNARY(log)
MOBILENET_TVM_UNARY(log10)
MOBILENET_TVM_UNARY(log1p)
MOBILENET_TVM_UNARY(log2)
MOBILENET_TVM_UNARY(nearbyint)
MOBILENET_TVM_UNARY(rint)
MOBILENET_TVM_UNARY(round)
MOBILENET_TVM_UNARY(sin)
MOBILENET_TVM_UNARY(sinh)
MOBILENET_TVM_UNARY(sqrt)
MOBILENET_TVM_UNARY(tan)
MOBILENET_TVM_UNARY(tanh)
MOBILENET_TVM_UNARY(trunc)
MOBILENET_TVM_BINARY(atan2)
MOBILENET_TVM_BINARY(copysign)
MOBILENET_TVM_BINARY(fmax)
MOBILENET_TVM_BINARY(fmin)
MOBILENET_TVM_BINARY(fmod)
MOBILENET_TVM_BINARY(hypot)
MOBILENET_TVM_BINARY(nextafter)
MOBILENET_TVM_BINARY(pow)
extern "C" float fmaf(float, float, float);
extern "C" double fma(double, double, double);
inline float fma(float x, float y, float z) { return fmaf(x, y, z); }

inline float __cosf(float x) { return cosf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float exp10f(float x) { return powf(10.0f, x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }

// A GPU's return the other argument where one is NaN. These return NaN, which in a kernel is what
// was never written: a ReLU would hide it.
template <typename T>
inline T max(T a, T b) {
  return a > b || a != a ? a : b;
}
template <typename T>
inline T min(T a, T b) {
  return a < b || a != a ? a : b;
}
template <typename A, typename B>
inline auto max(A a, B b) -> decltype(a + b) {
  return max<decltype(a + b)>(a, b);
}
template <typename A, typename B>
inline auto min(A a, B b) -> decltype(a + b) {
  return min<decltype(a + b)>(a, b);
}
inline float __saturatef(float x) { return min(max(x, 0.0f), 1.0f); }

inline int abs(int x) { return x < 0 ? -x : x; }
inline long long abs(long long x) { return x < 0 ? -x : x; }
inline float abs(float x) { return __builtin_fabsf(x); }
inline double abs(double x) { return __builtin_fabs(x); }

inline bool isnan(float x) { return x != x; }
inline bool isnan(double x) { return x != x; }
inline bool isinf(float x) { return __builtin_fabsf(x) == __builtin_inff(); }
inline bool isinf(double x) { return __builtin_fabs(x) == __builtin_inf(); }
inline bool isfinite(float x) { return __builtin_fabsf(x) < __builtin_inff(); }
inline bool isfinite(double x) { return __builtin_fabs(x) < __builtin_inf(); }

inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
// The builtin is a call of the compiler's own library on some CPUs, which is not linked.
inline int __popcll(unsigned long long x) {
  int count = 0;
  for (; x != 0; x &= x - 1) ++count;
  return count;
}
inline int __popc(unsigned x) { return __popcll(x); }

template <typename To, typename From>
inline To mobilenet_tvm_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "not of one size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}
inline int __float_as_int(float x) { return mobilenet_tvm_as<int>(x); }
inline unsigned __float_as_uint(float x) { return mobilenet_tvm_as<unsigned>(x); }
inline float __int_as_float(int x) { return mobilenet_tvm_as<float>(x); }
inline float __uint_as_float(unsigned x) { return mobilenet_tvm_as<float>(x); }

// Dot products of four signed bytes, added to a sum.
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<signed char>(a >> 8 * i) * static_cast<signed char>(b >> 8 * i);
  }
  return sum;
}

#endif  // MOBILENET_TVM_EMULATED_CUDA_MATH_H_
