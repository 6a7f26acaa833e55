// Tiles of a row: coefficients of all classes from seeds and weights, sums of the image over classes, and back.
#include "reblur.h"

#include <cmath>
#include <cstring>

#include "scratch.h"

namespace tta::TTA_ISA {
namespace {

constexpr int64_t TILE = 64;

#define FOR_EACH_LANE(i) _Pragma("GCC ivdep") for (int64_t i = 0; i < TILE; ++i)

// exp(x) for x <= 0, to 1 unit in the last place or so: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. Branch-free;
// NaN stays NaN, what would be subnormal stops at the smallest normal number.
inline float exponential(float x) {
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + ROUND;
  const float n = shifted - ROUND;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const uint32_t scale = (reinterpret_bits<uint32_t>(shifted) - reinterpret_bits<uint32_t>(ROUND) + 127u) << 23;
  return p * reinterpret_bits<float>(scale);
}
inline double exponential(double x) { return std::exp(x); }

// Rows of TILE values, `rows` of them.
template <typename T>
class Rows {
 public:
  explicit Rows(int64_t rows) : memory_(rows * TILE) {}
  T* operator[](int64_t row) const { return memory_ + row * TILE; }

 private:
  Scratch<T> memory_;
};

// n values, then zeros up to TILE
template <typename S, typename T>
inline void load_tile(const S* from, int64_t n, T* to) {
  load_values(from, n, to);
  for (int64_t i = n; i < TILE; ++i) to[i] = 0;
}

template <typename S, typename T>
inline void store_tile(const T* from, int64_t n, S* to) {
  store_values(from, n, to);
}

// Exponentials of the logits of one table, up to a factor that falls out: e[ring], and 1 / (sum over all taps).
template <typename S, typename T>
void exponentials(const KernelTable& table, const S* seeds, int64_t plane, int64_t n, const Rows<T>& magnitude,
                  const Rows<T>& e, T* reciprocal) {
  alignas(64) T peak[TILE], sum[TILE];
  for (int64_t k = 0; k <= table.radius; ++k) {
    T* row = magnitude[k];
    load_tile(seeds + (table.first_seed + k) * plane, n, row);
    FOR_EACH_LANE(i) {
      row[i] = row[i] < 0 ? -row[i] : row[i];
      peak[i] = k == 0 || row[i] > peak[i] ? row[i] : peak[i];
    }
  }
  const T corners = T(table.taps[table.rings]);
  T* corner = e[table.rings];
  FOR_EACH_LANE(i) {
    corner[i] = exponential(-peak[i]);
    sum[i] = corners * corner[i];
  }
  for (int64_t r = 0; r < table.rings; ++r) {
    const T fraction = T(table.fraction[r]), taps = T(table.taps[r]);
    const T *low = magnitude[table.below[r]], *high = fraction != 0 ? magnitude[table.below[r] + 1] : low;
    T* row = e[r];
    FOR_EACH_LANE(i) {
      row[i] = exponential(low[i] + fraction * (high[i] - low[i]) - peak[i]);
      sum[i] += taps * row[i];
    }
  }
  FOR_EACH_LANE(i) reciprocal[i] = 1 / sum[i];
}

template <typename T>
void add_coefficients(const KernelTable& table, const T* scale, const Rows<T>& e, T* coefficients,
                      int64_t stride) {
  for (int64_t c = 0; c < table.classes; ++c) {
    const T* row = e[table.ring_of_class[c]];
    T* to = coefficients + c * stride;
    FOR_EACH_LANE(i) to[i] += scale[i] * row[i];
  }
}

// pairs[a] = row y - a plus row y + a of the plane (pairs[0]: row y), columns [x - radius, x + TILE + radius), zeros
// outside the frame
template <typename S, typename T>
void row_pairs(const S* plane, int64_t H, int64_t W, int64_t y, int64_t x, int64_t radius, T* pairs, int64_t stride) {
  const int64_t width = TILE + 2 * radius, left = x - radius;
  const int64_t first = left < 0 ? -left : 0, last = left + width > W ? W - left : width;
  for (int64_t a = 0; a <= radius; ++a) {
    T* to = pairs + a * stride;
    const bool above = y - a >= 0, below = y + a < H;
    const S *up = plane + (y - a) * W + left, *down = plane + (y + a) * W + left;
    for (int64_t i = 0; i < first; ++i) to[i] = 0;
    for (int64_t i = last; i < width; ++i) to[i] = 0;
    if (a == 0 || (above && !below))
      for (int64_t i = first; i < last; ++i) to[i] = load(up[i]);
    else if (above && below)
      for (int64_t i = first; i < last; ++i) to[i] = load(up[i]) + load(down[i]);
    else if (below)
      for (int64_t i = first; i < last; ++i) to[i] = load(down[i]);
    else
      for (int64_t i = first; i < last; ++i) to[i] = 0;
  }
}

// visit(class, sum): sum(i) is the sum of the image over the class around column x + i
template <typename T, typename Visit>
void for_each_class_sum(const T* pairs, int64_t stride, int64_t radius, Visit&& visit) {
  const T* zero = pairs + radius;
  visit(0, [=](int64_t i) { return zero[i]; });
  int64_t c = 1;
  for (int64_t a = 1; a <= radius; ++a) {
    const T* ra = pairs + a * stride + radius;
    visit(c++, [=](int64_t i) { return ra[i] + (zero[i - a] + zero[i + a]); });
    for (int64_t b = 1; b < a; ++b) {
      const T* rb = pairs + b * stride + radius;
      visit(c++, [=](int64_t i) { return (ra[i - b] + ra[i + b]) + (rb[i - a] + rb[i + a]); });
    }
    visit(c++, [=](int64_t i) { return ra[i - a] + ra[i + a]; });
  }
}

}  // namespace

template <typename S>
void isotropic_reblur_rows(const IsotropicForward<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const Isotropic& blur = args.blur;
  const int64_t H = blur.H, W = blur.W, plane = H * W, stride = TILE + 2 * blur.radius;
  Rows<T> magnitude(blur.radius + 1), e(blur.most_rings + 1), coefficients(blur.classes);
  Scratch<T> pairs((blur.radius + 1) * stride);
  alignas(64) T scale[TILE], weight[TILE], sum[TILE];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / H, y = row % H;
    for (int64_t x = 0; x < W; x += TILE) {
      const int64_t n = W - x < TILE ? W - x : TILE;
      const S* weights = args.weights + b * (blur.count + 1) * plane + y * W + x;
      const S* seeds = args.seeds + b * blur.seeds * plane + y * W + x;
      load_tile(weights, n, coefficients[0]);
      std::memset(coefficients[1], 0, size_t((blur.classes - 1) * TILE) * sizeof(T));
      for (int64_t m = 0; m < blur.count; ++m) {
        exponentials(blur.tables[m], seeds, plane, n, magnitude, e, scale);
        load_tile(weights + (m + 1) * plane, n, weight);
        FOR_EACH_LANE(i) scale[i] *= weight[i];
        add_coefficients(blur.tables[m], scale, e, coefficients[0], TILE);
      }
      for (int64_t k = 0; k < blur.C; ++k) {
        const int64_t channel = (b * blur.C + k) * plane;
        row_pairs(args.image + channel, H, W, y, x, blur.radius, static_cast<T*>(pairs), stride);
        std::memset(sum, 0, sizeof(sum));
        for_each_class_sum<T>(pairs, stride, blur.radius, [&](int64_t c, auto&& class_sum) {
          const T* coefficient = coefficients[c];
          FOR_EACH_LANE(i) sum[i] += coefficient[i] * class_sum(i);
        });
        store_tile(sum, n, args.out + channel + y * W + x);
      }
    }
  }
}

