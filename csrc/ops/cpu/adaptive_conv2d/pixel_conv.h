// Per-pixel K x K kernels on the CPU: interface between pixel_conv.cpp, which holds tensors, and the loops.
//
// `out[c, y, x] = sum k[g, i, j, y, x] * padded[c, stride * y + step * i, stride * x + step * j]`. The padded frame exists
// only as two tables: which row and which column of the input each of its rows and columns is, or -1 for zeros. They
// express all padding modes, and the repeated pixels of an upsampling. Rows come in tiles; a tile's part of the padded
// frame is copied into scratch, one phase of the stride after the other, so that all loops are contiguous.
#pragma once

#include <cstdint>

#include "half.h"
#include "isa.h"

namespace tta {

struct PixelConv {
  int64_t B, C, G, K;
  int64_t H, W;              // of the output
  int64_t in_h, in_w;        // of the input
  int64_t stride, step;      // in pixels of the padded frame: between outputs, between taps
  int64_t padded_w;          // columns of the padded frame
  int64_t plain_first;       // padded columns [plain_first, plain_first + in_w) are the input's; -1 where none are
  const int32_t *rows, *columns;
};

// Elements between neighbors of kernels (B, G*K*K, H, W). Either `channel` or `pixel` is 1.
struct KernelLayout {
  int64_t batch, channel, row, pixel;
};

template <typename S>
struct PixelConvForward {
  PixelConv conv;
  KernelLayout layout;
  const S *x, *kernels;
  S* out;
};

template <typename S>
struct PixelConvGradX {
  PixelConv conv;
  KernelLayout layout;
  const S *g, *kernels;
  S* grad_x;
};

template <typename S>
struct PixelConvGradKernels {
  PixelConv conv;
  const S *g, *x;
  S* grad_kernels;
  bool stream;  // write past the cache
};

}  // namespace tta

TTA_DECLARE_FOR_EACH_ISA(
    // How many items of work there are; a result belongs to one item, whatever the number of threads.
    template <typename S>
    int64_t pixel_conv_items(const PixelConv& conv, bool staged);
    template <typename S>
    int64_t pixel_conv_grad_x_items(const PixelConv& conv, bool staged);
    template <typename S>
    int64_t pixel_conv_grad_kernels_items(const PixelConv& conv);

    template <typename S>
    void pixel_conv(const PixelConvForward<S>& args, int64_t begin, int64_t end);
    template <typename S>
    void pixel_conv_grad_x(const PixelConvGradX<S>& args, int64_t begin, int64_t end);
    template <typename S>
    void pixel_conv_grad_kernels(const PixelConvGradKernels<S>& args, int64_t begin, int64_t end);)
