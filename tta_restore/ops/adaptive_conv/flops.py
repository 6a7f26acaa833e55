"""FLOP formulas of the adaptive convolutions for ``torch.utils.flop_counter``.

A multiplication and an addition count as two, as in torch. Recomputation in a backward pass is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.utils.flop_counter import register_flop_formula

from tta_restore.ops.adaptive_conv import schema as ops

Shape = Sequence[int]


def _passes(x: Shape, num_steps: int, kernel_size: int) -> int:
    """Two passes of K taps per step over every value."""
    return 4 * math.prod(x) * num_steps * kernel_size


def _prediction(x: Shape, features: Shape, num_steps: int, kernel_size: int, own: bool) -> int:
    """Return the product of features and weight, without the rows of horizontal taps where they are never read."""
    rows = num_steps * x[1] * ((2 if own else 1) * kernel_size + 1)
    return 2 * math.prod(features) * rows


@register_flop_formula(ops.sac.overloadpacket)
def sac(x: Shape, vertical: Shape, horizontal: Shape, **_: Any) -> int:
    """Operations of ``sac``."""
    return _passes(x, 1, vertical[1] // x[1])


@register_flop_formula(ops.sac_backward.overloadpacket)
def sac_backward(grad: Shape, x: Shape, vertical: Shape, horizontal: Shape, need_taps: bool, **_: Any) -> int:
    """Operations of its gradients."""
    return _passes(x, 1, vertical[1] // x[1]) * (1 + need_taps)


@register_flop_formula(ops.iac.overloadpacket)
def iac(x: Shape, filters: Shape, num_steps: int, kernel_size: int, *_: Any, **__: Any) -> int:
    """Operations of ``iac``."""
    return _passes(x, num_steps, kernel_size)


@register_flop_formula(ops.iac_backward.overloadpacket)
def iac_backward(
    grad: Shape, x: Shape, filters: Shape, states: Shape, num_steps: int, kernel_size: int, *options: Any, **_: Any
) -> int:
    """Operations of its gradients."""
    need_filters = options[-1]
    return _passes(x, num_steps, kernel_size) * (1 + need_filters)


@register_flop_formula(ops.iac_from_features.overloadpacket)
def iac_from_features(
    x: Shape, features: Shape, weight: Shape, bias: Shape, num_steps: int, kernel_size: int, *options: Any, **_: Any
) -> int:
    """Operations of ``iac_from_features``: the convolution that predicts the filters, and their use."""
    return _prediction(x, features, num_steps, kernel_size, options[-1]) + _passes(x, num_steps, kernel_size)


@register_flop_formula(ops.iac_from_features_backward.overloadpacket)
def iac_from_features_backward(
    grad: Shape,
    x: Shape,
    features: Shape,
    weight: Shape,
    bias: Shape,
    num_steps: int,
    kernel_size: int,
    *options: Any,
    **_: Any,
) -> int:
    """Operations of its gradients."""
    *_slope_and_activation, own, need_features, need_weight = options
    predictions = _prediction(x, features, num_steps, kernel_size, own) * (need_features + need_weight)
    return predictions + _passes(x, num_steps, kernel_size) * (2 if need_features or need_weight else 1)