namespace {

// Gradients of the seeds and weights of a tile, from `correlation`: per class, sum over channels of the gradient times
// the class sum. The coefficients are made on the way, where wanted.
template <typename S, typename T>
void kernel_gradients(const IsotropicBackward<S>& args, int64_t b, int64_t at, int64_t n, bool wanted, bool image_wanted,
                      const Rows<T>& magnitude, const Rows<T>& e, const Rows<T>& q, const Rows<T>& correlation,
                      T* coefficients, int64_t stride) {
  const Isotropic& blur = args.blur;
  const int64_t plane = blur.H * blur.W;
  const S* weights = args.weights + b * (blur.count + 1) * plane + at;
  const S* seeds = args.seeds + b * blur.seeds * plane + at;
  S* grad_weights = wanted ? args.grad_weights + b * (blur.count + 1) * plane + at : nullptr;
  alignas(64) T reciprocal[TILE], weight[TILE], expected[TILE], gradient[TILE];
  if (image_wanted) {
    for (int64_t c = 1; c < blur.classes; ++c) std::memset(coefficients + c * stride, 0, TILE * sizeof(T));
    load_tile(weights, n, coefficients);
  }
  if (wanted) store_tile(correlation[0], n, grad_weights);
  for (int64_t m = 0; m < blur.count; ++m) {
    const KernelTable& table = blur.tables[m];
    exponentials(table, seeds, plane, n, magnitude, e, reciprocal);
    load_tile(weights + (m + 1) * plane, n, weight);
    FOR_EACH_LANE(i) weight[i] *= reciprocal[i];
    if (image_wanted) add_coefficients(table, weight, e, coefficients, stride);
    if (!wanted) continue;
    std::memset(q[0], 0, size_t((table.rings + 1) * TILE) * sizeof(T));
    for (int64_t c = 0; c < table.classes; ++c) {
      const T* from = correlation[c];
      T* to = q[table.ring_of_class[c]];
      FOR_EACH_LANE(i) to[i] += from[i];
    }
    std::memset(expected, 0, sizeof(expected));
    for (int64_t r = 0; r <= table.rings; ++r) {
      const T *er = e[r], *qr = q[r];
      FOR_EACH_LANE(i) expected[i] += er[i] * qr[i];
    }
    FOR_EACH_LANE(i) expected[i] *= reciprocal[i];
    store_tile(expected, n, grad_weights + (m + 1) * plane);
    // The magnitudes have served; their rows take the gradients.
    std::memset(magnitude[0], 0, size_t((table.radius + 1) * TILE) * sizeof(T));
    for (int64_t r = 0; r < table.rings; ++r) {
      const T fraction = T(table.fraction[r]), taps = T(table.taps[r]);
      const T *er = e[r], *qr = q[r];
      T* low = magnitude[table.below[r]];
      FOR_EACH_LANE(i) {
        gradient[i] = weight[i] * er[i] * (qr[i] - taps * expected[i]);
        low[i] += (1 - fraction) * gradient[i];
      }
      if (fraction != 0) {
        T* high = magnitude[table.below[r] + 1];
        FOR_EACH_LANE(i) high[i] += fraction * gradient[i];
      }
    }
    S* grad_seeds = args.grad_seeds + (b * blur.seeds + table.first_seed) * plane + at;
    for (int64_t k = 0; k <= table.radius; ++k) {
      load_tile(seeds + (table.first_seed + k) * plane, n, gradient);
      const T* row = magnitude[k];
      FOR_EACH_LANE(i) gradient[i] = gradient[i] > 0 ? row[i] : gradient[i] < 0 ? -row[i] : row[i] * gradient[i];
      store_tile(gradient, n, grad_seeds + k * plane);
    }
  }
}

// What the pixels of a row give to the columns [x, x + TILE) of row y - a and of row y + a, to each the same.
// Coefficients and gradients are zero left and right of the frame.
template <typename T>
void spread_row(const T* coefficients, int64_t stride, const T* grad, int64_t a, int64_t radius, T* sum) {
  std::memset(sum, 0, TILE * sizeof(T));
  for (int64_t b = 0; b <= radius; ++b) {
    const int64_t c = a >= b ? a * (a + 1) / 2 + b : b * (b + 1) / 2 + a;
    const T* row = coefficients + c * stride;
    if (b == 0) {
      FOR_EACH_LANE(i) sum[i] += row[i] * grad[i];
    } else {
      FOR_EACH_LANE(i) sum[i] += row[i - b] * grad[i - b] + row[i + b] * grad[i + b];
    }
  }
}

}  // namespace

