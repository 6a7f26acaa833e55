// A last line of defence. Callers get their messages from Python (tta_restore/_core/checks.py), before a kernel runs.
#pragma once

#include <torch/headeronly/util/Exception.h>

#define TTA_CHECK(op, condition, ...) STD_TORCH_CHECK(condition, op ": ", __VA_ARGS__)
