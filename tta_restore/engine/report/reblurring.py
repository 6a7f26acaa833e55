"""Draw what a reblurring network estimates: blur radius, kernels, and a step of its training as one image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore import ops
from tta_restore.engine.report.images import contact_sheet
from tta_restore.nn.reblur import KERNEL_SIZES

__all__ = ["blur_radius", "draw_step", "mixed_kernels"]


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
    """Return the whole kernels of some pixels (y, x) of the first frame: (P, 15, 15)."""
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


def draw_step(tensors: dict[str, Tensor]) -> Tensor:
    """Return the first pair of a step as one picture (3, H, W): images, flow and mask, then blur radius and kernels."""
    height, width = tensors["blurry"].shape[2:]
    tiles = [tensors[name][0].clamp(0, 1) for name in ("blurry", "sharp", "restored") if name in tensors]
    if "warped" in tensors:
        tiles.append(tensors["warped"][0].clamp(0, 1))
    if "flow" in tensors:
        from torchvision.utils import flow_to_image  # slow to import, and few runs draw

        tiles.append(flow_to_image(tensors["flow"][0].float()) / 255)
    if "mask" in tensors:
        tiles.append(tensors["mask"][0].expand(3, -1, -1))
    if "reblurred" in tensors:
        tiles.append(tensors["reblurred"][0].clamp(0, 1))
    if "weights" in tensors and tensors["weights"].shape[1] > 1:  # the one-branch ablation has no kernel sizes
        seeds, weights = tensors["seeds"][:1], tensors["weights"][:1]
        tiles.append((blur_radius(seeds, weights)[0] / 6).clamp(0, 1).expand(3, -1, -1))
        places = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
        kernels = mixed_kernels(seeds, weights, places)
        kernels = (kernels / kernels.amax((1, 2), keepdim=True)).view(2, 2, *kernels.shape[1:])
        sheet = F.pad(kernels, (1, 1, 1, 1), value=0.3).permute(0, 2, 1, 3).reshape(1, 1, 34, 34)
        tiles.append(F.interpolate(sheet, size=(height, width))[0].expand(3, -1, -1))
    return contact_sheet(tiles, columns=min(len(tiles), 5))
