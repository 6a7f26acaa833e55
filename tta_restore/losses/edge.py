"""Edge loss: a distance between the details of two images, which a smooth difference of brightness does not enter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import _checks
from tta_restore.losses.charbonnier import charbonnier

_TAPS = (0.05, 0.25, 0.4, 0.25, 0.05)


def detail(image: Tensor) -> Tensor:
    """What is lost of an image when every other pixel of its blurred version is dropped and interpolated again.

    One level of a Laplacian pyramid at full size: ``x - G(4 up(down(G(x))))``, G a binomial-like blur of 5 x 5 with
    replicated borders, down and up keeping pixels of even row and column and putting zeros between them.

    Shape: image (B, C, H, W) -> the same.

    Source: The Laplacian pyramid as a compact image code (Burt and Adelson, 1983).
    """
    _checks.expect_floating("detail", image=image)
    _, channels, height, width = _checks.expect_shape("detail", "image", image, "(B, C, H, W)")
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
    _checks.expect_floating("edge", restored=restored, target=target)
    _checks.expect_shape("edge", "restored", restored, "(B, C, H, W)")
    _checks.expect_shape("edge", "target", target, "restored.shape", tuple(restored.shape))
    _checks.expect_number("edge", "eps", eps, above=0)
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
    _checks.expect_floating("charbonnier_edge", restored=restored, target=target)
    _checks.expect_shape("charbonnier_edge", "restored", restored, "(B, C, H, W)")
    _checks.expect_shape("charbonnier_edge", "target", target, "restored.shape", tuple(restored.shape))
    _checks.expect_number("charbonnier_edge", "eps", eps, above=0)
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
