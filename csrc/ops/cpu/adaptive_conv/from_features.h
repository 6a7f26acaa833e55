// Adaptive convolution whose filters a 1x1 convolution predicts: taps = weight * features + bias. The filters of a
// group of channels are made for a chunk of rows at a time, in the cache, and used at once.
#pragma once

#include "adaptive_conv.h"

namespace tta {

struct FeaturesLayout {
  int64_t rows;      // of the frame, in a chunk
  int64_t chunks;    // in a frame
  int64_t columns;   // of a chunk, with padding
  int64_t depth;     // D, the one that the bias is multiplied with, and padding
  int64_t features;  // values in a frame's packed features
};

template <typename S>
struct FromFeatures {
  using T = accumulate_t<S>;
  AdaptiveConv conv;
  int64_t D;
  int64_t group;    // channels in a group; the last one may have fewer
  const S *x, *weight, *bias;
  const T* packed;  // features of all frames, as pack_features leaves them
};

template <typename S>
struct FromFeaturesBackward {
  using T = accumulate_t<S>;
  FromFeatures<S> forward;
  int64_t frame;
  const S* grad;
  const T* transposed;  // features of this frame and a one, (H * W, depth)
  S* grad_x;
  T *grad_weight, *grad_bias;  // null: not wanted; added to
};

}  // namespace tta

TTA_DECLARE_FOR_EACH_ISA(
    template <typename T>
    FeaturesLayout features_layout(const AdaptiveConv& conv, int64_t D);

    // Chunks [begin, end) of one frame's features (D, H * W), as the products read them; transposed may be null.
    template <typename S>
    void pack_features(const AdaptiveConv& conv, int64_t D, const S* features, accumulate_t<S>* packed,
                       accumulate_t<S>* transposed, int64_t begin, int64_t end);

    // Groups [begin, end) of all frames.
    template <typename S>
    void from_features_forward(const FromFeatures<S>& args, S* out, int64_t begin, int64_t end);

    // Groups first, first + stride, ... of one frame. grad_features (laid out like packed features) is added to, or null.
    template <typename S>
    void from_features_backward(const FromFeaturesBackward<S>& args, accumulate_t<S>* grad_features, int64_t first,
                            int64_t stride);

    // Undoes the packing for chunks [begin, end): out (D, H * W) = the sum of `count` packed arrays, `apart` apart.
    template <typename S>
    void unpack_features(const AdaptiveConv& conv, int64_t D, const accumulate_t<S>* packed, int64_t count,
                         int64_t apart, S* out, int64_t begin, int64_t end);)
