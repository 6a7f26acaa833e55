"""Pictures of what reblurring-guided learning sees: blur map, kernels, flow, mask, restored, reblurred."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore import ops
from tta_restore.engine.contact_sheet import contact_sheet
from tta_restore.nn.isotropic import KERNEL_SIZES


def blur_radius(seeds: Tensor, weights: Tensor) -> Tensor:
    """Root mean square distance, in pixels, that the mixed kernel of every pixel carries its light.

    Shape: seeds (B, 35, H, W), weights (B, 8, H, W) -> (B, 1, H, W).
    """
    total, first = torch.zeros_like(weights[:, :1]), 0
    for n, size in enumerate(KERNEL_SIZES, 1):
        count = (size + 1) // 2
        kernel = ops.isotropic_kernels(seeds[:, first : first + count], size)
        first += count
        axis = torch.arange(size, device=seeds.device, dtype=kernel.dtype) - size // 2
        squared = (axis[:, None].square() + axis.square()).view(1, -1, 1, 1)
        total = total + weights[:, n, None] * (kernel * squared).sum(1, keepdim=True)
    return total.sqrt()


def mixed_kernels(seeds: Tensor, weights: Tensor, pixels: list[tuple[int, int]]) -> Tensor:
    """The whole kernels of some pixels (y, x) of the first frame: (P, 15, 15)."""
    side = max(KERNEL_SIZES)
    drawn = []
    for y, x in pixels:
        out, first = torch.zeros(side, side), 0
        out[side // 2, side // 2] = weights[0, 0, y, x].cpu()
        for n, size in enumerate(KERNEL_SIZES, 1):
            count = (size + 1) // 2
            own = seeds[:1, first : first + count, y : y + 1, x : x + 1]
            first += count
            kernel = ops.isotropic_kernels(own, size).view(size, size).cpu() * weights[0, n, y, x].cpu()
            margin = (side - size) // 2
            out += F.pad(kernel, (margin,) * 4)
        drawn.append(out)
    return torch.stack(drawn)


def draw_flow(flow: Tensor) -> Tensor:
    """Flow in the usual colours, relative to its largest displacement. Shape: (2, H, W) -> (3, H, W) in [0, 1]."""
    length = flow.square().sum(0).sqrt()
    length = length / length.max().clamp(min=1e-6)
    hue = torch.atan2(-flow[1], -flow[0]) / (2 * math.pi) + 0.5
    channels = [((hue * 6 + shift) % 6 - 3).abs().sub(1).clamp(0, 1) for shift in (0, 4, 2)]
    return 1 - length * (1 - torch.stack(channels))


def draw_step(tensors: dict[str, Tensor]) -> Tensor:
    """The first pair of a step as one picture (3, H, W): images, flow and mask, then blur radius and kernels."""
    height, width = tensors["blurry"].shape[2:]
    tiles = [tensors[name][0].clamp(0, 1) for name in ("blurry", "sharp", "restored") if name in tensors]
    if "warped" in tensors:
        tiles.append(tensors["warped"][0].clamp(0, 1))
    if "flow" in tensors:
        tiles.append(draw_flow(tensors["flow"][0]))
    if "mask" in tensors:
        tiles.append(tensors["mask"][0].expand(3, -1, -1))
    if "reblurred" in tensors:
        tiles.append(tensors["reblurred"][0].clamp(0, 1))
        seeds, weights = tensors["seeds"][:1], tensors["weights"][:1]
        tiles.append((blur_radius(seeds, weights)[0] / 6).clamp(0, 1).expand(3, -1, -1))
        places = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
        kernels = mixed_kernels(seeds, weights, places)
        kernels = (kernels / kernels.amax((1, 2), keepdim=True)).view(2, 2, *kernels.shape[1:])
        sheet = F.pad(kernels, (1, 1, 1, 1), value=0.3).permute(0, 2, 1, 3).reshape(1, 1, 34, 34)
        tiles.append(F.interpolate(sheet, size=(height, width))[0].expand(3, -1, -1))
    return contact_sheet(tiles, columns=min(len(tiles), 5))
