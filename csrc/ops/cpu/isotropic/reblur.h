// Blur with isotropic kernels on the CPU: what isotropic.cpp, which holds tensors, asks of the loops in isotropic.isa.cpp.
//
// All kernel sizes mix into one kernel per pixel, which the symmetries of the square leave with one coefficient per class
// of offsets {(+-a, +-b), (+-b, +-a)}, a >= b: 36 for 15 x 15 taps. A tile of coefficients lives in the cache, never more.
#pragma once

#include <cstdint>

#include "half.h"
#include "isa.h"

namespace tta {

// Tables of one kernel size; symmetry.py explains rings and classes. Ring `rings` holds the corner taps (logit 0).
struct KernelTable {
  int64_t radius, first_seed, rings, classes;
  const int32_t* below;          // of each ring: the seed at or below its distance
  const double* fraction;        // of each ring: how far it lies towards the next seed
  const double* taps;            // of each ring, and of the corners
  const int32_t* ring_of_class;  // of the classes with a <= radius, which come first
};

struct Isotropic {
  int64_t B, C, H, W;  // the images
  int64_t radius;      // of the largest kernel
  int64_t classes;     // (radius + 1)(radius + 2) / 2
  int64_t seeds;       // channels
  int64_t count;       // of tables; there is one weight more
  int64_t most_rings;
  const KernelTable* tables;
};

// One frame and its results: pointers to its first value. Null gradients are not wanted.
template <typename S>
struct IsotropicForward {
  Isotropic blur;
  const S *image, *seeds, *weights;
  S* out;
};

template <typename S>
struct IsotropicBackward {
  Isotropic blur;
  const S *grad, *image, *seeds, *weights;
  // Rows are added to grad_image by the block that they belong to; what a block has for its neighbors' rows waits in
  // `halo` (B, blocks, C, 2 * radius, W): the rows above the block, then those below.
  accumulate_t<S>*grad_image, *halo;
  S *grad_seeds, *grad_weights;
  int64_t block_rows, blocks;
};

}  // namespace tta

TTA_DECLARE_FOR_EACH_ISA(
    // rows [begin, end) of the B * H rows
    template <typename S>
    void isotropic_reblur_rows(const IsotropicForward<S>& args, int64_t begin, int64_t end);

    // blocks [begin, end) of the B * blocks blocks of rows
    template <typename S>
    void isotropic_reblur_backward_blocks(const IsotropicBackward<S>& args, int64_t begin, int64_t end);

    // add to the rows of blocks [begin, end) what the neighboring blocks have for them
    template <typename S>
    void isotropic_reblur_add_halos(const IsotropicBackward<S>& args, int64_t begin, int64_t end);)
