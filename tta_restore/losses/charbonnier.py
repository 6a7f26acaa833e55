"""Charbonnier loss: an L1 distance that is smooth at zero."""

from __future__ import annotations

from torch import Tensor, nn

from tta_restore import _checks


def charbonnier(restored: Tensor, target: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Mean of ``sqrt((restored - target)^2 + eps^2)``, an L1 distance with a second derivative everywhere.

    Half types are accumulated in float32. ``eps`` is in units of the images.

    Shape: restored, target of one shape, usually (B, C, H, W) in [0, 1] -> scalar, never below ``eps``.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: the shapes differ, or ``eps`` is not positive.

    Source: Charbonnier et al., Two deterministic half-quadratic regularization algorithms for computed imaging, 1994.
    """
    _checks.expect_floating("charbonnier", restored=restored, target=target)
    _checks.expect_shape("charbonnier", "target", target, "restored.shape", tuple(restored.shape))
    _checks.expect_number("charbonnier", "eps", eps, above=0)
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
