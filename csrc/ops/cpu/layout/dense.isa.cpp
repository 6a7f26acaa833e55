#include "dense.h"

#include "transpose.h"

namespace tta::TTA_ISA {

template <typename T>
void transpose_channels(const T* from, int64_t pixel, int64_t pixels, int64_t begin, int64_t end, T* to) {
  constexpr int64_t PIXELS = 256;  // of a tile, whose lines stay in the first cache levels while it is written
  for (int64_t p = 0; p < pixels; p += PIXELS)
    transpose(from + p * pixel + begin, pixel, end - begin, pixels - p < PIXELS ? pixels - p : PIXELS,
              to + begin * pixels + p, pixels);
}

#define INSTANTIATE(T) \
  template void transpose_channels<T>(const T*, int64_t, int64_t, int64_t, int64_t, T*);
INSTANTIATE(uint16_t)
INSTANTIATE(uint32_t)
INSTANTIATE(uint64_t)

}  // namespace tta::TTA_ISA
