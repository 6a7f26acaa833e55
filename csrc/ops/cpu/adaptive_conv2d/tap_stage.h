// Taps of a tile of pixels, one tap after the other, in the type that is computed in. For *.isa.cpp only.
#pragma once

#include "../layout/transpose.h"
#include "pixel_conv.h"
#include "vector.h"

namespace tta::TTA_ISA {
namespace {

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
      transpose_square<L>(block + first, pixel, to + first * stride + i, stride);
    }
  }
  for (; i < pixels; ++i)
    for (int64_t t = 0; t < taps; ++t) to[t * stride + i] = load(from[i * pixel + t]);
}

}  // namespace
}  // namespace tta::TTA_ISA
