// Memory formats of the inputs of kernels.
#pragma once

#include "huge_pages.h"
#include "library.h"

namespace tta {

// Whether the channels of every pixel (B, C, H, W) are adjacent and pixels have one distance, also in a slice of channels.
bool is_channels_last(const torch::stable::Tensor& tensor);

// The tensor, or a contiguous copy.
torch::stable::Tensor dense(const torch::stable::Tensor& tensor);

}  // namespace tta