template <typename S>
void isotropic_reblur_backward_blocks(const IsotropicBackward<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const Isotropic& blur = args.blur;
  const int64_t H = blur.H, W = blur.W, plane = H * W, radius = blur.radius, pair_stride = TILE + 2 * radius;
  const int64_t padded = (W + TILE - 1) / TILE * TILE, stride = padded + 2 * radius;  // of rows with zeros on both sides
  const bool image_wanted = args.grad_image != nullptr, kernels_wanted = args.grad_seeds != nullptr;
  Rows<T> magnitude(radius + 1), e(blur.most_rings + 1), q(blur.most_rings + 1), correlation(blur.classes);
  Scratch<T> pairs((radius + 1) * pair_stride), coefficients(image_wanted ? blur.classes * stride : 0),
      grads(blur.C * stride);
  for (int64_t i = 0; i < blur.C * stride; ++i) grads[i] = 0;
  for (int64_t i = 0; image_wanted && i < blur.classes * stride; ++i) coefficients[i] = 0;
  alignas(64) T sum[TILE];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t b = block / args.blocks, y0 = block % args.blocks * args.block_rows;
    const int64_t y1 = y0 + args.block_rows < H ? y0 + args.block_rows : H;
    T* halo = image_wanted ? args.halo + block * blur.C * 2 * radius * W : nullptr;
    if (image_wanted) {
      std::memset(halo, 0, size_t(blur.C * 2 * radius * W) * sizeof(T));
      for (int64_t k = 0; k < blur.C; ++k)
        std::memset(args.grad_image + (b * blur.C + k) * plane + y0 * W, 0, size_t((y1 - y0) * W) * sizeof(T));
    }
    for (int64_t y = y0; y < y1; ++y) {
      for (int64_t k = 0; k < blur.C; ++k) {
        const S* from = args.grad + (b * blur.C + k) * plane + y * W;
        T* to = grads + k * stride + radius;
        load_values(from, W, to);
      }
      for (int64_t x = 0; x < W; x += TILE) {
        const int64_t n = W - x < TILE ? W - x : TILE;
        if (kernels_wanted) {
          std::memset(correlation[0], 0, size_t(blur.classes * TILE) * sizeof(T));
          for (int64_t k = 0; k < blur.C; ++k) {
            const T* grad = grads + k * stride + radius + x;
            row_pairs(args.image + (b * blur.C + k) * plane, H, W, y, x, radius, static_cast<T*>(pairs), pair_stride);
            for_each_class_sum<T>(pairs, pair_stride, radius, [&](int64_t c, auto&& class_sum) {
              T* to = correlation[c];
              FOR_EACH_LANE(i) to[i] += grad[i] * class_sum(i);
            });
          }
        }
        kernel_gradients<S, T>(args, b, y * W + x, n, kernels_wanted, image_wanted, magnitude, e, q, correlation,
                               coefficients + radius + x, stride);
      }
      if (!image_wanted) continue;
      for (int64_t k = 0; k < blur.C; ++k) {
        const int64_t channel = b * blur.C + k;
        for (int64_t x = 0; x < W; x += TILE) {
          const int64_t n = W - x < TILE ? W - x : TILE;
          for (int64_t a = 0; a <= radius; ++a) {
            spread_row<T>(coefficients + radius + x, stride, grads + k * stride + radius + x, a, radius, sum);
            for (int64_t side = 0; side < (a == 0 ? 1 : 2); ++side) {
              const int64_t row = side == 0 ? y - a : y + a;
              if (row < 0 || row >= H) continue;
              T* to = row < y0   ? halo + (k * 2 * radius + row - (y0 - radius)) * W
                      : row < y1 ? args.grad_image + channel * plane + row * W
                                 : halo + (k * 2 * radius + radius + row - y1) * W;
              for (int64_t i = 0; i < n; ++i) to[x + i] += sum[i];
            }
          }
        }
      }
    }
  }
}

