"""Losses between a restored image and its target: Charbonnier, edges, Fourier coefficients, several outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core import checks
from tta_restore.losses._base import (
    SCALAR_REDUCTIONS,
    LossModule,
    Reduction,
    expect_pair,
    expect_reduction,
    reduce,
    widen,
)

__all__ = [
    "CharbonnierEdgeLoss",
    "CharbonnierLoss",
    "EdgeLoss",
    "L1FourierLoss",
    "MultiOutputLoss",
    "charbonnier_edge_loss",
    "charbonnier_loss",
    "edge_loss",
    "l1_fourier_loss",
    "multi_output_loss",
]

_TAPS = (0.05, 0.25, 0.4, 0.25, 0.05)


def charbonnier_loss(restored: Tensor, target: Tensor, *, eps: float = 1e-3, reduction: Reduction = "mean") -> Tensor:
    """Return the Charbonnier distance ``sqrt((restored - target)^2 + eps^2)``, a smooth L1 distance.

    Half-precision inputs are computed and accumulated in float32.

    Args:
        restored: image that receives the gradient.
        target: reference image.
        eps: width of the quadratic part around zero, in units of the images.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per element.

    Shape:
        - restored, target: one shape, usually (B, C, H, W), in [0, 1]
        - output: scalar, or the shape of ``restored`` with ``reduction="none"``

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes differ, ``eps`` is not positive, or ``reduction`` is unknown.

    Source: Charbonnier et al., Two deterministic half-quadratic regularization algorithms for computed imaging, 1994.
    """
    expect_pair("charbonnier_loss", None, restored=restored, target=target)
    checks.expect_number("charbonnier_loss", "eps", eps, above=0)
    expect_reduction("charbonnier_loss", reduction)
    return reduce(((widen(restored) - target).square() + eps**2).sqrt(), reduction)


class CharbonnierLoss(LossModule):
    """Module form of :func:`charbonnier_loss`."""

    def __init__(self, *, eps: float = 1e-3, reduction: Reduction = "mean") -> None:
        super().__init__(eps=eps, reduction=reduction)

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a restored image against its target."""
        return charbonnier_loss(restored, target, **self.settings)


