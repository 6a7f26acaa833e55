"""Loss of a model that returns several pictures: stages, or scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from tta_restore import _checks


def over_outputs(
    outputs: Sequence[Tensor], target: Tensor, *, distance: Callable[[Tensor, Tensor], Tensor] = F.l1_loss
) -> Tensor:
    """Sum of the distances of all of a model's pictures from the target, resized bilinearly to each.

    Args:
        outputs: pictures of one model, stages of one size or scales of several.
        target: what each of them is to be.
        distance: of two pictures, a scalar.

    Shape: outputs (B, C, h, w) each, target (B, C, H, W) -> scalar.

    Raises:
        TypeError: an output is no floating-point tensor.
        ValueError: there is no output, or one is no picture.

    Source: the training losses of MIMO-UNet and MPRNet; see :func:`l1_fourier`, :func:`charbonnier_edge`.
    """
    if not outputs:
        raise ValueError("over_outputs: expected at least one output, got none")
    total = target.new_zeros(())
    for number, output in enumerate(outputs):
        _checks.expect_floating("over_outputs", **{f"outputs[{number}]": output})
        _checks.expect_shape("over_outputs", f"outputs[{number}]", output, "(B, C, H, W)")
        size = output.shape[-2:]
        resized = target if size == target.shape[-2:] else F.interpolate(target, size=size, mode="bilinear")
        total = total + distance(output, resized)
    return total
