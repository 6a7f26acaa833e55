// Matrix products of the sizes that a few channels' filters need: a block of registers, filled by one pass over the
// common axis. For *.isa.cpp only.
#pragma once

#include <cstdint>

#include "adaptive_conv_step.h"

namespace tta::TTA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, PANEL_ROWS = 14;  // 28 sums, 2 vectors and a factor in 32 registers
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32, PANEL_ROWS = 6;  // 12 sums, 2 vectors and a factor in 16
#else
constexpr int VECTOR_BYTES = 16, PANEL_ROWS = 4;
#endif
constexpr int VECTORS = 2;

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

// A matrix whose rows come in panels of PANEL_ROWS, the last one lower; within a panel the common axis is outermost.
template <typename T>
struct Panels {
  const T* data;
  int64_t rows, depth;
};

// c[i, j] (+)= sum over k of a(i, k) * b[k, j] for i < ROWS, j < PANEL_COLUMNS. a(i, k) is a[k * ROWS + i] in a panel and
// a[i * a_row + k] else. `start` has the value of each row to begin with; null: what c holds.
template <typename T, int ROWS, bool IN_PANEL>
void product_block(int64_t depth, const T* a, int64_t a_row, const T* b, int64_t b_row, const T* start, T* c,
                   int64_t c_row) {
  using V = typename Vector<T>::type;
  using Anywhere = typename Vector<T>::anywhere;
  constexpr int LANES = VECTOR_BYTES / sizeof(T);
  V sum[ROWS][VECTORS];
  unroll<ROWS>([&]<int i>() __attribute__((always_inline)) {
    unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) {
      sum[i][v] = start ? start[i] - V{} : V(*(const Anywhere*)(c + i * c_row + v * LANES));
    });
  });
  // Rows 0, 5, 10: the others are a scaled index away, which an address can hold.
  const T *a0 = a, *a5 = a + 5 * a_row, *a10 = a + 10 * a_row;
  for (int64_t k = 0; k < depth; ++k) {
    V right[VECTORS];
    unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) { right[v] = *(const Anywhere*)(b + v * LANES); });
    unroll<ROWS>([&]<int i>() __attribute__((always_inline)) {
      const T left = IN_PANEL ? a[i] : (i < 5 ? a0 : i < 10 ? a5 : a10)[(i % 5) * a_row];
      unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) { sum[i][v] += left * right[v]; });
    });
    b += b_row;
    if constexpr (IN_PANEL) a += ROWS;
    else ++a0, ++a5, ++a10;
  }
  unroll<ROWS>([&]<int i>() __attribute__((always_inline)) {
    unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) {
      *(Anywhere*)(c + i * c_row + v * LANES) = sum[i][v];
    });
  });
}

template <typename T, bool IN_PANEL, int ROWS = PANEL_ROWS>
void product_rows(int64_t rows, int64_t depth, const T* a, int64_t a_row, const T* b, int64_t b_row, const T* start,
                  T* c, int64_t c_row) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return product_rows<T, IN_PANEL, ROWS - 1>(rows, depth, a, a_row, b, b_row, start, c, c_row);
  }
  product_block<T, ROWS, IN_PANEL>(depth, a, a_row, b, b_row, start, c, c_row);
}

// c[rows, columns] (+)= a * b, a in panels. Columns are padded to a multiple of PANEL_COLUMNS; panel p of b's columns
// begins at b + p * b_panel, its rows b_row apart.
template <typename T>
void multiply(const Panels<T>& a, const T* b, int64_t b_panel, int64_t b_row, int64_t columns, const T* start, T* c,
              int64_t c_row) {
  for (int64_t j = 0; j < columns; j += PANEL_COLUMNS<T>, b += b_panel)
    for (int64_t i = 0; i < a.rows; i += PANEL_ROWS)
      product_rows<T, true>(a.rows - i, a.depth, a.data + i * a.depth, 0, b, b_row, start ? start + i : nullptr,
                            c + i * c_row + j, c_row);
}

// c[rows, columns] += a * b, with rows of a in memory as they are.
template <typename T>
void multiply_rows(const T* a, int64_t rows, int64_t depth, int64_t a_row, const T* b, int64_t b_row, int64_t columns,
                   T* c, int64_t c_row) {
  for (int64_t i = 0; i < rows; i += PANEL_ROWS)
    for (int64_t j = 0; j < columns; j += PANEL_COLUMNS<T>)
      product_rows<T, false>(rows - i, depth, a + i * a_row, a_row, b + j, b_row, nullptr, c + i * c_row + j, c_row);
}

}  // namespace
}  // namespace tta::TTA_ISA