def _laplacian(image: Tensor) -> Tensor:
    """Return the finest level of the Laplacian pyramid of an image, at full size.

    ``x - G(4 up(down(G(x))))``: G is a separable 5 x 5 blur with replicated borders; ``down`` and ``up`` keep the
    pixels of even row and column and write zeros between them.

    Shape: image (B, C, H, W) -> (B, C, H, W).

    Source: Burt and Adelson, The Laplacian pyramid as a compact image code, 1983.
    """
    _, channels, height, width = image.shape
    taps = image.new_tensor(_TAPS)
    kernel = torch.outer(taps, taps).expand(channels, 1, 5, 5)
    # Multiplying by a mask of even pixels equals dropping the others and inserting zeros again.
    even = image.new_tensor([1.0, 0.0])
    kept = torch.outer(even.repeat(height // 2 + 1)[:height], even.repeat(width // 2 + 1)[:width])

    def blur(x: Tensor) -> Tensor:
        # Replicate by concatenation: inductor of torch 2.15 fails on the gradient of F.pad(mode="replicate").
        for axis in (2, 3):
            first, last = x.narrow(axis, 0, 1), x.narrow(axis, -1, 1)
            x = torch.cat([first, first, x, last, last], axis)
        return F.conv2d(x, kernel, groups=channels)

    return image - blur(4 * kept * blur(image))


def edge_loss(restored: Tensor, target: Tensor, *, eps: float = 1e-3, reduction: Reduction = "mean") -> Tensor:
    """Return the Charbonnier distance between the Laplacians of two images.

    Half-precision inputs are computed in float32.

    Args:
        restored: image that receives the gradient.
        target: reference image.
        eps: width of the quadratic part around zero, in units of the images.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per element.

    Shape:
        - restored, target: (B, C, H, W), in [0, 1]
        - output: scalar, or (B, C, H, W) with ``reduction="none"``

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes differ, ``eps`` is not positive, or ``reduction`` is unknown.

    Source: Zamir et al., Multi-stage progressive image restoration, CVPR 2021.
    """
    expect_pair("edge_loss", restored=restored, target=target)
    checks.expect_number("edge_loss", "eps", eps, above=0)
    expect_reduction("edge_loss", reduction)
    if restored.dtype.itemsize < 4:  # both operands: the convolutions do not promote dtypes
        restored, target = restored.float(), target.float()
    # Autocast would run the convolutions in half precision, where the Laplacian cancels to noise.
    with torch.autocast(restored.device.type, enabled=False):
        laplacians = _laplacian(restored), _laplacian(target.to(restored.dtype))
        return charbonnier_loss(*laplacians, eps=eps, reduction=reduction)


class EdgeLoss(LossModule):
    """Module form of :func:`edge_loss`."""

    def __init__(self, *, eps: float = 1e-3, reduction: Reduction = "mean") -> None:
        super().__init__(eps=eps, reduction=reduction)

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a restored image against its target."""
        return edge_loss(restored, target, **self.settings)


def charbonnier_edge_loss(
    restored: Tensor, target: Tensor, *, edge_weight: float = 0.05, eps: float = 1e-3, reduction: Reduction = "mean"
) -> Tensor:
    """Return ``charbonnier_loss + edge_weight * edge_loss``.

    This is the loss of MPRNet and of the reblurring network of Meta Transferring.

    Args:
        restored: image that receives the gradient.
        target: reference image.
        edge_weight: weight of the edge loss.
        eps: width of the quadratic part of both terms around zero, in units of the images.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per element.

    Shape:
        - restored, target: (B, C, H, W), in [0, 1]
        - output: scalar, or (B, C, H, W) with ``reduction="none"``

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes differ, ``eps`` is not positive, or ``reduction`` is unknown.

    Source: Zamir et al., CVPR 2021; Liu et al., Meta transferring for deblurring, BMVC 2022.
    """
    expect_pair("charbonnier_edge_loss", restored=restored, target=target)
    checks.expect_number("charbonnier_edge_loss", "eps", eps, above=0)
    expect_reduction("charbonnier_edge_loss", reduction)
    edges = edge_loss(restored, target, eps=eps, reduction=reduction)
    return charbonnier_loss(restored, target, eps=eps, reduction=reduction) + edge_weight * edges


class CharbonnierEdgeLoss(LossModule):
    """Module form of :func:`charbonnier_edge_loss`."""

    def __init__(self, *, edge_weight: float = 0.05, eps: float = 1e-3, reduction: Reduction = "mean") -> None:
        super().__init__(edge_weight=edge_weight, eps=eps, reduction=reduction)

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a restored image against its target."""
        return charbonnier_edge_loss(restored, target, **self.settings)


def l1_fourier_loss(
    restored: Tensor,
    target: Tensor,
    *,
    fourier_weight: float = 0.1,
    axes: Literal["width", "both"] = "both",
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Return the L1 distance of two images plus the weighted L1 distance of their Fourier coefficients.

    Args:
        restored: image that receives the gradient.
        target: reference image.
        fourier_weight: weight of the distance of the complex, unnormalized coefficients.
        axes: axes of the transform: ``"both"`` as in MIMO-UNet, ``"width"`` as in Meta Transferring's MIMO-UNet.
        reduction: ``"mean"`` or ``"sum"``, applied to both terms; coefficients have no value per pixel.

    Shape: restored, target (B, C, H, W), in [0, 1] -> scalar.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes differ, or ``axes`` or ``reduction`` is unknown.

    Source: Cho et al., Rethinking coarse-to-fine approach in single image deblurring, ICCV 2021 (MIMO-UNet).
    """
    expect_pair("l1_fourier_loss", restored=restored, target=target)
    checks.expect_choice("l1_fourier_loss", "axes", axes, ("width", "both"))
    expect_reduction("l1_fourier_loss", reduction, SCALAR_REDUCTIONS)
    # The transform is linear: one of the difference replaces two of the images.
    difference = widen(restored) - widen(target)
    spectrum = torch.fft.fft(difference) if axes == "width" else torch.fft.fft2(difference)
    return reduce(difference.abs(), reduction) + fourier_weight * reduce(spectrum.abs(), reduction)


class L1FourierLoss(LossModule):
    """Module form of :func:`l1_fourier_loss`."""

    def __init__(
        self,
        *,
        fourier_weight: float = 0.1,
        axes: Literal["width", "both"] = "both",
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(fourier_weight=fourier_weight, axes=axes, reduction=reduction)

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a restored image against its target."""
        return l1_fourier_loss(restored, target, **self.settings)


def multi_output_loss(
    outputs: Sequence[Tensor],
    target: Tensor,
    *,
    distance: Callable[..., Tensor] = F.l1_loss,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Return the sum of the distances of all outputs of a model from the target.

    The target is resized bilinearly to the size of each output.

    Args:
        outputs: images of one model, stages of one size or scales of several sizes.
        target: reference image of every output.
        distance: function of an output and a target of one size; it is also given ``reduction="sum"`` when that is
            asked for, as the losses of torch and of this package take it.
        reduction: ``"mean"`` or ``"sum"`` over the pixels of each output; outputs are summed in either case.

    Shape: outputs (B, C, h, w) each, target (B, C, H, W) -> scalar.

    Raises:
        TypeError: An output is not a floating-point tensor.
        ValueError: There is no output, one is not (B, C, H, W), or ``reduction`` is unknown.

    Source: training losses of MIMO-UNet and MPRNet, see :func:`l1_fourier_loss` and :func:`charbonnier_edge_loss`.
    """
    expect_reduction("multi_output_loss", reduction, SCALAR_REDUCTIONS)
    if not outputs:
        raise ValueError("multi_output_loss: expected at least one output, got none")
    options = {} if reduction == "mean" else {"reduction": reduction}
    total = target.new_zeros(())
    for number, output in enumerate(outputs):
        checks.expect_floating("multi_output_loss", **{f"outputs[{number}]": output})
        checks.expect_shape("multi_output_loss", f"outputs[{number}]", output, "(B, C, H, W)")
        size = output.shape[-2:]
        resized = target if size == target.shape[-2:] else F.interpolate(target, size=size, mode="bilinear")
        total = total + distance(output, resized, **options)
    return total


class MultiOutputLoss(LossModule):
    """Module form of :func:`multi_output_loss`."""

    def __init__(
        self, *, distance: Callable[..., Tensor] = F.l1_loss, reduction: Literal["mean", "sum"] = "mean"
    ) -> None:
        super().__init__(distance=distance, reduction=reduction)

    def forward(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the summed loss of several outputs against one target."""
        return multi_output_loss(outputs, target, **self.settings)
