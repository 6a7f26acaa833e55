// float16 and bfloat16 as storage: loaded to float, computed in float, rounded once when stored.
// The functions have internal linkage, so that every instruction-set level keeps its own copy (isa.h).
#pragma once

#include <cstdint>
#include <cstring>

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
inline float load(Float16 value) { return float16_value<float>(uint32_t(value.bits)); }

inline void store(float value, float& to) { to = value; }
inline void store(double value, double& to) { to = value; }

// Round to nearest, ties to even, as torch does.
inline void store(float value, BFloat16& to) {
  const uint32_t bits = reinterpret_bits<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = uint16_t(value != value ? 0x7fc0u : rounded);
}

inline void store(float value, Float16& to) {
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

}  // namespace
}  // namespace tta
