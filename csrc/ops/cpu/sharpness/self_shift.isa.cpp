#include "self_shift.h"

namespace tta::TTA_ISA {
namespace {

constexpr int64_t TILE = 512;
constexpr int64_t LANES = 16;

// The pixels [first, first + n) of a row as the type sums are kept in; zeros outside the row, and for a missing row.
template <typename T>
void load_tile(const T* row, int64_t W, int64_t first, int64_t n, accumulate_t<T>* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = 0;
  if (row == nullptr) return;
  const int64_t begin = first < 0 ? -first : 0, end = first + n > W ? W - first : n;
  if (end > begin) load_values(row + first + begin, end - begin, to + begin);
}

// sum of (p[i] - q[i]) * (r[i] - s[i]) in a fixed order, in lanes that the compiler turns into registers
template <typename A>
double product_sum(const A* p, const A* q, const A* r, const A* s, int64_t n) {
  A lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int64_t l = 0; l < LANES; ++l) lanes[l] += (p[i + l] - q[i + l]) * (r[i + l] - s[i + l]);
  double sum = 0;
  for (; i < n; ++i) sum += double((p[i] - q[i]) * (r[i] - s[i]));
  for (int64_t l = 0; l < LANES; ++l) sum += double(lanes[l]);
  return sum;
}

}  // namespace

template <typename T>
void self_shift_row(const T* a, const T* a_below, const T* b, const T* b_below, int64_t W, double* sums) {
  using A = accumulate_t<T>;
  A p[TILE + 1], p_below[TILE + 1], q[TILE + 1], q_below[TILE + 1];
  for (int j = 0; j < 4; ++j) sums[j] = 0;
  for (int64_t x = 0; x < W; x += TILE) {
    const int64_t n = W - x < TILE ? W - x : TILE;
    const int64_t pairs = x + n < W ? n : n - 1;  // pixels with a right neighbor
    load_tile(a, W, x, n + 1, p);
    load_tile(b, W, x, n + 1, q);
    sums[3] += product_sum(p, p + 1, q, q + 1, pairs);
    if (a_below == nullptr) continue;
    load_tile(a_below, W, x, n + 1, p_below);
    load_tile(b_below, W, x, n + 1, q_below);
    sums[0] += product_sum(p + 1, p_below, q + 1, q_below, pairs);
    sums[1] += product_sum(p, p_below, q, q_below, n);
    sums[2] += product_sum(p, p_below + 1, q, q_below + 1, pairs);
  }
}

template <typename T>
void self_shift_laplacian_row(const T* above, const T* row, const T* below, int64_t W, const accumulate_t<T>* weights,
                              T* out) {
  using A = accumulate_t<T>;
  A rows[3][TILE + 2], sum[TILE];
  const T* sources[3] = {above, row, below};
  // Direction of the neighbor at (dy, dx), -1 for the pixel itself.
  constexpr int direction[3][3] = {{2, 1, 0}, {3, -1, 3}, {0, 1, 2}};
  for (int64_t x = 0; x < W; x += TILE) {
    const int64_t n = W - x < TILE ? W - x : TILE;
    for (int r = 0; r < 3; ++r) load_tile(sources[r], W, x - 1, n + 2, rows[r]);
    const A* center = rows[1] + 1;
    for (int64_t i = 0; i < n; ++i) sum[i] = 0;
    for (int r = 0; r < 3; ++r) {
      if (sources[r] == nullptr) continue;
      for (int dx = -1; dx <= 1; ++dx) {
        if (r == 1 && dx == 0) continue;
        const A weight = weights[direction[r][dx + 1]];
        const A* neighbor = rows[r] + 1 + dx;
        const int64_t begin = x == 0 && dx == -1 ? 1 : 0, end = x + n == W && dx == 1 ? n - 1 : n;
        for (int64_t i = begin; i < end; ++i) sum[i] += weight * (center[i] - neighbor[i]);
      }
    }
    for (int64_t i = 0; i < n; ++i) store(sum[i], out[x + i]);
  }
}

#define INSTANTIATE(T)                                                                            \
  template void self_shift_row<T>(const T*, const T*, const T*, const T*, int64_t, double*);      \
  template void self_shift_laplacian_row<T>(const T*, const T*, const T*, int64_t, const accumulate_t<T>*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Float16)
INSTANTIATE(BFloat16)

}  // namespace tta::TTA_ISA
