#include "isa.h"

#include <cstdlib>
#include <cstring>

#include "library.h"

namespace tta {

namespace {
int detect() {
#if defined(__x86_64__)
  int level = __builtin_cpu_supports("x86-64-v4") ? 4 : __builtin_cpu_supports("x86-64-v3") ? 3 : 2;
  if (const char* wish = std::getenv("TTA_RESTORE_ISA")) {
    if (std::strcmp(wish, "v2") == 0) level = 2;
    if (std::strcmp(wish, "v3") == 0 && level > 3) level = 3;
  }
  return level;
#else
  return 2;
#endif
}

int64_t isa_level_op() { return isa_level(); }
}  // namespace

int isa_level() {
  static const int level = detect();
  return level;
}

}  // namespace tta

STABLE_TORCH_LIBRARY_IMPL(tta_restore_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa_level", TORCH_BOX(&tta::isa_level_op));
}
