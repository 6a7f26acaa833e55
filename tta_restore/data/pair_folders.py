"""Where data sets of defocused pictures keep their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tta_restore import _checks
from tta_restore.data.image_files import images_below, match_files


@dataclass(frozen=True)
class PictureFiles:
    """The files of one picture.

    Attributes:
        blurry: as the camera took it.
        sharp: its original; None for data without any.
        right: right view of its dual pixels, where asked for.
        left: left view.
    """

    blurry: Path
    sharp: Path | None = None
    right: Path | None = None
    left: Path | None = None


_Folders = tuple[tuple[str, str | None], ...]

#: Per data set and split, the folders of blurry and of sharp files below its root; the first pair that is there counts.
#: No sharp folder: the data set has no originals.
LAYOUTS: dict[str, dict[str, _Folders]] = {
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
#: Data sets with the views of dual pixels, whose folders have these letters in place of the centre's.
_VIEWS = {"dpdd": ("_c/", "_r/", "_l/"), "pixeldp": ("_c/", "_r/", "_l/")}


def has_views(layout: str) -> bool:
    """Whether a data set comes with the views of dual pixels."""
    return layout in _VIEWS


def find_files(root: str | Path, layout: str, split: str = "train", *, views: bool = False) -> list[PictureFiles]:
    """The files of every picture of a data set, in natural order; nothing is read yet.

    Args:
        root: folder of the data set.
        layout: ``"dpdd"``, ``"realdof"``, ``"cuhk"``, ``"pixeldp"``, ``"sdd"``, ``"ded"``, or ``"folders"`` for
            ``blurry/`` and ``sharp/``.
        split: ``"train"``, ``"val"`` or ``"test"``, as far as the data set has them.
        views: also the views of dual pixels; DPDD and PixelDP have them.

    Raises:
        ValueError: the layout or split is unknown, the data set has no views, a folder is missing or empty, or files
            have no partner. The message names what was looked for and what is there.
    """
    _checks.expect_choice("find_files", "layout", layout, tuple(LAYOUTS))
    _checks.expect_choice("find_files", f"split of {layout}", split, tuple(LAYOUTS[layout]))
    if views and not has_views(layout):
        raise ValueError(f"find_files: {layout} has no views of dual pixels; there are those of {', '.join(_VIEWS)}")
    root = Path(root)
    choices = [(b, s, *_view_folders(layout, b, views)) for b, s in LAYOUTS[layout][split]]
    choices = [folders for folders in choices if not views or len(folders) == 4]
    found = next((folders for folders in choices if all(f is None or (root / f).is_dir() for f in folders)), None)
    if found is None:
        wanted = " or ".join(" and ".join(f for f in folders if f is not None) for folders in choices)
        there = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "no such folder"
        raise ValueError(f"{root}: expected {wanted} in it for {layout} ({split}), found: {there or 'nothing'}")
    blurry = root / found[0]
    pictures = images_below(blurry)
    if not pictures:
        raise ValueError(f"{blurry}: no images there")
    columns: list[list[Path | None]] = []
    for folder in found[1:]:
        partners = dict(match_files(blurry, root / folder)) if folder is not None else {}
        columns.append([partners.get(path) for path in pictures])
    return [PictureFiles(path, *rest) for path, *rest in zip(pictures, *columns, strict=True)]


def find_pairs(root: str | Path, layout: str, split: str = "train") -> list[tuple[Path, Path]]:
    """Paths of the blurry and the sharp file of every pair; arguments are those of :func:`find_files`.

    Raises:
        ValueError: as there, or the data set has no originals.
    """
    pairs = [(files.blurry, files.sharp) for files in find_files(root, layout, split)]
    whole = [(blurry, sharp) for blurry, sharp in pairs if sharp is not None]
    if len(whole) < len(pairs):
        raise ValueError(f"find_pairs: the pictures of {layout} have no sharp originals")
    return whole


def _view_folders(layout: str, blurry: str, views: bool) -> tuple[str, ...]:
    if not views:
        return ()
    centre, *sides = _VIEWS[layout]
    return tuple(blurry.replace(centre, side) for side in sides) if centre in blurry else ()
