"""Blind reading of JPEG compression: decoded DCT coefficients lie on the lattice of the quantization steps."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.degradations.jpeg import quality_tables
from tta_restore.degradations.jpeg_traces import detail_grid, lacks_color, zeros_grid

__all__ = ["JpegReading", "estimate_jpeg"]

_ROUNDING = 0.4  # standard deviation of a DCT coefficient by rounding of luminance and RGB after decoding, of 255
_FLAT_ROUNDING, _FLAT = 1.5, 0.35  # the same of smooth blocks, which round alike, and how many these are
_FLAT_FREQUENCIES = 2  # sum of the row and column up to which a coefficient of a smooth block is not zero
_OUTLIER = 0.05  # fraction of coefficients that clipping and chroma move off the lattice
_VALUES = 1 << 15  # coefficients times qualities that are compared at once
_BLOCKS = 1024  # blocks that are looked at
_SIDE = 2048  # of the center of larger images, pixels, in which these lie
_QUALITIES = torch.arange(2.0, 98.0, dtype=torch.float32, device="cpu")
_CHANCE, _CERTAIN = 0.05, 0.25  # gain in log-likelihood per informative coefficient up to which it is chance, and proof
_FEW = 8.0  # what the sum of the gains needs beyond that, so that few coefficients are no proof by chance
_VISIBLE = 93.0  # quality above which the steps are too small to be told from rounding in smooth blocks
_TYPICAL = 85.0  # quality where even that is not visible
_GUESS = 10.0  # uncertainty of a quality that only other traces speak for
_LUMA = (0.299, 0.587, 0.114)
_DAMAGE = (0.0, 0.1, 1.0)  # clipping that a block may have: sum of the squared luminance weights of its clipped values


@dataclass(frozen=True)
class JpegReading:
    """JPEG compression of an image: probability, quality, and position of its grid.

    Attributes:
        probability: 1 where the image was compressed for certain, 0 where no trace is visible.
        quality: quality setting of libjpeg, 100 without compression.
        quality_std: uncertainty of ``quality``.
        tables: quantization tables (2, 64), transposed where the image was turned by 90 degrees after decoding.
        offset: row and column of the first full 8 x 8 block.
    """

    probability: float
    quality: float
    quality_std: float
    tables: Tensor
    offset: tuple[int, int]


def estimate_jpeg(image: Tensor) -> JpegReading:
    """Read the JPEG quality of an image that was only cropped, turned or mirrored since it was decoded.

    Each hypothesis is a quality of libjpeg, with its table as it is or transposed, as in the portraits that a camera
    stores sideways. A DCT coefficient c gains ``log(T N(e; 0, s))`` against a continuous distribution, with the step
    T, the distance e to the nearest multiple of T and the rounding noise s. Images that are too smooth or too saturated
    for this are recognized by other traces: on the grid of the blocks more coefficients are zero than next to it,
    across its lines there is more detail, and noise in the colors is missing.

    Shape:
        - image: (1 or 3, H, W) in [0, 1], H and W at least 16

    Raises:
        ValueError: the image has another shape or is smaller than 16 x 16.
    """
    checks.expect_shape("estimate_jpeg", "image", image, "(C, H, W)")
    if image.shape[0] not in (1, 3) or min(image.shape[1:]) < 16:
        raise ValueError(f"estimate_jpeg: expected image (1 or 3, H, W) with H, W >= 16, got {tuple(image.shape)}")
    # blocks keep their place on the grid
    top, left = (max(0, side - _SIDE) // 2 // 8 * 8 for side in image.shape[1:])
    values = image[:, top : top + _SIDE, left : left + _SIDE].detach().float().cpu()
    weights = torch.tensor(_LUMA if len(values) == 3 else (1.0,))
    luma = torch.einsum("chw,c->hw", values, weights) * 255 - 128
    clipped = ((values <= 0.5 / 255) | (values >= 1 - 0.5 / 255)).float()
    damage = torch.einsum("chw,c->hw", clipped, weights.square())
    best, probability, gains, offset, turned = -math.inf, 0.0, torch.zeros(len(_QUALITIES)), (0, 0), False
    grid, places = zeros_grid(luma, _dct_matrix(), 1.5 * _ROUNDING)
    for is_turned, place in itertools.product((False, True), dict.fromkeys([(0, 0), *places])):
        if is_turned and probability == 1:
            break
        for limit in _DAMAGE:
            found, count = _gains(*_cut(luma, damage, place, turned=is_turned), limit)
            mean, needed = float(found.max()), _FEW / max(count, 1)
            certain = min(max((mean - _CHANCE - needed) / (_CERTAIN - _CHANCE + needed), 0.0), 1.0)
            if (certain, mean) > (probability, best):
                best, probability, gains, offset, turned = mean, certain, found, place, is_turned
            if certain == 1 or not damage.any():
                break
    traces = [(grid, places[0])]
    if len(values) == 3:  # noise that was added since is in the colors, too
        colorless, noisy = lacks_color(values)
        traces += [detail_grid(luma)] * colorless + [(1.0, (0, 0))] * noisy
    trace, place = max(traces, key=lambda found: found[0])
    guessed = trace > probability == 0  # otherwise the lattice tells the quality
    if guessed:
        offset = place
        both = [_gains(*_cut(luma, damage, place, turned=is_turned), _DAMAGE[-1])[0] for is_turned in (False, True)]
        both = [gains.where(_QUALITIES <= _VISIBLE, -math.inf) for gains in both]
        turned = bool(both[1].max() > both[0].max())
        gains = both[turned]
    probability = max(probability, trace)
    quality = float(_QUALITIES[int(gains.argmax())])
    if guessed:
        # the coarsest lattice fits best what no lattice fits
        quality, spread = quality if quality > float(_QUALITIES[0]) else _TYPICAL, _GUESS
    elif probability:
        near = gains > best - 0.05 * abs(best)  # qualities with nearly the same tables
        spread = float((_QUALITIES[near] - quality).abs().max())
    else:
        quality, spread = 100.0, 50.0
    tables = quality_tables(torch.tensor([quality]))[0]
    if turned:
        tables = tables.view(2, 8, 8).mT.flatten(1)
    return JpegReading(probability, quality, max(spread, 0.5), tables, offset)


def _cut(luma: Tensor, damage: Tensor, place: tuple[int, int], *, turned: bool) -> tuple[Tensor, Tensor]:
    """Return luminance and damage from the first block on, transposed where the image is taken for a turned one."""
    luma, damage = (part[place[0] :, place[1] :] for part in (luma, damage))
    return (luma.T, damage.T) if turned else (luma, damage)


def _gains(luma: Tensor, damage: Tensor, limit: float) -> tuple[Tensor, int]:
    """Return the mean gain per informative coefficient of each quality, (Q,), and the number of these coefficients.

    Only blocks with a total ``damage`` by clipping of at most ``limit`` count: clipping moves all their coefficients.
    """
    height, width = (side // 8 * 8 for side in luma.shape)
    none = torch.zeros(len(_QUALITIES)), 0
    if not height or not width:
        return none
    blocks, damages = (part[:height, :width].unfold(0, 8, 8).unfold(1, 8, 8).flatten(0, 1) for part in (luma, damage))
    blocks = blocks[damages.sum((1, 2)) <= limit + 1e-6]
    if not len(blocks):
        return none
    blocks = blocks[torch.linspace(0, len(blocks) - 1, min(len(blocks), _BLOCKS)).long()]
    dct = _dct_matrix()
    coefficients = (dct @ blocks @ dct.T).flatten(1)
    flat = (torch.arange(8)[:, None] + torch.arange(8) <= _FLAT_FREQUENCIES).flatten()
    informative = coefficients.abs() > 3 * torch.where(flat, _FLAT_ROUNDING, _ROUNDING)
    informative[:, 0] = _is_first(coefficients[:, 0].round())  # flat areas repeat one mean
    found, place = coefficients[informative], informative.nonzero()[:, 1]
    if not len(found):
        return none
    wide = _FLAT * flat[place].float()
    rows = max(_VALUES // len(found), 1)
    gains = [_gain(found, tables[:, place], wide) for tables in _luma_tables().split(rows)]
    return torch.cat(gains), len(found)


def _gain(found: Tensor, steps: Tensor, wide: Tensor) -> Tensor:
    """Return the mean gain of coefficients (K,) under several hypotheses of their steps (Q, K), of shape (Q,)."""
    error = found - (found / steps).round() * steps
    density = (1 - wide) * _normal(error, _ROUNDING) + wide * _normal(error, _FLAT_ROUNDING)
    # a step below the rounding noise explains everything and is no evidence
    gain = torch.log((1 - _OUTLIER) * steps * density + _OUTLIER).clamp(max=4) * (steps > 4 * _ROUNDING)
    return gain.mean(1)


@functools.cache
def _luma_tables() -> Tensor:
    """Return the luma table of each quality, (Q, 64)."""
    return quality_tables(_QUALITIES)[:, 0].float().flatten(1)


def _normal(error: Tensor, std: float) -> Tensor:
    # exp takes ten times as long where it underflows; e^-60, too, is nothing next to the fraction of outliers
    return torch.exp(-(error.square() / (2 * std**2)).clamp(max=60)) / (std * math.sqrt(2 * math.pi))


def _is_first(values: Tensor) -> Tensor:
    """Return whether each value of a vector is the first of its kind."""
    _, kinds = values.unique(return_inverse=True)
    first = torch.full((int(kinds.max()) + 1,), len(values)).scatter_reduce(0, kinds, torch.arange(len(values)), "amin")
    return torch.arange(len(values)) == first[kinds]


def _dct_matrix() -> Tensor:
    index = torch.arange(8.0)
    matrix = torch.cos(math.pi / 8 * (index + 0.5)[None] * index[:, None]) * 0.5
    matrix[0] /= math.sqrt(2)
    return matrix
