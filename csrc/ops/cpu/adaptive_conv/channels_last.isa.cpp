// All steps of a group of channels, forward, with taps in channels_last memory.
//
// The state is (H, W, group), so that neighbors are whole vectors over channels, and the taps of a pixel, c * K + t, become
// vectors over c by shuffles. A step goes along the rows: V u of the row stands in a buffer, H follows K/2 pixels behind. The
// lines of later pixels, which lie far apart, are prefetched. Results agree with the contiguous kernel to rounding.
#include "../layout/transpose.h"
#include "step.h"
#include "vector.h"

namespace tta::TTA_ISA {
namespace {

constexpr int64_t PREFETCH_BYTES = 4096;  // of taps and biases between a prefetch and its use

// The lanes t, K + t, 2K + t, ... of the vectors v[0] .. v[K - 1] laid end to end. Each shuffle adds the lanes of one more.
template <int K, int t, typename T, int L>
inline __attribute__((always_inline)) Vector<T, L> every_kth(const Vector<T, L> (&v)[K]) {
  Vector<T, L> found = v[0];
  unroll<K - 1>([&]<int m>() __attribute__((always_inline)) {
    // Lane l of the result is value K * l + t of all; the first shuffle places also those of v[0].
    constexpr int next = m + 1;
#if __has_builtin(__builtin_shuffle)
    Vector<Integer<T>, L> from{};
    for (int l = 0; l < L; ++l) {
      const int at = K * l + t;
      from[l] = Integer<T>(at / L == next ? L + at % L : next == 1 ? at % L : l);
    }
    found = __builtin_shuffle(found, v[next], from);
#else
    found = [&]<int... l>(Lanes<l...>) {
      return __builtin_shufflevector(found, v[next],
                                     ((K * l + t) / L == next ? L + (K * l + t) % L : next == 1 ? (K * l + t) % L : l)...);
    }(typename FirstLanes<L>::type{});
#endif
  });
  return found;
}

// sum over t of tap t of L channels times u(t)
template <int K, int L, typename T, typename S, typename Source>
inline __attribute__((always_inline)) Vector<T, L> apply_taps(const S* taps, Source u) {
  Vector<T, L> v[K];
  unroll<K>([&]<int m>() __attribute__((always_inline)) { v[m] = load_vector<L>(taps + m * L); });
  Vector<T, L> sum = every_kth<K, 0, T, L>(v) * u(0);
  unroll<K - 1>([&]<int t>() __attribute__((always_inline)) { sum += every_kth<K, t + 1, T, L>(v) * u(t + 1); });
  return sum;
}

template <int64_t count, typename S>
inline __attribute__((always_inline)) void prefetch_lines(const S* from) {
  constexpr int64_t LINE = 64 / sizeof(S);
#pragma GCC unroll 16
  for (int64_t i = 0; i < count; i += LINE) __builtin_prefetch(from + i);
}

// The channels of a group, in vectors of L of which the last may overlap the one before. `lanes` values per pixel.
template <int L>
struct LaneGroup {
  int64_t channels, vectors, lanes;
  explicit LaneGroup(int64_t channels) : channels(channels), vectors((channels + L - 1) / L), lanes(vectors * L) {}
  int64_t first(int64_t m) const { return m * L + L <= channels ? m * L : channels - L; }
};

// z = leaky_relu(H V u + bias) for the channels of a group; the pointers are those of pixel 0 and the group's first channel.
// z may lie K/2 rows before u. `middle` holds W + K - 1 pixels.
template <int K, int L, typename S, typename T>
void step_of_lanes(const AdaptiveConv& conv, const LaneGroup<L>& group, const Taps<const S>& taps, int64_t pixel, T slope,
                   const T* u, T* middle, T* z) {
  using V = Vector<T, L>;
  constexpr int reach = K / 2;
  const int64_t W = conv.W, last = conv.H * W - 1, lanes = group.lanes;
  const int64_t distance = 1 + PREFETCH_BYTES / (int64_t(sizeof(S)) * group.channels * (2 * K + 1));
  for (int64_t y = 0; y < conv.H; ++y) {
    const T* rows[K];
    for (int t = 0; t < K; ++t) rows[t] = u + clamp(y + t - reach, conv.H - 1) * W * lanes;
    const auto column = [&](int64_t x) __attribute__((always_inline)) {
      const S* k1 = taps.vertical + (y * W + x) * pixel;
      for (int64_t m = 0; m < group.vectors; ++m) {
        const int64_t at = x * lanes + m * L;
        store_vector<L>(middle + reach * lanes + at, apply_taps<K, L, T>(k1 + K * group.first(m), [&](int t) {
                          return load_vector<L>(rows[t] + at);
                        }));
      }
    };
    const auto copy_pixel = [&](int64_t from, int64_t to) {
      for (int64_t l = 0; l < lanes; ++l) middle[to * lanes + l] = middle[from * lanes + l];
    };
    const auto make = [&](int64_t x) __attribute__((always_inline)) {
      if (x < W)
        column(x);
      else
        copy_pixel(reach + W - 1, reach + x);
    };
    for (int64_t x = 0; x < reach; ++x) make(x);
    for (int64_t x = 0; x < reach; ++x) copy_pixel(reach, x);
    for (int64_t x = 0; x < W; ++x) {
      make(x + reach);
      const int64_t i = y * W + x;
      const int64_t later = (i + distance < last ? i + distance : last) * pixel;
      const S *k2 = taps.horizontal + i * pixel, *bias = taps.bias + i * pixel;
      for (int64_t m = 0; m < group.vectors; ++m) {
        const int64_t c = group.first(m);
        prefetch_lines<K * L>(taps.vertical + later + K * c);
        prefetch_lines<K * L>(taps.horizontal + later + K * c);
        V sum = apply_taps<K, L, T>(k2 + K * c, [&](int t) { return load_vector<L>(middle + (x + t) * lanes + m * L); });
        if (taps.bias != nullptr) {
          prefetch_lines<L>(taps.bias + later + c);
          sum += load_vector<L>(bias + c);
        }
        store_vector<L>(z + i * lanes + m * L, sum > 0 ? sum : sum * slope);
      }
    }
  }
}

constexpr int64_t CHUNK = 256;  // pixels that are converted on the way

// Planes (channels, pixels) -> (pixels, lanes)
template <int L, typename S, typename T>
void gather_planes(const LaneGroup<L>& group, const S* from, int64_t plane, T* chunk, T* to) {
  for (int64_t m = 0; m < group.vectors; ++m)
    for (int64_t p = 0; p < plane; p += CHUNK) {
      const int64_t n = plane - p < CHUNK ? plane - p : CHUNK;
      for (int64_t k = 0; k < L; ++k) load_values(from + (group.first(m) + k) * plane + p, n, chunk + k * CHUNK);
      transpose(chunk, CHUNK, n, L, to + p * group.lanes + m * L, group.lanes);
    }
}

// and back
template <int L, typename S, typename T>
void scatter_planes(const LaneGroup<L>& group, const T* from, int64_t plane, T* chunk, S* to) {
  for (int64_t m = 0; m < group.vectors; ++m)
    for (int64_t p = 0; p < plane; p += CHUNK) {
      const int64_t n = plane - p < CHUNK ? plane - p : CHUNK;
      transpose(from + p * group.lanes + m * L, group.lanes, L, n, chunk, CHUNK);
      for (int64_t k = 0; k < L; ++k) store_values(chunk + k * CHUNK, n, to + (group.first(m) + k) * plane + p);
    }
}

template <int K, int L, typename S>
void forward_groups(const AdaptiveConvForwardChannelsLast<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  if constexpr (L * int64_t(sizeof(T)) > 16)
    if (args.conv.C / args.groups < L) return forward_groups<K, L / 2>(args, begin, end);
  const AdaptiveConv& conv = args.conv;
  const int64_t C = conv.C, plane = conv.H * conv.W, groups = args.groups;
  // Every step writes its rows K/2 rows higher than it read them, where they overwrite only rows that are not read again.
  const int64_t rise = K / 2 * conv.W, most = LaneGroup<L>((C + groups - 1) / groups).lanes;
  Scratch<T> planes((plane + conv.N * rise) * most), middle((conv.W + K - 1) * most), chunk(L * CHUNK);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / groups, c = i % groups * C / groups;
    const LaneGroup<L> group((i % groups + 1) * C / groups - c);
    T* u = planes + conv.N * rise * group.lanes;
    gather_planes(group, args.x + (b * C + c) * plane, plane, (T*)chunk, u);
    for (int64_t n = 0; n < conv.N; ++n) {
      Taps<const S> taps = args.taps;
      taps.vertical += b * taps.layout.batch + n * taps.layout.step + c * K;
      if (conv.own)
        taps.horizontal += b * taps.layout.batch + n * taps.layout.step + c * K;
      else
        taps.horizontal = taps.vertical;
      if (taps.bias != nullptr) taps.bias += b * taps.bias_layout.batch + n * taps.bias_layout.step + c;
      T* const z = u - rise * group.lanes;
      step_of_lanes<K, L, S, T>(conv, group, taps, args.pixel, slope_of<T>(conv, n), u, middle, z);
      if (n < conv.N - 1 && args.states)
        scatter_planes(group, z, plane, (T*)chunk, args.states + ((b * (conv.N - 1) + n) * C + c) * plane);
      u = z;
    }
    scatter_planes(group, u, plane, (T*)chunk, args.out + (b * C + c) * plane);
  }
}

}  // namespace

template <typename S>
void adaptive_conv_forward_channels_last(const AdaptiveConvForwardChannelsLast<S>& args, int64_t begin, int64_t end) {
  constexpr int L = LANES<accumulate_t<S>>;
  if (args.conv.K == 3) return forward_groups<3, L>(args, begin, end);
  if (args.conv.K == 5) return forward_groups<5, L>(args, begin, end);
  forward_groups<7, L>(args, begin, end);
}

#define INSTANTIATE(S) \
  template void adaptive_conv_forward_channels_last<S>(const AdaptiveConvForwardChannelsLast<S>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Float16)
INSTANTIATE(BFloat16)

}  // namespace tta::TTA_ISA
