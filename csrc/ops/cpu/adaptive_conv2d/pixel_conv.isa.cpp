// Loops of the per-pixel convolution and of its two gradients.
#include "pixel_conv.h"

#include "../adaptive_conv/tap_io.h"
#include "scratch.h"
#include "tap_stage.h"
#include "vector.h"

namespace tta::TTA_ISA {
namespace {

constexpr int64_t TILE_PIXELS = 4096;         // of channels that have taps of their own: long runs of each tap
constexpr int64_t SHARED_WIDTH = 256;         // of channels that share their taps: a row of taps stays in the cache
constexpr int64_t STAGED_WIDTH = 64;          // of taps that are transposed first
constexpr int64_t STAGED_TAPS = 64;           // at least so many side by side, where there are groups enough
constexpr int64_t CHANNELS = 32;              // with their part of the padded frame in scratch
constexpr int64_t SCRATCH_VALUES = 1 << 17;
constexpr int TOGETHER = 4;                   // channels that share a load of a tap

int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the output is cut: bands of rows, tiles of columns, blocks of groups and of channels.
struct Cut {
  int64_t rows, width, groups, channels;

  Cut(const PixelConv& conv, bool staged) {
    const int64_t each = conv.C / conv.G, taps = conv.K * conv.K;
    groups = staged && each == 1 ? smaller(conv.G, at_least_one(divide_up(STAGED_TAPS, taps))) : 1;
    channels = each == 1 ? groups : smaller(each, CHANNELS);
    if (staged) {
      width = smaller(conv.W, STAGED_WIDTH);
      rows = 8;
    } else if (each == 1) {
      width = smaller(conv.W, TILE_PIXELS);
      rows = at_least_one(TILE_PIXELS / width);
    } else {
      width = smaller(conv.W, SHARED_WIDTH);
      rows = at_least_one(SCRATCH_VALUES / (taps * width));
    }
    rows = smaller(rows, conv.H);
    if (each > 1) rows = smaller(rows, 16);
  }
  int64_t bands(const PixelConv& conv) const { return divide_up(conv.H, rows); }
  int64_t group_blocks(const PixelConv& conv) const { return divide_up(conv.G, groups); }
  // Taps that lie pixel by pixel are read in their order: an item takes all groups of its rows.
  int64_t blocks_of_an_item(const PixelConv& conv, bool staged) const { return staged ? group_blocks(conv) : 1; }
};

// Rows of the padded frame as they lie in scratch: of each phase of the stride, `segment` columns.
struct PaddedRows {
  int64_t segment, length;
  Scratch<int64_t> offsets;  // of each tap of a row

