#include "pixel_conv.h"

#include <vector>

#include "dispatch.h"
#include "huge_pages.h"
#include "library.h"

namespace {
using torch::stable::Tensor;

enum Padding { ZEROS, REFLECT, REPLICATE, CIRCULAR };

// Where pixel i of an axis of `size`, beyond its ends, is taken from; -1 for zeros.
int64_t source(int64_t i, int64_t size, int64_t padding) {
  if (i >= 0 && i < size) return i;
  switch (padding) {
    case REFLECT:
      return i < 0 ? -i : 2 * (size - 1) - i;
    case REPLICATE:
      return i < 0 ? 0 : size - 1;
    case CIRCULAR:
      return i < 0 ? i + size : i - size;
    default:
      return -1;
  }
}

// The options of a call, with the tables of the padded frame.
class Plan {
 public:
  Plan(const char* op, int64_t B, int64_t C, int64_t in_h, int64_t in_w, const Tensor& out_like, int64_t K, int64_t G,
       int64_t dilation, int64_t stride, int64_t scale, int64_t padding) {
    STD_TORCH_CHECK(K >= 1 && K % 2 == 1 && G >= 1 && C % G == 0 && dilation >= 1 && stride >= 1 && scale >= 1 &&
                        in_h >= 1 && in_w >= 1 && padding >= ZEROS && padding <= CIRCULAR,
                    op, ": expected an odd kernel size, groups that divide the channels, and options of at least 1");
    const int64_t margin = dilation * (K / 2), least = padding == REFLECT ? margin + 1 : padding == CIRCULAR ? margin : 1;
    STD_TORCH_CHECK(in_h >= least && in_w >= least, op, ": the frame is too small for its padding");
    STD_TORCH_CHECK(out_like.size(0) == B && out_like.size(2) == (in_h * scale - 1) / stride + 1 &&
                        out_like.size(3) == (in_w * scale - 1) / stride + 1,
                    op, ": expected a kernel for every pixel of the output");
    const auto table = [&](int64_t size) {
      std::vector<int32_t> found;
      for (int64_t i = -margin; i < size + margin; ++i)
        for (int64_t s = 0; s < scale; ++s) found.push_back(int32_t(source(i, size, padding)));
      return found;
    };
    rows_ = table(in_h);
    columns_ = table(in_w);
    conv = {B, C, G, K, out_like.size(2), out_like.size(3), in_h, in_w, stride, dilation * scale, int64_t(columns_.size()),
            stride == 1 && scale == 1 ? margin : -1, rows_.data(), columns_.data()};
  }

  tta::PixelConv conv;

