"""Pupil functions on a raster: polar sampling, rotation, alignment, and scaling to point spread functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["align_pupils", "cartesian_matrix", "polar_samples", "rasterize_pupil", "rotate_pupil"]


def rasterize_pupil(pupil: Tensor, radius: Tensor, *, size: int, reach: float, supersample: int = 3) -> Tensor:
    """Return the point spread functions (PSFs) of pupil functions at given radii.

    Args:
        pupil: pupil functions over [-reach, reach] in units of their root mean square radius.
        radius: root mean square radii of the PSFs in pixels.
        size: odd side K of the PSFs in pixels.
        reach: half side of the raster of ``pupil``.
        supersample: samples per pixel and axis, averaged.

    Shape:
        - pupil: (A, A) or (L, A, A)
        - radius: (L,)
        - output: (L, K, K), each with unit sum
    """
    fine = size * supersample
    axis = (torch.arange(fine, dtype=pupil.dtype, device=pupil.device) - (fine - 1) / 2) / supersample
    scaled = axis / (radius.clamp(min=0.05)[:, None] * reach)  # (L, fine); the raster spans [-1, 1]
    grid = torch.stack(torch.broadcast_tensors(scaled[:, None, :], scaled[:, :, None]), dim=-1)
    pupils = pupil.expand(len(radius), -1, -1)[:, None]
    sampled = F.grid_sample(pupils, grid, align_corners=False)
    kernels = F.avg_pool2d(sampled, supersample)[:, 0]
    total = kernels.sum((-2, -1), keepdim=True)
    delta = torch.zeros_like(kernels)
    delta[:, size // 2, size // 2] = 1
    return torch.where(total > 0, kernels / total.clamp(min=1e-12), delta)


def cartesian_matrix(rings: int, directions: int, size: int, reach: float) -> Tensor:
    """Return the matrix that samples polar values, symmetric under half a turn, on a raster: (size^2, cells)."""
    axis = ((torch.arange(size, dtype=torch.float32) + 0.5) / size * 2 - 1) * reach
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    ring = ((x * x + y * y).sqrt() / reach * rings - 0.5).clamp(0, rings - 1).flatten()
    direction = (torch.remainder(torch.atan2(y, x), math.pi) / math.pi * directions).flatten()
    matrix = torch.zeros(size * size, rings, directions)
    points = torch.arange(size * size)
    for dr in (0, 1):
        for dd in (0, 1):
            r, d = ring.floor() + dr, direction.floor() + dd
            weight = (1 - (ring - r).abs()) * (1 - (direction - d).abs())
            place = (points, r.long().clamp(max=rings - 1), d.long() % directions)
            matrix.index_put_(place, weight, accumulate=True)
    return matrix.flatten(1)


def polar_samples(pupils: Tensor, rings: int, directions: int) -> Tensor:
    """Return pupil functions on a polar grid over half a turn.

    Rings are weighted by the square root of their radius, so that distances equal those on the raster.

    Args:
        pupils: pupil functions, symmetric under half a turn.
        rings: number of radii.
        directions: number of directions.

    Shape: pupils (L, A, A) -> (L, rings, directions).
    """
    radius = (torch.arange(rings, device=pupils.device, dtype=torch.float32) + 0.5) / rings
    angle = torch.arange(directions, device=pupils.device, dtype=torch.float32) * (math.pi / directions)
    grid = torch.stack([radius[:, None] * torch.cos(angle), radius[:, None] * torch.sin(angle)], dim=-1)
    sampled = F.grid_sample(pupils[:, None], grid.expand(len(pupils), -1, -1, -1), align_corners=False)
    return sampled[:, 0] * radius.sqrt()[:, None]


def rotate_pupil(pupils: Tensor, angle: Tensor, mirrored: Tensor) -> Tensor:
    """Return pupil functions reflected top to bottom where ``mirrored``, then rotated, each with unit sum.

    Args:
        pupils: pupil functions.
        angle: angles from the x towards the y axis in radians.
        mirrored: whether each is reflected first, bool.

    Shape: pupils (L, A, A), angle (L,), mirrored (L,) -> (L, A, A).
    """
    upright = torch.where(mirrored[:, None, None], pupils.flip(1), pupils)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    matrix = torch.stack([torch.stack([cos, sin, zero], 1), torch.stack([-sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrix, [len(pupils), 1, *pupils.shape[1:]], align_corners=False)
    drawn = F.grid_sample(upright[:, None], grid.to(upright), align_corners=False)[:, 0]
    return drawn / drawn.sum((1, 2), keepdim=True)


def align_pupils(query: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rotations and reflections that bring known pupil functions closest to a query.

    Args:
        query: polar samples of one pupil function, see :func:`polar_samples`.
        known: polar samples of the others.

    Shape:
        - query: (rings, directions)
        - known: (L, rings, directions)
        - output: squared distances (L,), angles (L,) in radians, reflections (L,)
    """
    steps = query.shape[-1]
    spectrum, others = torch.fft.rfft(query, dim=-1), torch.fft.rfft(known, dim=-1)
    # Circular correlation over directions by FFT, summed over rings: all rotations of both reflections at once.
    products = torch.stack([(spectrum.conj() * other).sum(1) for other in (others, others.conj())], dim=1)
    match = torch.fft.irfft(products, n=steps, dim=-1)  # (L, 2, steps)
    best, place = match.flatten(1).max(1)
    distance = known.square().sum((1, 2)) + query.square().sum() - 2 * best
    return distance, -(place % steps) * (math.pi / steps), place >= steps
