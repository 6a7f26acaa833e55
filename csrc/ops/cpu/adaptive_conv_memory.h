// Scratch memory, and blocks of taps on their way between memory and the loops. For *.isa.cpp only.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "half.h"

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

// n values as the type that is computed in: where they are, or converted into `room`
inline const float* widen(const float* from, int64_t, float*) { return from; }
inline const double* widen(const double* from, int64_t, double*) { return from; }
template <typename S>
const float* widen(const S* from, int64_t n, float* room) {
  for (int64_t i = 0; i < n; ++i) room[i] = load(from[i]);
  return room;
}

// Copy past the cache: the lines are written whole and are not read first, which saves a third of the traffic.
inline void stream_bytes(char* to, const char* from, int64_t bytes) {
#if defined(__AVX512F__)
  constexpr int64_t LINE = 64;
  const auto line = [](char* t, const char* f) { _mm512_stream_si512((__m512i*)t, _mm512_loadu_si512(f)); };
#elif defined(__AVX__)
  constexpr int64_t LINE = 32;
  const auto line = [](char* t, const char* f) {
    _mm256_stream_si256((__m256i*)t, _mm256_loadu_si256((const __m256i*)f));
  };
#elif defined(__SSE2__)
  constexpr int64_t LINE = 16;
  const auto line = [](char* t, const char* f) { _mm_stream_si128((__m128i*)t, _mm_loadu_si128((const __m128i*)f)); };
#else
  constexpr int64_t LINE = 16;
  const auto line = [](char* t, const char* f) { std::memcpy(t, f, LINE); };
#endif
  int64_t head = -int64_t(uintptr_t(to)) & 63;
  if (head > bytes) head = bytes;
  std::memcpy(to, from, size_t(head));
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64)
    for (int64_t j = 0; j < 64; j += LINE) line(to + i + j, from + i + j);
  std::memcpy(to + i, from + i, size_t(bytes - i));
}

inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Round n values to the type they are kept in.
inline void put(float* to, const float* from, int64_t n, bool stream) {
  if (stream) return stream_bytes((char*)to, (const char*)from, n * int64_t(sizeof(float)));
  std::memcpy(to, from, size_t(n) * sizeof(float));
}
inline void put(double* to, const double* from, int64_t n, bool stream) {
  if (stream) return stream_bytes((char*)to, (const char*)from, n * int64_t(sizeof(double)));
  std::memcpy(to, from, size_t(n) * sizeof(double));
}
template <typename S>
void put(S* to, const float* from, int64_t n, bool stream) {
  constexpr int64_t CHUNK = 1024;
  S rounded[CHUNK];
  for (int64_t first = 0; first < n; first += CHUNK) {
    const int64_t m = n - first < CHUNK ? n - first : CHUNK;
    for (int64_t i = 0; i < m; ++i) store(from[first + i], rounded[i]);
    if (stream)
      stream_bytes((char*)(to + first), (const char*)rounded, m * int64_t(sizeof(S)));
    else
      std::memcpy(to + first, rounded, size_t(m) * sizeof(S));
  }
}

}  // namespace
}  // namespace tta::TTA_ISA
