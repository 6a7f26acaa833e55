"""Pairs of blurry and sharp pictures in folders, in the layouts in which defocus data sets are handed out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tta_restore.data.image_files import images_below, match_files
from tta_restore.data.image_io import read_image
from tta_restore.data.pair_folders import LAYOUTS, PictureFiles, find_files

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
        right_path: right view of its dual pixels, where asked for.
        left_path: left view.
    """

    blurry_path: Path
    sharp_path: Path | None
    family: str
    photo: str
    position: int
    right_path: Path | None = None
    left_path: Path | None = None

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


def folder_frames(
    domains: Mapping[str, str | Path], *, rounds: int = 1, limit: int | None = None, views: bool = False
) -> list[FolderFrame]:
    """The pictures of several data sets one after the other, name -> folder, the whole sequence ``rounds`` times.

    A data set named like one of :data:`tta_restore.data.pair_folders.LAYOUTS` is looked for where that keeps its test
    split, and must have the originals that it is handed out with. Any other folder holds two folders of blurry and
    sharp pictures ("source" and "target", "input" and "ground_truth" as in LFDOF, or similar), or pictures alone, which
    then have no originals. How they are matched says :func:`tta_restore.data.image_files.match_files`. ``limit`` takes
    the first pictures only; ``views`` asks for the views of dual pixels, too.

    Raises:
        ValueError: a folder is missing, holds no pictures, or its pictures, originals and views do not match.
    """
    frames = []
    for _ in range(rounds):
        for family, folder in domains.items():
            frames += [
                FolderFrame(f.blurry, f.sharp, family, f.blurry.stem, position, f.right, f.left)
                for position, f in enumerate(_files(family, Path(folder), views)[:limit])
            ]
    return frames


def _files(family: str, folder: Path, views: bool) -> Sequence[PictureFiles]:
    if not folder.is_dir():
        raise ValueError(f"{family}: there is no folder {folder}")
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    layouts = LAYOUTS.get(family.lower(), {}).get("test", ())
    try:
        if views or any((folder / blurry).is_dir() for blurry, _ in layouts if blurry != "."):
            return find_files(folder, family.lower(), "test", views=views)
        blurry, sharp = (next((inside[name] for name in names if name in inside), None) for names in (_BLURRY, _SHARP))
        if blurry is not None and sharp is not None:
            return [PictureFiles(*pair) for pair in match_files(blurry, sharp)]
        if layouts and None not in (sharp for _, sharp in layouts):
            return find_files(folder, family.lower(), "test")  # which says what is missing of a known data set
    except ValueError as error:
        raise ValueError(f"{family}: {error}") from None
    if blurry is not None or sharp is not None:
        there = ", ".join(sorted(inside))
        raise ValueError(f"{family}: {folder} holds {there}; expected folders of blurry and of sharp pictures")
    pictures = images_below(folder)
    if not pictures:
        raise ValueError(f"{family}: no pictures below {folder}")
    return [PictureFiles(picture) for picture in pictures]
