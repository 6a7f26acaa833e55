// Transposes between channels_last memory and planes. For *.isa.cpp only.
//
// Squares of L x L values are transposed in registers. The last square of a row or column may overlap the one before.
#pragma once

#include "vector.h"

namespace tta::TTA_ISA {
namespace {

// low[0], high[0], low[1], high[1], ...: the first half of both vectors, or with `upper` the second
template <bool upper, typename T, int L>
inline __attribute__((always_inline)) Vector<T, L> interleave(Vector<T, L> low, Vector<T, L> high) {
  constexpr int first = upper ? L / 2 : 0;
#if __has_builtin(__builtin_shuffle)
  Vector<Integer<T>, L> order{};
  for (int lane = 0; lane < L; ++lane) order[lane] = Integer<T>(first + lane / 2 + lane % 2 * L);
  return __builtin_shuffle(low, high, order);
#else
  return [&]<int... lane>(Lanes<lane...>) {
    return __builtin_shufflevector(low, high, (first + lane / 2 + lane % 2 * L)...);
  }(typename FirstLanes<L>::type{});
#endif
}

// to[c * to_stride + r] = from[r * from_stride + c] for r, c < L. Each round rotates the bits of the index (r, c) by one.
template <int L, typename T>
inline __attribute__((always_inline)) void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  using V = Vector<T, L>;
  V a[L], b[L];
#pragma GCC unroll 64
  for (int i = 0; i < L; ++i) a[i] = load_vector<L>(from + i * from_stride);
#pragma GCC unroll 8
  for (int step = 1; step < L; step *= 2) {
#pragma GCC unroll 64
    for (int i = 0; i < L / 2; ++i) {
      b[2 * i] = interleave<false, T, L>(a[i], a[i + L / 2]);
      b[2 * i + 1] = interleave<true, T, L>(a[i], a[i + L / 2]);
    }
#pragma GCC unroll 64
    for (int i = 0; i < L; ++i) a[i] = b[i];
  }
#pragma GCC unroll 64
  for (int i = 0; i < L; ++i) store_vector<L>(to + i * to_stride, a[i]);
}

// to[c * plane + p] = from[p * pixel + c] for c < channels, p < pixels
template <typename T>
__attribute__((noinline)) void transpose(const T* from, int64_t pixel, int64_t channels, int64_t pixels, T* to,
                                         int64_t plane) {
  constexpr int L = LANES<T> < 16 ? LANES<T> : 16;
  if (channels < L || pixels < L) {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t p = 0; p < pixels; ++p) to[c * plane + p] = from[p * pixel + c];
    return;
  }
  for (int64_t p = 0;; p = p + 2 * L <= pixels ? p + L : pixels - L) {
    for (int64_t c = 0;; c = c + 2 * L <= channels ? c + L : channels - L) {
      transpose_square<L>(from + p * pixel + c, pixel, to + c * plane + p, plane);
      if (c == channels - L) break;
    }
    if (p == pixels - L) break;
  }
}

}  // namespace
}  // namespace tta::TTA_ISA
