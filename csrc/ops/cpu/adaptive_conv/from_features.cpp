#include "from_features.h"

#include <tuple>

#include "dispatch.h"
#include "library.h"
#include "ops/cpu/layout/layout.h"

namespace {
using tta::AdaptiveConv;
using tta::FeaturesLayout;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Channels whose filters are made together: more of them read the features less often, fewer keep every thread busy
// and fit the second cache level.
constexpr int64_t GROUP = 16;

int64_t group_size(int64_t frames, int64_t C) {
  int64_t group = GROUP < C ? GROUP : C;
  while (group > 1 && frames * ((C + group - 1) / group) < torch::stable::get_num_threads()) group = (group + 1) / 2;
  return group;
}

AdaptiveConv check(const char* op, const Tensor& x, const Tensor& features, const Tensor& weight, const Tensor& bias,
                   int64_t num_steps, int64_t kernel_size, double slope, bool activate_last, bool own) {
  STD_TORCH_CHECK(x.dim() == 4 && features.dim() == 4 && weight.dim() == 2 && bias.dim() == 1, op,
                  ": expected x (B, C, H, W), features (B, D, H, W), weight (N*C*(2K+1), D), bias (N*C*(2K+1),)");
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(features.scalar_type() == type && weight.scalar_type() == type && bias.scalar_type() == type, op,
                  ": expected one dtype");
  const AdaptiveConv conv{x.size(0), x.size(1), x.size(2), x.size(3), num_steps, kernel_size, slope, activate_last, own};
  const int64_t rows = conv.N * conv.C * (2 * conv.K + 1);
  STD_TORCH_CHECK(num_steps >= 1 && kernel_size >= 1 && kernel_size % 2 == 1 && features.size(0) == conv.B &&
                      features.size(2) == conv.H && features.size(3) == conv.W && weight.size(0) == rows &&
                      weight.size(1) == features.size(1) && bias.size(0) == rows,
                  op, ": expected features (B, D, H, W), weight (N*C*(2K+1), D), bias (N*C*(2K+1),), N >= 1, K odd");
  return conv;
}

// One frame's features, packed for the products and, if asked, transposed.
template <typename S>
void pack(const AdaptiveConv& conv, int64_t D, const FeaturesLayout& layout, const S* features,
          tta::accumulate_t<S>* packed, tta::accumulate_t<S>* transposed) {
  const auto kernel = TTA_BEST_ISA(pack_features<S>);
  torch::stable::parallel_for(0, layout.chunks, 1, [&](int64_t begin, int64_t end) {
    kernel(conv, D, features, packed, transposed, begin, end);
  });
}

Tensor iac_from_features(const Tensor& x_in, const Tensor& features_in, const Tensor& weight_in, const Tensor& bias_in,
                         int64_t num_steps, int64_t kernel_size, double slope, bool activate_last, bool own) {
  const AdaptiveConv conv = check("iac_from_features", x_in, features_in, weight_in, bias_in, num_steps, kernel_size,
                                  slope, activate_last, own);
  const Tensor x = tta::dense(x_in), features = tta::dense(features_in),
               weight = tta::dense(weight_in), bias = tta::dense(bias_in);
  Tensor out = torch::stable::empty_like(x);
  if (out.numel() == 0) return out;
  const int64_t D = features.size(1), group = group_size(conv.B, conv.C);
  tta::dispatch("iac_from_features", x.scalar_type(), [&]<typename S>() {
    using T = tta::accumulate_t<S>;
    const FeaturesLayout layout = TTA_BEST_ISA(features_layout<T>)(conv, D);
    Tensor packed = torch::stable::new_empty(x, {conv.B, layout.features}, tta::computing_type(x));
    for (int64_t b = 0; b < conv.B; ++b)
      pack<S>(conv, D, layout, tta::data<S>(features) + b * D * conv.H * conv.W,
              tta::mutable_data<T>(packed) + b * layout.features, nullptr);
    const tta::FromFeatures<S> args{conv, D, group, tta::data<S>(x), tta::data<S>(weight), tta::data<S>(bias),
                                 tta::data<T>(packed)};
    const auto kernel = TTA_BEST_ISA(from_features_forward<S>);
    torch::stable::parallel_for(0, conv.B * ((conv.C + group - 1) / group), 1, [&](int64_t begin, int64_t end) {
      kernel(args, tta::mutable_data<S>(out), begin, end);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> iac_from_features_backward(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& features_in, const Tensor& weight_in,
    const Tensor& bias_in, int64_t num_steps, int64_t kernel_size, double slope, bool activate_last, bool own,
    bool need_features, bool need_weight) {
  const AdaptiveConv conv = check("iac_from_features_backward", x_in, features_in, weight_in, bias_in, num_steps,
                                  kernel_size, slope, activate_last, own);
  STD_TORCH_CHECK(grad_in.numel() == x_in.numel() && grad_in.scalar_type() == x_in.scalar_type(),
                  "iac_from_features_backward: expected grad like x");
  const Tensor grad = tta::dense(grad_in), x = tta::dense(x_in),
               features = tta::dense(features_in), weight = tta::dense(weight_in),
               bias = tta::dense(bias_in);
  const Tensor none = torch::stable::new_empty(x, {0});
  Tensor grad_x = torch::stable::empty_like(x);
  Tensor grad_features = need_features ? torch::stable::empty_like(features) : none;
  // Summed over frames and chunks in the computing type.
  const auto sums = [&](const Tensor& like) { return torch::stable::new_zeros(like, like.sizes(), tta::computing_type(x)); };
  Tensor grad_weight = need_weight ? sums(weight) : none, grad_bias = need_weight ? sums(bias) : none;
  const auto kept = [&](const Tensor& tensor) { return torch::stable::to(tensor, x.scalar_type()); };
  if (x.numel() == 0) {
    if (need_features) torch::stable::zero_(grad_features);
    return {grad_x, grad_features, kept(grad_weight), kept(grad_bias)};
  }
  const int64_t D = features.size(1), plane = conv.H * conv.W, group = group_size(1, conv.C);
  const int64_t groups = (conv.C + group - 1) / group;
  const int64_t threads = torch::stable::get_num_threads(), workers = threads < groups ? threads : groups;
  tta::dispatch("iac_from_features_backward", x.scalar_type(), [&]<typename S>() {
    using T = tta::accumulate_t<S>;
    T* const nowhere = nullptr;
    const FeaturesLayout layout = TTA_BEST_ISA(features_layout<T>)(conv, D);
    Tensor packed = torch::stable::new_empty(x, {layout.features}, tta::computing_type(x));
    Tensor transposed = torch::stable::new_empty(x, {need_weight ? plane * layout.depth : 0}, tta::computing_type(x));
    // Every worker adds up its own gradient in the features; the sums are added in order.
    Tensor parts = torch::stable::new_empty(x, {need_features ? workers : 0, layout.features}, tta::computing_type(x));
    for (int64_t b = 0; b < conv.B; ++b) {
      pack<S>(conv, D, layout, tta::data<S>(features) + b * D * plane, tta::mutable_data<T>(packed),
              need_weight ? tta::mutable_data<T>(transposed) : nowhere);
      if (need_features) torch::stable::zero_(parts);
      const tta::FromFeaturesBackward<S> args{
          // The packed features are this frame's alone.
          {conv, D, group, tta::data<S>(x), tta::data<S>(weight), tta::data<S>(bias),
           tta::data<T>(packed) - b * layout.features},
          b,
          tta::data<S>(grad),
          tta::data<T>(transposed),
          tta::mutable_data<S>(grad_x),
          need_weight ? tta::mutable_data<T>(grad_weight) : nowhere,
          need_weight ? tta::mutable_data<T>(grad_bias) : nowhere};
      const auto kernel = TTA_BEST_ISA(from_features_backward<S>);
      torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
        for (int64_t worker = begin; worker < end; ++worker)
          kernel(args, need_features ? tta::mutable_data<T>(parts) + worker * layout.features : nowhere, worker, workers);
      });
      if (!need_features) continue;
      const auto unpack = TTA_BEST_ISA(unpack_features<S>);
      torch::stable::parallel_for(0, layout.chunks, 1, [&](int64_t begin, int64_t end) {
        unpack(conv, D, tta::data<T>(parts), workers, layout.features,
               tta::mutable_data<S>(grad_features) + b * D * plane, begin, end);
      });
    }
  });
  return {grad_x, grad_features, kept(grad_weight), kept(grad_bias)};
}
}  // namespace

TTA_CPU_KERNELS(m) {
  m.impl("iac_from_features", TORCH_BOX(&iac_from_features));
  m.impl("iac_from_features_backward", TORCH_BOX(&iac_from_features_backward));
}
