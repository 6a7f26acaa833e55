// The second derivative of all steps of one channel: the tangent du runs beside the state u, and the adjoints p of the
// tangent and q of the state run back through both. reference.py: iac_double_backward has the same in tensors.
#include "step.h"

namespace tta::TTA_ISA {
namespace {

// u -> z and du -> dz. Rooms hold a block each.
template <int KS, typename T>
void dual_forward_block(const Block& block, const BlockTaps<const T>& taps, const BlockTaps<const T>& dtaps, T slope,
                        const T* u, const T* du, T* middle, T* dmiddle, T* z, T* dz) {
  const T *k1 = taps.vertical, *k2 = taps.horizontal, *d1 = dtaps.vertical, *d2 = dtaps.horizontal, *dbias = dtaps.bias;
  const int64_t s = taps.stride, ds = dtaps.stride;
  forward_block<T>(block, taps, slope, u, middle, z);
  filter_columns<KS, T>(
      block, [=](int64_t t, int64_t i, int64_t j) { return k1[t * s + i] * du[j] + d1[t * ds + i] * u[j]; },
      [=](int64_t i, T sum) { dmiddle[i] = sum; });
  filter_rows<KS, T>(
      block, [=](int64_t t, int64_t i, int64_t j) { return k2[t * s + i] * dmiddle[j] + d2[t * ds + i] * middle[j]; },
      [=](int64_t i, T sum) {
        const T value = sum + dbias[i];
        dz[i] = z[i] > 0 ? value : value * slope;
      });
}

// (p, q), adjoint to the step's results, to those of its inputs, added to p_next and q_next; with the gradients of the
// taps. `z` is the step's output. middle and dmiddle are made again.
template <int KS, typename T>
void dual_backward_block(const Block& block, const BlockTaps<const T>& taps, const BlockTaps<const T>& dtaps, T slope,
                         const T* u, const T* du, const T* z, const T* p, const T* q, const BlockTaps<T>& grad_taps,
                         T* scratch, int64_t capacity, T* p_next, T* q_next) {
  const T *k1 = taps.vertical, *k2 = taps.horizontal, *d1 = dtaps.vertical, *d2 = dtaps.horizontal;
  T *g1 = grad_taps.vertical, *g2 = grad_taps.horizontal, *g_bias = grad_taps.bias;
  const int64_t s = taps.stride, ds = dtaps.stride, gs = grad_taps.stride, n = (block.y1 - block.y0) * block.W;
  T *middle = scratch, *dmiddle = scratch + capacity, *pz = scratch + 2 * capacity, *qz = scratch + 3 * capacity,
    *pm = scratch + 4 * capacity, *qm = scratch + 5 * capacity;
  filter_columns<KS, T>(
      block, [=](int64_t t, int64_t i, int64_t j) { return k1[t * s + i] * u[j]; },
      [=](int64_t i, T sum) { middle[i] = sum; });
  filter_columns<KS, T>(
      block, [=](int64_t t, int64_t i, int64_t j) { return k1[t * s + i] * du[j] + d1[t * ds + i] * u[j]; },
      [=](int64_t i, T sum) { dmiddle[i] = sum; });
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    pz[i] = z[i] > 0 ? p[i] : p[i] * slope;
    qz[i] = z[i] > 0 ? q[i] : q[i] * slope;
    g_bias[i] = qz[i];
  }
  for_each_row_tap<KS>(block, [=](int64_t t, int64_t i, int64_t j) { g2[t * gs + i] = pz[i] * dmiddle[j] + qz[i] * middle[j]; });
  filter_rows_adjoint<KS, T>(
      block, [=](int64_t t, int64_t i) { return k2[t * s + i] * pz[i]; }, [=](int64_t j, T sum) { pm[j] = sum; });
  filter_rows_adjoint<KS, T>(
      block, [=](int64_t t, int64_t i) { return k2[t * s + i] * qz[i] + d2[t * ds + i] * pz[i]; },
      [=](int64_t j, T sum) { qm[j] = sum; });
  const bool shared = g1 == g2;
  for_each_column_tap<KS>(block, [=](int64_t t, int64_t i, int64_t j) {
    const T gradient = pm[i] * du[j] + qm[i] * u[j];
    g1[t * gs + i] = shared ? g1[t * gs + i] + gradient : gradient;
  });
  filter_columns_adjoint<KS, T>(
      block, [=](int64_t t, int64_t i) { return k1[t * s + i] * pm[i]; }, p_next);
  filter_columns_adjoint<KS, T>(
      block, [=](int64_t t, int64_t i) { return k1[t * s + i] * qm[i] + d1[t * ds + i] * pm[i]; }, q_next);
}

// Taps that are all zero, where the caller has none.
template <typename S>
class OptionalTapReader {
 public:
  using T = accumulate_t<S>;
  OptionalTapReader(const AdaptiveConv& conv, int64_t capacity, bool present)
      : reader_(conv, capacity), capacity_(capacity), zero_(present ? 0 : conv.K * capacity) {
    for (int64_t i = 0; !present && i < conv.K * capacity; ++i) zero_[i] = 0;
  }
  BlockTaps<const T> read(const Taps<const S>& taps, int64_t first, int64_t n) {
    if (taps.vertical == nullptr) return {zero_, zero_, zero_, capacity_};
    return reader_.read(taps, first, n);
  }

