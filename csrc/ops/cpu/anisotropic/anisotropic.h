// Oriented Gaussian blur on the CPU: interface between anisotropic.cpp, which holds tensors, and the loops.
//
// The weights of a tile of pixels are computed once for all channels; taps t and -t share one. reference.py has the formulas.
#pragma once

#include <cstdint>

#include "isa.h"

namespace tta {

struct AnisotropicBlur {
  int64_t B, C, H, W;  // of the output; the padded frame has K - 1 more rows and columns
  int64_t K;
};

template <typename T>
struct AnisotropicForward {
  AnisotropicBlur blur;
  const T *padded, *precision;
  T* out;
};

template <typename T>
struct AnisotropicGradPrecision {
  AnisotropicBlur blur;
  const T *grad, *padded, *precision;
  T* grad_precision;
};

template <typename T>
struct AnisotropicGradPadded {
  AnisotropicBlur blur;
  const T *grad, *precision;
  T* grad_padded;
  int64_t rows;  // of the padded frame in an item of work
};

}  // namespace tta

TTA_DECLARE_FOR_EACH_ISA(
    // [begin, end) counts rows of all frames.
    template <typename T>
    void anisotropic_forward(const AnisotropicForward<T>& args, int64_t begin, int64_t end);
    template <typename T>
    void anisotropic_grad_precision(const AnisotropicGradPrecision<T>& args, int64_t begin, int64_t end);
    // [begin, end) counts bands of rows of all padded frames.
    template <typename T>
    void anisotropic_grad_padded(const AnisotropicGradPadded<T>& args, int64_t begin, int64_t end);)
