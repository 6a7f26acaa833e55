"""The settings under which a number was measured: without them two numbers cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.color import video_luma


@dataclass(frozen=True)
class Protocol:
    """How an image is prepared before it is measured, and how the values of many images become one.

    Args:
        bit_depth: both images are rounded to that many bits first (8 or 16); `None` measures the floats.
        border: pixels cut off on every side.
        color: `"rgb"` measures all channels together, `"luma"` the BT.601 luma alone.
        window: of SSIM: `"gaussian"` (11x11, sigma 1.5, population covariance) or `"uniform"` (7x7, sample covariance).
        aggregation: `"image"` is the mean over images; `"group"` the mean over groups (clips, lenses) of their means.
    """

    bit_depth: Literal[8, 16] | None = None
    border: int = 0
    color: Literal["rgb", "luma"] = "rgb"
    window: Literal["gaussian", "uniform"] = "gaussian"
    aggregation: Literal["image", "group"] = "image"

    def __post_init__(self) -> None:
        choices = {
            "bit_depth": (None, 8, 16),
            "color": ("rgb", "luma"),
            "window": ("gaussian", "uniform"),
            "aggregation": ("image", "group"),
        }
        for name, allowed in choices.items():
            checks.expect_choice("Protocol", name, getattr(self, name), allowed)
        checks.expect_int("Protocol", "border", self.border, minimum=0)

    def prepare(self, image: Tensor) -> Tensor:
        """The image as it is measured: clamped to [0, 1], rounded, cut and converted.

        Shape: (B, 3, H, W) -> (B, 3, H - 2*border, W - 2*border), or (B, 1, ...) for luma.
        """
        image = image.detach().float().clamp(0, 1)
        if self.bit_depth is not None:
            levels = 2**self.bit_depth - 1
            image = (image * levels).round() / levels
        if self.border:
            if min(image.shape[-2:]) <= 2 * self.border:
                height, width = image.shape[-2:]
                raise ValueError(f"Protocol: a border of {self.border} leaves nothing of an image of {height}x{width}")
            image = image[..., self.border : -self.border, self.border : -self.border]
        if self.color == "luma":
            if image.shape[1] != 3:
                raise ValueError(f"Protocol: luma needs images of shape (B, 3, H, W), got {tuple(image.shape)}")
            image = video_luma(image)
        return image

    def aggregate(self, values: Sequence[float] | Tensor, groups: Sequence[Hashable] | None = None) -> float:
        """One number for many images.

        Raises:
            ValueError: no values, or `aggregation="group"` without one group per value.
        """
        values = [float(value) for value in values]
        if not values:
            raise ValueError("Protocol.aggregate: expected at least one value, got none")
        if self.aggregation == "image":
            return sum(values) / len(values)
        if groups is None or len(groups) != len(values):
            got = "none" if groups is None else len(groups)
            raise ValueError(f"Protocol.aggregate: expected one group per value ({len(values)}), got {got}")
        members: dict[Hashable, list[float]] = {}
        for value, group in zip(values, groups, strict=True):
            members.setdefault(group, []).append(value)
        means = [sum(group) / len(group) for group in members.values()]
        return sum(means) / len(means)

    def as_dict(self) -> dict[str, object]:
        """The settings, to be stored beside the number."""
        return asdict(self)


# What the papers did, as (PSNR, SSIM). IFAN: floats, without rounding. Meta Transferring: 8-bit results, SSIM on luma.
protocols = MappingProxyType(
    {
        "ifan": (Protocol(), Protocol(window="uniform")),
        "meta-transferring": (Protocol(bit_depth=8), Protocol(bit_depth=8, color="luma")),
    }
)

_DEFAULT = Protocol()


def psnr(restored: Tensor, target: Tensor, *, protocol: Protocol = _DEFAULT) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, against a peak of 1.

    Shape: restored, target (B, C, H, W), RGB in [0, 1] -> (B,). Identical images give infinity.

    Raises:
        ValueError: the shapes differ or are not (B, C, H, W).
        ImportError: torchmetrics is not installed.
    """
    _check("psnr", restored, target)
    measure = _torchmetrics("psnr").peak_signal_noise_ratio
    a, b = protocol.prepare(restored), protocol.prepare(target)
    return measure(a, b, data_range=1.0, dim=(1, 2, 3), reduction="none")