  PaddedRows(const PixelConv& conv, int64_t width)
      : segment(width + conv.step * (conv.K - 1) / conv.stride + 1), length(conv.stride * segment), offsets(conv.K) {
    for (int64_t j = 0; j < conv.K; ++j)
      offsets[j] = conv.step * j % conv.stride * segment + conv.step * j / conv.stride;
  }
};

// Columns of the padded frame from output column x on
template <typename S, typename T>
void fill_row(const PixelConv& conv, const PaddedRows& padded, const S* row, int64_t x, T* to) {
  if (row == nullptr) {
    for (int64_t i = 0; i < padded.length; ++i) to[i] = 0;
    return;
  }
  if (conv.plain_first >= 0) {
    const int64_t n = smaller(padded.segment, conv.padded_w - x);
    const int64_t first = smaller(n, at_least_one(conv.plain_first - x + 1) - 1);
    const int64_t last = smaller(n, at_least_one(conv.plain_first + conv.in_w - x + 1) - 1);
    const auto take = [&](int64_t from, int64_t end) {
      for (int64_t i = from; i < end; ++i) {
        const int32_t column = conv.columns[x + i];
        to[i] = column < 0 ? T(0) : load(row[column]);
      }
    };
    take(0, first);
    const S* plain = row + x - conv.plain_first;
    for (int64_t i = first; i < last; ++i) to[i] = load(plain[i]);
    take(last, n);
    for (int64_t i = n; i < padded.segment; ++i) to[i] = 0;
    return;
  }
  for (int64_t phase = 0; phase < conv.stride; ++phase)
    for (int64_t i = 0; i < padded.segment; ++i) {
      const int64_t q = conv.stride * (x + i) + phase;
      const int32_t column = q < conv.padded_w ? conv.columns[q] : -1;
      to[phase * padded.segment + i] = column < 0 ? T(0) : load(row[column]);
    }
}

// `count` rows of the padded frame from row q on, of one channel
template <typename S, typename T>
void fill_rows(const PixelConv& conv, const PaddedRows& padded, const S* plane, int64_t q, int64_t count, int64_t x,
               T* to) {
  for (int64_t r = 0; r < count; ++r) {
    const int32_t row = conv.rows[q + r];
    fill_row(conv, padded, row < 0 ? nullptr : plane + row * conv.in_w, x, to + r * padded.length);
  }
}

// acc[c][x] += sum over the K taps of a row: taps[j][x] * source[c][offset j + x], for N channels
template <int KS, int N, typename E, typename T>
void apply_row(int64_t K, const E* taps, int64_t tap_stride, const T* source, int64_t source_stride,
               const int64_t* offsets, int64_t n, T* acc, int64_t acc_stride) {
  each_vector<LANES<T>>(n, [&]<int L>(int64_t x) __attribute__((always_inline)) {
    Vector<T, L> sum[N];
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) sum[c] = take<L, T>(acc + c * acc_stride + x);
    const auto add = [&](int64_t j) __attribute__((always_inline)) {
      const Vector<T, L> tap = take<L, T>(taps + j * tap_stride + x);
#pragma GCC unroll 4
      for (int c = 0; c < N; ++c) sum[c] += tap * take<L, T>(source + c * source_stride + offsets[j] + x);
    };
    if constexpr (KS > 0) {
#pragma GCC unroll 16
      for (int j = 0; j < KS; ++j) add(j);
    } else {
      for (int64_t j = 0; j < K; ++j) add(j);
    }
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) store_vector<L>(acc + c * acc_stride + x, sum[c]);
  });
}

// acc[c][offset j + x] += taps[j][x] * g[c][x]
template <typename E, typename T>
void spread_row(int64_t K, const E* taps, int64_t tap_stride, const T* g, int64_t g_stride, int64_t channels,
                const int64_t* offsets, int64_t n, T* acc, int64_t acc_stride) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t j = 0; j < K; ++j) {
      T* to = acc + c * acc_stride + offsets[j];
      const E* tap = taps + j * tap_stride;
      const T* from = g + c * g_stride;
      each_vector<LANES<T>>(n, [&]<int L>(int64_t x) __attribute__((always_inline)) {
        store_vector<L>(to + x, take<L, T>(to + x) + take<L, T>(tap + x) * take<L, T>(from + x));
      });
    }
}

// acc[j][x] (+)= sum over N channels: g[c][x] * source[c][offset j + x]
template <int KS, int N, bool ADD, typename T>
void correlate_row(int64_t K, const T* g, int64_t g_stride, const T* source, int64_t source_stride,
                   const int64_t* offsets, int64_t n, T* acc, int64_t acc_stride) {
  each_vector<LANES<T>>(n, [&]<int L>(int64_t x) __attribute__((always_inline)) {
    Vector<T, L> grad[N];
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) grad[c] = take<L, T>(g + c * g_stride + x);
    const auto add = [&](int64_t j) __attribute__((always_inline)) {
      T* to = acc + j * acc_stride + x;
      Vector<T, L> sum{};
      if constexpr (ADD) sum = take<L, T>(to);
#pragma GCC unroll 4
      for (int c = 0; c < N; ++c) sum += grad[c] * take<L, T>(source + c * source_stride + offsets[j] + x);
      store_vector<L>(to, sum);
    };
    if constexpr (KS > 0) {
#pragma GCC unroll 16
      for (int j = 0; j < KS; ++j) add(j);
    } else {
      for (int64_t j = 0; j < K; ++j) add(j);
    }
  });
}

template <int V>
struct Size {
  static constexpr int value = V;
};

// call(Size<K>) with K known to the compiler for the usual sizes, Size<0> for others
template <typename Call>
inline void with_kernel_size(int64_t K, Call&& call) {
  switch (K) {
    case 3:
      return call(Size<3>());
    case 5:
      return call(Size<5>());
    case 7:
      return call(Size<7>());
    default:
      return call(Size<0>());
  }
}

}  // namespace

