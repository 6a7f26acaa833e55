"""PSNR, SSIM and MAE under a stated protocol, and the protocols of the papers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.ambient import with_usual_defaults
from tta_restore._core.color import video_luma

__all__ = ["ImageMetrics", "Protocol", "mae", "protocols", "psnr", "ssim", "ssim_map"]


@dataclass(frozen=True)
class Protocol:
    """Preparation of images before a metric, and aggregation of the values of many images.

    Args:
        bit_depth: quantize both images to 8 or 16 bits first; None measures floats.
        rounding: quantization to the ``"nearest"`` level, or ``"down"`` as a conversion to integers truncates.
        border: pixels cut off at every side.
        color: ``"rgb"`` measures all channels together, ``"luma"`` the BT.601 luma in the range of 8-bit video.
        window: window of SSIM: ``"gaussian"`` (11 x 11, sigma 1.5, population covariance) or ``"uniform"`` (7 x 7,
            sample covariance).
        identical_psnr: PSNR in dB of identical images; None for infinity.
        aggregation: ``"image"`` for the mean over images, ``"group"`` for the mean over groups (clips, lenses) of their
            means.

    Raises:
        ValueError: A setting is unknown or out of range.
    """

    bit_depth: Literal[8, 16] | None = None
    rounding: Literal["nearest", "down"] = "nearest"
    border: int = 0
    color: Literal["rgb", "luma"] = "rgb"
    window: Literal["gaussian", "uniform"] = "gaussian"
    identical_psnr: float | None = None
    aggregation: Literal["image", "group"] = "image"

    def __post_init__(self) -> None:
        choices = {
            "bit_depth": (None, 8, 16),
            "rounding": ("nearest", "down"),
            "color": ("rgb", "luma"),
            "window": ("gaussian", "uniform"),
            "aggregation": ("image", "group"),
        }
        for name, allowed in choices.items():
            checks.expect_choice("Protocol", name, getattr(self, name), allowed)
        checks.expect_int("Protocol", "border", self.border, minimum=0)
        checks.expect_number("Protocol", "identical_psnr", self.identical_psnr, optional=True)

    def prepare(self, image: Tensor) -> Tensor:
        """Return an image clamped to [0, 1], quantized, cropped and converted, as it is measured.

        Shape: (B, 3, H, W) -> (B, 3, H - 2*border, W - 2*border), or (B, 1, ...) for luma.
        """
        image = image.detach().float().clamp(0, 1)  # before quantization, so that no level lies outside
        if self.bit_depth is not None:
            levels = 2**self.bit_depth - 1
            scaled = image * levels
            image = (scaled.round() if self.rounding == "nearest" else scaled.floor()) / levels
        if self.border:
            if min(image.shape[-2:]) <= 2 * self.border:
                height, width = image.shape[-2:]
                raise ValueError(
                    f"Protocol: expected border < min(H, W) / 2 of an image of {height}x{width}, got {self.border}"
                )
            image = image[..., self.border : -self.border, self.border : -self.border]
        if self.color == "luma":
            if image.shape[1] != 3:
                raise ValueError(f"Protocol: expected images of shape (B, 3, H, W) for luma, got {tuple(image.shape)}")
            image = video_luma(image)
        return image

    def aggregate(self, values: Sequence[float] | Tensor, groups: Sequence[Hashable] | None = None) -> float:
        """Return the aggregated value of many images.

        Args:
            values: one value per image.
            groups: group of each image, such as its clip; needed with ``aggregation="group"``.

        Raises:
            ValueError: There are no values, or not one group per value with ``aggregation="group"``.
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
        """Return the settings, to be stored with the numbers."""
        return asdict(self)


#: Protocols of the papers as (PSNR, SSIM). IFAN and JDRL measure floats; CauSiam's SSIM implementation is not known.
protocols = MappingProxyType(
    {
        "causiam": (Protocol(bit_depth=8, rounding="down"), Protocol(bit_depth=8, rounding="down")),
        "ifan": (Protocol(), Protocol(window="uniform")),
        "jdrl": (Protocol(), Protocol(window="uniform")),
        "meta-transferring": (Protocol(bit_depth=8, identical_psnr=100.0), Protocol(bit_depth=8, color="luma")),
    }
)

