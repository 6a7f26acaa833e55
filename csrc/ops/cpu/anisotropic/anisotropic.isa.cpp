// Loops of the oriented Gaussian blur and of its two gradients.
#include "anisotropic.h"

#include "scratch.h"
#include "vector.h"

namespace tta::TTA_ISA {
namespace {

constexpr int64_t TILE = 64;  // pixels of a row whose weights are held together

template <typename T>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr int degree = 7, fraction_bits = 23;
  static constexpr float lowest = -87, log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float rounder = 12582912;  // 1.5 * 2^23
};
template <>
struct Exponential<double> {
  static constexpr int degree = 13, fraction_bits = 52;
  static constexpr double lowest = -708, log2e = 1.4426950408889634;
  static constexpr double ln2_high = 0.69314718036912382, ln2_low = 1.9082149292705877e-10;
  static constexpr double rounder = 6755399441055744;  // 1.5 * 2^52
};

// exp(x) for x up to about 80, to one unit in the last place or two; below `lowest` what it is there, instead of less.
// x = n ln 2 + r with |r| <= ln 2 / 2, of which the series to the given degree is exact enough, times 2^n.
template <typename T, int L>
inline __attribute__((always_inline)) Vector<T, L> exponential(Vector<T, L> x) {
  using E = Exponential<T>;
  x = x < E::lowest ? Vector<T, L>{} + E::lowest : x;
  const Vector<T, L> shifted = x * E::log2e + E::rounder, n = shifted - E::rounder;
  const Vector<T, L> r = (x - n * E::ln2_high) - n * E::ln2_low;
  T factorial[E::degree + 1];
  factorial[0] = 1;
#pragma GCC unroll 16
  for (int k = 1; k <= E::degree; ++k) factorial[k] = factorial[k - 1] * T(k);
  Vector<T, L> sum = Vector<T, L>{} + T(1) / factorial[E::degree];
#pragma GCC unroll 16
  for (int k = E::degree - 1; k >= 0; --k) sum = sum * r + T(1) / factorial[k];
  // The lowest bits of `shifted` are n.
  const auto exponent = reinterpret_bits<Integers<T, L>>(shifted) << E::fraction_bits;
  return reinterpret_bits<Vector<T, L>>(reinterpret_bits<Integers<T, L>>(sum) + exponent);
}

// Values of the type that is computed in or of a narrower one
template <int L, typename T, typename S>
inline __attribute__((always_inline)) Vector<T, L> widened(const S* from) {
  return __builtin_convertvector(take<L, S>(from), Vector<T, L>);
}

// The center, then one of each pair of opposite taps: (0, 1 .. m), then (i, -m .. m) for i = 1 .. m.
struct HalfTaps {
  int64_t m, count;
  explicit HalfTaps(int64_t K) : m(K / 2), count((K * K + 1) / 2) {}
  int64_t index(int64_t i, int64_t j) const { return i == 0 ? j : m + 1 + (i - 1) * (2 * m + 1) + j + m; }
};

// call(tap, i, j) for all but the center
template <typename Call>
inline __attribute__((always_inline)) void each_pair(const HalfTaps& taps, Call call) {
  for (int64_t i = 0, t = 1; i <= taps.m; ++i)
    for (int64_t j = i == 0 ? 1 : -taps.m; j <= taps.m; ++j, ++t) call(t, i, j);
}

// Weights of n pixels of a row, tap t of pixel x at p[t * pitch + x], which sum to 1 with every tap but the center counted
// twice. `precision` are the row's first values, `plane` apart. means[k * TILE + x] become the means of (j^2, 2 i j, i^2).
template <typename T, typename S>
void weigh(const HalfTaps& taps, const S* precision, int64_t plane, int64_t n, T* p, int64_t pitch, T* means) {
  each_vector<LANES<T>>(n, [&]<int L>(int64_t x) __attribute__((always_inline)) {
    using V = Vector<T, L>;
    const V a = widened<L, T>(precision + x), b = widened<L, T>(precision + plane + x),
            c = widened<L, T>(precision + 2 * plane + x);
    V total{}, mean[3]{};
    total += T(1);
    // Row by row: sums of sums round less.
    for (int64_t i = 0; i <= taps.m; ++i) {
      const V ib = T(2 * i) * b, ic = T(i * i) * c;
      V row{}, row_j{}, row_jj{};
      for (int64_t j = i == 0 ? 1 : -taps.m; j <= taps.m; ++j) {
        const V weight = exponential<T, L>(-(T(j * j) * a + T(j) * ib + ic));
        store_vector<L>(p + taps.index(i, j) * pitch + x, weight);
        row += weight;
        row_j += T(j) * weight;
        row_jj += T(j * j) * weight;
      }
      total += T(2) * row;
      mean[0] += T(2) * row_jj;
      mean[1] += T(4 * i) * row_j;
      mean[2] += T(2 * i * i) * row;
    }
    const V scale = T(1) / total;
    store_vector<L>(p + x, scale);
    for (int64_t t = 1; t < taps.count; ++t) store_vector<L>(p + t * pitch + x, take<L, T>(p + t * pitch + x) * scale);
    if (means != nullptr)
      for (int k = 0; k < 3; ++k) store_vector<L>(means + k * TILE + x, mean[k] * scale);
  });
}

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace

template <typename T>
void anisotropic_forward(const AnisotropicForward<T>& args, int64_t begin, int64_t end) {
  const AnisotropicBlur& blur = args.blur;
  const HalfTaps taps(blur.K);
  const int64_t m = taps.m, W = blur.W, plane = blur.H * W, width = W + 2 * m, padded_plane = (blur.H + 2 * m) * width;
  Scratch<T> p(taps.count * TILE);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / blur.H, y = row % blur.H;
    for (int64_t x0 = 0; x0 < W; x0 += TILE) {
      const int64_t n = smaller(TILE, W - x0);
      weigh<T>(taps, args.precision + 3 * b * plane + y * W + x0, plane, n, p, TILE, nullptr);
      for (int64_t c = 0; c < blur.C; ++c) {
        const T* center = args.padded + (b * blur.C + c) * padded_plane + (y + m) * width + m + x0;
        T* out = args.out + (b * blur.C + c) * plane + y * W + x0;
        each_vector<LANES<T>>(n, [&]<int L>(int64_t x) __attribute__((always_inline)) {
          Vector<T, L> sum = take<L, T>(p + x) * take<L, T>(center + x);
          each_pair(taps, [&](int64_t t, int64_t i, int64_t j) __attribute__((always_inline)) {
            const int64_t offset = i * width + j;
            sum += take<L, T>(p + t * TILE + x) * (take<L, T>(center + x + offset) + take<L, T>(center + x - offset));
          });
          store_vector<L>(out + x, sum);
        });
      }
    }
  }
}

