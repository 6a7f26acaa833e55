// float16 and bfloat16 as storage types: values are loaded to float, computed in float and rounded once when stored.
//
// The functions have internal linkage, so that every instruction-set level keeps its own copy (isa.h).
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace tta {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type that sums are kept in.
template <typename T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <typename T>
using accumulate_t = typename accumulate<T>::type;

namespace {

template <typename To, typename From>
inline To reinterpret_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float load(float value) { return value; }
inline double load(double value) { return value; }
// Bits to values, for uint32_t and float as for vectors of them (vector.h).
template <typename Real, typename Word>
inline __attribute__((always_inline)) Real bfloat16_value(Word bits) {
  return reinterpret_bits<Real>(bits << 16);
}

// Branch-free, so that loops over it vectorise. A subnormal m is m * 2^-24, which is the spacing of floats above 0.5.
template <typename Real, typename Word>
inline __attribute__((always_inline)) Real float16_value(Word bits) {
  const Word sign = (bits & 0x8000u) << 16;
  const Word exponent = bits & 0x7c00u, fraction = bits & 0x3ffu;
  const Word shifted = (bits & 0x7fffu) << 13;
  const Word subnormal = reinterpret_bits<Word>(reinterpret_bits<Real>(0x3f000000u | fraction) - 0.5f);
  const Word finite = exponent == 0 ? subnormal : shifted + 0x38000000u;
  return reinterpret_bits<Real>(sign | (exponent == 0x7c00u ? shifted | 0x7f800000u : finite));
}

inline float load(BFloat16 value) { return bfloat16_value<float>(uint32_t(value.bits)); }
inline float load(Float16 value) {
#if defined(__aarch64__)
  return float(reinterpret_bits<__fp16>(value.bits));  // FCVT, in vectors FCVTL
#else
  return float16_value<float>(uint32_t(value.bits));
#endif
}

inline void store(float value, float& to) { to = value; }
inline void store(double value, double& to) { to = value; }

// Round to nearest, ties to even, as torch does.
inline void store(float value, BFloat16& to) {
  const uint32_t bits = reinterpret_bits<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = uint16_t(value != value ? 0x7fc0u : rounded);
}

inline void store(float value, Float16& to) {
#if defined(__aarch64__)
  to.bits = reinterpret_bits<uint16_t>(__fp16(value));
  return;
#endif
  const uint32_t bits = reinterpret_bits<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Adding 0.5 makes the adder round a subnormal result at 2^-24.
  const uint32_t subnormal = reinterpret_bits<uint32_t>(reinterpret_bits<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  to.bits = uint16_t(sign | (magnitude >= 0x477ff000u ? special : finite));
}

// n values, in loops that vectorize. F16C converts float16 in one instruction; compilers do not find it by themselves.
template <typename S, typename T>
inline void load_values(const S* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
}
template <typename S, typename T>
inline void store_values(const T* from, int64_t n, S* to) {
  for (int64_t i = 0; i < n; ++i) store(from[i], to[i]);
}
#if defined(__F16C__)
inline void load_values(const Float16* from, int64_t n, float* to) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(from + i))));
#endif
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
  for (; i < n; ++i) to[i] = load(from[i]);
}
inline void store_values(const float* from, int64_t n, Float16* to) {
  constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256((__m256i*)(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), NEAREST));
#endif
  for (; i + 8 <= n; i += 8) _mm_storeu_si128((__m128i*)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), NEAREST));
  for (; i < n; ++i) store(from[i], to[i]);
}
#endif

}  // namespace
}  // namespace tta
