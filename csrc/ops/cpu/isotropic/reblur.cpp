#include "reblur.h"

#include <cmath>
#include <tuple>
#include <vector>

#include "dispatch.h"
#include "library.h"
#include "ops/cpu/layout/layout.h"

namespace {
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int64_t class_count(int64_t radius) { return (radius + 1) * (radius + 2) / 2; }

// The tables of symmetry.py.
class Tables {
 public:
  Tables(const char* op, const Tensor& image, const Tensor& seeds, const Tensor& weights,
         const std::vector<int64_t>& kernel_sizes) {
    STD_TORCH_CHECK(image.dim() == 4 && seeds.dim() == 4 && weights.dim() == 4 && !kernel_sizes.empty() &&
                        image.scalar_type() == seeds.scalar_type() && image.scalar_type() == weights.scalar_type(),
                    op, ": expected image, seeds and weights (B, C, H, W) of one dtype, and kernel sizes");
    blur = {image.size(0), image.size(1), image.size(2), image.size(3), 0, 0, 0, int64_t(kernel_sizes.size()), 0, nullptr};
    below_.resize(kernel_sizes.size());
    fraction_.resize(kernel_sizes.size());
    taps_.resize(kernel_sizes.size());
    ring_of_class_.resize(kernel_sizes.size());
    for (size_t n = 0; n < kernel_sizes.size(); ++n) {
      STD_TORCH_CHECK(kernel_sizes[n] >= 1 && kernel_sizes[n] % 2 == 1, op, ": expected odd kernel sizes");
      add(n, kernel_sizes[n] / 2);
    }
    blur.classes = class_count(blur.radius);
    blur.tables = tables_.data();
    for (const Tensor* t : {&seeds, &weights})
      STD_TORCH_CHECK(t->size(0) == blur.B && t->size(2) == blur.H && t->size(3) == blur.W, op,
                      ": expected seeds and weights with the batch and frame of the image");
    STD_TORCH_CHECK(seeds.size(1) == blur.seeds && weights.size(1) == blur.count + 1, op,
                    ": expected sum((K+1)/2) channels of seeds and 1+N of weights");
  }

  tta::Isotropic blur;

 private:
  void add(size_t n, int64_t radius) {
    // Squared distances in the disc become rings in ascending order; all others are the corner ring.
    std::vector<int32_t> ring(radius * radius + 1, -1);
    for (int64_t a = 0; a <= radius; ++a)
      for (int64_t b = 0; b <= a; ++b)
        if (a * a + b * b <= radius * radius) ring[a * a + b * b] = 0;
    int32_t rings = 0;
    for (int64_t squared = 0; squared <= radius * radius; ++squared) {
      if (ring[squared] < 0) continue;
      ring[squared] = rings++;
      const double r = std::sqrt(double(squared));
      below_[n].push_back(int32_t(r));
      fraction_[n].push_back(r - std::floor(r));
    }
    taps_[n].assign(rings + 1, 0);
    for (int64_t a = 0; a <= radius; ++a)
      for (int64_t b = 0; b <= a; ++b) {
        const int64_t squared = a * a + b * b;
        const int32_t of_class = squared <= radius * radius ? ring[squared] : rings;
        ring_of_class_[n].push_back(of_class);
        taps_[n][of_class] += a == 0 ? 1 : b == 0 || a == b ? 4 : 8;
      }
    tables_.push_back({radius, blur.seeds, rings, class_count(radius), below_[n].data(), fraction_[n].data(),
                         taps_[n].data(), ring_of_class_[n].data()});
    blur.seeds += radius + 1;
    if (radius > blur.radius) blur.radius = radius;
    if (rings > blur.most_rings) blur.most_rings = rings;
  }

