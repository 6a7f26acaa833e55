#include "anisotropic.h"

#include <tuple>

#include "dispatch.h"
#include "library.h"
#include "ops/cpu/layout/layout.h"

namespace {
using tta::AnisotropicBlur;
using torch::stable::Tensor;

AnisotropicBlur expect(const char* op, const Tensor& padded, const Tensor& precision, int64_t K) {
  STD_TORCH_CHECK(padded.dim() == 4 && precision.dim() == 4 && padded.scalar_type() == precision.scalar_type() && K >= 1 &&
                      K % 2 == 1 && precision.size(0) == padded.size(0) && precision.size(1) == 3 &&
                      padded.size(2) == precision.size(2) + K - 1 && padded.size(3) == precision.size(3) + K - 1,
                  op, ": expected padded (B, C, H+K-1, W+K-1) and precision (B, 3, H, W) of one dtype, K odd");
  return {padded.size(0), padded.size(1), precision.size(2), precision.size(3), K};
}

// call.operator()<T>() with the dtype of x, which has no half type
template <typename Call>
void dispatch_wide(const char* op, const Tensor& x, Call call) {
  using torch::headeronly::ScalarType;
  if (x.scalar_type() == ScalarType::Float) return call.template operator()<float>();
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Double, op, ": expected float32 or float64");
  call.template operator()<double>();
}

Tensor anisotropic_reblur(const Tensor& padded_in, const Tensor& precision_in, int64_t K) {
  const AnisotropicBlur blur = expect("anisotropic_reblur", padded_in, precision_in, K);
  const Tensor padded = tta::dense(padded_in), precision = tta::dense(precision_in);
  Tensor out = torch::stable::new_empty(padded, {blur.B, blur.C, blur.H, blur.W});
  if (out.numel() == 0) return out;
  dispatch_wide("anisotropic_reblur", padded, [&]<typename T>() {
    const tta::AnisotropicForward<T> args{blur, tta::data<T>(padded), tta::data<T>(precision), tta::mutable_data<T>(out)};
    const auto kernel = TTA_BEST_ISA(anisotropic_forward<T>);
    torch::stable::parallel_for(0, blur.B * blur.H, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  });
  return out;
}

std::tuple<Tensor, Tensor> anisotropic_reblur_backward(const Tensor& grad_in, const Tensor& padded_in,
                                                       const Tensor& precision_in, int64_t K, bool need_image,
                                                       bool need_precision) {
  const char* op = "anisotropic_reblur_backward";
  const AnisotropicBlur blur = expect(op, padded_in, precision_in, K);
  STD_TORCH_CHECK(grad_in.dim() == 4 && grad_in.scalar_type() == padded_in.scalar_type() && grad_in.size(0) == blur.B &&
                      grad_in.size(1) == blur.C && grad_in.size(2) == blur.H && grad_in.size(3) == blur.W,
                  op, ": expected grad (B, C, H, W)");
  const Tensor grad = tta::dense(grad_in), padded = tta::dense(padded_in), precision = tta::dense(precision_in);
  const int64_t height = blur.H + K - 1;
  Tensor grad_padded = need_image ? torch::stable::new_empty(padded, {blur.B, blur.C, height, blur.W + K - 1})
                                  : torch::stable::new_empty(padded, {0});
  Tensor grad_precision = need_precision ? torch::stable::new_empty(padded, {blur.B, 3, blur.H, blur.W})
                                         : torch::stable::new_empty(padded, {0});
  if (grad.numel() == 0) {
    if (need_precision) torch::stable::zero_(grad_precision);
    return {grad_padded, grad_precision};
  }
  dispatch_wide(op, padded, [&]<typename T>() {
    if (need_precision) {
      const tta::AnisotropicGradPrecision<T> args{blur, tta::data<T>(grad), tta::data<T>(padded), tta::data<T>(precision),
                                                  tta::mutable_data<T>(grad_precision)};
      const auto kernel = TTA_BEST_ISA(anisotropic_grad_precision<T>);
      torch::stable::parallel_for(0, blur.B * blur.H, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    }
    if (need_image) {
      // A band computes the weights of K - 1 rows beyond it, too. Its sums do not depend on where it begins.
      const int64_t threads = torch::stable::get_num_threads(), least = 8 * K;
      int64_t rows = (blur.B * height + threads - 1) / threads;
      rows = rows < least ? least : rows;
      rows = rows < height ? rows : height;
      const int64_t bands = (height + rows - 1) / rows;
      const tta::AnisotropicGradPadded<T> args{blur, tta::data<T>(grad), tta::data<T>(precision),
                                               tta::mutable_data<T>(grad_padded), rows};
      const auto kernel = TTA_BEST_ISA(anisotropic_grad_padded<T>);
      torch::stable::parallel_for(0, blur.B * bands, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    }
  });
  return {grad_padded, grad_precision};
}
}  // namespace

TTA_CPU_KERNELS(m) {
  m.impl("anisotropic_reblur", TORCH_BOX(&anisotropic_reblur));
  m.impl("anisotropic_reblur_backward", TORCH_BOX(&anisotropic_reblur_backward));
}
