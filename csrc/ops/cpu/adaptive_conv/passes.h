// The four maps that a step and its derivatives are made of, on the rows [y0, y1) of one channel. For *.isa.cpp only.
//
// i counts the pixels of these rows, the "block", from 0; t counts taps. A plane spans the frame. KS is the number of
// taps where the compiler is to know it, else 0. The callers' functors say what is multiplied with what, so that
// two products which share their source (as in the second derivative) cost one pass.
//
// Along columns a block is contiguous in all its sources except beside the upper and lower border. Along rows it is
// taken as one long row, and the columns from which a tap reaches past a border are then done again, one by one.
#pragma once

#include <cstdint>

namespace tta::TTA_ISA {

struct Block {
  int64_t H, W, y0, y1, K;
};

namespace {

inline int64_t clamp(int64_t value, int64_t last) { return value < 0 ? 0 : value > last ? last : value; }

// call.operator()<I>() for I from 0 to N - 1
template <int N, int I = 0, typename Call>
inline __attribute__((always_inline)) void unroll(Call call) {
  if constexpr (I < N) {
    call.template operator()<I>();
    unroll<N, I + 1>(call);
  }
}

// finish(i, sum over t of term(t, i)) for i in [begin, end)
template <int KS, typename T, typename Term, typename Finish>
inline __attribute__((always_inline)) void sum_over_taps(int64_t K, int64_t begin, int64_t end, Term term,
                                                         Finish finish) {
  if constexpr (KS > 0) {
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) {
      T sum = term(0, i);
#pragma GCC unroll 8
      for (int t = 1; t < KS; ++t) sum += term(t, i);
      finish(i, sum);
    }
  } else {
    constexpr int64_t LANES = 64;
    T sum[LANES];
    for (int64_t i = begin; i < end; i += LANES) {
      const int64_t n = end - i < LANES ? end - i : LANES;
      for (int64_t l = 0; l < n; ++l) sum[l] = 0;
      for (int64_t t = 0; t < K; ++t)
#pragma GCC ivdep
        for (int64_t l = 0; l < n; ++l) sum[l] += term(t, i + l);
#pragma GCC ivdep
      for (int64_t l = 0; l < n; ++l) finish(i + l, sum[l]);
    }
  }
}

// run(y, end): rows whose sources are contiguous, which beside a border is one row
template <typename Run>
inline __attribute__((always_inline)) void column_runs(const Block& block, Run run) {
  const int64_t reach = block.K / 2;
  for (int64_t y = block.y0; y < block.y1;) {
    const int64_t inner = block.H - reach < block.y1 ? block.H - reach : block.y1;
    const int64_t end = y >= reach && y < inner ? inner : y + 1;
    run(y, end);
    y = end;
  }
}

// visit(row, x): the columns from which a tap reaches past the left or right border; row is the row's first pixel
template <typename Visit>
inline __attribute__((always_inline)) void border_columns(const Block& block, Visit visit) {
  const int64_t W = block.W, reach = block.K / 2;
  const int64_t left = reach < W ? reach : W, right = W - reach > left ? W - reach : left;
  for (int64_t row = 0; row < (block.y1 - block.y0) * W; row += W) {
    for (int64_t x = 0; x < left; ++x) visit(row, x);
    for (int64_t x = right; x < W; ++x) visit(row, x);
  }
}

// The same for a known number of taps and a frame wide enough for the borders not to meet: visit.operator()<x>(row),
// which also does the mirrored column W - 1 - x. False, and nothing done, otherwise.
template <int KS, typename Visit>
inline __attribute__((always_inline)) bool mirrored_border_columns(const Block& block, Visit visit) {
  if constexpr (KS > 0)
    if (block.W >= KS) {
      for (int64_t row = 0; row < (block.y1 - block.y0) * block.W; row += block.W)
        unroll<KS / 2>([&]<int x>() __attribute__((always_inline)) { visit.template operator()<x>(row); });
      return true;
    }
  return false;
}

// finish(i, sum over t of term(t, i, j)), j the pixel of the plane that tap t reads
template <int KS, typename T, typename Term, typename Finish>
inline void filter_columns(const Block& block, Term term, Finish finish) {
  const int64_t reach = block.K / 2, W = block.W;
  column_runs(block, [&](int64_t y, int64_t end) {
    const int64_t first = (y - block.y0) * W, n = (end - y) * W;
    if constexpr (KS > 0) {
      int64_t source[KS];
      for (int t = 0; t < KS; ++t) source[t] = clamp(y + t - reach, block.H - 1) * W;
      sum_over_taps<KS, T>(
          KS, 0, n, [&](int64_t t, int64_t i) { return term(t, first + i, source[t] + i); },
          [&](int64_t i, T sum) { finish(first + i, sum); });
    } else {
      sum_over_taps<0, T>(
          block.K, 0, n,
          [&](int64_t t, int64_t i) { return term(t, first + i, clamp(y + t - reach, block.H - 1) * W + i); },
          [&](int64_t i, T sum) { finish(first + i, sum); });
    }
  });
}

// visit(t, i, j) once for every tap and pixel
template <int KS, typename Visit>
inline void for_each_column_tap(const Block& block, Visit visit) {
  const int64_t reach = block.K / 2, W = block.W;
  column_runs(block, [&](int64_t y, int64_t end) {
    const int64_t first = (y - block.y0) * W, n = (end - y) * W;
    const auto source = [&](int64_t t) { return clamp(y + t - reach, block.H - 1) * W; };
    if constexpr (KS > 0) {
      int64_t sources[KS];
      for (int t = 0; t < KS; ++t) sources[t] = source(t);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i)
        unroll<KS>([&]<int t>() __attribute__((always_inline)) { visit(t, first + i, sources[t] + i); });
    } else {
      for (int64_t t = 0; t < block.K; ++t) {
        const int64_t from = source(t);
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) visit(t, first + i, from + i);
      }
    }
  });
}

