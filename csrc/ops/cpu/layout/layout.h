// Memory formats of the inputs of kernels.
#pragma once

#include "huge_pages.h"
#include "library.h"

namespace tta {

// Whether the channels of every pixel (B, C, H, W) are adjacent and pixels have one distance, also in a slice of channels.
bool is_channels_last(const torch::stable::Tensor& tensor);

// Views of tensors (..., H, W, C) as (..., C, H, W), and back
torch::stable::Tensor channels_to_front(const torch::stable::Tensor& tensor);
torch::stable::Tensor channels_to_back(const torch::stable::Tensor& tensor);

// A tensor (B, C, H, W) of the type of `like` whose channels are adjacent
torch::stable::Tensor empty_channels_last(const torch::stable::Tensor& like, int64_t B, int64_t C, int64_t H, int64_t W);

// The tensor, or a contiguous copy.
torch::stable::Tensor dense(const torch::stable::Tensor& tensor);

}  // namespace tta
