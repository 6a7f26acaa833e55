// One source, several instruction sets, chosen at run time.
//
// A kernel is a pair of files. `op.isa.cpp` holds the loops and is compiled once per x86-64 level, each time inside
// another namespace:
//
//     #include "op.h"
//     namespace tta::TTA_ISA { void rows(const float* in, float* out, int64_t n) { ... } }
//
// `op.h` declares them for all levels and `op.cpp`, which handles tensors, calls the best one:
//
//     TTA_DECLARE_FOR_EACH_ISA(void rows(const float* in, float* out, int64_t n);)
//     TTA_BEST_ISA(rows)(in, out, n);
//
// An .isa.cpp file must not include headers whose inline functions the linker merges by name (torch, <algorithm>,
// <vector>): the copy that survives could be the one compiled for a newer processor than the one it runs on.
#pragma once

#define TTA_DECLARE_FOR_EACH_ISA(...) \
  namespace tta::v2 {                 \
  __VA_ARGS__                         \
  }                                   \
  namespace tta::v3 {                 \
  __VA_ARGS__                         \
  }                                   \
  namespace tta::v4 {                 \
  __VA_ARGS__                         \
  }

namespace tta {
// 2 (the baseline), 3 (AVX2, FMA) or 4 (AVX-512). The environment variable TTA_RESTORE_ISA=v2|v3 lowers it, for tests.
int isa_level();
}  // namespace tta

#if defined(__x86_64__)
#define TTA_BEST_ISA(function) \
  (tta::isa_level() >= 4 ? &tta::v4::function : tta::isa_level() == 3 ? &tta::v3::function : &tta::v2::function)
#else
#define TTA_BEST_ISA(function) (&tta::v2::function)
#endif
