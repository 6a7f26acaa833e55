// Differences of a frame with itself moved by one pixel, in the order of the specification:
// anti-diagonal, vertical, main diagonal, horizontal. Rows of W pixels; `below` is null under the last row.
#pragma once

#include "half.h"
#include "isa.h"

TTA_DECLARE_FOR_EACH_ISA(
    // sums[j] = sum over the row of (difference j of a) * (difference j of b)
    template <typename T>
    void self_shift_row(const T* a, const T* a_below, const T* b, const T* b_below, int64_t W, double* sums);

    // out[x] = sum over the neighbors n of x within the frame: weights[direction of n] * (row[x] - n)
    template <typename T>
    void self_shift_laplacian_row(const T* above, const T* row, const T* below, int64_t W,
                                  const accumulate_t<T>* weights, T* out);)
