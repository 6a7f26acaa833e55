// Checks of tensors inside the kernels. They are the second line of defense: tta_restore/_core/checks.py raises errors with
// the caller's argument names before a kernel runs.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#define TTA_CHECK(op, condition, ...) STD_TORCH_CHECK(condition, op ": ", __VA_ARGS__)

namespace tta {

// Whether two tensors have the same shape and dtype.
inline bool same_shape(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  if (a.dim() != b.dim() || a.scalar_type() != b.scalar_type()) return false;
  for (int64_t i = 0; i < a.dim(); ++i)
    if (a.size(i) != b.size(i)) return false;
  return true;
}

}  // namespace tta