 private:
  TapReader<S> reader_;
  int64_t capacity_;
  Scratch<T> zero_;
};

template <typename S, int KS>
void double_backward_channels(const AdaptiveConvDoubleBackward<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const AdaptiveConv& conv = args.conv;
  const int64_t plane = conv.H * conv.W, rows = block_rows(conv.H, conv.W), capacity = rows * conv.W;
  TapReader<S> reader(conv, capacity);
  OptionalTapReader<S> dreader(conv, capacity, args.dtaps.vertical != nullptr);
  TapWriter<S> writer(conv, capacity, true, args.stream);
  // u_0 .. u_N and du_0 .. du_N of this channel, then the adjoints before and after a step
  Scratch<T> planes((2 * conv.N + 6) * plane), scratch(6 * capacity);
  T *const u = planes, *const du = u + (conv.N + 1) * plane, *const adjoints = du + (conv.N + 1) * plane;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / conv.C, c = i % conv.C;
    for (int64_t k = 0; k < plane; ++k) {
      u[k] = load(args.x[i * plane + k]);
      du[k] = args.dx ? load(args.dx[i * plane + k]) : T(0);
      adjoints[k] = load(args.grad[i * plane + k]);
      adjoints[plane + k] = 0;
    }
    for (int64_t n = 0; n < conv.N; ++n) {
      const Taps<const S> taps = locate(args.taps, b, n, c), dtaps = locate(args.dtaps, b, n, c);
      for_each_block(conv, rows, [&](const Block& block, int64_t first, int64_t pixels) {
        dual_forward_block<KS, T>(block, reader.read(taps, first, pixels), dreader.read(dtaps, first, pixels),
                                  slope_of<T>(conv, n), u + n * plane, du + n * plane, scratch, scratch + capacity,
                                  u + (n + 1) * plane + first, du + (n + 1) * plane + first);
      });
    }
    copy_narrowed(args.grad_grad + i * plane, du + conv.N * plane, plane, false);
    T *now = adjoints, *next = adjoints + 2 * plane;
    for (int64_t n = conv.N - 1; n >= 0; --n) {
      const Taps<const S> taps = locate(args.taps, b, n, c), dtaps = locate(args.dtaps, b, n, c);
      const Taps<S> grad_taps = locate(args.grad_taps, b, n, c);
      std::memset(next, 0, size_t(2 * plane) * sizeof(T));
      for_each_block(conv, rows, [&](const Block& block, int64_t first, int64_t pixels) {
        dual_backward_block<KS, T>(block, reader.read(taps, first, pixels), dreader.read(dtaps, first, pixels),
                                   slope_of<T>(conv, n), u + n * plane, du + n * plane, u + (n + 1) * plane + first,
                                   now + first, now + plane + first, writer.block(), scratch, capacity, next, next + plane);
        writer.write(grad_taps, first, pixels);
      });
      T* const done = now;
      now = next;
      next = done;
    }
    copy_narrowed(args.grad_x + i * plane, now + plane, plane, false);
  }
  if (args.stream) stream_fence();
}

}  // namespace

template <typename S>
void adaptive_conv_double_backward(const AdaptiveConvDoubleBackward<S>& args, int64_t begin, int64_t end) {
  if constexpr (sizeof(S) == sizeof(float))
    if (args.conv.K == 3) return double_backward_channels<S, 3>(args, begin, end);
  double_backward_channels<S, 0>(args, begin, end);
}

#define INSTANTIATE(S) \
  template void adaptive_conv_double_backward<S>(const AdaptiveConvDoubleBackward<S>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace tta::TTA_ISA
