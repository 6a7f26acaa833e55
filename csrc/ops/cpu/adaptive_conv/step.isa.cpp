// The steps themselves, compiled once for the type that is computed in, whatever the type that is kept in memory.
#include "step.h"

namespace tta::TTA_ISA {
namespace {

template <int KS, typename T>
void forward_of(const Block& block, const BlockTaps<const T>& taps, T slope, const T* u, T* middle, T* z) {
  const T *k1 = taps.vertical, *k2 = taps.horizontal, *bias = taps.bias;
  const int64_t stride = taps.stride;
  filter_columns<KS, T>(
      block, [=](int64_t t, int64_t i, int64_t j) { return k1[t * stride + i] * u[j]; },
      [=](int64_t i, T sum) { middle[i] = sum; });
  filter_rows<KS, T>(
      block, [=](int64_t t, int64_t i, int64_t j) { return k2[t * stride + i] * middle[j]; },
      [=](int64_t i, T sum) {
        const T value = sum + bias[i];
        z[i] = value > 0 ? value : value * slope;
      });
}

template <int KS, typename T>
void backward_of(const Block& block, const BlockTaps<const T>& taps, T slope, const T* u, const T* output, const T* g,
                 const BlockTaps<T>* grad_taps, T* scratch, T* grad_u) {
  const T *k1 = taps.vertical, *k2 = taps.horizontal;
  const int64_t stride = taps.stride, n = (block.y1 - block.y0) * block.W;
  T *middle = scratch, *g_middle = scratch + n;
  T* gz = grad_taps ? grad_taps->bias : scratch + 2 * n;  // the gradient in z is that in the bias
  if (output == nullptr) {
    forward_of<KS, T>(block, taps, slope, u, middle, gz);
    output = gz;
  } else if (grad_taps) {
    filter_columns<KS, T>(
        block, [=](int64_t t, int64_t i, int64_t j) { return k1[t * stride + i] * u[j]; },
        [=](int64_t i, T sum) { middle[i] = sum; });
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) gz[i] = output[i] > 0 ? g[i] : g[i] * slope;
  filter_rows_adjoint<KS, T>(
      block, [=](int64_t t, int64_t i) { return k2[t * stride + i] * gz[i]; },
      [=](int64_t j, T sum) { g_middle[j] = sum; });
  filter_columns_adjoint<KS, T>(
      block, [=](int64_t t, int64_t i) { return k1[t * stride + i] * g_middle[i]; }, grad_u);
  if (grad_taps == nullptr) return;
  T *d1 = grad_taps->vertical, *d2 = grad_taps->horizontal;
  const int64_t grad_stride = grad_taps->stride;
  for_each_row_tap<KS>(block, [=](int64_t t, int64_t i, int64_t j) { d2[t * grad_stride + i] = gz[i] * middle[j]; });
  if (d1 == d2)
    for_each_column_tap<KS>(block, [=](int64_t t, int64_t i, int64_t j) { d1[t * grad_stride + i] += g_middle[i] * u[j]; });
  else
    for_each_column_tap<KS>(block, [=](int64_t t, int64_t i, int64_t j) { d1[t * grad_stride + i] = g_middle[i] * u[j]; });
}

}  // namespace

template <typename T>
void forward_block(const Block& block, const BlockTaps<const T>& taps, T slope, const T* u, T* middle, T* z) {
  with_taps<T>(block.K, [&]<int KS>() { forward_of<KS, T>(block, taps, slope, u, middle, z); });
}

template <typename T>
void backward_block(const Block& block, const BlockTaps<const T>& taps, T slope, const T* u, const T* output,
                    const T* g, const BlockTaps<T>* grad_taps, T* scratch, T* grad_u) {
  with_taps<T>(block.K, [&]<int KS>() {
    backward_of<KS, T>(block, taps, slope, u, output, g, grad_taps, scratch, grad_u);
  });
}

#define INSTANTIATE(T)                                                                                          \
  template void forward_block<T>(const Block&, const BlockTaps<const T>&, T, const T*, T*, T*);                 \
  template void backward_block<T>(const Block&, const BlockTaps<const T>&, T, const T*, const T*, const T*,     \
                                  const BlockTaps<T>*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace tta::TTA_ISA
