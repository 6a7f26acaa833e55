// Uninitialized scratch buffers that live as long as a call of a kernel. For *.isa.cpp only.
//
// They begin with a cache line, so that whole vectors never straddle two.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace tta::TTA_ISA {
namespace {

template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : memory_(std::malloc(size_t(count) * sizeof(T) + LINE)) {
    if (memory_ == nullptr) std::abort();  // no exception may cross the boundary to libtorch's thread pool
    data_ = reinterpret_cast<T*>((uintptr_t(memory_) + LINE - 1) & ~(LINE - 1));
  }
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return data_; }

 private:
  static constexpr uintptr_t LINE = 64;
  void* memory_;
  T* data_;
};

}  // namespace
}  // namespace tta::TTA_ISA
