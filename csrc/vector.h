// Vectors of L values in the vector notation of GCC and Clang: a * b + c, a > b ? a : b. For *.isa.cpp only.
//
// They serve loops that keep whole vectors from one iteration to the next; compilers vectorize the other loops.
#pragma once

#include <cstdint>

#include "half.h"

namespace tta::TTA_ISA {
namespace {

// The most lanes that the instruction set has for a type.
template <typename T>
#if defined(__AVX512F__)
constexpr int LANES = 64 / int(sizeof(T));
#elif defined(__AVX2__)
constexpr int LANES = 32 / int(sizeof(T));
#else
constexpr int LANES = 16 / int(sizeof(T));
#endif

template <typename T>
struct SameSize;
template <>
struct SameSize<float> {
  using integer = int32_t;
};
template <>
struct SameSize<double> {
  using integer = int64_t;
};
template <>
struct SameSize<uint16_t> {
  using integer = int16_t;
};
template <>
struct SameSize<uint32_t> {
  using integer = int32_t;
};
template <>
struct SameSize<uint64_t> {
  using integer = int64_t;
};
template <typename T>
using Integer = typename SameSize<T>::integer;

template <typename T, int L>
struct VectorTypes {
  typedef T values __attribute__((vector_size(L * sizeof(T))));
  typedef T in_memory __attribute__((vector_size(L * sizeof(T)), aligned(alignof(T)), may_alias));
};
template <typename T, int L>
using Vector = typename VectorTypes<T, L>::values;
template <typename T, int L>
using Integers = Vector<Integer<T>, L>;  // comparisons of Vectors give these

template <int L, typename T>
inline __attribute__((always_inline)) auto load_vector(const T* from) {
  const Vector<T, L> values = *reinterpret_cast<const typename VectorTypes<T, L>::in_memory*>(from);
  return values;
}
template <int L>
inline __attribute__((always_inline)) Vector<float, L> load_vector(const BFloat16* from) {
  const auto bits = load_vector<L>(&from->bits);
  return bfloat16_value<Vector<float, L>>(__builtin_convertvector(bits, Vector<uint32_t, L>));
}
template <int L>
inline __attribute__((always_inline)) Vector<float, L> load_vector(const Float16* from) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return Vector<float, L>(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)));
#endif
#if defined(__F16C__)
  if constexpr (L == 8) return Vector<float, L>(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)));
  if constexpr (L == 4) return Vector<float, L>(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)from)));
#endif
  const auto bits = load_vector<L>(&from->bits);
  return float16_value<Vector<float, L>>(__builtin_convertvector(bits, Vector<uint32_t, L>));
}

template <int L, typename T>
inline __attribute__((always_inline)) void store_vector(T* to, Vector<T, L> values) {
  *reinterpret_cast<typename VectorTypes<T, L>::in_memory*>(to) = values;
}

// visit<L>(x) for whole vectors, then for halves of one, down to a single value
template <int L, typename Visit>
inline __attribute__((always_inline)) void each_vector(int64_t n, Visit&& visit, int64_t x = 0) {
  for (; x + L <= n; x += L) visit.template operator()<L>(x);
  if constexpr (L > 1) each_vector<L / 2>(n, visit, x);
}

// Values of any type as a vector of those that are computed with
template <int L, typename T, typename E>
inline __attribute__((always_inline)) Vector<T, L> take(const E* from) {
  if constexpr (L == 1) {
    Vector<T, 1> value{};
    value[0] = load(*from);
    return value;
  } else {
    return load_vector<L>(from);
  }
}

// first, first + 1, ...
template <int L, typename T>
inline __attribute__((always_inline)) Vector<T, L> count_from(T first) {
  Vector<T, L> result{};
  for (int lane = 0; lane < L; ++lane) result[lane] = first + lane;
  return result;
}

template <int... I>
struct Lanes {};
template <int N, int... I>
struct FirstLanes : FirstLanes<N - 1, N - 1, I...> {};
template <int... I>
struct FirstLanes<0, I...> {
  using type = Lanes<I...>;
};

// Lane from(l) of low and high laid end to end, for every l; `from` is a lambda without captures.
//
// The lanes are written as a list of constants: compilers take minutes to find out what loops make of them.
template <typename T, int L, typename From>
inline __attribute__((always_inline)) Vector<T, L> shuffled(Vector<T, L> low, Vector<T, L> high, From) {
  return [&]<int... l>(Lanes<l...>) __attribute__((always_inline)) {
#if __has_builtin(__builtin_shuffle)  // GCC, which has the other only since 12
    return __builtin_shuffle(low, high, Integers<T, L>{Integer<T>(From{}(l))...});
#else
    return __builtin_shufflevector(low, high, From{}(l)...);
#endif
  }(typename FirstLanes<L>::type{});
}

// The lanes first, first + 1, ... of low and high laid end to end
template <int first, typename T, int L>
inline __attribute__((always_inline)) Vector<T, L> lanes_from(Vector<T, L> low, Vector<T, L> high) {
  return shuffled<T, L>(low, high, [](int l) constexpr { return first + l; });
}

}  // namespace
}  // namespace tta::TTA_ISA