// The transpose of filter_columns: to[j] += sum of term(t, i) over the block's i that read pixel j of the plane. Rows
// that only this block adds to are summed first and must have been zero.
template <int KS, typename T, typename Term>
inline void filter_columns_adjoint(const Block& block, Term term, T* to) {
  const int64_t reach = block.K / 2, W = block.W, last = block.H - 1;
  int64_t own = block.y0 + reach > 1 ? block.y0 + reach : 1, end = block.y1 - reach < last ? block.y1 - reach : last;
  if (end < own) end = own;
  sum_over_taps<KS, T>(
      block.K, 0, (end - own) * W,
      [&](int64_t t, int64_t l) { return term(t, (own - block.y0 + reach - t) * W + l); },
      [&](int64_t l, T sum) { to[own * W + l] = sum; });
  for (int64_t y = block.y0; y < block.y1; ++y)
    for (int64_t t = 0; t < block.K; ++t) {
      const int64_t row = clamp(y + t - reach, last), first = (y - block.y0) * W;
      if (row >= own && row < end) continue;
#pragma GCC ivdep
      for (int64_t x = 0; x < W; ++x) to[row * W + x] += term(t, first + x);
    }
}

// finish(i, sum over t of term(t, i, j)), j the pixel of the block that tap t reads. finish is called twice for some
// pixels, the second time with the right sum: it must not add to what it wrote.
template <int KS, typename T, typename Term, typename Finish>
inline void filter_rows(const Block& block, Term term, Finish finish) {
  const int64_t reach = block.K / 2, W = block.W, size = (block.y1 - block.y0) * W;
  sum_over_taps<KS, T>(
      block.K, reach, size - reach, [&](int64_t t, int64_t i) { return term(t, i, i + t - reach); }, finish);
  const bool done = mirrored_border_columns<KS>(block, [&]<int x>(int64_t row) __attribute__((always_inline)) {
    const int64_t end = row + W - 1;
    T left = 0, right = 0;
    unroll<KS>([&]<int t>() __attribute__((always_inline)) {
      constexpr int source = x + t < KS / 2 ? 0 : x + t - KS / 2;
      left += term(t, row + x, row + source);
      right += term(KS - 1 - t, end - x, end - source);
    });
    finish(row + x, left);
    finish(end - x, right);
  });
  if (done) return;
  border_columns(block, [&](int64_t row, int64_t x) {
    T sum = 0;
    for (int64_t t = 0; t < block.K; ++t) sum += term(t, row + x, row + clamp(x + t - reach, W - 1));
    finish(row + x, sum);
  });
}

// visit(t, i, j) for every tap and pixel, for some twice, the second time with the right j: it must not add
template <int KS, typename Visit>
inline void for_each_row_tap(const Block& block, Visit visit) {
  const int64_t reach = block.K / 2, W = block.W, size = (block.y1 - block.y0) * W;
  if constexpr (KS > 0) {
#pragma GCC ivdep
    for (int64_t i = KS / 2; i < size - KS / 2; ++i)
      unroll<KS>([&]<int t>() __attribute__((always_inline)) { visit(t, i, i + t - KS / 2); });
  } else {
    for (int64_t t = 0; t < block.K; ++t)
#pragma GCC ivdep
      for (int64_t i = reach; i < size - reach; ++i) visit(t, i, i + t - reach);
  }
  const bool done = mirrored_border_columns<KS>(block, [&]<int x>(int64_t row) __attribute__((always_inline)) {
    const int64_t end = row + W - 1;
    unroll<KS>([&]<int t>() __attribute__((always_inline)) {
      constexpr int source = x + t < KS / 2 ? 0 : x + t - KS / 2;
      visit(t, row + x, row + source);
      visit(KS - 1 - t, end - x, end - source);
    });
  });
  if (done) return;
  border_columns(block, [&](int64_t row, int64_t x) {
    for (int64_t t = 0; t < block.K; ++t) visit(t, row + x, row + clamp(x + t - reach, W - 1));
  });
}

// The transpose of filter_rows: finish(j, sum of term(t, i) over all t and i that read j). As there, twice for some.
template <int KS, typename T, typename Term, typename Finish>
inline void filter_rows_adjoint(const Block& block, Term term, Finish finish) {
  const int64_t reach = block.K / 2, W = block.W, size = (block.y1 - block.y0) * W;
  sum_over_taps<KS, T>(
      block.K, reach, size - reach, [&](int64_t t, int64_t j) { return term(t, j + reach - t); }, finish);
  // What was read from beyond a border belongs to the pixel there.
  const bool done = mirrored_border_columns<KS>(block, [&]<int x>(int64_t row) __attribute__((always_inline)) {
    const int64_t end = row + W - 1;
    T left = 0, right = 0;
    unroll<KS>([&]<int t>() __attribute__((always_inline)) {
      unroll<KS>([&]<int i>() __attribute__((always_inline)) {
        if constexpr (i == x + KS / 2 - t || (x == 0 && i < KS / 2 - t)) {
          left += term(t, row + i);
          right += term(KS - 1 - t, end - i);
        }
      });
    });
    finish(row + x, left);
    finish(end - x, right);
  });
  if (done) return;
  border_columns(block, [&](int64_t row, int64_t x) {
    T sum = 0;
    for (int64_t t = 0; t < block.K; ++t)
      for (int64_t i = 0; i < W; ++i)
        if (clamp(i + t - reach, W - 1) == x) sum += term(t, row + i);
    finish(row + x, sum);
  });
}

}  // namespace
}  // namespace tta::TTA_ISA
