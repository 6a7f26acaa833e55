"""Folder layouts of published data sets of image pairs, and of custom ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tta_restore._core import checks
from tta_restore.data.datasets.clip_folders import CLIP_LAYOUTS, ClipFunction
from tta_restore.data.io.files import images_below, match_files
from tta_restore.data.io.image import read_image

__all__ = [
    "LAYOUTS",
    "FolderFrame",
    "PairFiles",
    "find_files",
    "find_pairs",
    "folder_frames",
    "has_views",
    "register_layout",
]


@dataclass(frozen=True)
class PairFiles:
    """The files of one image.

    Attributes:
        blurry: the blurry image.
        sharp: its sharp original, None for data sets without originals.
        right: right dual-pixel view, where asked for.
        left: left dual-pixel view, where asked for.
    """

    blurry: Path
    sharp: Path | None = None
    right: Path | None = None
    left: Path | None = None


_Folders = tuple[tuple[str, str | None], ...]
PairFunction = Callable[[Path, str], Sequence[Sequence[Path | None]]]
"""From the folder of a data set and a split to the blurry and the sharp file of every pair, and the views if any."""

#: Per data set and split, the folders of blurry and of sharp files below its root; the first pair that exists counts.
#: None in place of the sharp folder: the data set has no originals.
LAYOUTS: dict[str, dict[str, _Folders] | PairFunction] = {
    "sdd": {
        "train": (("train_patches/blur", "train_patches/gt"),),
        "test": (("test/blur", "test/gt"),),
    },
    "dpdd": {
        "train": (("train_c/source", "train_c/target"), ("train/source", "train/target")),
        "val": (("val_c/source", "val_c/target"), ("val/source", "val/target")),
        "test": (("test_c/source", "test_c/target"), ("test/source", "test/target"), ("source", "target")),
    },
    "realdof": {"test": (("source", "target"), ("test/source", "test/target"))},
    "ded": {
        "train": (("train/blur", "train/sharp"), ("train/source", "train/target"), ("train/blur", "train/gt")),
        "test": (("test/blur", "test/sharp"), ("test/source", "test/target"), ("test/blur", "test/gt")),
    },
    "cuhk": {"test": (("test/source", None), ("source", None), ("image", None), (".", None))},
    "pixeldp": {"test": (("test_c/source", None), ("test/source", None), ("source", None), (".", None))},
    "folders": {"train": (("blurry", "sharp"),), "test": (("blurry", "sharp"),)},
}
#: Data sets with dual-pixel views: the part of the folder names of the center, right and left images.
_VIEWS = {"dpdd": ("_c/", "_r/", "_l/"), "pixeldp": ("_c/", "_r/", "_l/")}


def register_layout(
    name: str,
    *,
    pairs: Mapping[str, Sequence[tuple[str, str | None]]] | PairFunction | None = None,
    clips: Sequence[tuple[str, str]] | ClipFunction | None = None,
) -> None:
    """Add the layout of a custom data set, which :func:`find_files` or :func:`find_clips` then find by its name.

    Args:
        name: of the layout.
        pairs: for each split, folders of blurry and of sharp files below the root; the first pair that exists counts.
            None in place of the sharp folder: the data set has no originals. Or a function of root and split that
            returns the blurry and the sharp path of every pair.
        clips: folders of the blurred and of the sharp frames of a video, with ``{video}`` for the video's name and,
            where the splits have folders, ``{split}``; the first pair that exists counts. Or a function of root and
            split that returns the clips.

    Raises:
        ValueError: the name is taken, nothing is given, or a pattern lacks ``{video}``.

    >>> register_layout("my_pairs", pairs={"train": [("low", "high")]})
    >>> register_layout("my_clips", clips=[("{split}/{video}/noisy", "{split}/{video}/clean")])
    """
    if not pairs and not clips:
        raise ValueError("register_layout: expected pairs or clips, got neither")
    for given, known in ((pairs, LAYOUTS), (clips, CLIP_LAYOUTS)):
        if given and name in known:
            raise ValueError(f"register_layout: {name!r} is taken")
    for pattern in (part for pair in (() if callable(clips) else clips or ()) for part in pair):
        if pattern.count("{video}") != 1:
            raise ValueError(f"register_layout: expected one {{video}} in a pattern of clips, got {pattern!r}")
    if pairs:
        own = pairs if callable(pairs) else {split: tuple(folders) for split, folders in pairs.items()}
        LAYOUTS[name] = own
    if clips:
        CLIP_LAYOUTS[name] = clips if callable(clips) else tuple(clips)


def has_views(layout: str) -> bool:
    """Return whether a data set comes with dual-pixel views."""
    return layout in _VIEWS


def find_files(root: str | Path, layout: str, split: str = "train", *, views: bool = False) -> list[PairFiles]:
    """Return the files of every image of a data set, in natural order; nothing is read yet.

    Args:
        root: folder of the data set.
        layout: ``"dpdd"``, ``"realdof"``, ``"cuhk"``, ``"pixeldp"``, ``"sdd"``, ``"ded"``, ``"folders"`` for
            ``blurry/`` and ``sharp/``, or a registered one.
        split: ``"train"``, ``"val"`` or ``"test"``, as far as the data set has them.
        views: whether the dual-pixel views are looked for, too; DPDD and PixelDP have them.

    Raises:
        ValueError: the layout or split is unknown, the data set has no views, a folder is missing or empty, or files
            have no partner. The message names what was looked for and what is there.
    """
    checks.expect_choice("find_files", "layout", layout, tuple(LAYOUTS))
    folders_of = LAYOUTS[layout]
    if callable(folders_of):
        return _listed_files(folders_of, Path(root), layout, split)
    checks.expect_choice("find_files", f"split of {layout}", split, tuple(folders_of))
    if views and not has_views(layout):
        raise ValueError(f"find_files: {layout} has no dual-pixel views; there are those of {', '.join(_VIEWS)}")
    root = Path(root)
    choices = [(b, s, *_view_folders(layout, b, views)) for b, s in folders_of[split]]
    choices = [folders for folders in choices if not views or len(folders) == 4]
    found = next((folders for folders in choices if all(f is None or (root / f).is_dir() for f in folders)), None)
    if found is None:
        wanted = " or ".join(" and ".join(f for f in folders if f is not None) for folders in choices)
        there = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "no such folder"
        raise ValueError(f"{root}: expected {wanted} in it for {layout} ({split}), found: {there or 'nothing'}")
    blurry = root / found[0]
    images = images_below(blurry) if found[0] != "." else _images_in(root)
    if not images:
        raise ValueError(f"{blurry}: no images there")
    columns: list[list[Path | None]] = []
    for folder in found[1:]:
        partners = dict(match_files(blurry, root / folder)) if folder is not None else {}
        columns.append([partners.get(path) for path in images])
    return [PairFiles(path, *rest) for path, *rest in zip(images, *columns, strict=True)]


def _listed_files(function: PairFunction, root: Path, layout: str, split: str) -> list[PairFiles]:
    """Return what a user's function lists.

    Raises:
        ValueError: it raises, lists nothing, or lists files that do not exist.
    """
    try:
        listed = [[None if path is None else Path(path) for path in files] for files in function(root, split)]
        found = [PairFiles(blurry, *others) for blurry, *others in listed if blurry is not None]
    except Exception as error:  # code of any user
        raise ValueError(f"{layout}: {type(error).__name__}: {error}") from error
    if not found:
        raise ValueError(f"{root}: {layout} ({split}) lists no images")
    for path in (path for files in found for path in (files.blurry, files.sharp) if path is not None):
        if not path.is_file():
            raise ValueError(f"{layout}: there is no file {path}")
    return found


def find_pairs(root: str | Path, layout: str, split: str = "train") -> list[tuple[Path, Path]]:
    """Return the paths of the blurry and the sharp file of every pair; the arguments are those of :func:`find_files`.

    Raises:
        ValueError: :func:`find_files` raises it, or the data set has no originals.
    """
    pairs = [(files.blurry, files.sharp) for files in find_files(root, layout, split)]
    whole = [(blurry, sharp) for blurry, sharp in pairs if sharp is not None]
    if len(whole) < len(pairs):
        raise ValueError(f"find_pairs: the images of {layout} have no sharp originals")
    return whole


def _view_folders(layout: str, blurry: str, views: bool) -> tuple[str, ...]:
    if not views:
        return ()
    center, *sides = _VIEWS[layout]
    return tuple(blurry.replace(center, side) for side in sides) if center in blurry else ()


_BLURRY = ("source", "input", "inputs", "blur", "blurry", "lq", "input_c")
_SHARP = ("target", "ground_truth", "gt", "sharp", "hq", "all_in_focus", "target_c")


@dataclass(frozen=True)
class FolderFrame:
    """An image of a data set, read when asked for.

    Args:
        blurry_path: the blurry image.
        sharp_path: its sharp original, None for data sets without originals.
        family: name of the data set.
        photo: name of the file without its suffix.
        position: index in the data set, from 0.
        right_path: right dual-pixel view, where asked for.
        left_path: left dual-pixel view, where asked for.
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
        """The blurry image, (3, H, W) in [0, 1]."""
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
    domains: Mapping[str, str | Path],
    *,
    rounds: int = 1,
    limit: int | None = None,
    views: bool = False,
    layouts: Mapping[str, str] | None = None,
) -> list[FolderFrame]:
    """Return the images of several data sets one after the other, the whole sequence ``rounds`` times.

    A data set named like one of :data:`LAYOUTS` is looked for where that keeps its test split, and must have the
    originals that it is published with. Any other folder holds two folders of blurry and sharp images ("source" and
    "target", "input" and "ground_truth" as in LFDOF, or similar), or images in one folder, which then have no
    originals. :func:`tta_restore.data.io.files.match_files` matches them.

    Args:
        domains: folder of each data set by its name.
        rounds: number of passes over the whole sequence.
        limit: number of images taken of each data set, None for all.
        views: whether the dual-pixel views are looked for, too.
        layouts: layouts of data sets that are not named like theirs.

    Raises:
        ValueError: a folder is missing, holds no images or several folders of unknown names with images, or its
            images, originals and views do not match.
    """
    frames = []
    for _ in range(rounds):
        for family, folder in domains.items():
            files = _files(family, Path(folder), views, (layouts or {}).get(family, family))
            frames += [
                FolderFrame(f.blurry, f.sharp, family, f.blurry.stem, position, f.right, f.left)
                for position, f in enumerate(files[:limit])
            ]
    return frames


