"""Charbonnier loss: an L1 distance that is smooth at zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks


def charbonnier(restored: Tensor, target: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Mean of ``sqrt((restored - target)^2 + eps^2)``, an L1 distance with a second derivative everywhere.

    Half types are accumulated in float32. ``eps`` is in units of the images.

    Shape: restored, target of one shape, usually (B, C, H, W) in [0, 1] -> scalar, never below ``eps``.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: the shapes differ, or ``eps`` is not positive.

    Source: Charbonnier et al., Two deterministic half-quadratic regularization algorithms for computed imaging, 1994.
    """
    checks.expect_floating("charbonnier", restored=restored, target=target)
    checks.expect_shape("charbonnier", "target", target, "restored.shape", tuple(restored.shape))
    checks.expect_number("charbonnier", "eps", eps, above=0)
    if restored.dtype.itemsize < 4:
        restored = restored.float()
    return ((restored - target).square() + eps**2).sqrt().mean()


class Charbonnier(nn.Module):
    """Module of :func:`charbonnier`."""

    def __init__(self, *, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Loss of a restored image against its target."""
        return charbonnier(restored, target, eps=self.eps)

    def extra_repr(self) -> str:
        """Arguments shown by repr."""
        return f"eps={self.eps}"


_TAPS = (0.05, 0.25, 0.4, 0.25, 0.05)


def detail(image: Tensor) -> Tensor:
    """What is lost of an image when every other pixel of its blurred version is dropped and interpolated again.

    One level of a Laplacian pyramid at full size: ``x - G(4 up(down(G(x))))``, G a binomial-like blur of 5 x 5 with
    replicated borders, down and up keeping pixels of even row and column and putting zeros between them.

    Shape: image (B, C, H, W) -> the same.

    Source: The Laplacian pyramid as a compact image code (Burt and Adelson, 1983).
    """
    checks.expect_floating("detail", image=image)
    _, channels, height, width = checks.expect_shape("detail", "image", image, "(B, C, H, W)")
    taps = image.new_tensor(_TAPS)
    kernel = torch.outer(taps, taps).expand(channels, 1, 5, 5)
    even = image.new_tensor([1.0, 0.0])
    kept = torch.outer(even.repeat(height // 2 + 1)[:height], even.repeat(width // 2 + 1)[:width])

    def blur(x: Tensor) -> Tensor:
        for axis in (2, 3):  # F.pad does the same, but inductor of torch 2.15 trips over its gradient
            first, last = x.narrow(axis, 0, 1), x.narrow(axis, -1, 1)
            x = torch.cat([first, first, x, last, last], axis)
        return F.conv2d(x, kernel, groups=channels)

    return image - blur(4 * kept * blur(image))


def edge(restored: Tensor, target: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Charbonnier distance between the details of two images, see :func:`detail`.

    Half types are computed in float32. ``eps`` is in units of the images.

    Shape: restored, target (B, C, H, W) in [0, 1] -> scalar, never below ``eps``.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: the shapes differ, or ``eps`` is not positive.

    Source: Multi-stage progressive image restoration (Zamir et al., CVPR 2021), its edge loss.
    """
    checks.expect_floating("edge", restored=restored, target=target)
    checks.expect_shape("edge", "restored", restored, "(B, C, H, W)")
    checks.expect_shape("edge", "target", target, "restored.shape", tuple(restored.shape))
    checks.expect_number("edge", "eps", eps, above=0)
    if restored.dtype.itemsize < 4:
        restored, target = restored.float(), target.float()
    with torch.autocast(restored.device.type, enabled=False):
        return charbonnier(detail(restored), detail(target.to(restored.dtype)), eps=eps)


class Edge(nn.Module):
    """Module of :func:`edge`."""

    def __init__(self, *, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Loss of a restored image against its target."""
        return edge(restored, target, eps=self.eps)

    def extra_repr(self) -> str:
        """Arguments shown by repr."""
        return f"eps={self.eps}"


def charbonnier_edge(restored: Tensor, target: Tensor, *, edge_weight: float = 0.05, eps: float = 1e-3) -> Tensor:
    """``charbonnier + edge_weight * edge``: the loss of MPRNet, and of the reblurrer of Meta Transferring.

    Shape: restored, target (B, C, H, W) in [0, 1] -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: the shapes differ, or ``eps`` is not positive.

    Source: Zamir et al., CVPR 2021; Meta Transferring for Deblurring (Liu et al., BMVC 2022).
    """
    checks.expect_floating("charbonnier_edge", restored=restored, target=target)
    checks.expect_shape("charbonnier_edge", "restored", restored, "(B, C, H, W)")
    checks.expect_shape("charbonnier_edge", "target", target, "restored.shape", tuple(restored.shape))
    checks.expect_number("charbonnier_edge", "eps", eps, above=0)
    return charbonnier(restored, target, eps=eps) + edge_weight * edge(restored, target, eps=eps)


class CharbonnierEdge(nn.Module):
    """Module of :func:`charbonnier_edge`."""

    def __init__(self, *, edge_weight: float = 0.05, eps: float = 1e-3) -> None:
        super().__init__()
        self.edge_weight, self.eps = edge_weight, eps

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Loss of a restored picture."""
        return charbonnier_edge(restored, target, edge_weight=self.edge_weight, eps=self.eps)

    def extra_repr(self) -> str:
        """Arguments shown by repr."""
        return f"edge_weight={self.edge_weight}, eps={self.eps}"


def l1_fourier(
    restored: Tensor, target: Tensor, *, fourier_weight: float = 0.1, axes: Literal["width", "both"] = "both"
) -> Tensor:
    """Mean absolute difference of two pictures, plus ``fourier_weight`` times that of their Fourier coefficients.

    Args:
        restored: gets the gradient.
        target: what it is to be.
        fourier_weight: of the second term; coefficients are complex, not normalized.
        axes: transformed: "both", as MIMO-UNet does, or "width", as Meta Transferring does with MIMO-UNet.

    Shape: restored, target (B, C, H, W) in [0, 1] -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: the shapes differ, or ``axes`` is unknown.

    Source: Cho et al., Rethinking coarse-to-fine approach in single image deblurring, ICCV 2021 (MIMO-UNet).
    """
    checks.expect_floating("l1_fourier", restored=restored, target=target)
    checks.expect_shape("l1_fourier", "restored", restored, "(B, C, H, W)")
    checks.expect_shape("l1_fourier", "target", target, "restored.shape", tuple(restored.shape))
    checks.expect_choice("l1_fourier", "axes", axes, ("width", "both"))
    if restored.dtype.itemsize < 4:
        restored, target = restored.float(), target.float()
    difference = restored - target
    spectrum = torch.fft.fft(difference) if axes == "width" else torch.fft.fft2(difference)
    return difference.abs().mean() + fourier_weight * spectrum.abs().mean()


class L1Fourier(nn.Module):
    """Module of :func:`l1_fourier`."""

    def __init__(self, *, fourier_weight: float = 0.1, axes: Literal["width", "both"] = "both") -> None:
        super().__init__()
        self.fourier_weight = fourier_weight
        self.axes: Literal["width", "both"] = axes

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Loss of a restored picture."""
        return l1_fourier(restored, target, fourier_weight=self.fourier_weight, axes=self.axes)

    def extra_repr(self) -> str:
        """Arguments shown by repr."""
        return f"fourier_weight={self.fourier_weight}, axes={self.axes!r}"


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
        checks.expect_floating("over_outputs", **{f"outputs[{number}]": output})
        checks.expect_shape("over_outputs", f"outputs[{number}]", output, "(B, C, H, W)")
        size = output.shape[-2:]
        resized = target if size == target.shape[-2:] else F.interpolate(target, size=size, mode="bilinear")
        total = total + distance(output, resized)
    return total
