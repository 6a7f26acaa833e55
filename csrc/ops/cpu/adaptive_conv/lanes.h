// Channels as lanes of vectors, for taps in channels_last memory. For *.isa.cpp only.
//
// A state is (H, W, group), so that neighbors are whole vectors over channels, and the taps of a pixel, c * K + t, become
// vectors over c by shuffles.
#pragma once

#include "../layout/transpose.h"
#include "step.h"
#include "vector.h"

namespace tta::TTA_ISA {
namespace {

// Where value K * l + t of K vectors laid end to end lies: in vector (K * l + t) / L, at lane (K * l + t) % L. As K is odd,
// these lanes are all different for one t, so that K - 1 blends and one permutation find the values or put them there.
constexpr int vector_of(int K, int L, int t, int lane) {
  for (int l = 0; l < L; ++l)
    if ((K * l + t) % L == lane) return (K * l + t) / L;
  return 0;
}
constexpr int value_of(int K, int L, int t, int lane) {
  for (int l = 0; l < L; ++l)
    if ((K * l + t) % L == lane) return l;
  return 0;
}

// The lanes t, K + t, 2K + t, ... of the vectors v[0] .. v[K - 1] laid end to end
template <int K, int t, typename T, int L>
inline __attribute__((always_inline)) Vector<T, L> every_kth(const Vector<T, L> (&v)[K]) {
  Vector<T, L> found = v[0];
  unroll<K - 1>([&]<int m>() __attribute__((always_inline)) {
    found = shuffled<T, L>(found, v[m + 1], [](int l) constexpr { return vector_of(K, L, t, l) == m + 1 ? L + l : l; });
  });
  return shuffled<T, L>(found, found, [](int l) constexpr { return (K * l + t) % L; });
}

// The vectors of which every_kth<K, t> are v[t]
template <int K, typename T, int L>
inline __attribute__((always_inline)) void interleave(const Vector<T, L> (&v)[K], Vector<T, L> (&to)[K]) {
  Vector<T, L> placed[K];
  unroll<K>([&]<int t>() __attribute__((always_inline)) {
    placed[t] = shuffled<T, L>(v[t], v[t], [](int l) constexpr { return value_of(K, L, t, l); });
  });
  unroll<K>([&]<int m>() __attribute__((always_inline)) {
    to[m] = placed[0];
    unroll<K - 1>([&]<int s>() __attribute__((always_inline)) {
      to[m] = shuffled<T, L>(to[m], placed[s + 1],
                             [](int l) constexpr { return vector_of(K, L, s + 1, l) == m ? L + l : l; });
    });
  });
}

// Taps of L channels as K vectors, and back
template <int K, int L, typename T, typename S>
inline __attribute__((always_inline)) void load_taps(const S* from, Vector<T, L> (&taps)[K]) {
  Vector<T, L> v[K];
  unroll<K>([&]<int m>() __attribute__((always_inline)) { v[m] = load_vector<L>(from + m * L); });
  unroll<K>([&]<int t>() __attribute__((always_inline)) { taps[t] = every_kth<K, t, T, L>(v); });
}
template <int K, int L, typename T>
inline __attribute__((always_inline)) void store_taps(T* to, const Vector<T, L> (&taps)[K]) {
  Vector<T, L> v[K];
  interleave<K, T, L>(taps, v);
  unroll<K>([&]<int m>() __attribute__((always_inline)) { store_vector<L>(to + m * L, v[m]); });
}

// sum over t of tap t of L channels times u(t)
template <int K, int L, typename T, typename S, typename Source>
inline __attribute__((always_inline)) Vector<T, L> apply_taps(const S* from, Source u) {
  Vector<T, L> taps[K];
  load_taps<K, L, T>(from, taps);
  Vector<T, L> sum = taps[0] * u(0);
  unroll<K - 1>([&]<int t>() __attribute__((always_inline)) { sum += taps[t + 1] * u(t + 1); });
  return sum;
}

template <int64_t count, typename S>
inline __attribute__((always_inline)) void prefetch_lines(const S* from) {
  constexpr int64_t LINE = 64 / sizeof(S);
#pragma GCC unroll 16
  for (int64_t i = 0; i < count; i += LINE) __builtin_prefetch(from + i, 0, 2);  // into the second cache level
}

// Pixels between a prefetch and its use: some kilobytes of taps
template <typename S, typename Group>
int64_t prefetch_pixels(const AdaptiveConv& conv, const Group& group) {
  return 1 + (int64_t(1) << 14) / (int64_t(sizeof(S)) * group.channels * (2 * conv.K + 1));
}

// Every pixel's taps lie in pages of their own. They are looked up for so many pixels at once, so that these look-ups, each
// as long as a read from memory, go on side by side.
constexpr int64_t PAGES_AHEAD = 16;

// The channels of a group, in vectors of L. The last one may overlap the one before.
template <int L>
struct LaneGroup {
  int64_t channels, vectors, lanes;
  explicit LaneGroup(int64_t channels) : channels(channels), vectors((channels + L - 1) / L), lanes(vectors * L) {}
  int64_t first(int64_t m) const { return m * L + L <= channels ? m * L : channels - L; }
};

// A state: pixel i of vector m is at data + i * pixel + (m < vectors - 1 ? m * L : last). The vectors of scratch buffers do
// not overlap, those of a tensor (H, W, C) may, whose channels are not repeated.
template <typename T>
struct LanePlane {
  T* data;
  int64_t pixel, last;

