// Half precision: every operation is that of float, rounded to half once, as a GPU's is.

#ifndef MOBILENET_TVM_EMULATED_CUDA_FP16_H_
#define MOBILENET_TVM_EMULATED_CUDA_FP16_H_

struct __half {
  unsigned short bits;

  __half() = default;
  __half(float x) : bits(FromFloat(x)) {}
  explicit __half(double x) : __half(static_cast<float>(x)) {}
  explicit __half(int x) : __half(static_cast<float>(x)) {}
  explicit __half(unsigned x) : __half(static_cast<float>(x)) {}
  explicit __half(long long x) : __half(static_cast<float>(x)) {}
  explicit __half(unsigned long long x) : __half(static_cast<float>(x)) {}
  operator float() const { return ToFloat(bits); }

  // To the nearest, ties to even.
  static unsigned short FromFloat(float x) {
    const unsigned all = mobilenet_tvm_as<unsigned>(x), sign = all >> 16 & 0x8000;
    const unsigned magnitude = all & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return sign | 0x7E00 | (magnitude >> 13 & 0x3FF);  // NaN
    if (magnitude >= 0x477FF000) return sign | 0x7C00;  // rounds to more than 65504
    if (magnitude >= 0x38800000) {                      // a normal number
      const unsigned odd = magnitude >> 13 & 1;
      return sign | (magnitude - 0x38000000 + 0xFFF + odd) >> 13;
    }
    // Adding 0.5 rounds to a multiple of its last place, 2^-24, the smallest half.
    const float rounded = mobilenet_tvm_as<float>(magnitude) + 0.5f;
    return sign | (mobilenet_tvm_as<unsigned>(rounded) - 0x3F000000);
  }

  static float ToFloat(unsigned short half) {
    const unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31;
    const unsigned fraction = half & 0x3FF;
    if (exponent == 31) return mobilenet_tvm_as<float>(sign | 0x7F800000 | fraction << 13);
    if (exponent == 0) {
      const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
      return sign ? -magnitude : magnitude;
    }
    return mobilenet_tvm_as<float>(sign | (exponent + 112) << 23 | fraction << 13);
  }
};
using half = __half;

struct __align__(4) __half2 {
  __half x, y;
};
using half2 = __half2;
inline half2 make_half2(half x, half y) { return {x, y}; }

#define MOBILENET_TVM_HALF(op)                                                             \
  inline half operator op(half a, half b) { return half(float(a) op float(b)); }           \
  inline half& operator op##=(half& a, half b) { return a = a op b; }
MOBILENET_TVM_HALF(+)
MOBILENET_TVM_HALF(-)
MOBILENET_TVM_HALF(*)
MOBILENET_TVM_HALF(/)
#undef MOBILENET_TVM_HALF
inline half operator-(half a) { return half(-float(a)); }
#define MOBILENET_TVM_HALF(op) \
  inline bool operator op(half a, half b) { return float(a) op float(b); }
MOBILENET_TVM_HALF(<)
MOBILENET_TVM_HALF(>)
MOBILENET_TVM_HALF(<=)
MOBILENET_TVM_HALF(>=)
MOBILENET_TVM_HALF(==)
MOBILENET_TVM_HALF(!=)
#undef MOBILENET_TVM_HALF

inline half __float2half(float x) { return half(x); }
inline half __float2half_rn(float x) { return half(x); }
inline float __half2float(half x) { return float(x); }
inline bool __hgt(half a, half b) { return a > b; }
inline bool __hlt(half a, half b) { return a < b; }
inline half __hadd(half a, half b) { return a + b; }
inline half __hmul(half a, half b) { return a * b; }
inline half __hfma(half a, half b, half c) {
  // The product is exact in double, and so is what matters of the sum.
  return half(static_cast<float>(double(float(a)) * float(b) + float(c)));
}
inline half __habs(half x) { return half(fabsf(x)); }
inline half hceil(half x) { return half(ceilf(x)); }
inline half hcos(half x) { return half(cosf(x)); }
inline half hexp(half x) { return half(expf(x)); }
inline half hexp10(half x) { return half(exp10f(x)); }
inline half hexp2(half x) { return half(exp2f(x)); }
inline half hfloor(half x) { return half(floorf(x)); }
inline half hlog(half x) { return half(logf(x)); }
inline half hlog10(half x) { return half(log10f(x)); }
inline half hlog2(half x) { return half(log2f(x)); }
inline half hrint(half x) { return half(rintf(x)); }
inline half hrsqrt(half x) { return half(rsqrtf(x)); }
inline half hsin(half x) { return half(sinf(x)); }
inline half hsqrt(half x) { return half(sqrtf(x)); }
inline half htrunc(half x) { return half(truncf(x)); }

#endif  // MOBILENET_TVM_EMULATED_CUDA_FP16_H_
