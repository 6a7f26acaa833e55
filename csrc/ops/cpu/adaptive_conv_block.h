// A step and its backward on one block of rows, and the way of its taps between there and memory. For *.isa.cpp only.
#pragma once

#include "adaptive_conv.h"
#include "adaptive_conv_memory.h"
#include "adaptive_conv_step.h"

namespace tta::TTA_ISA {

// Taps of a block in the type that is computed in, `stride` apart.
template <typename T>
struct BlockTaps {
  T *vertical, *horizontal, *bias;
  int64_t stride;
};

// z = leaky_relu(H V u + b); slope 1 is no activation. Leaves V u in `middle`.
template <typename T>
void forward_block(const Block& block, const BlockTaps<const T>& taps, T slope, const T* u, T* middle, T* z);

// Adds the gradient in u to the plane grad_u, and writes those in the taps unless grad_taps is null. `g` is the
// gradient in the step's output and `output` that output; null, and it is computed. `rooms` holds three blocks.
template <typename T>
void backward_block(const Block& block, const BlockTaps<const T>& taps, T slope, const T* u, const T* output,
                    const T* g, const BlockTaps<T>* grad_taps, T* rooms, T* grad_u);

namespace {

// Whether the loops are unrolled for so many taps
template <typename T>
bool unrolls(int64_t K) {
  return K == 3 || (sizeof(T) == sizeof(float) && (K == 5 || K == 7));
}

// call.operator()<KS>() with the number of taps as a constant where the loops are unrolled for it
template <typename T, typename Call>
void with_taps(int64_t K, Call call) {
  if (K == 3) return call.template operator()<3>();
  if constexpr (sizeof(T) == sizeof(float)) {
    if (K == 5) return call.template operator()<5>();
    if (K == 7) return call.template operator()<7>();
  }
  call.template operator()<0>();
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

// Blocks of about a thousand pixels, whose arrays fit the first cache level together, but not of few rows, which would
// make most of them border rows.
inline int64_t block_rows(int64_t H, int64_t W) {
  const int64_t rows = 1024 / W > 4 ? 1024 / W : 4;
  return rows < H ? rows : H;
}

// Brings the taps of a block of one channel into reach: in place, or widened into room of (2K + 1) * capacity values.
template <typename S>
class TapReader {
 public:
  using T = accumulate_t<S>;

  TapReader(const AdaptiveConv& conv, int64_t capacity)
      : plane_(conv.H * conv.W),
        K_(conv.K),
        own_(conv.own),
        capacity_(capacity),
        room_((in_place ? 1 : 2 * K_ + 1) * capacity) {
    for (int64_t i = 0; i < capacity; ++i) room_[bias_room() + i] = 0;
  }

  BlockTaps<const T> read(const Taps<const S>& taps, int64_t first, int64_t n) {
    const int64_t stride = in_place ? plane_ : capacity_;
    const T* vertical = read(taps.vertical, first, n, room_);
    const T* horizontal = own_ ? read(taps.horizontal, first, n, room_ + K_ * capacity_) : vertical;
    const T* bias = taps.bias ? widen(taps.bias + first, n, room_ + bias_room()) : room_ + bias_room();
    return {vertical, horizontal, bias, stride};
  }

 private:
  static constexpr bool in_place = sizeof(S) == sizeof(T);

  int64_t bias_room() const { return in_place ? 0 : 2 * K_ * capacity_; }

  const T* read(const S* taps, int64_t first, int64_t n, T* room) {
    if constexpr (in_place) return taps + first;
    else {
      for (int64_t t = 0; t < K_; ++t) widen(taps + t * plane_ + first, n, room + t * capacity_);
      return room;
    }
  }

  int64_t plane_, K_;
  bool own_;
  int64_t capacity_;
  Scratch<T> room_;
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
        room_(wanted ? (2 * K_ + 1) * capacity : 0) {
    // Without taps of its own the horizontal pass leaves these at zero.
    for (int64_t i = 0; wanted && i < K_ * capacity; ++i) room_[K_ * capacity + i] = 0;
  }

  BlockTaps<T> room() {
    return {room_, own_ ? room_ + K_ * capacity_ : room_, room_ + 2 * K_ * capacity_, capacity_};
  }

  void write(const Taps<S>& taps, int64_t first, int64_t n) {
    for (int64_t t = 0; t < K_; ++t) {
      put(taps.vertical + t * plane_ + first, room_ + t * capacity_, n, stream_);
      put(taps.horizontal + t * plane_ + first, room_ + (K_ + t) * capacity_, n, stream_);
    }
    if (taps.bias) put(taps.bias + first, room_ + 2 * K_ * capacity_, n, stream_);
  }

 private:
  int64_t plane_, K_;
  bool own_, stream_;
  int64_t capacity_;
  Scratch<T> room_;
};

// 1 where step n has no activation
template <typename T>
T slope_of(const AdaptiveConv& conv, int64_t n) {
  return n < conv.N - 1 || conv.activate_last ? T(conv.slope) : T(1);
}

// block(Block, first pixel, pixels) down the frame
template <typename Call>
void each_block(const AdaptiveConv& conv, int64_t rows, Call call) {
  for (int64_t y = 0; y < conv.H; y += rows) {
    const int64_t end = y + rows < conv.H ? y + rows : conv.H;
    call(Block{conv.H, conv.W, y, end, conv.K}, y * conv.W, (end - y) * conv.W);
  }
}

}  // namespace
}  // namespace tta::TTA_ISA