template <typename S>
int64_t pixel_conv_items(const PixelConv& conv, bool staged) {
  const Cut cut(conv, staged);
  return conv.B * cut.group_blocks(conv) / cut.blocks_of_an_item(conv, staged) * cut.bands(conv);
}

template <typename S>
void pixel_conv(const PixelConvForward<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const PixelConv& conv = args.conv;
  const KernelLayout& layout = args.layout;
  const int64_t each = conv.C / conv.G, K = conv.K, taps = K * K;
  const bool staged = layout.pixel != 1 || (sizeof(S) == 2 && each > 1);
  const Cut cut(conv, staged);
  const PaddedRows padded(conv, cut.width);
  const int64_t source_rows = (cut.rows - 1) * conv.stride + conv.step * (K - 1) + 1;
  const int64_t source_plane = source_rows * padded.length, acc_plane = cut.rows * cut.width;
  Scratch<T> source(cut.channels * source_plane), acc(cut.channels * acc_plane);
  Scratch<T> tile(staged ? cut.groups * taps * cut.width : 0);
  const int64_t bands = cut.bands(conv), inside = cut.blocks_of_an_item(conv, staged);
  const int64_t outside = cut.group_blocks(conv) / inside, tiles = divide_up(conv.W, cut.width);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / (outside * bands), y0 = item % bands * cut.rows;
    const int64_t rows = smaller(cut.rows, conv.H - y0);
    for (int64_t part = 0; part < tiles * inside; ++part) {
      const int64_t x0 = part / inside * cut.width;
      const int64_t g0 = (item / bands % outside * inside + part % inside) * cut.groups;
      const int64_t groups = smaller(cut.groups, conv.G - g0);
      const int64_t n = smaller(cut.width, conv.W - x0);
      for (int64_t c0 = 0; c0 < groups * each; c0 += cut.channels) {
        const int64_t channels = smaller(cut.channels, groups * each - c0);
        const int64_t plane = b * conv.C + g0 * each + c0;
        for (int64_t c = 0; c < channels; ++c)
          fill_rows(conv, padded, args.x + (plane + c) * conv.in_h * conv.in_w, y0 * conv.stride,
                    (rows - 1) * conv.stride + conv.step * (K - 1) + 1, x0, source + c * source_plane);
        for (int64_t i = 0; i < channels * acc_plane; ++i) acc[i] = 0;
        const S* kernels = args.kernels + b * layout.batch + g0 * taps * layout.channel + x0 * layout.pixel;
        const auto source_row = [&](int64_t y, int64_t i) {
          return source + (y * conv.stride + conv.step * i) * padded.length;
        };
        with_kernel_size(K, [&]<typename Known>(Known) {
          constexpr int KS = Known::value;
          if (!staged && each == 1) {
            for (int64_t i = 0; i < K; ++i)
              for (int64_t y = 0; y < rows; ++y)
                apply_row<KS, 1>(K, kernels + i * K * layout.channel + (y0 + y) * layout.row, layout.channel,
                                 source_row(y, i), 0, padded.offsets, n, acc + y * cut.width, 0);
            return;
          }
          for (int64_t y = 0; y < rows; ++y) {
            const S* row = kernels + (y0 + y) * layout.row;
            if (staged) stage(row, layout.channel, layout.pixel, groups * taps, n, layout.row, (T*)tile, cut.width);
            for (int64_t c = 0; c < channels;) {
              // Channels of one group go together; with `each` 1 every channel is a group.
              const int64_t count = each > 1 && channels - c >= TOGETHER ? TOGETHER : 1;
              const int64_t group = each == 1 ? c : 0;
              for (int64_t i = 0; i < K; ++i) {
                T* to = acc + c * acc_plane + y * cut.width;
                const T* from = source_row(y, i) + c * source_plane;
                const auto apply = [&](const auto* taps_row, int64_t stride) {
                  if (count == TOGETHER)
                    apply_row<KS, TOGETHER>(K, taps_row, stride, from, source_plane, padded.offsets, n, to, acc_plane);
                  else
                    apply_row<KS, 1>(K, taps_row, stride, from, source_plane, padded.offsets, n, to, acc_plane);
                };
                if (staged)
                  apply((const T*)tile + (group * taps + i * K) * cut.width, cut.width);
                else
                  apply(row + i * K * layout.channel, layout.channel);
              }
              c += count;
            }
          }
        });
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t y = 0; y < rows; ++y)
            copy_narrowed(args.out + ((plane + c) * conv.H + y0 + y) * conv.W + x0, acc + c * acc_plane + y * cut.width, n,
                          false);
      }
    }
  }
}

