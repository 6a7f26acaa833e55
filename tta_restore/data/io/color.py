"""Convert images to the color space of restorers (sRGB) and back, without losing what sRGB cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tta_restore._core.color import linear_to_srgb, srgb_to_linear
from tta_restore.data.io.pixels import Image, ImageError

__all__ = ["cmyk_to_srgb", "in_range", "is_srgb", "profile_note", "to_linear", "to_model_space", "to_srgb"]

_SRGB_GAMMA = 0.45455  # what PNG files declare for sRGB
_TOLERANCE = 2 / 255  # a profile that moves no color further is taken for sRGB
_UNOPTIMIZED = 0x0100  # littleCMS interpolates the curve of a gray profile between 33 values else
_ROWS = 256  # rows converted at a time, which bounds the memory

_Transform = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def to_model_space(image: Image) -> tuple[Tensor, Callable[[Tensor], Image]]:
    """Return an image in sRGB, and the function that makes a file's image of the restored pixels.

    Samples are converted by the ICC profile, the gamma of a PNG file or, for linear light, by the sRGB curve. sRGB in
    [0, 1] cannot hold all of them: saturated colors of wide gamuts and highlights above 1 are clipped for the
    restorer. The difference between a sample and its clipped version is added to the result, so an unchanged pixel
    keeps its value to the bit.

    Shape: (3, H, W) in [0, 1]; the function takes (3, s*H, s*W).
    """
    rgb = image.as_rgb()
    if (note := profile_note(image)) is not None:
        image = replace(image, notes=(*image.notes, note))
    transform = _find_transform(image)
    if transform is None:
        return rgb, lambda restored: image.with_rgb(in_range(restored))
    forward, backward = transform
    source = forward(rgb)
    excess = rgb - backward(source)

    def back(restored: Tensor) -> Image:
        scale = restored.shape[-1] // source.shape[-1]
        rest = excess
        if scale > 1:
            rest = torch.nn.functional.interpolate(excess[None], scale_factor=scale, mode="bilinear")[0]
        result = backward(in_range(restored))
        if rest.shape == result.shape:
            result += rest
        return image.with_rgb(result)

    return source, back


def profile_note(image: Image) -> str | None:
    """Return a note on a color profile that cannot be used, None where there is none."""
    if not image.icc or image.is_linear or _icc_transform(image.icc, image.pixels.shape[0] == 1)[1]:
        return None
    return "color profile that cannot be used: the samples are taken for sRGB"


def in_range(x: Tensor) -> Tensor:
    """Return values clamped to [0, 1]; the tensor itself where they lie there, for large photos take much memory."""
    low, high = x.aminmax()
    return x if low >= 0 and high <= 1 else x.clamp(0, 1)


def is_srgb(image: Image) -> bool:
    """Return whether the samples of an image are sRGB in [0, 1] already."""
    return _find_transform(image) is None


def to_srgb(image: Image) -> Image:
    """Return an image converted to sRGB in [0, 1], without profile, gamma or cICP; high dynamic range is clipped."""
    transform = _find_transform(image)
    plain = replace(_without_color(image), is_linear=False)
    if transform is None:
        return plain
    converted = transform[0](image.as_rgb())
    if image.pixels.shape[0] == 1:
        converted = converted[:1]
    return replace(plain, pixels=converted)


def to_linear(image: Image) -> Image:
    """Return an image converted to linear light with the primaries of sRGB.

    Float samples outside [0, 1] that have no profile follow the same curve, mirrored below 0.
    """
    if image.is_linear:
        return image
    encoded = to_srgb(image) if image.icc or image.gamma else _without_color(image)
    values = encoded.pixels
    return replace(encoded, pixels=srgb_to_linear(values.abs()).copysign(values), is_linear=True)


def _without_color(image: Image) -> Image:
    """Return an image without profile, gamma, cICP and entries on color."""
    extras = tuple(extra for extra in image.extras if not extra.is_color or extra.format == "exr")
    return replace(image, icc=None, gamma=None, cicp=None, extras=extras)


def cmyk_to_srgb(array: np.ndarray, icc: bytes | None) -> tuple[np.ndarray, str]:
    """Return CMYK samples as sRGB, and a note on how they were converted.

    Args:
        array: ink amounts, 0 is no ink.
        icc: the printing profile; without one the inks are taken for ideal.

    Shape: (H, W, 4), uint8 or uint16 -> (H, W, 3), same type.
    """
    if icc:
        try:
            import imagecodecs

            wide = array if array.dtype == np.uint16 else array.astype(np.uint16) * 257
            converted = imagecodecs.cms_transform(wide, icc, _srgb_profile(), colorspace="cmyk", outcolorspace="rgb")
            result = converted if array.dtype == np.uint16 else ((converted.astype(np.uint32) + 128) // 257)
            return result.astype(array.dtype), "CMYK image: converted to sRGB by its profile"
        except Exception:  # a damaged profile
            icc = None
    top = int(np.iinfo(array.dtype).max)
    wide = array.astype(np.uint32)
    ideal = (top - wide[..., :3]) * (top - wide[..., 3:]) // top
    return ideal.astype(array.dtype), "CMYK image without a usable profile: converted to sRGB as ideal inks"


def _find_transform(image: Image) -> _Transform | None:
    """Return the conversions of (3, H, W) to sRGB and back, None where there is nothing to convert."""
    if image.is_linear:
        return (lambda x: linear_to_srgb(x.clamp(0, 1))), srgb_to_linear
    if image.icc:
        return _icc_transform(image.icc, image.pixels.shape[0] == 1)[0]
    if image.gamma and abs(image.gamma - _SRGB_GAMMA) > 0.02 and image.cicp is None:
        gamma = image.gamma
        return (
            lambda x: linear_to_srgb(x.clamp(0, 1) ** (1 / gamma)),
            lambda x: srgb_to_linear(x) ** gamma,
        )
    if image.bit_depth == 32:
        low, high = torch.aminmax(image.pixels)
        if low < 0 or high > 1:
            return (lambda x: x.clamp(0, 1)), (lambda x: x.clone())
    return None


@cache
def _icc_transform(icc: bytes, is_gray: bool) -> tuple[_Transform | None, bool]:
    """Return the conversions of a profile, None for sRGB and for profiles that cannot be used, and whether it can."""
    try:
        import imagecodecs
    except ImportError:
        if b"sRGB" in icc or b"s\0R\0G\0B" in icc:
            return None, True
        raise ImageError("its color profile needs imagecodecs: pip install 'tta-restore[io]'") from None
    if is_gray and (found := _gray_transform(icc)) is not None:
        return found
    srgb = _srgb_profile()

    def convert(x: Tensor, source: bytes, target: bytes) -> Tensor:
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        for top in range(0, x.shape[1], _ROWS):
            rows = x[:, top : top + _ROWS].clamp(0, 1).mul(65535).round()
            # 16 bits: littleCMS converts floats twenty times slower
            array = np.ascontiguousarray(rows.permute(1, 2, 0).numpy().astype(np.uint16))
            array = imagecodecs.cms_transform(array, source, target, colorspace="rgb", outcolorspace="rgb")
            result[:, top : top + _ROWS] = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1) / 65535
        return result

    axis = torch.linspace(0, 1, 9)
    grid = torch.cartesian_prod(axis, axis, axis).t().reshape(3, 27, 27)
    try:
        moved = (convert(grid, icc, srgb) - grid).abs().max()
        convert(grid, srgb, icc)
    except Exception:  # a damaged profile, a gray one, or one that works in one direction only
        return None, False
    if moved <= _TOLERANCE:
        return None, True
    return ((lambda x: convert(x, icc, srgb)), (lambda x: convert(x, srgb, icc))), True


def _gray_transform(icc: bytes) -> tuple[_Transform | None, bool] | None:
    """Return what :func:`_icc_transform` does of a profile of gray images, None for any other profile."""
    import imagecodecs

    grays = np.linspace(0, 1, 4097)
    try:
        ramp = (grays[None] * 65535).round().astype(np.uint16)
        spaces = {"colorspace": "gray", "outcolorspace": "rgb", "flags": _UNOPTIMIZED}
        values = imagecodecs.cms_transform(ramp, icc, _srgb_profile(), **spaces)
    except Exception:  # one of RGB images, or damaged
        return None
    curve = values[0, :, 1] / 65535
    if (np.diff(curve) < 0).any():
        return None, False
    if np.abs(curve - grays).max() <= _TOLERANCE:
        return None, True

    def convert(x: Tensor, source: np.ndarray, target: np.ndarray) -> Tensor:
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        for top in range(0, x.shape[1], _ROWS):
            rows = np.interp(x[:, top : top + _ROWS].numpy(), source, target)
            result[:, top : top + _ROWS] = torch.from_numpy(rows.astype(np.float32))
        return result

    return ((lambda x: convert(x, grays, curve)), (lambda x: convert(x, curve, grays))), True


@cache
def _srgb_profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
