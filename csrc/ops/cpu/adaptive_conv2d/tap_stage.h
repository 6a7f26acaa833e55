// Taps of a tile of pixels, one tap after the other, in the type that is computed in. For *.isa.cpp only.
#pragma once

#include "pixel_conv.h"
#include "vector.h"

namespace tta::TTA_ISA {
namespace {

// The lanes that stage `half` of a transposition exchanges between two rows: blocks of `half` lanes.
template <int L, typename T, int half, bool high>
inline __attribute__((always_inline)) Vector<T, L> interleaved(Vector<T, L> a, Vector<T, L> b) {
  Integers<T, L> from{};
  for (int lane = 0; lane < L; ++lane) {
    const int block = lane / half, within = lane % half;
    // even blocks come from a, odd ones from b; low: the even blocks of both, high: the odd ones
    from[lane] = (block % 2 ? L : 0) + ((block / 2 * 2 + (high ? 1 : 0)) * half + within);
  }
#if __has_builtin(__builtin_shuffle)
  return __builtin_shuffle(a, b, from);
#else
  Vector<T, L> result{};
  for (int lane = 0; lane < L; ++lane) result[lane] = from[lane] < L ? a[from[lane]] : b[from[lane] - L];
  return result;
#endif
}

template <int L, typename T, int half>
inline __attribute__((always_inline)) void exchange(Vector<T, L> (&rows)[L]) {
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) {
    if (r & half) continue;
    const Vector<T, L> a = rows[r], b = rows[r + half];
    rows[r] = interleaved<L, T, half, false>(a, b);
    rows[r + half] = interleaved<L, T, half, true>(a, b);
  }
  if constexpr (half > 1) exchange<L, T, half / 2>(rows);
}

// L pixels, `pixel` apart, with L taps side by side -> L taps, `stride` apart, with L pixels side by side
template <int L, typename S, typename T>
inline void transpose_block(const S* from, int64_t pixel, T* to, int64_t stride) {
  Vector<T, L> rows[L];
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) rows[r] = load_vector<L>(from + r * pixel);
  exchange<L, T, L / 2>(rows);
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) store_vector<L>(to + r * stride, rows[r]);
}

// taps x pixels of `from`, whose tap and pixel are so far apart, to taps x pixels with rows of `stride`. The taps that are
// staged next lie `ahead` of them.
template <typename S, typename T>
void stage(const S* from, int64_t channel, int64_t pixel, int64_t taps, int64_t pixels, int64_t ahead, T* to,
           int64_t stride) {
  constexpr int L = LANES<T>;
  if (pixel == 1) {
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t i = 0; i < pixels; ++i) to[t * stride + i] = load(from[t * channel + i]);
    return;
  }
  int64_t i = 0;
  for (; taps >= L && i + L <= pixels; i += L) {
    const S* block = from + i * pixel;
    for (int64_t r = 0; r < L; ++r)
      for (int64_t t = 0; t < taps; t += 64 / int64_t(sizeof(S))) __builtin_prefetch(block + ahead + r * pixel + t);
    for (int64_t t = 0; t < taps; t += L) {
      const int64_t first = t + L <= taps ? t : taps - L;  // the last block may overlap the one before
      transpose_block<L>(block + first, pixel, to + first * stride + i, stride);
    }
  }
  for (; i < pixels; ++i)
    for (int64_t t = 0; t < taps; ++t) to[t * stride + i] = load(from[i * pixel + t]);
}

}  // namespace
}  // namespace tta::TTA_ISA