def mae(restored: Tensor, target: Tensor, *, protocol: Protocol = _DEFAULT) -> Tensor:
    """Mean absolute error of each image over its pixels and channels.

    Shape: restored, target (B, C, H, W), RGB in [0, 1] -> (B,).

    Raises:
        ValueError: the shapes differ or are not (B, C, H, W).
        ImportError: torchmetrics is not installed.
    """
    _check("mae", restored, target)
    a, b = (protocol.prepare(image).flatten(1).T for image in (restored, target))
    return _torchmetrics("mae").mean_absolute_error(a, b, num_outputs=a.shape[1]).reshape(-1)


def ssim(restored: Tensor, target: Tensor, *, protocol: Protocol = _DEFAULT) -> Tensor:
    """Structural similarity of each image, at most 1.

    Shape: restored, target (B, C, H, W), RGB in [0, 1], each side >= 11 after the border is cut -> (B,).

    Raises:
        ValueError: the shapes differ, are not (B, C, H, W), or are smaller than the window.
        ImportError: torchmetrics (or, for the uniform window, scikit-image) is not installed.

    Source: Wang, Bovik, Sheikh, Simoncelli, Image quality assessment: from error visibility to structural similarity.
    """
    _check("ssim", restored, target)
    a, b = protocol.prepare(restored), protocol.prepare(target)
    side = 11 if protocol.window == "gaussian" else 7
    if min(a.shape[-2:]) < side:
        size = "x".join(str(length) for length in a.shape[-2:])
        raise ValueError(
            f"ssim: expected images of at least {side}x{side} under the {protocol.window} window, got {size}"
        )
    if protocol.window == "uniform":
        return _uniform_ssim(a, b)
    # torchmetrics averages its reflected border in; the literature counts only windows that lie inside the image.
    half = side // 2
    return ssim_map(a, b)[..., half:-half, half:-half].mean((1, 2, 3))


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity at every pixel, Gaussian windows of 11 x 11. Shape: (B, C, H, W) twice -> the same."""
    measure = _torchmetrics("ssim").structural_similarity_index_measure
    return measure(a, b, data_range=1.0, reduction="none", return_full_image=True)[1]


def _uniform_ssim(a: Tensor, b: Tensor) -> Tensor:
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise ImportError("ssim: the uniform window needs scikit-image: pip install 'tta-restore[demo]'") from None
    values = [
        structural_similarity(x.double().cpu().numpy(), y.double().cpu().numpy(), channel_axis=0, data_range=1.0)
        for x, y in zip(a, b, strict=True)
    ]
    return torch.tensor(values, device=a.device, dtype=torch.float32)


def _torchmetrics(name: str) -> Any:
    try:
        import torchmetrics.functional as functional
        import torchmetrics.functional.image as images
    except ImportError:
        raise ImportError(f"{name}: needs torchmetrics: pip install 'tta-restore[metrics]'") from None
    return functional if name == "mae" else images


def _check(name: str, restored: Tensor, target: Tensor) -> None:
    for argument, value in (("restored", restored), ("target", target)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected {argument} to be a float tensor (B, C, H, W), got {kind}")
    if restored.ndim != 4 or restored.shape != target.shape or restored.numel() == 0:
        raise ValueError(
            f"{name}: expected restored and target of one shape (B, C, H, W), not empty, "
            f"got {tuple(restored.shape)} and {tuple(target.shape)}"
        )


@dataclass(frozen=True)
class ImageMetrics:
    """The measures that a record has, each under its protocol.

    Args:
        psnr: protocol of PSNR and MAE.
        ssim: protocol of SSIM.
        lpips: :class:`tta_restore.metrics.Lpips`, or another distance; None leaves it out.
    """

    psnr: Protocol = _DEFAULT
    ssim: Protocol = _DEFAULT
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, restored: Tensor, target: Tensor) -> dict[str, float]:
        """Name -> value of one image. Shape: (1, 3, H, W) in [0, 1], both."""
        values = {
            "psnr": psnr(restored, target, protocol=self.psnr),
            "ssim": ssim(restored, target, protocol=self.ssim),
            "mae": mae(restored, target, protocol=self.psnr),
        }
        if self.lpips is not None:
            values["lpips"] = self.lpips(restored, target)
        return {name: float(value) for name, value in values.items()}

    def as_dict(self) -> dict[str, Any]:
        """The settings, to be stored beside the numbers."""
        lpips = None if self.lpips is None else type(self.lpips).__name__
        return {"psnr": self.psnr.as_dict(), "ssim": self.ssim.as_dict(), "lpips": lpips}
