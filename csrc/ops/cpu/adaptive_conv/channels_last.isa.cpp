// All steps of a group of channels, forward, with three taps and filters in channels_last memory.
//
// The channels of a group are the lanes of M vectors. The state is (H, W, lanes), so that neighbors are whole vectors, and
// the taps of a pixel, c * 3 + t, become vectors over c by six shuffles. The lines of later pixels, which lie far apart,
// are prefetched. Results agree with the contiguous kernel to rounding.
#include "step.h"
#include "vector.h"

namespace tta::TTA_ISA {
namespace {

constexpr int64_t AHEAD = 8;  // pixels from a prefetch to its use
constexpr int M = 2;          // vectors of channels in a group: with one, translations of addresses cost twice as much

// The lanes t, 3 + t, 6 + t, ... of three vectors laid end to end
template <int t, typename T, int L>
inline __attribute__((always_inline)) Vector<T, L> every_third(Vector<T, L> a, Vector<T, L> b, Vector<T, L> c) {
#if __has_builtin(__builtin_shuffle)
  Vector<Integer<T>, L> first{}, second{};
  for (int l = 0; l < L; ++l) {
    first[l] = Integer<T>((3 * l + t) % (2 * L));
    second[l] = Integer<T>(3 * l + t < 2 * L ? l : 3 * l + t - L);
  }
  return __builtin_shuffle(__builtin_shuffle(a, b, first), c, second);
#else
  return [&]<int... l>(Lanes<l...>) {
    const Vector<T, L> low = __builtin_shufflevector(a, b, ((3 * l + t) % (2 * L))...);
    return __builtin_shufflevector(low, c, (3 * l + t < 2 * L ? l : 3 * l + t - L)...);
  }(typename FirstLanes<L>::type{});
#endif
}

// k[t] = tap t of L channels
template <int L, typename T, typename S>
inline __attribute__((always_inline)) void load_taps(const S* from, Vector<T, L> (&k)[3]) {
  const Vector<T, L> a = load_vector<L>(from), b = load_vector<L>(from + L), c = load_vector<L>(from + 2 * L);
  k[0] = every_third<0, T, L>(a, b, c);
  k[1] = every_third<1, T, L>(a, b, c);
  k[2] = every_third<2, T, L>(a, b, c);
}

template <int count, typename S>
inline __attribute__((always_inline)) void prefetch_lines(const S* from) {
  constexpr int64_t LINE = 64 / sizeof(S);
#pragma GCC unroll 16
  for (int64_t c = 0; c < count; c += LINE) __builtin_prefetch(from + c);
}

// z = leaky_relu(H V u + bias) for M * L channels; the pointers are those of pixel 0. z may lie a row before u.
template <int L, typename S, typename T>
void step_of_lanes(const AdaptiveConv& conv, const S* vertical, const S* horizontal, const S* bias, int64_t pixel,
                   T slope, const T* u, T* z) {
  using V = Vector<T, L>;
  const int64_t W = conv.W, last = conv.H * W - 1;
  for (int64_t y = 0; y < conv.H; ++y) {
    const T* rows[3];
    for (int t = 0; t < 3; ++t) rows[t] = u + clamp(y + t - 1, conv.H - 1) * W * M * L;
    const auto column = [&](int64_t x, V (&sum)[M]) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        V k[3];
        load_taps<L, T>(vertical + (y * W + x) * pixel + 3 * L * m, k);
        const int64_t at = (x * M + m) * L;
        sum[m] = k[0] * load_vector<L>(rows[0] + at);
        sum[m] += k[1] * load_vector<L>(rows[1] + at);
        sum[m] += k[2] * load_vector<L>(rows[2] + at);
      }
    };
    V before[M], here[M], after[M];
    column(0, here);
    for (int m = 0; m < M; ++m) before[m] = after[m] = here[m];
    for (int64_t x = 0; x < W; ++x) {
      const int64_t i = y * W + x, ahead = (i + AHEAD < last ? i + AHEAD : last) * pixel;
      prefetch_lines<3 * L * M>(vertical + ahead);
      prefetch_lines<3 * L * M>(horizontal + ahead);
      prefetch_lines<L * M>(bias + ahead);
      if (x + 1 < W) column(x + 1, after);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        V k[3];
        load_taps<L, T>(horizontal + i * pixel + 3 * L * m, k);
        V sum = k[0] * before[m];
        sum += k[1] * here[m];
        sum += k[2] * after[m];
        sum += load_vector<L>(bias + i * pixel + L * m);
        store_vector<L>(z + (i * M + m) * L, sum > 0 ? sum : sum * slope);
        before[m] = here[m];
        here[m] = after[m];
      }
    }
  }
}

}  // namespace

template <typename T>
int64_t channels_last_lanes() {
  return M * LANES<T>;
}

template <typename S>
void adaptive_conv_forward_channels_last(const AdaptiveConvForwardChannelsLast<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  constexpr int L = M * LANES<T>;
  const AdaptiveConv& conv = args.conv;
  const int64_t C = conv.C, plane = conv.H * conv.W, groups = (C + L - 1) / L, taps = 3 * C;
  // Every step writes its rows one row higher than it read them, where they overwrite only rows that are not read again.
  Scratch<T> planes((plane + conv.N * conv.W) * L), channel(plane);
  for (int64_t i = begin; i < end; ++i) {
    // The last group may overlap the one before; it writes only the channels from `first`.
    const int64_t b = i / groups, first = i % groups * L, c = first + L <= C ? first : C - L;
    T* u = planes + conv.N * conv.W * L;
    const auto write = [&](const T* from, auto* to) {
      for (int64_t k = first; k < (first + L < C ? first + L : C); ++k)
        for (int64_t j = 0; j < plane; ++j) store(from[j * L + k - c], to[(k - c) * plane + j]);
    };
    for (int64_t k = 0; k < L; ++k) {
      const T* x = widen(args.x + (b * C + c + k) * plane, plane, channel);
      for (int64_t j = 0; j < plane; ++j) u[j * L + k] = x[j];
    }
    const S* frame = args.filters + b * args.batch;
    for (int64_t n = 0; n < conv.N; ++n) {
      const S *vertical = frame + n * 2 * taps + 3 * c, *horizontal = conv.own ? vertical + taps : vertical,
              *bias = frame + conv.N * 2 * taps + n * C + c;
      T* const z = u - conv.W * L;
      step_of_lanes<LANES<T>, S, T>(conv, vertical, horizontal, bias, args.pixel, slope_of<T>(conv, n), u, z);
      if (n < conv.N - 1 && args.states) write(z, args.states + ((b * (conv.N - 1) + n) * C + c) * plane);
      u = z;
    }
    write(u, args.out + (b * C + c) * plane);
  }
}

template int64_t channels_last_lanes<float>();
template int64_t channels_last_lanes<double>();
#define INSTANTIATE(S) \
  template void adaptive_conv_forward_channels_last<S>(const AdaptiveConvForwardChannelsLast<S>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Float16)
INSTANTIATE(BFloat16)

}  // namespace tta::TTA_ISA