// In double precision: derivatives in widths and angles are differences of these sums, in which errors of float32 would be
// ten times as large.
template <typename S>
void anisotropic_grad_precision(const AnisotropicGradPrecision<S>& args, int64_t begin, int64_t end) {
  using T = double;
  const AnisotropicBlur& blur = args.blur;
  const HalfTaps taps(blur.K);
  const int64_t m = taps.m, W = blur.W, plane = blur.H * W, width = W + 2 * m, padded_plane = (blur.H + 2 * m) * width;
  Scratch<T> p(taps.count * TILE), means(3 * TILE);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / blur.H, y = row % blur.H;
    for (int64_t x0 = 0; x0 < W; x0 += TILE) {
      const int64_t n = smaller(TILE, W - x0), at = y * W + x0;
      weigh<T>(taps, args.precision + 3 * b * plane + at, plane, n, p, TILE, means);
      const S *grad = args.grad + b * blur.C * plane + at,
              *center = args.padded + b * blur.C * padded_plane + (y + m) * width + m + x0;
      S* out = args.grad_precision + 3 * b * plane + at;
      each_vector<LANES<T>>(n, [&]<int L>(int64_t x) __attribute__((always_inline)) {
        using V = Vector<T, L>;
        V found[3]{}, mean[3];
        for (int k = 0; k < 3; ++k) mean[k] = take<L, T>(means + k * TILE + x);
        // sum over channels of grad times what two opposite taps read beyond the center, whose terms cancel
        for (int64_t i = 0; i <= m; ++i) {
          V row[3]{};
          for (int64_t j = i == 0 ? 1 : -m; j <= m; ++j) {
            const int64_t offset = i * width + j;
            V product{};
            for (int64_t c = 0; c < blur.C; ++c) {
              const S* its = center + c * padded_plane + x;
              const V middle = widened<L, T>(its);
              product += widened<L, T>(grad + c * plane + x) *
                         ((widened<L, T>(its + offset) - middle) + (widened<L, T>(its - offset) - middle));
            }
            const V weighed = take<L, T>(p + taps.index(i, j) * TILE + x) * product;
            row[0] += weighed * (T(j * j) - mean[0]);
            row[1] += weighed * (T(2 * i * j) - mean[1]);
            row[2] += weighed * (T(i * i) - mean[2]);
          }
          for (int k = 0; k < 3; ++k) found[k] -= row[k];
        }
        for (int k = 0; k < 3; ++k) store_vector<L>(out + k * plane + x, __builtin_convertvector(found[k], Vector<S, L>));
      });
    }
  }
}

