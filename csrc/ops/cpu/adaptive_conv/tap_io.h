// Transfer of filter taps between memory, in the storage dtype, and the loops, in the accumulation dtype.
//
// float32 and float64 taps are read where they are; half-precision taps are widened block by block into scratch buffers.
// Gradients of taps are computed block by block and rounded on the way to memory. For *.isa.cpp only.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "adaptive_conv.h"
#include "scratch.h"

namespace tta::TTA_ISA {

// Taps of a block in the type that is computed in, `stride` apart.
template <typename T>
struct BlockTaps {
  T *vertical, *horizontal, *bias;
  int64_t stride;
};

namespace {

// n values as the type that is computed in: where they are, or converted into `scratch`
inline const float* widen(const float* from, int64_t, float*) { return from; }
inline const double* widen(const double* from, int64_t, double*) { return from; }
template <typename S>
const float* widen(const S* from, int64_t n, float* scratch) {
  load_values(from, n, scratch);
  return scratch;
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
inline void copy_narrowed(float* to, const float* from, int64_t n, bool stream) {
  if (stream) return stream_bytes((char*)to, (const char*)from, n * int64_t(sizeof(float)));
  std::memcpy(to, from, size_t(n) * sizeof(float));
}
inline void copy_narrowed(double* to, const double* from, int64_t n, bool stream) {
  if (stream) return stream_bytes((char*)to, (const char*)from, n * int64_t(sizeof(double)));
  std::memcpy(to, from, size_t(n) * sizeof(double));
}
template <typename S>
void copy_narrowed(S* to, const float* from, int64_t n, bool stream) {
  constexpr int64_t CHUNK = 1024;
  S rounded[CHUNK];
  for (int64_t first = 0; first < n; first += CHUNK) {
    const int64_t m = n - first < CHUNK ? n - first : CHUNK;
    store_values(from + first, m, rounded);
    if (stream)
      stream_bytes((char*)(to + first), (const char*)rounded, m * int64_t(sizeof(S)));
    else
      std::memcpy(to + first, rounded, size_t(m) * sizeof(S));
  }
}


template <typename S>
S* locate(S* base, const TapLayout& layout, int64_t b, int64_t n, int64_t c) {
  return base ? base + b * layout.batch + n * layout.step + c * layout.channel : nullptr;
}

template <typename S>
Taps<S> locate(const Taps<S>& taps, int64_t b, int64_t n, int64_t c) {
  return {locate(taps.vertical, taps.layout, b, n, c), locate(taps.horizontal, taps.layout, b, n, c),
          locate(taps.bias, taps.bias_layout, b, n, c), taps.layout, taps.bias_layout};
}

// Brings the taps of a block of one channel into reach: in place, or widened into scratch of (2K + 1) * capacity values.
template <typename S>
class TapReader {
 public:
  using T = accumulate_t<S>;

  TapReader(const AdaptiveConv& conv, int64_t capacity)
      : W_(conv.W), K_(conv.K), own_(conv.own), capacity_(capacity), scratch_(2 * (K_ + 1) * capacity) {
    for (int64_t i = 0; i < capacity; ++i) zeros()[i] = 0;
  }

  // The taps of `n` pixels in whole rows, from pixel `first` on
  BlockTaps<const T> read(const Taps<const S>& taps, int64_t first, int64_t n) {
    const bool in_place = sizeof(S) == sizeof(T) && taps.layout.row == W_;
    const T* vertical = read(taps.vertical, taps.layout, first, n, scratch_);
    const T* horizontal = own_ ? read(taps.horizontal, taps.layout, first, n, scratch_ + K_ * capacity_) : vertical;
    const T* bias = taps.bias ? read_plane(taps.bias, taps.bias_layout.row, first, n, scratch_ + 2 * K_ * capacity_) : zeros();
    return {vertical, horizontal, bias, in_place ? taps.layout.tap : capacity_};
  }

 private:
  T* zeros() const { return scratch_ + (2 * K_ + 1) * capacity_; }

  // In place where that is possible
  const T* read_plane(const S* plane, int64_t row, int64_t first, int64_t n, T* scratch) const {
    if (row == W_) return widen(plane + first, n, scratch);
    for (int64_t i = 0; i < n; i += W_) load_values(plane + (first + i) / W_ * row, W_, scratch + i);
    return scratch;
  }

  const T* read(const S* taps, const TapLayout& layout, int64_t first, int64_t n, T* scratch) const {
    const T* found = read_plane(taps, layout.row, first, n, scratch);
    for (int64_t t = 1; t < K_ && found == scratch; ++t)
      read_plane(taps + t * layout.tap, layout.row, first, n, scratch + t * capacity_);
    return found;
  }

  int64_t W_, K_;
  bool own_;
  int64_t capacity_;
  Scratch<T> scratch_;
};

// Where the gradients of a block's taps are made, and the way from there to memory.
template <typename S>
class TapWriter {
 public:
  using T = accumulate_t<S>;

  TapWriter(const AdaptiveConv& conv, int64_t capacity, bool wanted, bool stream)
      : plane_(conv.H * conv.W),
        K_(conv.K),
        own_(conv.own),
        stream_(stream),
        capacity_(capacity),
        scratch_(wanted ? (2 * K_ + 1) * capacity : 0) {
    // Without taps of its own the horizontal pass leaves these at zero.
    for (int64_t i = 0; wanted && i < K_ * capacity; ++i) scratch_[K_ * capacity + i] = 0;
  }

  BlockTaps<T> block() {
    return {scratch_, own_ ? scratch_ + K_ * capacity_ : scratch_, scratch_ + 2 * K_ * capacity_, capacity_};
  }

  void write(const Taps<S>& taps, int64_t first, int64_t n) {
    for (int64_t t = 0; t < K_; ++t) {
      copy_narrowed(taps.vertical + t * plane_ + first, scratch_ + t * capacity_, n, stream_);
      copy_narrowed(taps.horizontal + t * plane_ + first, scratch_ + (K_ + t) * capacity_, n, stream_);
    }
    if (taps.bias) copy_narrowed(taps.bias + first, scratch_ + 2 * K_ * capacity_, n, stream_);
  }

 private:
  int64_t plane_, K_;
  bool own_, stream_;
  int64_t capacity_;
  Scratch<T> scratch_;
};

// Channels of the filters, or rows of their predictor, that hold the taps of `count` channels from c at step n: vertical
// taps, horizontal taps and biases, in this order.
struct GroupChannels {
  int64_t first[3], count[3], total;
};

inline GroupChannels filter_channels(const AdaptiveConv& conv, int64_t n, int64_t c, int64_t count) {
  const int64_t taps = conv.C * conv.K, step = n * 2 * taps, biases = conv.N * 2 * taps + n * conv.C;
  GroupChannels rows{{step + c * conv.K, step + taps + c * conv.K, biases + c},
            {count * conv.K, conv.own ? count * conv.K : 0, count},
            0};
  for (int run = 0; run < 3; ++run) rows.total += rows.count[run];
  return rows;
}

// call(index within the group, channel of the filters)
template <typename Call>
void for_each_row(const GroupChannels& rows, Call call) {
  int64_t i = 0;
  for (int run = 0; run < 3; ++run)
    for (int64_t k = 0; k < rows.count[run]; ++k) call(i++, rows.first[run] + k);
}

// Taps of channel c of `count` in a tile that holds these channels, `stride` apart.
template <typename T>
BlockTaps<T> tile_taps(const AdaptiveConv& conv, T* tile, int64_t c, int64_t count, int64_t stride) {
  T* vertical = tile + c * conv.K * stride;
  T* horizontal = conv.own ? vertical + count * conv.K * stride : vertical;
  return {vertical, horizontal, tile + ((conv.own ? 2 : 1) * count * conv.K + c) * stride, stride};
}

}  // namespace
}  // namespace tta::TTA_ISA
