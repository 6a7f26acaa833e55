// Matrix products of the sizes that a few channels' filters need: a block of registers, filled by one pass over the
// common axis. For *.isa.cpp only.
#pragma once

#include <cstdint>

#include "adaptive_conv_step.h"

namespace tta::TTA_ISA {
namespace {

// A block of PANEL_ROWS x VECTORS sums, with VECTORS vectors and a factor, fills the registers: 16, or 32 with AVX-512.
// Powers of two, because the numbers of channels are: rows are padded to PANEL_ROWS.
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, PANEL_ROWS = 8, VECTORS = 3;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32, PANEL_ROWS = 4, VECTORS = 3;
#else
constexpr int VECTOR_BYTES = 16, PANEL_ROWS = 4, VECTORS = 2;
#endif

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
  typedef T anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
};

// Columns that a block of registers holds.
template <typename T>
constexpr int64_t PANEL_COLUMNS = VECTORS * VECTOR_BYTES / int64_t(sizeof(T));

template <typename T>
constexpr int64_t padded(int64_t columns) {
  return (columns + PANEL_COLUMNS<T> - 1) / PANEL_COLUMNS<T> * PANEL_COLUMNS<T>;
}

inline int64_t padded_rows(int64_t rows) { return (rows + PANEL_ROWS - 1) / PANEL_ROWS * PANEL_ROWS; }

// c[i, j] = start[i], or else c[i, j], + sum over k of a(i, k) * b[k, j] for i < PANEL_ROWS, j < PANEL_COLUMNS. The sum
// over k is added to c at its end: one after another, terms would round against a total that many blocks have made large.
template <typename T, typename Factor>
inline void product_block(int64_t depth, Factor a, const T* b, int64_t b_row, const T* start, T* c, int64_t c_row) {
  using V = typename Vector<T>::type;
  using Anywhere = typename Vector<T>::anywhere;
  constexpr int LANES = VECTOR_BYTES / sizeof(T);
  V sum[PANEL_ROWS][VECTORS];
  unroll<PANEL_ROWS>([&]<int i>() __attribute__((always_inline)) {
    unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) {
      sum[i][v] = start ? start[i] - V{} : V{};
    });
  });
  for (int64_t k = 0; k < depth; ++k, b += b_row) {
    V right[VECTORS];
    unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) { right[v] = *(const Anywhere*)(b + v * LANES); });
    unroll<PANEL_ROWS>([&]<int i>() __attribute__((always_inline)) {
      const T left = a(i, k);
      unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) { sum[i][v] += left * right[v]; });
    });
  }
  unroll<PANEL_ROWS>([&]<int i>() __attribute__((always_inline)) {
    unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) {
      Anywhere* const to = (Anywhere*)(c + i * c_row + v * LANES);
      *to = start ? sum[i][v] : V(*to) + sum[i][v];
    });
  });
}

// c[rows, columns] = start or c + a * b. Rows and columns are padded to whole blocks in all arrays. `a` is in panels of
// PANEL_ROWS rows, within which the depth is outermost; panel p of b's columns begins at b + p * b_panel, its rows are
// b_row apart.
template <typename T>
__attribute__((noinline)) void multiply(const T* a, int64_t rows, int64_t depth, const T* b, int64_t b_panel,
                                        int64_t b_row, int64_t columns, const T* start, T* c, int64_t c_row) {
  for (int64_t j = 0; j < columns; j += PANEL_COLUMNS<T>, b += b_panel)
    for (int64_t i = 0; i < rows; i += PANEL_ROWS) {
      const T* panel = a + i * depth;
      product_block<T>(
          depth, [=](int r, int64_t k) __attribute__((always_inline)) { return panel[k * PANEL_ROWS + r]; }, b, b_row,
          start ? start + i : nullptr, c + i * c_row + j, c_row);
    }
}

// c[rows, columns] += a * b, with rows of `a` in memory as they are, a_row apart. In short sums, which round less.
template <typename T>
__attribute__((noinline)) void multiply_rows(const T* a, int64_t rows, int64_t depth, int64_t a_row, const T* b,
                                             int64_t b_row, int64_t columns, T* c, int64_t c_row) {
  constexpr int64_t SHORT = 128;
  for (int64_t k = 0; k < depth; k += SHORT)
    for (int64_t i = 0; i < rows; i += PANEL_ROWS)
      for (int64_t j = 0; j < columns; j += PANEL_COLUMNS<T>) {
        const T* first = a + i * a_row + k;
        product_block<T>(
            depth - k < SHORT ? depth - k : SHORT,
            [=](int r, int64_t k) __attribute__((always_inline)) { return first[r * a_row + k]; }, b + k * b_row + j,
            b_row, nullptr, c + i * c_row + j, c_row);
      }
}

}  // namespace
}  // namespace tta::TTA_ISA