 private:
  std::vector<int32_t> rows_, columns_;
};

// Kernels whose taps, or whose pixels, lie side by side are read where they are; all others are copied first.
class Kernels {
 public:
  explicit Kernels(const Tensor& kernels) : tensor(is_readable(kernels) ? kernels : torch::stable::contiguous(kernels)) {
    layout = {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
    if (tensor.size(3) == 1 || layout.pixel == 1)
      layout.pixel = 1;
    else
      layout.channel = 1;
  }

  Tensor tensor;
  tta::KernelLayout layout;

 private:
  static bool is_readable(const Tensor& t) {
    return t.stride(3) == 1 || t.size(3) == 1 || t.stride(1) == 1 || t.size(1) == 1;
  }
};

template <typename S>
bool is_staged(const tta::PixelConv& conv, const tta::KernelLayout& layout) {
  return layout.pixel != 1 || (sizeof(S) == 2 && conv.C > conv.G);
}

void expect_kernels(const char* op, const Tensor& kernels, const Tensor& other, int64_t K, int64_t G) {
  STD_TORCH_CHECK(kernels.dim() == 4 && other.dim() == 4 && kernels.scalar_type() == other.scalar_type() &&
                      kernels.size(1) == G * K * K,
                  op, ": expected two tensors (B, C, H, W) of one dtype, and G*K*K channels of kernels");
}

Tensor adaptive_conv2d(const Tensor& x_in, const Tensor& kernels_in, int64_t K, int64_t G, int64_t dilation,
                       int64_t stride, int64_t scale, int64_t padding) {
  expect_kernels("adaptive_conv2d", kernels_in, x_in, K, G);
  const Plan plan("adaptive_conv2d", x_in.size(0), x_in.size(1), x_in.size(2), x_in.size(3), kernels_in, K, G, dilation,
                  stride, scale, padding);
  const Tensor x = torch::stable::contiguous(x_in);
  const Kernels kernels(kernels_in);
  const auto& conv = plan.conv;
  Tensor out = torch::stable::new_empty(x, {conv.B, conv.C, conv.H, conv.W});
  if (out.numel() == 0) return out;
  tta::dispatch("adaptive_conv2d", x.scalar_type(), [&]<typename S>() {
    tta::prefer_huge_pages(tta::mutable_data<S>(out), out.numel() * int64_t(sizeof(S)));
    const tta::PixelConvForward<S> args{conv, kernels.layout, tta::data<S>(x), tta::data<S>(kernels.tensor),
                                        tta::mutable_data<S>(out)};
    const int64_t items = TTA_BEST_ISA(pixel_conv_items<S>)(conv, is_staged<S>(conv, kernels.layout));
    const auto kernel = TTA_BEST_ISA(pixel_conv<S>);
    torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  });
  return out;
}

Tensor adaptive_conv2d_grad_x(const Tensor& g_in, const Tensor& kernels_in, int64_t K, int64_t G, int64_t dilation,
                              int64_t stride, int64_t scale, int64_t padding, int64_t height, int64_t width) {
  expect_kernels("adaptive_conv2d_grad_x", kernels_in, g_in, K, G);
  const Plan plan("adaptive_conv2d_grad_x", g_in.size(0), g_in.size(1), height, width, kernels_in, K, G, dilation, stride,
                  scale, padding);
  const Tensor g = torch::stable::contiguous(g_in);
  const Kernels kernels(kernels_in);
  const auto& conv = plan.conv;
  Tensor grad_x = torch::stable::new_empty(g, {conv.B, conv.C, height, width});
  if (grad_x.numel() == 0) return grad_x;
  STD_TORCH_CHECK(g.size(2) == conv.H && g.size(3) == conv.W, "adaptive_conv2d_grad_x: expected g like the output");
  tta::dispatch("adaptive_conv2d_grad_x", g.scalar_type(), [&]<typename S>() {
    const tta::PixelConvGradX<S> args{conv, kernels.layout, tta::data<S>(g), tta::data<S>(kernels.tensor),
                                      tta::mutable_data<S>(grad_x)};
    const int64_t items = TTA_BEST_ISA(pixel_conv_grad_x_items<S>)(conv, is_staged<S>(conv, kernels.layout));
    const auto kernel = TTA_BEST_ISA(pixel_conv_grad_x<S>);
    torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  });
  return grad_x;
}

// Whether a large result is written past the cache. Memory that is mapped anew comes zeroed through the cache, where the
// lines of small planes still are when they are written.
bool is_streamed(int64_t bytes, int64_t plane_bytes) {
  const bool is_fresh = bytes >= (int64_t(32) << 20);
  return bytes >= (int64_t(4) << 20) && !(is_fresh && plane_bytes <= (int64_t(128) << 10));
}

Tensor adaptive_conv2d_grad_kernels(const Tensor& g_in, const Tensor& x_in, int64_t K, int64_t G, int64_t dilation,
                                    int64_t stride, int64_t scale, int64_t padding) {
  STD_TORCH_CHECK(g_in.dim() == 4 && x_in.dim() == 4 && g_in.scalar_type() == x_in.scalar_type() &&
                      g_in.size(1) == x_in.size(1),
                  "adaptive_conv2d_grad_kernels: expected g and x (B, C, H, W) of one dtype");
  const Plan plan("adaptive_conv2d_grad_kernels", x_in.size(0), x_in.size(1), x_in.size(2), x_in.size(3), g_in, K, G,
                  dilation, stride, scale, padding);
  const Tensor g = torch::stable::contiguous(g_in), x = torch::stable::contiguous(x_in);
  const auto& conv = plan.conv;
  Tensor grad_kernels = torch::stable::new_empty(x, {conv.B, G * K * K, conv.H, conv.W});
  if (grad_kernels.numel() == 0) return grad_kernels;
  tta::dispatch("adaptive_conv2d_grad_kernels", x.scalar_type(), [&]<typename S>() {
    const int64_t bytes = grad_kernels.numel() * int64_t(sizeof(S));
    tta::prefer_huge_pages(tta::mutable_data<S>(grad_kernels), bytes);
    const tta::PixelConvGradKernels<S> args{conv, tta::data<S>(g), tta::data<S>(x), tta::mutable_data<S>(grad_kernels),
                                            is_streamed(bytes, conv.H * conv.W * int64_t(sizeof(S)))};
    const int64_t items = TTA_BEST_ISA(pixel_conv_grad_kernels_items<S>)(conv);
    const auto kernel = TTA_BEST_ISA(pixel_conv_grad_kernels<S>);
    torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  });
  return grad_kernels;
}
}  // namespace

TTA_CPU_KERNELS(m) {
  m.impl("adaptive_conv2d", TORCH_BOX(&adaptive_conv2d));
  m.impl("adaptive_conv2d_grad_x", TORCH_BOX(&adaptive_conv2d_grad_x));
  m.impl("adaptive_conv2d_grad_kernels", TORCH_BOX(&adaptive_conv2d_grad_kernels));
}
