// Registration of CPU kernels. Schemas live in Python (tta_restore/_core/library.py: define); this only implements them:
//
//     TTA_CPU_KERNELS(m) { m.impl("op", TORCH_BOX(&op)); }
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define TTA_CPU_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(tta_restore_cpu, CPU, m)
