// All steps of a group of channels, forward and backward, with taps in channels_last memory.
//
// Steps go along the rows, and the taps of later pixels, which lie far apart, are prefetched. Results agree with the contiguous
// kernel to rounding.
#include "lanes.h"

namespace tta::TTA_ISA {
namespace {

// The taps of step n of the channels from c on, or their gradients
template <typename S>
Taps<S> locate_lanes(const AdaptiveConv& conv, Taps<S> taps, int64_t b, int64_t n, int64_t c) {
  if (taps.vertical == nullptr) return taps;
  const int64_t at = b * taps.layout.batch + n * taps.layout.step + c * conv.K;
  taps.vertical += at;
  taps.horizontal += at;
  if (taps.bias != nullptr) taps.bias += b * taps.bias_layout.batch + n * taps.bias_layout.step + c;
  return taps;
}

// The taps that are read
template <typename S>
Taps<const S> read_lanes(const AdaptiveConv& conv, const Taps<const S>& all, int64_t b, int64_t n, int64_t c) {
  Taps<const S> taps = locate_lanes(conv, all, b, n, c);
  if (!conv.own) taps.horizontal = taps.vertical;
  return taps;
}

template <typename T>
LanePlane<const T> read_only(const LanePlane<T>& plane) {
  return {plane.data, plane.pixel, plane.last};
}

// Steps first .. first + count - 1, row by row: a step is K/2 rows behind the one before it, of which K rows are kept. So taps
// of one pixel and successive steps, which share pages of memory, are read while the processor still knows where these are.
//
// plane(n) is the state u_n, whole, or of null data where it needs no place but in `rings`, (count - 1) * K rows.
template <int K, int L, typename S, typename T, typename TapsOf, typename Plane>
void run_steps(const AdaptiveConv& conv, const LaneGroup<L>& group, int64_t first, int64_t count, TapsOf taps_of,
               int64_t pixel, Plane plane, T* middle, T* rings) {
  constexpr int64_t reach = K / 2;
  const int64_t H = conv.H, W = conv.W, row_size = W * group.lanes, times = H + (count - 1) * reach;
  struct Place {
    int64_t time, step, y;
  };
  const auto following = [&](Place at) {
    do {
      if (++at.step == count) at = {at.time + 1, 0, 0};
      at.y = at.time - at.step * reach;
    } while (at.time < times && (at.y < 0 || at.y >= H));
    return at;
  };
  const auto ring_row = [&](int64_t step, int64_t y) { return rings + (step * K + y % K) * row_size; };
  const auto taps_at = [&](const Place& at) {
    Taps<const S> taps = taps_of(first + at.step);
    const int64_t i = at.y * W * pixel;
    taps.vertical += i;
    taps.horizontal += i;
    if (taps.bias != nullptr) taps.bias += i;
    return taps;
  };
  for (Place at{0, 0, 0}; at.time < times;) {
    const Place then = following(at);
    const LanePlane<T> from = plane(first + at.step), to = plane(first + at.step + 1);
    LaneRows<K, const T> u{{}, from.pixel, from.last};
    for (int t = 0; t < K; ++t) {
      const int64_t y = clamp(at.y + t - reach, H - 1);
      u.row[t] = from.data ? from.at(y * W).data : ring_row(at.step - 1, y);
    }
    const Taps<const S> taps = taps_at(at);
    row_of_lanes<K, L, S, T>(conv, group, taps, then.time < times ? taps_at(then) : taps, pixel,
                             slope_of<T>(conv, first + at.step), u, middle,
                             to.data ? to.at(at.y * W) : scratch_plane(group, ring_row(at.step, at.y)));
    at = then;
  }
}

// Steps that go through the rows together. More of them would need more of the cache than they save.
int64_t steps_together(const AdaptiveConv& conv) { return conv.N < 2 ? conv.N : 2; }

template <int K, int L, typename S>
void forward_groups(const AdaptiveConvForwardChannelsLast<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  if constexpr (L * int64_t(sizeof(T)) > 16)
    if (args.conv.C / args.groups < L) return forward_groups<K, L / 2>(args, begin, end);
  const AdaptiveConv& conv = args.conv;
  const int64_t C = conv.C, plane = conv.H * conv.W, groups = args.groups;
  const int64_t together = steps_together(conv), blocks = (conv.N + together - 1) / together;
  // Every block of steps writes its rows K/2 rows higher than it read them, where they overwrite rows that are not read again.
  const int64_t rise = K / 2 * conv.W, most = LaneGroup<L>((C + groups - 1) / groups).lanes;
  const int64_t rises = args.states ? 1 : blocks;
  Scratch<T> planes((plane + rises * rise) * most), middle(K * most), chunk(L * CHUNK);
  Scratch<T> rings(args.states ? 0 : (together - 1) * K * conv.W * most);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / groups, c = i % groups * C / groups;
    const LaneGroup<L> group((i % groups + 1) * C / groups - c);
    // u_n, where it has a place of its own
    const auto state = [&](int64_t n) -> LanePlane<T> {
      if (args.states && n > 0 && n < conv.N)
        return tensor_plane(group, args.states + (b * (conv.N - 1) + n - 1) * plane * C + c, C);
      if (args.states) return scratch_plane(group, planes + 0).at(n == 0 ? rise : 0);
      if (n % together != 0 && n < conv.N) return scratch_plane(group, (T*)nullptr);
      return scratch_plane(group, planes + 0).at((rises - (n + together - 1) / together) * rise);
    };
    gather_planes(group, args.x + (b * C + c) * plane, plane, (T*)chunk, state(0).data);
    for (int64_t n = 0; n < conv.N; n += together)
      run_steps<K, L, S, T>(
          conv, group, n, conv.N - n < together ? conv.N - n : together,
          [&](int64_t step) { return read_lanes(conv, args.taps, b, step, c); }, args.pixel, state, middle, (T*)rings);
    scatter_planes(group, read_only(state(conv.N)), plane, (T*)chunk, args.out + (b * C + c) * plane);
  }
}

// From the gradient g in a step's output to that in its input u, and to those in its taps unless they are null. `output`
// is what the step gave, of which the sign counts. `rings` holds 2 * K pixels, `tap_rows` the taps of K + 1 pixels and a bias.
//
// Along a row, V u and the gradient in it stand in rings of K pixels. The taps of H are used at a pixel, those of V once the
// gradient in V u is whole, K/2 pixels later.
template <int K, int L, typename S, typename T>
void step_of_lanes_backward(const AdaptiveConv& conv, const LaneGroup<L>& group, const Taps<const S>& taps, int64_t pixel,
                            T slope, const LanePlane<const T>& u, const LanePlane<const T>& output, const T* g,
                            const Taps<S>& grad_taps, int64_t grad_pixel, bool stream, T* rings, T* tap_rows, T* grad_u) {
  using V = Vector<T, L>;
  constexpr int reach = K / 2;
  const int64_t W = conv.W, H = conv.H, lanes = group.lanes, row_of_taps = K * group.channels;
  const int64_t distance = prefetch_pixels<S>(conv, group);
  const LaneRing<K, T> middle{rings, lanes, W - 1}, grad_middle{rings + K * lanes, lanes, W - 1};
  const bool wanted = grad_taps.vertical != nullptr;
  T *const sums = tap_rows + K * row_of_taps, *const bias_row = sums + row_of_taps;
  const auto clear = [&](T* to, int64_t n) {
    for (int64_t l = 0; l < n; ++l) to[l] = 0;
  };
  for (int64_t y = 0; y < reach && y < H; ++y) clear(grad_u + y * W * lanes, W * lanes);
  for (int64_t y = 0; y < H; ++y) {
    if (y + reach < H) clear(grad_u + (y + reach) * W * lanes, W * lanes);
    const T* rows[K];
    T* grad_rows[K];
    for (int t = 0; t < K; ++t) {
      const int64_t row = clamp(y + t - reach, H - 1) * W;
      rows[t] = u.data + row * u.pixel;
      grad_rows[t] = grad_u + row * lanes;
    }
    // V u of pixel x
    const auto column = [&](int64_t x) __attribute__((always_inline)) {
      T* to = middle.at(x);
      each_lane_vector(group, [&](int64_t lane, int64_t c, bool is_last) __attribute__((always_inline)) {
        const int64_t at = x * u.pixel + (is_last ? u.last : c);
        store_vector<L>(to + lane, apply_taps<K, L, T>(taps.vertical + (y * W + x) * pixel + K * c,
                                                       [&](int t) __attribute__((always_inline)) {
                                                         return load_vector<L>(rows[t] + at);
                                                       }));
      });
    };
    // What pixel x gives to the taps of H and to the gradient in V u of its neighbors
    const auto row = [&](int64_t x) __attribute__((always_inline)) {
      const int64_t i = y * W + x, later = i + distance < H * W ? i + distance : H * W - 1;
      const T *source[K], *gradient = g + i * lanes;
      T* to[K];
      for (int t = 0; t < K; ++t) {
        source[t] = middle.at(x + t - reach);
        to[t] = grad_middle.at(x + t - reach);
      }
      if (x == 0)
        for (int64_t j = 0; j < reach && j < W; ++j) clear(grad_middle.at(j), lanes);
      if (x + reach < W) clear(to[K - 1], lanes);
      T* const tap_row = tap_rows + x % K * row_of_taps;
      const S *k2 = taps.horizontal + i * pixel, *next_k1 = taps.vertical + later * pixel,
              *next_k2 = taps.horizontal + later * pixel;
      each_lane_vector(group, [&](int64_t lane, int64_t c, bool is_last) __attribute__((always_inline)) {
        prefetch_lines<K * L>(next_k1 + K * c);
        prefetch_lines<K * L>(next_k2 + K * c);
        V gz = load_vector<L>(gradient + lane);
        if (slope != T(1)) gz = load_vector<L>(output.data + i * output.pixel + (is_last ? output.last : c)) > 0 ? gz : gz * slope;
        V tap[K], grad[K];
        load_taps<K, L, T>(k2 + K * c, tap);
        unroll<K>([&]<int t>() __attribute__((always_inline)) {
          grad[t] = gz * load_vector<L>(source[t] + lane);
          store_vector<L>(to[t] + lane, load_vector<L>(to[t] + lane) + tap[t] * gz);
        });
        if (wanted) {
          store_taps<K, L, T>(tap_row + K * c, grad);
          store_vector<L>(bias_row + c, gz);
        }
      });
      if (!wanted) return;
      if (grad_taps.bias) copy_narrowed(grad_taps.bias + i * grad_pixel, bias_row, group.channels, stream);
      if (conv.own)
        copy_narrowed(grad_taps.horizontal + i * grad_pixel, tap_row, row_of_taps, stream);
      else
        std::memset(grad_taps.horizontal + i * grad_pixel, 0, size_t(row_of_taps) * sizeof(S));
    };
    // What pixel x, whose gradient in V u is whole, gives to the taps of V and to the gradient in u
    const auto spread = [&](int64_t x) __attribute__((always_inline)) {
      const int64_t i = y * W + x;
      const T* gradient = grad_middle.at(x);
      const T* const tap_row = tap_rows + x % K * row_of_taps;
      const S* k1 = taps.vertical + i * pixel;
      each_lane_vector(group, [&](int64_t lane, int64_t c, bool is_last) __attribute__((always_inline)) {
        const int64_t at = x * u.pixel + (is_last ? u.last : c);
        const V gm = load_vector<L>(gradient + lane);
        V tap[K], grad[K];
        load_taps<K, L, T>(k1 + K * c, tap);
        unroll<K>([&]<int t>() __attribute__((always_inline)) {
          T* to = grad_rows[t] + x * lanes + lane;
          store_vector<L>(to, load_vector<L>(to) + tap[t] * gm);
          grad[t] = gm * load_vector<L>(rows[t] + at);
        });
        if (!wanted) return;
        if (!conv.own) {  // what the horizontal pass gave to these taps
          V others[K];
          load_taps<K, L, T>(tap_row + K * c, others);
          unroll<K>([&]<int t>() __attribute__((always_inline)) { grad[t] += others[t]; });
        }
        store_taps<K, L, T>(sums + K * c, grad);
      });
      if (wanted) copy_narrowed(grad_taps.vertical + i * grad_pixel, sums, row_of_taps, stream);
    };
    for (int64_t x = 0; x < reach && x < W; ++x) column(x);
    for (int64_t x = 0; x < W; ++x) {
      if (x + reach < W) column(x + reach);
      row(x);
      if (x >= reach) spread(x - reach);
    }
    for (int64_t x = W > reach ? W - reach : 0; x < W; ++x) spread(x);
  }
}

template <int K, int L, typename S>
void backward_groups(const AdaptiveConvBackwardChannelsLast<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  if constexpr (L * int64_t(sizeof(T)) > 16)
    if (args.conv.C / args.groups < L) return backward_groups<K, L / 2>(args, begin, end);
  const AdaptiveConv& conv = args.conv;
  const int64_t C = conv.C, N = conv.N, plane = conv.H * conv.W, groups = args.groups, together = steps_together(conv);
  const LaneGroup<L> widest((C + groups - 1) / groups);
  const int64_t size = plane * widest.lanes;
  const bool sign_unknown = slope_of<T>(conv, N - 1) != T(1);
  Scratch<T> planes((sign_unknown ? 4 : 3) * size), again(args.states ? 0 : (N - 1) * size), rings(2 * K * widest.lanes);
  Scratch<T> tap_rows(((K + 1) * K + 1) * widest.channels), chunk(L * CHUNK);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / groups, c = i % groups * C / groups;
    const LaneGroup<L> group((i % groups + 1) * C / groups - c);
    T *const x = planes, *const output = planes + 3 * size, *g = planes + size, *grad_u = planes + 2 * size;
    const auto state = [&](int64_t n) -> LanePlane<T> {  // u_n, the input of step n
      if (n == 0) return scratch_plane(group, x);
      if (n == N) return scratch_plane(group, output);
      if (args.states)  // only read
        return tensor_plane(group, const_cast<T*>(args.states) + (b * (N - 1) + n - 1) * plane * C + c, C);
      return scratch_plane(group, again + (n - 1) * size);
    };
    gather_planes(group, args.x + (b * C + c) * plane, plane, (T*)chunk, x);
    gather_planes(group, args.grad + (b * C + c) * plane, plane, (T*)chunk, g);
    const int64_t made = sign_unknown ? N : N - 1;
    for (int64_t n = args.states ? N - 1 : 0; n < made; n += together)
      run_steps<K, L, S, T>(
          conv, group, n, made - n < together ? made - n : together,
          [&](int64_t step) { return read_lanes(conv, args.taps, b, step, c); }, args.pixel, state, (T*)rings, (T*)nullptr);
    for (int64_t n = N - 1; n >= 0; --n) {
      step_of_lanes_backward<K, L, S, T>(conv, group, read_lanes(conv, args.taps, b, n, c), args.pixel,
                                         slope_of<T>(conv, n), read_only(state(n)), read_only(state(n + 1)), g,
                                         locate_lanes(conv, args.grad_taps, b, n, c),
                                         args.grad_pixel, args.stream, rings, tap_rows, grad_u);
      T* const done = g;
      g = grad_u;
      grad_u = done;
    }
    scatter_planes(group, read_only(scratch_plane(group, g)), plane, (T*)chunk, args.grad_x + (b * C + c) * plane);
  }
  if (args.stream) stream_fence();
}

}  // namespace