template <typename S>
void isotropic_reblur_add_halos(const IsotropicBackward<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const Isotropic& blur = args.blur;
  const int64_t H = blur.H, W = blur.W, radius = blur.radius;
  // Rows [first, last) of channel k, to which rows of a halo are added, one after the other.
  const auto add = [&](int64_t channel, int64_t first, int64_t last, const T* from) {
    last = last < H ? last : H;
    T* to = args.grad_image + (channel * H + first) * W;
    for (int64_t i = 0; i < (last - first) * W; ++i) to[i] += from[i];
  };
  for (int64_t block = begin; block < end; ++block) {
    const int64_t b = block / args.blocks, j = block % args.blocks;
    const int64_t y0 = j * args.block_rows, y1 = y0 + args.block_rows;
    for (int64_t k = 0; k < blur.C; ++k) {
      const int64_t channel = b * blur.C + k, size = 2 * radius * W;
      if (j > 0) add(channel, y0, y0 + radius, args.halo + ((block - 1) * blur.C + k) * size + radius * W);
      if (j + 1 < args.blocks) add(channel, y1 - radius, y1, args.halo + ((block + 1) * blur.C + k) * size);
    }
  }
}

#define INSTANTIATE(S)                                                                                  \
  template void isotropic_reblur_rows<S>(const IsotropicForward<S>&, int64_t, int64_t);                 \
  template void isotropic_reblur_backward_blocks<S>(const IsotropicBackward<S>&, int64_t, int64_t);     \
  template void isotropic_reblur_add_halos<S>(const IsotropicBackward<S>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Float16)
INSTANTIATE(BFloat16)

}  // namespace tta::TTA_ISA
