"""Pictures of apertures: drawn from polar values, turned, compared, and scaled to point spread functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rasterize_pupil(picture: Tensor, radius: Tensor, *, size: int, reach: float, supersample: int = 3) -> Tensor:
    """Scale aperture pictures to root mean square radii in pixels.

    Shape:
        - picture: (A, A) or (L, A, A) over [-reach, reach] in units of its root mean square radius
        - radius: (L,), pixels
        - output: (L, K, K) with K = `size`, each summing to 1
    """
    fine = size * supersample
    axis = (torch.arange(fine, dtype=picture.dtype, device=picture.device) - (fine - 1) / 2) / supersample
    scaled = axis / (radius.clamp(min=0.05)[:, None] * reach)  # (L, fine), the picture spans [-1, 1]
    grid = torch.stack(torch.broadcast_tensors(scaled[:, None, :], scaled[:, :, None]), dim=-1)
    pictures = picture.expand(len(radius), -1, -1)[:, None]
    sampled = F.grid_sample(pictures, grid, align_corners=False)
    kernels = F.avg_pool2d(sampled, supersample)[:, 0]
    total = kernels.sum((-2, -1), keepdim=True)
    delta = torch.zeros_like(kernels)
    delta[:, size // 2, size // 2] = 1
    return torch.where(total > 0, kernels / total.clamp(min=1e-12), delta)


def cartesian_matrix(rings: int, directions: int, size: int, reach: float) -> Tensor:
    """Bilinear samples of polar values (rings, directions over half a turn, the other half alike): (size^2, cells)."""
    axis = ((torch.arange(size) + 0.5) / size * 2 - 1) * reach
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


def polar_samples(pictures: Tensor, rings: int, directions: int) -> Tensor:
    """Pictures on a polar grid over half a turn, rings weighted so that distances are those of the pictures.

    Shape:
        - pictures: (L, A, A), alike under half a turn
        - output: (L, rings, directions)
    """
    radius = (torch.arange(rings, device=pictures.device) + 0.5) / rings
    angle = torch.arange(directions, device=pictures.device) * (math.pi / directions)
    grid = torch.stack([radius[:, None] * torch.cos(angle), radius[:, None] * torch.sin(angle)], dim=-1)
    sampled = F.grid_sample(pictures[:, None], grid.expand(len(pictures), -1, -1, -1), align_corners=False)
    return sampled[:, 0] * radius.sqrt()[:, None]


def rotate_pupil(pictures: Tensor, angle: Tensor, mirrored: Tensor) -> Tensor:
    """Pictures mirrored top to bottom where asked, then turned from the x towards the y axis, each summing to 1.

    Shape:
        - pictures: (L, A, A); angle: (L,), rad; mirrored: (L,), bool
        - output: (L, A, A)
    """
    upright = torch.where(mirrored[:, None, None], pictures.flip(1), pictures)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    matrix = torch.stack([torch.stack([cos, sin, zero], 1), torch.stack([-sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrix, [len(pictures), 1, *pictures.shape[1:]], align_corners=False)
    drawn = F.grid_sample(upright[:, None], grid, align_corners=False)[:, 0]
    return drawn / drawn.sum((1, 2), keepdim=True)


def align_pupils(query: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far a polar picture is from others at best, over all turns and reflections, and which those are.

    Shape:
        - query: (rings, directions); known: (L, rings, directions), see :func:`polar_samples`
        - output: squared distances (L,); angles (L,) in rad and reflections (L,) that bring each `known` to the query
    """
    steps = query.shape[-1]
    spectrum, others = torch.fft.rfft(query, dim=-1), torch.fft.rfft(known, dim=-1)
    # correlation with the upright and the mirrored picture, summed over rings, at every turn at once
    products = torch.stack([(spectrum.conj() * other).sum(1) for other in (others, others.conj())], dim=1)
    match = torch.fft.irfft(products, n=steps, dim=-1)  # (L, 2, steps)
    best, place = match.flatten(1).max(1)
    distance = known.square().sum((1, 2)) + query.square().sum() - 2 * best
    return distance, -(place % steps) * (math.pi / steps), place >= steps