template <typename S>
void adaptive_conv_forward_channels_last(const AdaptiveConvForwardChannelsLast<S>& args, int64_t begin, int64_t end) {
  constexpr int L = LANES<accumulate_t<S>>;
  if (args.conv.K == 3) return forward_groups<3, L>(args, begin, end);
  if (args.conv.K == 5) return forward_groups<5, L>(args, begin, end);
  forward_groups<7, L>(args, begin, end);
}

template <typename S>
void adaptive_conv_backward_channels_last(const AdaptiveConvBackwardChannelsLast<S>& args, int64_t begin, int64_t end) {
  constexpr int L = LANES<accumulate_t<S>>;
  if (args.conv.K == 3) return backward_groups<3, L>(args, begin, end);
  if (args.conv.K == 5) return backward_groups<5, L>(args, begin, end);
  backward_groups<7, L>(args, begin, end);
}

#define INSTANTIATE(S)                                                                                                     \
  template void adaptive_conv_forward_channels_last<S>(const AdaptiveConvForwardChannelsLast<S>&, int64_t, int64_t);       \
  template void adaptive_conv_backward_channels_last<S>(const AdaptiveConvBackwardChannelsLast<S>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Float16)
INSTANTIATE(BFloat16)

}  // namespace tta::TTA_ISA
