// Dispatch over the supported dtypes, and access to the data of tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "check.h"
#include "half.h"

namespace tta {

// dispatch("op", x.scalar_type(), [&]<typename T>() { ... }) calls the lambda with float, double, Float16 or BFloat16.
template <typename Function>
void dispatch(const char* op, torch::headeronly::ScalarType type, Function&& function) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return function.template operator()<float>();
    case ScalarType::Double:
      return function.template operator()<double>();
    case ScalarType::Half:
      return function.template operator()<Float16>();
    case ScalarType::BFloat16:
      return function.template operator()<BFloat16>();
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float64, float16 or bfloat16");
  }
}

// The dtype that results of x's dtype are accumulated in (accumulate_t in half.h).
inline torch::headeronly::ScalarType computing_type(const torch::stable::Tensor& x) {
  using torch::headeronly::ScalarType;
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <typename T>
const T* data(const torch::stable::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace tta
