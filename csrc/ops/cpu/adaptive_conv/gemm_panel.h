// Small matrix products (GEMM) of the sizes that the filters of a few channels need.
//
// One block of registers accumulates over the whole common axis. The left matrix is packed in panels of PANEL_ROWS rows,
// within which the common axis is outermost; the right matrix in panels of PANEL_COLUMNS columns. For *.isa.cpp only.
#pragma once

#include <cstdint>

#include "passes.h"
#include "vector.h"

namespace tta::TTA_ISA {
namespace {

// A register block holds PANEL_ROWS x VECTORS vectors of sums, and VECTORS vectors and a factor stay free for operands:
// 16 registers, or 32 with AVX-512. PANEL_ROWS is a power of two, as numbers of channels are, because rows are padded to it.
#if defined(__AVX512F__)
constexpr int PANEL_ROWS = 8, VECTORS = 3;
#elif defined(__AVX2__)
constexpr int PANEL_ROWS = 4, VECTORS = 3;
#else
constexpr int PANEL_ROWS = 4, VECTORS = 2;
#endif

// Columns of a register block
template <typename T>
constexpr int64_t PANEL_COLUMNS = VECTORS * LANES<T>;

template <typename T>
constexpr int64_t padded(int64_t columns) {
  return (columns + PANEL_COLUMNS<T> - 1) / PANEL_COLUMNS<T> * PANEL_COLUMNS<T>;
}

inline int64_t padded_rows(int64_t rows) { return (rows + PANEL_ROWS - 1) / PANEL_ROWS * PANEL_ROWS; }

// c[i, j] = (start[i] or c[i, j]) + sum over k of a(i, k) * b[k, j] for i < PANEL_ROWS, j < PANEL_COLUMNS. Without `start`
// the sum over k is complete before it is added to c: adding term by term would round each of them against a total that
// earlier blocks have already made large.
template <typename T, typename Factor>
inline void gemm_block(int64_t depth, Factor a, const T* b, int64_t b_row, const T* start, T* c, int64_t c_row) {
  constexpr int L = LANES<T>;
  using V = Vector<T, L>;
  V sum[PANEL_ROWS][VECTORS];
  unroll<PANEL_ROWS>([&]<int i>() __attribute__((always_inline)) {
    unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) {
      sum[i][v] = start ? start[i] - V{} : V{};
    });
  });
  for (int64_t k = 0; k < depth; ++k, b += b_row) {
    V right[VECTORS];
    unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) { right[v] = load_vector<L>(b + v * L); });
    unroll<PANEL_ROWS>([&]<int i>() __attribute__((always_inline)) {
      const T left = a(i, k);
      unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) { sum[i][v] += left * right[v]; });
    });
  }
  unroll<PANEL_ROWS>([&]<int i>() __attribute__((always_inline)) {
    unroll<VECTORS>([&]<int v>() __attribute__((always_inline)) {
      T* const to = c + i * c_row + v * L;
      store_vector<L>(to, start ? sum[i][v] : load_vector<L>(to) + sum[i][v]);
    });
  });
}

// c[rows, columns] = (start or c) + a * b with a packed left matrix. Rows and columns are padded to whole blocks in all
// arrays. Panel p of the columns of b begins at b + p * b_panel, and its rows are b_row apart.
template <typename T>
__attribute__((noinline)) void gemm_packed(const T* a, int64_t rows, int64_t depth, const T* b, int64_t b_panel,
                                        int64_t b_row, int64_t columns, const T* start, T* c, int64_t c_row) {
  for (int64_t j = 0; j < columns; j += PANEL_COLUMNS<T>, b += b_panel)
    for (int64_t i = 0; i < rows; i += PANEL_ROWS) {
      const T* panel = a + i * depth;
      gemm_block<T>(
          depth, [=](int r, int64_t k) __attribute__((always_inline)) { return panel[k * PANEL_ROWS + r]; }, b, b_row,
          start ? start + i : nullptr, c + i * c_row + j, c_row);
    }
}

// c[rows, columns] += a * b with a row-major left matrix, rows a_row apart. Sums are split into blocks of SHORT terms, which
// reduces the rounding error.
template <typename T>
__attribute__((noinline)) void gemm_row_major(const T* a, int64_t rows, int64_t depth, int64_t a_row, const T* b,
                                             int64_t b_row, int64_t columns, T* c, int64_t c_row) {
  constexpr int64_t SHORT = 128;
  for (int64_t k = 0; k < depth; k += SHORT)
    for (int64_t i = 0; i < rows; i += PANEL_ROWS)
      for (int64_t j = 0; j < columns; j += PANEL_COLUMNS<T>) {
        const T* first = a + i * a_row + k;
        gemm_block<T>(
            depth - k < SHORT ? depth - k : SHORT,
            [=](int r, int64_t k) __attribute__((always_inline)) { return first[r * a_row + k]; }, b + k * b_row + j,
            b_row, nullptr, c + i * c_row + j, c_row);
      }
}

}  // namespace
}  // namespace tta::TTA_ISA
