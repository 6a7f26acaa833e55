// A step of adaptive convolution in one sweep over the frame: all taps of a pixel are read at once, and fetched a kilobyte
// ahead of their use, those of the next step while this one ends, so that reading goes on beside computing. For *.isa.cpp
// only.
//
// V u stays in registers. The horizontal pass follows the vertical one at a distance of one vector and finds its
// neighbors among the lanes of three vectors. Rows are taken as one long row: a tap that would read past a border takes
// what the tap beside it, one nearer to the pixel, has taken, and so in the end the border pixel.
#pragma once

#include "step.h"
#include "vector.h"

namespace tta::TTA_ISA {
namespace {

// Taps that are fetched while a sweep is before pixel `end`: those of pixel i stand at i.
template <typename S>
struct PrefetchRange {
  BlockTaps<const S> taps;
  int64_t end;
};

// z = leaky_relu(H V u + b) for `pixels` pixels in whole rows of W; tap t of the first one reads u[t][0]. Sums are taken
// in the order of filter_columns and filter_rows.
template <int KS, int L, typename S, typename T>
void fused_rows(const BlockTaps<const S>& taps, const PrefetchRange<S> (&ahead)[2], T slope, const T* const (&u)[KS], int64_t W,
                int64_t pixels, T* z) {
  using V = Vector<T, L>;
  using Columns = Integers<T, L>;
  constexpr int reach = KS / 2;
  const auto width = Integer<T>(W);
  const S *k1 = taps.vertical, *k2 = taps.horizontal, *bias = taps.bias;
  const int64_t stride = taps.stride;

  constexpr int64_t LINE = 64 / sizeof(S);  // values in a cache line, each of which is fetched once
  const auto fetch = [=](const BlockTaps<const S>& of, int64_t i, bool line) __attribute__((always_inline)) {
    if (L < LINE && !line) return;
    unroll<KS>([&]<int t>() __attribute__((always_inline)) {
      __builtin_prefetch(of.vertical + t * stride + i);
      __builtin_prefetch(of.horizontal + t * stride + i);
    });
    __builtin_prefetch(of.bias + i);
  };
  const auto column = [&](int64_t i) __attribute__((always_inline)) {
    V sum = load_vector<L>(k1 + i) * load_vector<L>(u[0] + i);
    unroll<KS - 1>([&]<int t>() __attribute__((always_inline)) {
      sum += load_vector<L>(k1 + (t + 1) * stride + i) * load_vector<L>(u[t + 1] + i);
    });
    return sum;
  };
  // `here` is V u at i, in the columns x
  const auto row = [=](int64_t i, Columns x, V before, V here, V after) __attribute__((always_inline)) {
    V source[KS];
    source[reach] = here;
    unroll<reach>([&]<int s>() __attribute__((always_inline)) {
      const V left = lanes_from<L - 1 - s, T, L>(before, here), right = lanes_from<1 + s, T, L>(here, after);
      source[reach - 1 - s] = x > s ? left : source[reach - s];
      source[reach + 1 + s] = x < width - 1 - s ? right : source[reach + s];
    });
    V sum = load_vector<L>(k2 + i) * source[0];
    unroll<KS - 1>([&]<int t>() __attribute__((always_inline)) {
      sum += load_vector<L>(k2 + (t + 1) * stride + i) * source[t + 1];
    });
    sum += load_vector<L>(bias + i);
    store_vector<L>(z + i, sum > 0 ? sum : sum * slope);
  };

  V before{}, here = column(0);
  Columns x = count_from<L>(Integer<T>(0));
  int64_t i = 0;
  for (const PrefetchRange<S>& now : ahead)
    for (; i < now.end && i + 2 * L <= pixels; i += L) {
      fetch(now.taps, i, i % LINE == 0);
      const V after = column(i + L);
      row(i, x, before, here, after);
      before = here;
      here = after;
      x += Integer<T>(L);
      x = x < width ? x : x - width;
    }
  // Fewer than two vectors are left: the last two of the run, which may overlap those before.
  const V last = column(pixels - L);
  here = column(pixels - 2 * L);
  row(pixels - 2 * L, count_from<L>(width - 2 * L), column(pixels - 3 * L), here, last);
  row(pixels - L, count_from<L>(width - L), here, last, last);
}

constexpr int64_t SHORTEST_VECTOR = 16;  // bytes

// Whether steps of such frames can be done in one sweep: the last vectors of a row reach back to its third last one.
template <typename T>
bool can_fuse(const AdaptiveConv& conv) {
  return unrolls<T>(conv.K) && conv.W >= 3 * SHORTEST_VECTOR / int64_t(sizeof(T)) && conv.W <= int64_t(1) << 30;
}

template <typename S>
BlockTaps<const S> from_pixel(const BlockTaps<const S>& taps, int64_t i) {
  return {taps.vertical + i, taps.horizontal + i, taps.bias + i, taps.stride};
}

// Distances of rows, which may be further apart than they are long, as those of a cropped tensor
struct RowStrides {
  int64_t taps, bias;  // bias 0: one row serves all
};
template <typename S>
BlockTaps<const S> from_row(const BlockTaps<const S>& taps, const RowStrides& rows, int64_t y) {
  return {taps.vertical + y * rows.taps, taps.horizontal + y * rows.taps, taps.bias + y * rows.bias, taps.stride};
}

// As forward_block for a whole frame for which can_fuse() holds, with taps where they are kept; `next` are read after
// them. V u is kept nowhere; u and z must not overlap. In vectors of L, or shorter ones for narrow frames.
template <int L, typename S, typename T>
void fused_frame(const AdaptiveConv& conv, const BlockTaps<const S>& taps, const BlockTaps<const S>& next,
                 const RowStrides& rows, T slope, const T* u, T* z) {
  if constexpr (L * int64_t(sizeof(T)) > SHORTEST_VECTOR)
    if (conv.W < 3 * L) return fused_frame<L / 2>(conv, taps, next, rows, slope, u, z);
  constexpr int64_t AHEAD = 1024 / sizeof(S);
  if (rows.taps != conv.W) {
    const int64_t rows_ahead = (AHEAD + conv.W - 1) / conv.W;
    with_taps<T>(conv.K, [&]<int KS>() {
      if constexpr (KS > 0)
        for (int64_t y = 0; y < conv.H; ++y) {
          const T* source[KS];
          for (int t = 0; t < KS; ++t) source[t] = u + clamp(y + t - KS / 2, conv.H - 1) * conv.W;
          const int64_t row = y + rows_ahead;
          const PrefetchRange<S> later{row < conv.H ? from_row(taps, rows, row) : from_row(next, rows, clamp(row - conv.H, conv.H - 1)),
                                       conv.W};
          const PrefetchRange<S> ahead[] = {later, later};
          fused_rows<KS, L, S, T>(from_row(taps, rows, y), ahead, slope, source, conv.W, conv.W, z + y * conv.W);
        }
    });
    return;
  }
  const int64_t turn = conv.H * conv.W - AHEAD;  // the pixel beside which the first one of `next` is fetched
  with_taps<T>(conv.K, [&]<int KS>() {
    if constexpr (KS > 0)
      column_runs(Block{conv.H, conv.W, 0, conv.H, conv.K}, [&](int64_t y, int64_t end) {
        const T* source[KS];
        for (int t = 0; t < KS; ++t) source[t] = u + clamp(y + t - KS / 2, conv.H - 1) * conv.W;
        const int64_t i = y * conv.W, pixels = (end - y) * conv.W;
        const PrefetchRange<S> ahead[] = {{from_pixel(taps, i + AHEAD), turn - i}, {from_pixel(next, i - turn), pixels}};
        fused_rows<KS, L, S, T>(from_pixel(taps, i), ahead, slope, source, conv.W, pixels, z + i);
      });
  });
}

}  // namespace
}  // namespace tta::TTA_ISA