_DEFAULT = Protocol()


@with_usual_defaults
def psnr(restored: Tensor, target: Tensor, *, protocol: Protocol = _DEFAULT) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB, for a peak of 1.

    Identical images give infinity, or ``protocol.identical_psnr``.

    Args:
        restored: restored images.
        target: reference images.
        protocol: preparation of both.

    Shape: restored, target (B, C, H, W), RGB in [0, 1] -> (B,).

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes differ or are not (B, C, H, W).
        ImportError: torchmetrics is not installed.
    """
    _check("psnr", restored, target)
    measure = _torchmetrics("psnr").peak_signal_noise_ratio
    a, b = protocol.prepare(restored), protocol.prepare(target)
    values = measure(a, b, data_range=1.0, dim=(1, 2, 3), reduction="none")
    if protocol.identical_psnr is None:
        return values
    return torch.where((a == b).flatten(1).all(1), torch.full_like(values, protocol.identical_psnr), values)


@with_usual_defaults
def mae(restored: Tensor, target: Tensor, *, protocol: Protocol = _DEFAULT) -> Tensor:
    """Return the mean absolute error of each image over its pixels and channels.

    Args:
        restored: restored images.
        target: reference images.
        protocol: preparation of both.

    Shape: restored, target (B, C, H, W), RGB in [0, 1] -> (B,).

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes differ or are not (B, C, H, W).
        ImportError: torchmetrics is not installed.
    """
    _check("mae", restored, target)
    # torchmetrics averages over the first axis and keeps columns: one column per image.
    a, b = (protocol.prepare(image).flatten(1).T for image in (restored, target))
    return _torchmetrics("mae").mean_absolute_error(a, b, num_outputs=a.shape[1]).reshape(-1)


@with_usual_defaults
def ssim(restored: Tensor, target: Tensor, *, protocol: Protocol = _DEFAULT) -> Tensor:
    """Return the structural similarity of each image, at most 1.

    Args:
        restored: restored images.
        target: reference images.
        protocol: preparation of both, and the window.

    Shape: restored, target (B, C, H, W), RGB in [0, 1], sides >= 11 (uniform: 7) after the border is cut -> (B,).

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes differ, are not (B, C, H, W), or are smaller than the window.
        ImportError: torchmetrics (or, for the uniform window, scikit-image) is not installed.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity, TIP 2004.
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
    # torchmetrics includes its reflected border; the literature counts only windows that lie inside the image.
    half = side // 2
    return ssim_map(a, b)[..., half:-half, half:-half].mean((1, 2, 3))


@with_usual_defaults
def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity at every pixel, Gaussian window of 11 x 11: (B, C, H, W) x 2 -> (B, C, H, W)."""
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
    """PSNR, SSIM, MAE and optionally LPIPS of one image, each under its protocol.

    Args:
        psnr: protocol of PSNR and MAE.
        ssim: protocol of SSIM.
        lpips: :class:`tta_restore.metrics.Lpips` or another distance of two images; None leaves it out.
        more: further metrics by name, functions of two images, measured on floats without a protocol.
    """

    psnr: Protocol = _DEFAULT
    ssim: Protocol = _DEFAULT
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    more: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)

    def __call__(self, restored: Tensor, target: Tensor) -> dict[str, float]:
        """Return the values of one image by name. Shape: restored, target (1, 3, H, W), in [0, 1]."""
        values = {
            "psnr": psnr(restored, target, protocol=self.psnr),
            "ssim": ssim(restored, target, protocol=self.ssim),
            "mae": mae(restored, target, protocol=self.psnr),
        }
        if self.lpips is not None:
            values["lpips"] = self.lpips(restored, target)
        values |= {name: metric(restored, target) for name, metric in self.more.items()}
        return {name: float(value) for name, value in values.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return the settings, to be stored with the values."""
        lpips = None if self.lpips is None else type(self.lpips).__name__
        own = {"psnr": self.psnr.as_dict(), "ssim": self.ssim.as_dict(), "lpips": lpips}
        return own | ({"more": list(self.more)} if self.more else {})
