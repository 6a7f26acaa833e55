// Uninitialized scratch buffers that live as long as a call of a kernel. For *.isa.cpp only.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace tta::TTA_ISA {
namespace {

template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<T*>(std::malloc(size_t(count) * sizeof(T) + 1))) {
    if (data_ == nullptr) std::abort();  // no exception may cross the boundary to libtorch's thread pool
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return data_; }

 private:
  T* data_;
};

}  // namespace
}  // namespace tta::TTA_ISA
