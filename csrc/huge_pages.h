// Large results on large pages.
#pragma once

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tta {

// A fresh result of hundreds of megabytes costs more in page faults than in arithmetic. Asking for huge pages before
// the first write cuts their number by 512; where the kernel does not grant them nothing changes. Small results come
// from memory that the allocator keeps, and are left alone.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t PAGE = uintptr_t(1) << 21;
  if (bytes < int64_t(16 * PAGE)) return;
  const uintptr_t first = (uintptr_t(data) + PAGE - 1) & ~(PAGE - 1), last = (uintptr_t(data) + bytes) & ~(PAGE - 1);
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace tta
