"""Pairs of blurry and sharp pictures in folders, in the layouts in which defocus data sets are handed out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tta_restore.data.image_io import SUFFIXES, read_image

_BLURRY = ("source", "input", "inputs", "blur", "blurry", "lq", "input_c")
_SHARP = ("target", "ground_truth", "gt", "sharp", "hq", "all_in_focus", "target_c")


@dataclass(frozen=True)
class FolderFrame:
    """A picture of a data set, read when asked for.

    Args:
        blurry_path: the file.
        sharp_path: its sharp original, None for data without any.
        family: name of the data set.
        photo: the file's name without its ending.
        position: in the data set, from 0.
    """

    blurry_path: Path
    sharp_path: Path | None
    family: str
    photo: str
    position: int

    @property
    def blurry(self) -> Tensor:
        """The picture, (3, H, W) in [0, 1]."""
        return read_image(self.blurry_path).as_rgb()

    @property
    def sharp(self) -> Tensor:
        """Its sharp original, (3, H, W) in [0, 1].

        Raises:
            ValueError: there is none.
        """
        if self.sharp_path is None:
            raise ValueError(f"{self.family}: {self.blurry_path} has no sharp original")
        return read_image(self.sharp_path).as_rgb()


def folder_frames(domains: Mapping[str, str | Path], *, rounds: int = 1, limit: int | None = None) -> list[FolderFrame]:
    """The pictures of several data sets one after the other, name -> folder, the whole sequence ``rounds`` times.

    A folder holds two folders of blurry and sharp pictures ("source" and "target" as in DPDD and RealDOF, "input" and
    "ground_truth" as in LFDOF, or similar), or pictures alone, which then have no originals (CUHK). The original of a
    picture has its path below the folder, or is named like the folder that the picture is in (LFDOF), or, where
    neither is so and the numbers agree, comes at its place in natural order. ``limit`` takes the first pictures only.

    Raises:
        ValueError: a folder is missing, holds no pictures, or its pictures and originals cannot be paired.
    """
    frames = []
    for _ in range(rounds):
        for family, folder in domains.items():
            pairs = _pairs(family, Path(folder))[:limit]
            frames += [
                FolderFrame(blurry, sharp, family, blurry.stem, position)
                for position, (blurry, sharp) in enumerate(pairs)
            ]
    return frames


def images_below(folder: Path) -> list[Path]:
    """Files that look like pictures, hidden ones left out, in natural order."""
    found = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return sorted(found, key=natural_order)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """frame2 before frame10: adaptation goes through frames in time."""
    pieces: Iterable[str] = re.split(r"(\d+)", str(path))
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]


def _pairs(family: str, folder: Path) -> Sequence[tuple[Path, Path | None]]:
    if not folder.is_dir():
        raise ValueError(f"{family}: there is no folder {folder}")
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    blurry, sharp = (next((inside[name] for name in names if name in inside), None) for names in (_BLURRY, _SHARP))
    pictures = images_below(blurry or folder)
    if not pictures:
        raise ValueError(f"{family}: no pictures below {blurry or folder}")
    if blurry is None or sharp is None:
        if blurry is not None or sharp is not None:
            there = ", ".join(sorted(inside))
            raise ValueError(f"{family}: {folder} holds {there}; expected folders of blurry and of sharp pictures")
        return [(picture, None) for picture in pictures]
    originals = images_below(sharp)
    by_path = {path.relative_to(sharp).with_suffix(""): path for path in originals}
    same = [by_path.get(path.relative_to(blurry).with_suffix("")) for path in pictures]
    if all(same):
        return list(zip(pictures, same, strict=True))
    parent = [by_path.get(path.relative_to(blurry).parent) for path in pictures]
    if all(parent):
        return list(zip(pictures, parent, strict=True))
    if len(originals) == len(pictures):
        return list(zip(pictures, originals, strict=True))
    lost = next(path for path, original in zip(pictures, same, strict=True) if original is None)
    raise ValueError(
        f"{family}: {lost} has no original in {sharp}, and {len(pictures)} pictures cannot be paired with "
        f"{len(originals)} originals by order"
    )