  LanePlane at(int64_t i) const { return {data + i * pixel, pixel, last}; }
};

template <int L, typename T>
LanePlane<T> scratch_plane(const LaneGroup<L>& group, T* data) {
  return {data, group.lanes, group.lanes - L};
}
template <int L, typename T>
LanePlane<T> tensor_plane(const LaneGroup<L>& group, T* data, int64_t channels) {
  return {data, channels, group.channels - L};
}

// visit(m, first channel, whether it is the last) for every vector of a group
template <int L, typename Visit>
inline __attribute__((always_inline)) void each_lane_vector(const LaneGroup<L>& group, Visit visit) {
  const int64_t last = group.vectors - 1, end = group.channels - L;
  for (int64_t m = 0; m < last; ++m) visit(m * L, m * L, false);
  visit(last * L, end, true);
}

constexpr int64_t CHUNK = 256;  // pixels that are converted on the way

// Planes (channels, pixels) -> lanes
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
void scatter_planes(const LaneGroup<L>& group, const LanePlane<const T>& from, int64_t plane, T* chunk, S* to) {
  for (int64_t m = 0; m < group.vectors; ++m)
    for (int64_t p = 0; p < plane; p += CHUNK) {
      const int64_t n = plane - p < CHUNK ? plane - p : CHUNK;
      transpose(from.data + p * from.pixel + (m < group.vectors - 1 ? m * L : from.last), from.pixel, L, n, chunk, CHUNK);
      for (int64_t k = 0; k < L; ++k) store_values(chunk + k * CHUNK, n, to + (group.first(m) + k) * plane + p);
    }
}

// Pixels of a row in a ring of K, by column; columns beyond a border are the border's.
template <int K, typename T>
struct LaneRing {
  T* data;
  int64_t lanes, last;

