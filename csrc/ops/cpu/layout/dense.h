// Contiguous copies of channels_last tensors, about fifty times faster than a copy that reads one value at a time.
#pragma once

#include <cstdint>

#include "isa.h"

// Channels [begin, end) of one image: to[c * pixels + p] = from[p * pixel + c]. Values are bits of 2, 4 or 8 bytes.
TTA_DECLARE_FOR_EACH_ISA(
    template <typename T>
    void transpose_channels(const T* from, int64_t pixel, int64_t pixels, int64_t begin, int64_t end, T* to);)
