"""Defocused frames: lenses to develop and to report on, rendered photographs, streams whose lens changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tta_restore.data.synthetic import photos as _photos
from tta_restore.degradations.lens import (
    KERNEL_SIZE,
    Lens,
    bubble,
    cat_eye,
    disk,
    ellipse,
    exponential,
    gaussian,
    interpolation_weights,
    polygon,
    random_defocus_map,
    rasterize,
    ring,
    simulate_capture,
)


@dataclass(frozen=True)
class DefocusFrame:
    """A simulated frame with its ground truth.

    Shape:
        - blurry, sharp: (3, H, W), RGB in [0, 1]
        - radius: (H, W), pixels
        - kernels: (G, G, K, K), the point spread functions at the centers of a G x G grid of tiles, each summing to 1
    """

    blurry: Tensor
    sharp: Tensor
    radius: Tensor
    kernels: Tensor
    family: str
    photo: str
    position: int  # frames since the last change of lens


#: The lens that the specialist is trained on.
SOURCE = Lens("disk", disk, (1.0, 3.5))
#: Families to choose recipes and settings on.
DEV = (
    Lens("ellipse", ellipse(), (1.5, 5.0)),
    Lens("triangle", polygon(3, 0.5), (1.5, 5.0)),
    Lens("bubble", bubble, (1.5, 4.5)),
    Lens("exponential", exponential, (1.2, 3.5)),
    Lens("square", polygon(4, 0.3), (2.0, 5.5)),
)
#: Families to report on; nothing is trained or chosen on them.
TEST = (
    Lens("gaussian", gaussian, (1.5, 4.0)),
    Lens("ring", ring(), (1.5, 4.0)),
    Lens("cat_eye", cat_eye(), (1.5, 4.0)),
    Lens("big_disk", disk, (4.0, 6.5)),
    Lens("hexagon", polygon(6), (1.5, 4.3)),
)


def render(
    sharp: Tensor,
    lenses: Sequence[Lens],
    generator: torch.Generator,
    *,
    levels: int = 8,
    knots: int = 5,
    noise_std: float = 1 / 255,
) -> tuple[Tensor, Tensor, Tensor]:
    """Photograph sharp images through lenses: random depth, spatially varying blur in linear light, sensor.

    Shape:
        - sharp: (B, 3, H + K - 1, W + K - 1), stored values in [0, 1], K = ``KERNEL_SIZE``
        - output: blurry (B, 3, H, W); radius (B, H, W) in pixels; the sharp center (B, 3, H, W)

    Raises:
        ValueError: not one lens per image.
    """
    if sharp.ndim != 4 or len(lenses) != sharp.shape[0]:
        raise ValueError(f"render: expected sharp (B, 3, H, W) and B lenses, got {tuple(sharp.shape)}, {len(lenses)}")
    margin = KERNEL_SIZE // 2
    center = sharp[..., margin:-margin, margin:-margin]
    height, width = center.shape[-2:]
    low = torch.tensor([lens.radius[0] for lens in lenses])[:, None, None]
    high = torch.tensor([lens.radius[1] for lens in lenses])[:, None, None]
    radius = low + (high - low) * random_defocus_map(len(lenses), height, width, generator, knots=knots)
    steps = low[:, 0] + (high - low)[:, 0] * torch.linspace(0, 1, levels)
    kernels = torch.stack([rasterize(lens.pupil, step) for lens, step in zip(lenses, steps, strict=True)])
    return (
        simulate_capture(sharp, kernels, interpolation_weights(radius, steps), generator, noise_std=noise_std),
        radius,
        center,
    )


def defocus_stream(
    lenses: Sequence[Lens] = TEST,
    photos: Sequence[str | Path] = _photos.TEST,
    *,
    frames_per_lens: int = 8,
    size: int = 192,
    seed: int = 0,
    rounds: int = 1,
    grid: int = 4,
) -> list[DefocusFrame]:
    """Frames of photographs seen through one lens after another.

    Every lens shows `frames_per_lens` random crops, the photographs in turn, so that each lens meets each of them
    equally often when the count allows; then the next lens takes over, `rounds` times around.

    Shape:
        - each frame: blurry, sharp (3, S, S) with S = `size`; kernels (G, G, K, K) with G = `grid`

    Raises:
        ValueError: a photograph is smaller than a crop with its margin.
    """
    generator = torch.Generator().manual_seed(seed)
    padded = size + KERNEL_SIZE - 1
    frames = []
    for turn in range(rounds * len(lenses)):
        lens = lenses[turn % len(lenses)]
        for position in range(frames_per_lens):
            name = photos[(turn + position) % len(photos)]
            photo = _photos.load(name)
            room = (photo.shape[1] - padded, photo.shape[2] - padded)
            if min(room) < 0:
                raise ValueError(
                    f"defocus_stream: {name} {tuple(photo.shape)} is smaller than the crop {padded}x{padded}"
                )
            top, left = (int(torch.randint(0, r + 1, (), generator=generator)) for r in room)
            crop = photo[:, top : top + padded, left : left + padded]
            blurry, radius, sharp = render(crop[None], [lens], generator, levels=10)
            middle = (torch.arange(grid) * 2 + 1) * size // (2 * grid)
            at_tiles = radius[0][middle][:, middle].flatten()
            kernels = rasterize(lens.pupil, at_tiles).view(grid, grid, KERNEL_SIZE, KERNEL_SIZE)
            title = name.stem if isinstance(name, Path) else name
            frames.append(DefocusFrame(blurry[0], sharp[0], radius[0], kernels, lens.family, title, position))
    return frames