  std::vector<std::vector<int32_t>> below_, ring_of_class_;
  std::vector<std::vector<double>> fraction_, taps_;
  std::vector<tta::KernelTable> tables_;
};

Tensor isotropic_reblur(const Tensor& image_in, const Tensor& seeds_in, const Tensor& weights_in,
                        std::vector<int64_t> kernel_sizes) {
  const Tables tables("isotropic_reblur", image_in, seeds_in, weights_in, kernel_sizes);
  const Tensor image = tta::dense(image_in), seeds = tta::dense(seeds_in),
               weights = tta::dense(weights_in);
  Tensor out = torch::stable::empty_like(image);
  if (out.numel() == 0) return out;
  tta::dispatch("isotropic_reblur", image.scalar_type(), [&]<typename S>() {
    const tta::IsotropicForward<S> args{tables.blur, tta::data<S>(image), tta::data<S>(seeds), tta::data<S>(weights),
                                        tta::mutable_data<S>(out)};
    const auto kernel = TTA_BEST_ISA(isotropic_reblur_rows<S>);
    torch::stable::parallel_for(0, tables.blur.B * tables.blur.H, 8,
                                [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> isotropic_reblur_backward(const Tensor& grad_in, const Tensor& image_in,
                                                             const Tensor& seeds_in, const Tensor& weights_in,
                                                             std::vector<int64_t> kernel_sizes, bool need_image,
                                                             bool need_kernels) {
  const Tables tables("isotropic_reblur_backward", image_in, seeds_in, weights_in, kernel_sizes);
  STD_TORCH_CHECK(tta::same_shape(grad_in, image_in), "isotropic_reblur_backward: expected grad like image");
  const Tensor grad = tta::dense(grad_in), image = tta::dense(image_in),
               seeds = tta::dense(seeds_in), weights = tta::dense(weights_in);
  const auto result = [&](const Tensor& like, bool needed) {
    return needed ? torch::stable::empty_like(like) : torch::stable::new_empty(image, {0});
  };
  const ScalarType kept = tta::computing_type(image);
  const tta::Isotropic& blur = tables.blur;
  // Summed in float32; the result itself where that is its type.
  Tensor sums = need_image ? torch::stable::new_empty(image, {blur.B, blur.C, blur.H, blur.W}, kept)
                           : torch::stable::new_empty(image, {0});
  Tensor grad_seeds = result(seeds, need_kernels), grad_weights = result(weights, need_kernels);
  if (image.numel() > 0 && (need_image || need_kernels)) {
    // Fixed blocks, so that sums do not depend on the number of threads; at least as high as a halo.
    const int64_t rows = blur.radius > 32 ? blur.radius : 32, blocks = (blur.H + rows - 1) / rows;
    Tensor halo = torch::stable::new_empty(
        image, {need_image ? blur.B * blocks * blur.C * 2 * blur.radius * blur.W : 0}, kept);
    tta::dispatch("isotropic_reblur_backward", image.scalar_type(), [&]<typename S>() {
      using T = tta::accumulate_t<S>;
      T* no_sums = nullptr;
      S* none = nullptr;
      const tta::IsotropicBackward<S> args{blur,
                                           tta::data<S>(grad),
                                           tta::data<S>(image),
                                           tta::data<S>(seeds),
                                           tta::data<S>(weights),
                                           need_image ? tta::mutable_data<T>(sums) : no_sums,
                                           need_image ? tta::mutable_data<T>(halo) : no_sums,
                                           need_kernels ? tta::mutable_data<S>(grad_seeds) : none,
                                           need_kernels ? tta::mutable_data<S>(grad_weights) : none,
                                           rows,
                                           blocks};
      const auto kernel = TTA_BEST_ISA(isotropic_reblur_backward_blocks<S>);
      torch::stable::parallel_for(0, blur.B * blocks, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
      if (!need_image) return;
      const auto add_halos = TTA_BEST_ISA(isotropic_reblur_add_halos<S>);
      torch::stable::parallel_for(0, blur.B * blocks, 8,
                                  [&](int64_t begin, int64_t end) { add_halos(args, begin, end); });
    });
  }
  return {torch::stable::to(sums, image.scalar_type()), grad_seeds, grad_weights};
}
}  // namespace

TTA_CPU_KERNELS(m) {
  m.impl("isotropic_reblur", TORCH_BOX(&isotropic_reblur));
  m.impl("isotropic_reblur_backward", TORCH_BOX(&isotropic_reblur_backward));
}