  T* at(int64_t x) const { return data + clamp(x, last) % K * lanes; }
};

// The rows around row y of a state: row y + t - K/2, or the border's, for tap t
template <int K, typename T>
struct LaneRows {
  T* row[K];
  int64_t pixel, last;  // as of a LanePlane
};

// sum over t of tap t of L channels of a pixel times the row for it
template <int K, int L, typename S, typename T>
inline __attribute__((always_inline)) Vector<T, L> apply_column(const S* taps, const LaneRows<K, const T>& u, int64_t at) {
  return apply_taps<K, L, T>(taps, [&](int t) __attribute__((always_inline)) { return load_vector<L>(u.row[t] + at); });
}

// One row of a step, z = leaky_relu(H V u + bias), for the channels of a group. `taps` are those of the row's first pixel and
// the group's first channel, `next` those of the row that is computed after this one. z may be the topmost row of u.
// `middle` holds K pixels.
//
// V u of a pixel stands in a ring of K pixels until H, which follows K/2 pixels behind, needs it no more.
template <int K, int L, typename S, typename T>
void row_of_lanes(const AdaptiveConv& conv, const LaneGroup<L>& group, const Taps<const S>& taps, const Taps<const S>& next,
                  int64_t pixel, T slope, const LaneRows<K, const T>& u, T* middle, const LanePlane<T>& z) {
  using V = Vector<T, L>;
  constexpr int reach = K / 2;
  const int64_t W = conv.W, distance = prefetch_pixels<S>(conv, group);
  const LaneRing<K, T> ring{middle, group.lanes, W - 1};
  const bool biased = taps.bias != nullptr;
  const auto column_of = [W](int64_t x) { return x < W ? x : x - W < W ? x - W : W - 1; };  // of this row or the next
  for (int64_t x = 0; x < reach && x < W; ++x)
    each_lane_vector(group, [&](int64_t lane, int64_t c, bool is_last) __attribute__((always_inline)) {
      store_vector<L>(ring.at(x) + lane,
                      apply_column<K, L, S, T>(taps.vertical + x * pixel + K * c, u, x * u.pixel + (is_last ? u.last : c)));
    });
  const auto make = [&]<bool ahead>(int64_t x) __attribute__((always_inline)) {
    const S *k1 = taps.vertical + (x + reach) * pixel, *k2 = taps.horizontal + x * pixel, *bias = taps.bias + x * pixel;
    const Taps<const S>& later = x + distance < W ? taps : next;
    const int64_t there = column_of(x + distance) * pixel;
    const S *later_k1 = later.vertical + there, *later_k2 = later.horizontal + there, *later_bias = later.bias + there;
    const T* source[K];
    for (int t = 0; t < K; ++t) source[t] = ring.at(x + t - reach);
    if (x % PAGES_AHEAD == 0)
      for (int64_t j = PAGES_AHEAD; j < 2 * PAGES_AHEAD; ++j) {
        const Taps<const S>& of = x + j < W ? taps : next;
        const int64_t i = column_of(x + j) * pixel;
        __builtin_prefetch(of.vertical + i, 0, 2);
        __builtin_prefetch(of.horizontal + i + K * group.channels - 1, 0, 2);
        if (biased) __builtin_prefetch(of.bias + i, 0, 2);
      }
    T *const newest = ring.at(x + reach), *const to = z.data + x * z.pixel;
    const int64_t at = (x + reach) * u.pixel, u_last = u.last, z_last = z.last;
    each_lane_vector(group, [&](int64_t lane, int64_t c, bool is_last) __attribute__((always_inline)) {
      prefetch_lines<K * L>(later_k1 + K * c);
      prefetch_lines<K * L>(later_k2 + K * c);
      V column{};
      if constexpr (ahead) {
        column = apply_column<K, L, S, T>(k1 + K * c, u, at + (is_last ? u_last : c));
        store_vector<L>(newest + lane, column);
      }
      V sum = apply_taps<K, L, T>(k2 + K * c, [&](int t) __attribute__((always_inline)) {
        return ahead && t == K - 1 ? column : load_vector<L>(source[t] + lane);
      });
      if (biased) {
        prefetch_lines<L>(later_bias + c);
        sum += load_vector<L>(bias + c);
      }
      store_vector<L>(to + (is_last ? z_last : c), sum > 0 ? sum : sum * slope);
    });
  };
  int64_t x = 0;
  for (; x + reach < W; ++x) make.template operator()<true>(x);
  for (; x < W; ++x) make.template operator()<false>(x);
}

}  // namespace
}  // namespace tta::TTA_ISA
