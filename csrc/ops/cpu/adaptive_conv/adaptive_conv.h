// Adaptive convolutions on the CPU: what adaptive_conv.cpp, which holds tensors, asks of the loops in *.isa.cpp.
//
// Channels never mix, so one channel of one frame goes through all N steps while its plane stays in the cache, and the
// filters, of which nothing is used twice, stream through once.
#pragma once

#include <cstdint>

#include "half.h"
#include "isa.h"

namespace tta {

struct AdaptiveConv {
  int64_t B, C, H, W;  // the frames
  int64_t N, K;        // steps, taps
  double slope;        // of the leaky ReLU
  bool activate_last;
  bool own;  // the horizontal pass reads its own taps, not the vertical ones again
};

// Tap t of channel c at step n of frame b begins at base + b * batch + n * step + c * channel + t * tap. Its rows are `row`
// apart, and the pixels of a row are adjacent.
struct TapLayout {
  int64_t batch, step, channel, tap, row;
};

template <typename S>
struct Taps {
  S *vertical, *horizontal, *bias;  // null: all zero, or, of gradients, not wanted
  TapLayout layout, bias_layout;
};

template <typename S>
struct AdaptiveConvForward {
  AdaptiveConv conv;
  const S* x;
  Taps<const S> taps;
  S* out;
  accumulate_t<S>* states;  // u_1 .. u_{N-1}, (B, N-1, C, H, W), or null
};

// Forward with taps in channels_last memory: tap t of channel c of pixel i is at i * pixel + c * K + t, from what batch and
// step of the layout locate, the bias at i * pixel + c.
template <typename S>
struct AdaptiveConvForwardChannelsLast {
  AdaptiveConv conv;  // K = 3, 5 or 7, and at least as many channels as fill 16 bytes
  const S* x;
  Taps<const S> taps;
  int64_t pixel;
  int64_t groups;  // of about C / groups channels, at least 16 bytes, which are computed together
  S* out;
  accumulate_t<S>* states;  // u_1 .. u_{N-1}, (B, N-1, H, W, C), or null
};

template <typename S>
struct AdaptiveConvBackward {
  AdaptiveConv conv;
  const S *grad, *x;
  Taps<const S> taps;
  const accumulate_t<S>* states;  // null: computed again
  S* grad_x;
  Taps<S> grad_taps;
  bool stream;  // write grad_taps past the cache
};

// Backward with taps, their gradients and the states in channels_last memory, as above.
template <typename S>
struct AdaptiveConvBackwardChannelsLast {
  AdaptiveConv conv;
  const S *grad, *x;
  Taps<const S> taps;
  int64_t pixel;
  int64_t groups;
  const accumulate_t<S>* states;  // null: computed again
  S* grad_x;
  Taps<S> grad_taps;
  int64_t grad_pixel;  // of grad_taps
  bool stream;
};

// Gradients of <grad, J (dx, dtaps)> in grad, x and taps, J the Jacobian at (x, taps); reference.py derives them.
template <typename S>
struct AdaptiveConvDoubleBackward {
  AdaptiveConv conv;
  const S *dx, *grad, *x;  // dx null: zero
  Taps<const S> dtaps, taps;
  S *grad_grad, *grad_x;
  Taps<S> grad_taps;
  bool stream;
};

}  // namespace tta

// [begin, end) counts channels of all frames, b * C + c.
TTA_DECLARE_FOR_EACH_ISA(
    template <typename S>
    void adaptive_conv_forward(const AdaptiveConvForward<S>& args, int64_t begin, int64_t end);
    // [begin, end) counts groups of channels of all frames.
    template <typename S>
    void adaptive_conv_forward_channels_last(const AdaptiveConvForwardChannelsLast<S>& args, int64_t begin,
                                             int64_t end);
    template <typename S>
    void adaptive_conv_backward_channels_last(const AdaptiveConvBackwardChannelsLast<S>& args, int64_t begin,
                                              int64_t end);
    template <typename S>
    void adaptive_conv_backward(const AdaptiveConvBackward<S>& args, int64_t begin, int64_t end);
    template <typename S>
    void adaptive_conv_double_backward(const AdaptiveConvDoubleBackward<S>& args, int64_t begin, int64_t end);)
