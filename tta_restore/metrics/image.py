"""PSNR, SSIM and MAE, one value per image, measured by torchmetrics or, where a paper used it, scikit-image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tta_restore.metrics.protocol import Protocol

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