namespace {

// Bands of rows of the input, whose gradients a block of channels accumulates.
struct GradXCut {
  int64_t rows, groups, channels;

  GradXCut(const PixelConv& conv, bool staged, int64_t length) {
    const Cut cut(conv, staged);
    groups = cut.groups;
    channels = cut.channels;
    rows = at_least_one(2 * SCRATCH_VALUES / (channels * length));
    if (conv.C == conv.G && !staged) rows = smaller(rows, at_least_one(TILE_PIXELS / conv.W));
    rows = smaller(rows, conv.in_h);
  }
  int64_t bands(const PixelConv& conv) const { return divide_up(conv.in_h, rows); }
  int64_t blocks(const PixelConv& conv) const {
    const int64_t each = conv.C / conv.G;
    return each == 1 ? divide_up(conv.G, groups) : conv.G * divide_up(each, channels);
  }
};

}  // namespace

template <typename S>
int64_t pixel_conv_grad_x_items(const PixelConv& conv, bool staged) {
  const GradXCut cut(conv, staged, PaddedRows(conv, conv.W).length);
  return conv.B * cut.blocks(conv) * cut.bands(conv);
}

template <typename S>
void pixel_conv_grad_x(const PixelConvGradX<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const PixelConv& conv = args.conv;
  const KernelLayout& layout = args.layout;
  const int64_t each = conv.C / conv.G, K = conv.K, taps = K * K;
  const bool staged = layout.pixel != 1 || (sizeof(S) == 2 && each > 1);
  const PaddedRows padded(conv, conv.W);
  const GradXCut cut(conv, staged, padded.length);
  const int64_t bands = cut.bands(conv), blocks = cut.blocks(conv), acc_plane = cut.rows * padded.length;
  const int64_t width = staged ? smaller(conv.W, STAGED_WIDTH) : conv.W;
  Scratch<T> acc(cut.channels * acc_plane), grads(cut.channels * conv.W), folded(conv.in_w);
  Scratch<T> tile(staged ? cut.groups * taps * width : 0);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / (blocks * bands), block = item / bands % blocks, r0 = item % bands * cut.rows;
    const int64_t rows = smaller(cut.rows, conv.in_h - r0);
    const int64_t per_group = each == 1 ? 1 : divide_up(each, cut.channels);
    const int64_t g0 = each == 1 ? block * cut.groups : block / per_group;
    const int64_t groups = each == 1 ? smaller(cut.groups, conv.G - g0) : 1;
    const int64_t c0 = each == 1 ? g0 : g0 * each + block % per_group * cut.channels;
    const int64_t channels = each == 1 ? groups : smaller(cut.channels, (g0 + 1) * each - c0);
    for (int64_t i = 0; i < cut.channels * acc_plane; ++i) acc[i] = 0;
    const S* kernels = args.kernels + b * layout.batch + g0 * taps * layout.channel;
    // The row of this band that tap row i of output row y reads, or -1
    const auto target = [&](int64_t y, int64_t i) {
      const int64_t row = conv.rows[conv.stride * y + conv.step * i];
      return row >= r0 && row < r0 + rows ? row - r0 : -1;
    };
    const auto grad_row = [&](int64_t y, int64_t c) { return args.g + ((b * conv.C + c0 + c) * conv.H + y) * conv.W; };
    if (!staged && each == 1) {
      for (int64_t i = 0; i < K; ++i)
        for (int64_t y = 0; y < conv.H; ++y) {
          const int64_t to = target(y, i);
          if (to < 0) continue;
          const T* g = widen(grad_row(y, 0), conv.W, (T*)grads);
          spread_row(K, kernels + i * K * layout.channel + y * layout.row, layout.channel, g, 0, 1, padded.offsets, conv.W,
                     acc + to * padded.length, 0);
        }
    } else {
      for (int64_t y = 0; y < conv.H; ++y) {
        bool any = false;
        for (int64_t i = 0; i < K; ++i) any = any || target(y, i) >= 0;
        if (!any) continue;
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t x = 0; x < conv.W; ++x) grads[c * conv.W + x] = load(grad_row(y, c)[x]);
        for (int64_t x0 = 0; x0 < conv.W; x0 += width) {
          const int64_t n = smaller(width, conv.W - x0);
          const S* row = kernels + y * layout.row + x0 * layout.pixel;
          if (staged) stage(row, layout.channel, layout.pixel, groups * taps, n, n * layout.pixel, (T*)tile, width);
          for (int64_t i = 0; i < K; ++i) {
            const int64_t to = target(y, i);
            if (to < 0) continue;
            T* acc_row = acc + to * padded.length + x0;
            const auto spread = [&](const auto* taps_row, int64_t stride, int64_t c, int64_t count) {
              spread_row(K, taps_row, stride, grads + c * conv.W + x0, conv.W, count, padded.offsets, n,
                         acc_row + c * acc_plane, acc_plane);
            };
            if (!staged)
              spread(row + i * K * layout.channel, layout.channel, 0, channels);
            else if (each > 1)
              spread((const T*)tile + i * K * width, width, 0, channels);
            else
              for (int64_t c = 0; c < channels; ++c) spread((const T*)tile + (c * taps + i * K) * width, width, c, 1);
          }
        }
      }
    }
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t r = 0; r < rows; ++r) {
        const T* from = acc + c * acc_plane + r * padded.length;
        for (int64_t x = 0; x < conv.in_w; ++x) folded[x] = 0;
        int64_t q = 0;
        const auto fold = [&](int64_t end) {
          for (; q < end; ++q)
            if (conv.columns[q] >= 0)
              folded[conv.columns[q]] += from[q % conv.stride * padded.segment + q / conv.stride];
        };
        if (conv.plain_first >= 0) {
          fold(conv.plain_first);
          for (int64_t x = 0; x < conv.in_w; ++x) folded[x] += from[q + x];
          q += conv.in_w;
        }
        fold(conv.padded_w);
        copy_narrowed(args.grad_x + ((b * conv.C + c0 + c) * conv.in_h + r0 + r) * conv.in_w, folded, conv.in_w, false);
      }
  }
}

