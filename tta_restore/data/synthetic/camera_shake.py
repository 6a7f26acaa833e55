"""Clips of a camera that moves over a photograph: pans, zooms and rotations, exposed over many sub-frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tta_restore._core.color import srgb_to_linear
from tta_restore.data.datasets.clips import Clip
from tta_restore.degradations.motion import CameraShake, camera_path, expose
from tta_restore.degradations.sensor import apply_sensor_model


def simulate_shake(
    photo: Tensor,
    shake: CameraShake,
    generator: torch.Generator,
    *,
    frames: int = 10,
    size: int = 96,
    name: str = "clip",
    num_subframes: int = 17,
) -> Clip:
    """Film a photograph with a moving camera.

    Each frame is the mean, in linear light, of ``num_subframes`` views of its exposure, as a sensor stores it; its
    original is the view in the middle. Beyond its border the photograph is mirrored.

    Shape:
        - photo: (3, H, W), RGB in [0, 1], both sides at least ``size``
        - frames of the clip: (T, 3, size, size)

    Raises:
        ValueError: the photograph is smaller than a frame.
    """
    if photo.ndim != 3 or photo.shape[0] != 3 or min(photo.shape[1:]) < size:
        raise ValueError(f"simulate_shake: expected photo (3, H, W) with H, W >= {size}, got {tuple(photo.shape)}")
    path = camera_path(shake, frames, generator, num_subframes=num_subframes)
    height, width = photo.shape[1:]
    room = torch.tensor([width - size, height - size], dtype=torch.float32)
    poses = path.poses.clone()
    start = torch.rand(2, generator=generator) * room - room / 2
    poses[..., :2] += start - poses[..., :2].mean((0, 1))
    linear = srgb_to_linear(photo)
    blurry, sharp = [], []
    for exposure in poses:
        seen = expose(linear, exposure, size)
        blurry.append(apply_sensor_model(seen.mean(0), generator, noise_std=shake.noise_std))
        sharp.append(apply_sensor_model(seen[num_subframes // 2], generator, noise_std=0.0))
    return Clip(name, torch.stack(blurry), torch.stack(sharp))


class ShakenClips(Sequence[Clip]):
    """Clips made of photographs when they are asked for; clip number n is always the same.

    Args:
        photos: name and image (3, H, W), in order; a clip takes the next one, when it is made.
        shakes: kinds of motion; a clip takes the next one after every round of the photographs.
        length: clips in all; None for one per photograph and kind.
        frames: per clip.
        size: side of the frames in pixels.
        seed: of motion, places and noise.
        num_subframes: of each exposure, odd.

    Raises:
        ValueError: there are no photographs or no kinds of motion.
    """

    def __init__(
        self,
        photos: Sequence[tuple[str, Tensor]],
        shakes: Sequence[CameraShake],
        *,
        length: int | None = None,
        frames: int = 10,
        size: int = 96,
        seed: int = 0,
        num_subframes: int = 17,
    ) -> None:
        if not photos or not shakes:
            raise ValueError(f"ShakenClips: expected photographs and motions, got {len(photos)} and {len(shakes)}")
        self.photos, self.shakes = photos, tuple(shakes)
        self.frames, self.size, self.seed, self.num_subframes = frames, size, seed, num_subframes
        self.length = len(photos) * len(shakes) if length is None else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Clip:  # type: ignore[override]
        """Return a clip, made anew."""
        if not 0 <= index < self.length:
            raise IndexError(f"ShakenClips: clip {index} of {self.length}")
        name, photo = self.photos[index % len(self.photos)]
        kind = index // len(self.photos) % len(self.shakes)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        label = f"{name}-{kind}-{index:04d}"
        options = {"frames": self.frames, "size": self.size, "num_subframes": self.num_subframes}
        return simulate_shake(photo, self.shakes[kind], generator, name=label, **options)
