#include "dense.h"

#include "layout.h"

namespace tta {
namespace {

template <typename T>
void copy(const torch::stable::Tensor& from, const torch::stable::Tensor& to) {
  const int64_t B = from.size(0), C = from.size(1), pixels = from.size(2) * from.size(3);
  constexpr int64_t CHANNELS = 64 / int64_t(sizeof(T));  // of a task: a cache line of each pixel, few streams of writes
  const int64_t tasks = (C + CHANNELS - 1) / CHANNELS;
  const T* in = static_cast<const T*>(from.const_data_ptr());
  T* out = static_cast<T*>(to.mutable_data_ptr());
  const auto kernel = TTA_BEST_ISA(transpose_channels<T>);
  torch::stable::parallel_for(0, B * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / tasks, first = i % tasks * CHANNELS;
      kernel(in + b * from.stride(0), from.stride(3), pixels, first, first + CHANNELS < C ? first + CHANNELS : C,
             out + b * C * pixels);
    }
  });
}

}  // namespace

bool is_channels_last(const torch::stable::Tensor& tensor) {
  return tensor.dim() == 4 && tensor.stride(1) == 1 && tensor.size(1) > 1 && tensor.stride(3) >= tensor.size(1) &&
         (tensor.size(2) == 1 || tensor.stride(2) == tensor.size(3) * tensor.stride(3));
}

torch::stable::Tensor channels_to_front(const torch::stable::Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return torch::stable::transpose(torch::stable::transpose(tensor, last - 2, last), last - 1, last);
}

torch::stable::Tensor channels_to_back(const torch::stable::Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return torch::stable::transpose(torch::stable::transpose(tensor, last - 1, last), last - 2, last);
}

torch::stable::Tensor empty_channels_last(const torch::stable::Tensor& like, int64_t B, int64_t C, int64_t H, int64_t W) {
  torch::stable::Tensor out = torch::stable::new_empty(like, {B, H, W, C});
  prefer_huge_pages(out.mutable_data_ptr(), out.numel() * int64_t(out.element_size()));
  return channels_to_front(out);
}

torch::stable::Tensor dense(const torch::stable::Tensor& tensor) {
  if (tensor.is_contiguous() || tensor.numel() == 0 || !is_channels_last(tensor)) return torch::stable::contiguous(tensor);
  torch::stable::Tensor out =
      torch::stable::new_empty(tensor, {tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)});
  prefer_huge_pages(out.mutable_data_ptr(), out.numel() * int64_t(out.element_size()));
  switch (tensor.element_size()) {
    case 2:
      copy<uint16_t>(tensor, out);
      return out;
    case 4:
      copy<uint32_t>(tensor, out);
      return out;
    default:
      copy<uint64_t>(tensor, out);
      return out;
  }
}

}  // namespace tta
