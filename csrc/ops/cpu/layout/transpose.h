// Transposes between channels_last memory and planes. For *.isa.cpp only.
//
// Squares of L x L values are transposed in registers. The last square of a row or column may overlap the one before.
#pragma once

#include "vector.h"

namespace tta::TTA_ISA {
namespace {

// Blocks of `half` lanes: the even ones of a and b in turn, or with `odd` the odd ones
template <int half, bool odd, typename T, int L>
inline __attribute__((always_inline)) Vector<T, L> interleave(Vector<T, L> a, Vector<T, L> b) {
  return shuffled<T, L>(a, b, [](int lane) constexpr {
    const int block = lane / half;
    return (block % 2 ? L : 0) + (block / 2 * 2 + odd) * half + lane % half;
  });
}

template <int half, typename T, int L>
inline __attribute__((always_inline)) void exchange_blocks(Vector<T, L> (&rows)[L]) {
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) {
    if (r & half) continue;
    const Vector<T, L> a = rows[r], b = rows[r + half];
    rows[r] = interleave<half, false, T, L>(a, b);
    rows[r + half] = interleave<half, true, T, L>(a, b);
  }
  if constexpr (half > 1) exchange_blocks<half / 2, T, L>(rows);
}

// to[c * to_stride + r] = from[r * from_stride + c] for r, c < L
template <int L, typename S, typename T>
inline __attribute__((always_inline)) void transpose_square(const S* from, int64_t from_stride, T* to, int64_t to_stride) {
  Vector<T, L> rows[L];
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) rows[r] = load_vector<L>(from + r * from_stride);
  exchange_blocks<L / 2, T, L>(rows);
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) store_vector<L>(to + r * to_stride, rows[r]);
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
