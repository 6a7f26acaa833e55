"""PSNR and SSIM after photometric and geometric alignment, the protocol of RealBlur."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore._core.ambient import with_usual_defaults
from tta_restore._core.color import luma
from tta_restore.metrics.image import ssim_map

__all__ = ["AlignedScores", "align_by_correlation", "aligned_scores"]

_CUT = 5  # pixels, half the window of SSIM


@dataclass(frozen=True)
class AlignedScores:
    """Scores of a restored image after brightness and geometry are aligned to its reference.

    Attributes:
        psnr: PSNR in dB over the pixels that both images show.
        ssim: SSIM over the same pixels.
        homography: (3, 3) homography from pixels (x, y, 1) of the reference to those of the restored image.
        converged: whether an alignment was found; if not, the images are compared without one.
    """

    psnr: float
    ssim: float
    homography: Tensor
    converged: bool


@with_usual_defaults
def aligned_scores(restored: Tensor, target: Tensor) -> AlignedScores:
    """Return the scores of one image by the protocol of RealBlur, with one gain and one homography.

    Args:
        restored: restored image.
        target: reference image, taken with another exposure.

    Shape: restored, target (1, 3, H, W), RGB in [0, 1], sides of at least 16.

    Raises:
        ValueError: The shapes differ or are not (1, 3, H, W).
        ImportError: torchmetrics is not installed.

    Source: Rim et al., Real-world blur dataset, ECCV 2020, as used by Liu et al., BMVC 2022.
    """
    if restored.shape != target.shape or restored.ndim != 4 or restored.shape[:2] != (1, 3) or min(restored.shape) < 1:
        raise ValueError(
            f"aligned_scores: expected restored and target of one shape (1, 3, H, W), got {tuple(restored.shape)} and "
            f"{tuple(target.shape)}"
        )
    z, x = restored.detach().double(), target.detach().double()
    # One least-squares gain for all pixels and channels.
    z = z * (x * z).sum() / z.square().sum().clamp(min=1e-12)
    found = align_by_correlation(luma(z), luma(x))
    homography = torch.eye(3, dtype=torch.float64, device=z.device) if found is None else found
    positions = _project(homography, x.shape[2], x.shape[3])
    warped = _sample(z, positions, "bicubic", "reflection")
    mask = _sample(torch.ones_like(z), positions, "nearest", "zeros")
    warped, x = warped * mask, x * mask
    psnr = 10 * torch.log10(mask.sum() / (warped - x).square().sum())
    inner = mask[..., _CUT:-_CUT, _CUT:-_CUT]
    similar = ssim_map(warped, x)[..., _CUT:-_CUT, _CUT:-_CUT] * inner
    ssim = (similar.sum((0, 2, 3)) / inner.sum((0, 2, 3))).mean()
    return AlignedScores(float(psnr), float(ssim), homography.cpu(), found is not None)


@with_usual_defaults
def align_by_correlation(image: Tensor, template: Tensor, *, iterations: int = 100) -> Tensor | None:
    """Return the homography under which an image correlates best with a template.

    Gauss-Newton steps start at the identity. Both images are blurred by 5 x 5 taps first.

    Args:
        image: image to be sampled.
        template: image in whose pixels the homography is given.
        iterations: largest number of steps.

    Shape: image, template (1, 1, H, W) -> (3, 3), from pixels of the template to pixels of the image; None if the steps
    diverge.

    Source: Evangelidis and Psarakis, Parametric image alignment using enhanced correlation coefficient maximization,
    PAMI 2008, forward additive form.
    """
    image, template = _smooth(image), _smooth(template)
    height, width = template.shape[2:]
    taps = image.new_tensor([-0.5, 0.0, 0.5])
    padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
    # Central differences; reflection gives zero slope at the border.
    slopes = [
        F.conv2d(padded[:, :, 1:-1], taps.view(1, 1, 1, 3)),
        F.conv2d(padded[:, :, :, 1:-1], taps.view(1, 1, 3, 1)),
    ]
    stack = torch.cat([image, *slopes], 1)
    h = torch.eye(3, dtype=image.dtype, device=image.device)
    ys, xs = (torch.arange(n, dtype=image.dtype, device=image.device) for n in (height, width))
    x, y = xs.expand(height, width).flatten(), ys[:, None].expand(height, width).flatten()
    last = None
    for _ in range(iterations):
        positions = _project(h, height, width)
        seen = _sample(stack, positions, "bilinear", "zeros")
        inside = _sample(torch.ones_like(image), positions, "nearest", "zeros").flatten() > 0
        if int(inside.sum()) < 64:
            return None
        value, across, down = (plane.flatten()[inside] for plane in seen[0])
        wanted = template.flatten()[inside]
        # Zero-mean values make the correlation invariant to brightness and contrast.
        value, wanted = value - value.mean(), wanted - wanted.mean()
        u, v = x[inside], y[inside]
        scale = h[2, 0] * u + h[2, 1] * v + 1
        to_x = (h[0, 0] * u + h[0, 1] * v + h[0, 2]) / scale
        to_y = (h[1, 0] * u + h[1, 1] * v + h[1, 2]) / scale
        across, down = across / scale, down / scale
        away = -(to_x * across + to_y * down)
        # Derivatives of the sampled value by the eight parameters of the homography.
        jacobian = torch.stack([across * u, across * v, across, down * u, down * v, down, away * u, away * v])
        hessian = jacobian @ jacobian.T
        # Without exceptions: a singular Hessian means that there is nothing to align.
        factor, problem = torch.linalg.cholesky_ex(hessian)
        if int(problem):
            return None
        along_value, along_wanted = jacobian @ value, jacobian @ wanted

        def solved(right: Tensor, factor: Tensor = factor) -> Tensor:
            return torch.cholesky_solve(right[:, None], factor)[:, 0]

        together = wanted @ value
        correlation = together / (wanted.norm() * value.norm()).clamp(min=1e-30)
        gain = together - along_wanted @ solved(along_value)
        if not gain > 0:
            return None
        gain = (value @ value - along_value @ solved(along_value)) / gain
        step = solved(jacobian @ (gain * wanted - value))
        h = h + torch.cat([step, step.new_zeros(1)]).view(3, 3)
        if last is not None and float((correlation - last).abs()) < 1e-12:
            break
        last = correlation
    return h if bool(h.isfinite().all()) else None


def _smooth(x: Tensor) -> Tensor:
    """Return the image blurred by a Gaussian of sigma 1.1 in a 5 x 5 window, the taps of OpenCV."""
    taps = torch.exp(-0.5 * (torch.arange(-2, 3, dtype=x.dtype, device=x.device) / 1.1).square())
    taps = taps / taps.sum()
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), torch.outer(taps, taps).view(1, 1, 5, 5))


def _project(h: Tensor, height: int, width: int) -> Tensor:
    """Return the position in the image of each pixel of the template, for ``grid_sample``: (1, H, W, 2)."""
    ys, xs = (torch.arange(n, dtype=h.dtype, device=h.device) for n in (height, width))
    x, y = xs.expand(height, width), ys[:, None].expand(height, width)
    scale = h[2, 0] * x + h[2, 1] * y + h[2, 2]
    to_x = (h[0, 0] * x + h[0, 1] * y + h[0, 2]) / scale
    to_y = (h[1, 0] * x + h[1, 1] * y + h[1, 2]) / scale
    return torch.stack([(2 * to_x + 1) / width - 1, (2 * to_y + 1) / height - 1], -1)[None]


def _sample(x: Tensor, positions: Tensor, mode: str, border: str) -> Tensor:
    return F.grid_sample(x, positions, mode=mode, padding_mode=border, align_corners=False)
