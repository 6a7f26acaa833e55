// A step and its backward on one block of rows, and the way of its taps between there and memory. For *.isa.cpp only.
#pragma once

#include "adaptive_conv.h"
#include "passes.h"
#include "tap_io.h"

namespace tta::TTA_ISA {

// z = leaky_relu(H V u + b); slope 1 is no activation. Leaves V u in `middle`.
template <typename T>
void forward_block(const Block& block, const BlockTaps<const T>& taps, T slope, const T* u, T* middle, T* z);

// Adds the gradient in u to the plane grad_u, and writes those in the taps unless grad_taps is null. `g` is the
// gradient in the step's output and `output` that output; null, and it is computed. `scratch` holds three blocks.
template <typename T>
void backward_block(const Block& block, const BlockTaps<const T>& taps, T slope, const T* u, const T* output,
                    const T* g, const BlockTaps<T>* grad_taps, T* scratch, T* grad_u);

namespace {

// Whether the loops are unrolled for so many taps
template <typename T>
bool unrolls(int64_t K) {
  return K == 3 || (sizeof(T) == sizeof(float) && (K == 5 || K == 7));
}

// call.operator()<KS>() with the number of taps as a constant where the loops are unrolled for it
template <typename T, typename Call>
void with_taps(int64_t K, Call call) {
  if (K == 3) return call.template operator()<3>();
  if constexpr (sizeof(T) == sizeof(float)) {
    if (K == 5) return call.template operator()<5>();
    if (K == 7) return call.template operator()<7>();
  }
  call.template operator()<0>();
}

// Blocks of about a thousand pixels, whose arrays fit the first cache level together, but not of few rows, which would
// make most of them border rows.
inline int64_t block_rows(int64_t H, int64_t W) {
  const int64_t rows = 1024 / W > 4 ? 1024 / W : 4;
  return rows < H ? rows : H;
}

// 1 where step n has no activation
template <typename T>
T slope_of(const AdaptiveConv& conv, int64_t n) {
  return n < conv.N - 1 || conv.activate_last ? T(conv.slope) : T(1);
}

// block(Block, first pixel, pixels) down the frame
template <typename Call>
void for_each_block(const AdaptiveConv& conv, int64_t rows, Call call) {
  for (int64_t y = 0; y < conv.H; y += rows) {
    const int64_t end = y + rows < conv.H ? y + rows : conv.H;
    call(Block{conv.H, conv.W, y, end, conv.K}, y * conv.W, (end - y) * conv.W);
  }
}

}  // namespace
}  // namespace tta::TTA_ISA