namespace {

struct GradKernelsCut {
  int64_t rows, width;

  explicit GradKernelsCut(const PixelConv& conv) {
    const bool own = conv.C == conv.G;
    width = smaller(conv.W, own ? TILE_PIXELS : SHARED_WIDTH);
    rows = at_least_one(own ? TILE_PIXELS / width : SCRATCH_VALUES / (conv.K * conv.K * width));
    rows = smaller(rows, conv.H);
  }
};

}  // namespace

template <typename S>
int64_t pixel_conv_grad_kernels_items(const PixelConv& conv) {
  return conv.B * conv.G * divide_up(conv.H, GradKernelsCut(conv).rows);
}

template <typename S>
void pixel_conv_grad_kernels(const PixelConvGradKernels<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const PixelConv& conv = args.conv;
  const int64_t each = conv.C / conv.G, K = conv.K, taps = K * K;
  const GradKernelsCut cut(conv);
  const PaddedRows padded(conv, cut.width);
  const int64_t bands = divide_up(conv.H, cut.rows), tile = cut.rows * cut.width;
  const int64_t source_rows = (cut.rows - 1) * conv.stride + conv.step * (K - 1) + 1;
  const int64_t source_plane = source_rows * padded.length;
  const int64_t together = smaller(each, TOGETHER);
  // Sums of one channel in the type of the result go straight to memory, unless they are written past the cache.
  const bool direct = each == 1 && sizeof(S) == sizeof(T) && !args.stream;
  Scratch<T> source(together * source_plane), grads(together * tile), acc(direct ? 0 : (each == 1 ? K : taps) * tile);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / (conv.G * bands), g = item / bands % conv.G, y0 = item % bands * cut.rows;
    const int64_t rows = smaller(cut.rows, conv.H - y0);
    for (int64_t x0 = 0; x0 < conv.W; x0 += cut.width) {
      const int64_t n = smaller(cut.width, conv.W - x0);
      // One row of taps, K of them, from the accumulator to memory; whole runs where the tile is as wide as the frame
      const auto put = [&](int64_t i, const T* from) {
        for (int64_t j = 0; j < K; ++j) {
          S* to = args.grad_kernels + ((b * conv.G + g) * taps + i * K + j) * conv.H * conv.W + y0 * conv.W + x0;
          if (n == conv.W) {
            copy_narrowed(to, from + j * tile, rows * n, args.stream);
          } else {
            for (int64_t y = 0; y < rows; ++y)
              copy_narrowed(to + y * conv.W, from + j * tile + y * cut.width, n, args.stream);
          }
        }
      };
      with_kernel_size(K, [&]<typename Known>(Known) {
        constexpr int KS = Known::value;
        for (int64_t c0 = 0; c0 < each; c0 += together) {
          const int64_t channels = smaller(together, each - c0), plane = b * conv.C + g * each + c0;
          for (int64_t c = 0; c < channels; ++c) {
            fill_rows(conv, padded, args.x + (plane + c) * conv.in_h * conv.in_w, y0 * conv.stride,
                      (rows - 1) * conv.stride + conv.step * (K - 1) + 1, x0, source + c * source_plane);
            for (int64_t y = 0; y < rows; ++y)
              for (int64_t x = 0; x < n; ++x)
                grads[c * tile + y * cut.width + x] = load(args.g[((plane + c) * conv.H + y0 + y) * conv.W + x0 + x]);
          }
          if constexpr (sizeof(S) == sizeof(T))
            if (direct) {
              for (int64_t i = 0; i < K; ++i)
                for (int64_t y = 0; y < rows; ++y)
                  correlate_row<KS, 1, false>(
                      K, grads + y * cut.width, tile, source + (y * conv.stride + conv.step * i) * padded.length, source_plane,
                      padded.offsets, n,
                      args.grad_kernels + (((b * conv.G + g) * taps + i * K) * conv.H + y0 + y) * conv.W + x0,
                      conv.H * conv.W);
              continue;
            }
          for (int64_t i = 0; i < K; ++i) {
            T* to = each == 1 ? acc : acc + i * K * tile;
            for (int64_t y = 0; y < rows; ++y) {
              const T* from = source + (y * conv.stride + conv.step * i) * padded.length;
              const T* grad = grads + y * cut.width;
              T* row = to + y * cut.width;
              if (each == 1) {
                correlate_row<KS, 1, false>(K, grad, tile, from, source_plane, padded.offsets, n, row, tile);
              } else if (channels == TOGETHER && c0 == 0) {
                correlate_row<KS, TOGETHER, false>(K, grad, tile, from, source_plane, padded.offsets, n, row, tile);
              } else if (channels == TOGETHER) {
                correlate_row<KS, TOGETHER, true>(K, grad, tile, from, source_plane, padded.offsets, n, row, tile);
              } else {
                for (int64_t c = 0; c < channels; ++c) {
                  const T *one = grad + c * tile, *its = from + c * source_plane;
                  if (c0 + c == 0)
                    correlate_row<KS, 1, false>(K, one, tile, its, source_plane, padded.offsets, n, row, tile);
                  else
                    correlate_row<KS, 1, true>(K, one, tile, its, source_plane, padded.offsets, n, row, tile);
                }
              }
            }
            if (each == 1) put(i, acc);
          }
        }
      });
      if (each > 1)
        for (int64_t i = 0; i < K; ++i) put(i, acc + i * K * tile);
    }
  }
  if (args.stream) stream_fence();
}

#define INSTANTIATE(S)                                                                             \
  template int64_t pixel_conv_items<S>(const PixelConv&, bool);                                    \
  template int64_t pixel_conv_grad_x_items<S>(const PixelConv&, bool);                             \
  template int64_t pixel_conv_grad_kernels_items<S>(const PixelConv&);                             \
  template void pixel_conv<S>(const PixelConvForward<S>&, int64_t, int64_t);                       \
  template void pixel_conv_grad_x<S>(const PixelConvGradX<S>&, int64_t, int64_t);                  \
  template void pixel_conv_grad_kernels<S>(const PixelConvGradKernels<S>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Float16)
INSTANTIATE(BFloat16)

}  // namespace tta::TTA_ISA
