"""Pairs of blurry and sharp pictures in folders, in the layouts in which defocus data sets are handed out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tta_restore.data.image_files import images_below, match_files
from tta_restore.data.image_io import read_image
from tta_restore.data.pair_folders import LAYOUTS, find_files

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

    A data set named like one of :data:`tta_restore.data.pair_folders.LAYOUTS` is looked for where that keeps its test
    split. Any other folder holds two folders of blurry and sharp pictures ("source" and "target", "input" and
    "ground_truth" as in LFDOF, or similar), or pictures alone, which then have no originals. How they are matched says
    :func:`tta_restore.data.image_files.match_files`. ``limit`` takes the first pictures only.

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


def _pairs(family: str, folder: Path) -> Sequence[tuple[Path, Path | None]]:
    if not folder.is_dir():
        raise ValueError(f"{family}: there is no folder {folder}")
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    layouts = LAYOUTS.get(family.lower(), {}).get("test", ())
    if any((folder / blurry).is_dir() for blurry, _ in layouts if blurry != "."):
        try:
            return [(files.blurry, files.sharp) for files in find_files(folder, family.lower(), "test")]
        except ValueError as error:
            raise ValueError(f"{family}: {error}") from None
    blurry, sharp = (next((inside[name] for name in names if name in inside), None) for names in (_BLURRY, _SHARP))
    if blurry is None and sharp is None:
        pictures = images_below(folder)
        if not pictures:
            raise ValueError(f"{family}: no pictures below {folder}")
        return [(picture, None) for picture in pictures]
    if blurry is None or sharp is None:
        there = ", ".join(sorted(inside))
        raise ValueError(f"{family}: {folder} holds {there}; expected folders of blurry and of sharp pictures")
    try:
        return match_files(blurry, sharp)
    except ValueError as error:
        raise ValueError(f"{family}: {error}") from None