def _files(family: str, folder: Path, views: bool, layout: str) -> Sequence[PairFiles]:
    if not folder.is_dir():
        raise ValueError(f"{family}: there is no folder {folder}")
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    layout = layout if layout in LAYOUTS else layout.lower()
    known = LAYOUTS.get(layout, {})
    if callable(known):
        return _listed_files(known, folder, family, "test")
    layouts = known.get("test", ())
    try:
        if views or any((folder / blurry).is_dir() for blurry, _ in layouts if blurry != "."):
            return find_files(folder, layout, "test", views=views)
        blurry, sharp = (next((inside[name] for name in names if name in inside), None) for names in (_BLURRY, _SHARP))
        if blurry is not None and sharp is not None:
            return [PairFiles(*pair) for pair in match_files(blurry, sharp)]
        if layouts and None not in (sharp for _, sharp in layouts):
            return find_files(folder, layout, "test")  # which says what is missing of a known data set
    except ValueError as error:
        raise ValueError(f"{family}: {error}") from None
    if blurry is not None or sharp is not None:
        there = ", ".join(sorted(inside))
        raise ValueError(f"{family}: {folder} holds {there}; expected folders of blurry and of sharp images")
    try:
        images = _images_in(folder)
    except ValueError as error:
        raise ValueError(f"{family}: {error}") from None
    if not images:
        raise ValueError(f"{family}: no images below {folder}")
    return [PairFiles(image) for image in images]


def _images_in(folder: Path) -> list[Path]:
    """Return the images below a folder that lie in the folder itself, in a single one inside, or in numbered scenes.

    Raises:
        ValueError: they lie in several folders, of which one may hold originals, masks or results.
    """
    images = images_below(folder)
    places = sorted({path.relative_to(folder).parts[:-1][:1] for path in images})
    numbered = {re.fullmatch(r"(.*?)\d+", place[0]) if place else None for place in places}
    scenes = None not in numbered and len({match[1] for match in numbered if match is not None}) == 1
    if len(places) > 1 and not scenes:
        names = ", ".join("/".join(place) or "." for place in places[:6])
        raise ValueError(
            f"{folder} holds images in {names}: which of them are inputs? Name that folder, or call them source and "
            "target"
        )
    return images