template <typename T>
void anisotropic_grad_padded(const AnisotropicGradPadded<T>& args, int64_t begin, int64_t end) {
  const AnisotropicBlur& blur = args.blur;
  const HalfTaps taps(blur.K);
  const int64_t m = taps.m, W = blur.W, plane = blur.H * W, width = W + 2 * m, height = blur.H + 2 * m;
  const int64_t bands = (height + args.rows - 1) / args.rows, pitch = TILE + 4 * m;
  // Weights and gradients of a tile between 2 m zeros on either side, so that a sum over taps needs no bounds
  Scratch<T> weights(taps.count * pitch), grads(pitch);
  T *const p = weights + 2 * m, *const g = grads + 2 * m;
  for (int64_t i = 0; i < taps.count * pitch; ++i) weights[i] = 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / bands, first = item % bands * args.rows, last = smaller(first + args.rows, height);
    T* const out = args.grad_padded + b * blur.C * height * width;
    for (int64_t c = 0; c < blur.C; ++c)
      for (int64_t i = first * width; i < last * width; ++i) out[c * height * width + i] = 0;
    // Row y of the output reads rows y .. y + 2 m of the padded frame.
    const int64_t y_first = first > 2 * m ? first - 2 * m : 0, y_end = smaller(last, blur.H);
    for (int64_t y = y_first; y < y_end; ++y)
      for (int64_t x0 = 0; x0 < W; x0 += TILE) {
        const int64_t n = smaller(TILE, W - x0), at = y * W + x0;
        weigh<T>(taps, args.precision + 3 * b * plane + at, plane, n, p, pitch, nullptr);
        for (int64_t x = n; n < TILE && x < TILE; ++x)  // of a tile before this one, which was wider
          for (int64_t t = 0; t < taps.count; ++t) p[t * pitch + x] = 0;
        for (int64_t c = 0; c < blur.C; ++c) {
          const T* from = args.grad + (b * blur.C + c) * plane + at;
          for (int64_t x = -2 * m; x < TILE + 2 * m; ++x) g[x] = x >= 0 && x < n ? from[x] : T(0);
          for (int64_t i = -m; i <= m; ++i) {
            if (y + m + i < first || y + m + i >= last) continue;
            T* to = out + (c * height + y + m + i) * width + x0;  // at column x0 - m of the output
            each_vector<LANES<T>>(n + 2 * m, [&]<int L>(int64_t x) __attribute__((always_inline)) {
              Vector<T, L> sum = take<L, T>(to + x);
              // Tap (i, j) of the pixel j columns to the left reads this one; (i, j) and (-i, -j) have one weight.
              for (int64_t j = -m; j <= m; ++j) {
                const int64_t t = i > 0 || (i == 0 && j >= 0) ? taps.index(i, j) : taps.index(-i, -j);
                sum += take<L, T>(p + t * pitch + x - m - j) * take<L, T>(g + x - m - j);
              }
              store_vector<L>(to + x, sum);
            });
          }
        }
      }
  }
}

#define INSTANTIATE(T)                                                                                     \
  template void anisotropic_forward<T>(const AnisotropicForward<T>&, int64_t, int64_t);                    \
  template void anisotropic_grad_precision<T>(const AnisotropicGradPrecision<T>&, int64_t, int64_t);       \
  template void anisotropic_grad_padded<T>(const AnisotropicGradPadded<T>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace tta::TTA_ISA
