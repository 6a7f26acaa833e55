"""Where data sets of defocused pictures keep their files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tta_restore._core import checks
from tta_restore.data.datasets.clips import Clip, ImageSequence
from tta_restore.data.io.files import images_below, match_files, natural_order
from tta_restore.data.io.image import read_image


@dataclass(frozen=True)
class PairFiles:
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
#: Data sets with the views of dual pixels, whose folders have these letters in place of the center's.
_VIEWS = {"dpdd": ("_c/", "_r/", "_l/"), "pixeldp": ("_c/", "_r/", "_l/")}


def has_views(layout: str) -> bool:
    """Whether a data set comes with the views of dual pixels."""
    return layout in _VIEWS


def find_files(root: str | Path, layout: str, split: str = "train", *, views: bool = False) -> list[PairFiles]:
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
    checks.expect_choice("find_files", "layout", layout, tuple(LAYOUTS))
    checks.expect_choice("find_files", f"split of {layout}", split, tuple(LAYOUTS[layout]))
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
    return [PairFiles(path, *rest) for path, *rest in zip(pictures, *columns, strict=True)]


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
    center, *sides = _VIEWS[layout]
    return tuple(blurry.replace(center, side) for side in sides) if center in blurry else ()


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

    A data set named like one of :data:`LAYOUTS` is looked for where that keeps its test
    split, and must have the originals that it is handed out with. Any other folder holds two folders of blurry and
    sharp pictures ("source" and "target", "input" and "ground_truth" as in LFDOF, or similar), or pictures alone, which
    then have no originals. How they are matched says :func:`tta_restore.data.io.files.match_files`. ``limit`` takes
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


def _files(family: str, folder: Path, views: bool) -> Sequence[PairFiles]:
    if not folder.is_dir():
        raise ValueError(f"{family}: there is no folder {folder}")
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    layouts = LAYOUTS.get(family.lower(), {}).get("test", ())
    try:
        if views or any((folder / blurry).is_dir() for blurry, _ in layouts if blurry != "."):
            return find_files(folder, family.lower(), "test", views=views)
        blurry, sharp = (next((inside[name] for name in names if name in inside), None) for names in (_BLURRY, _SHARP))
        if blurry is not None and sharp is not None:
            return [PairFiles(*pair) for pair in match_files(blurry, sharp)]
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
    return [PairFiles(picture) for picture in pictures]


#: Per data set, where a video's blurred and sharp frames lie. "{video}" stands for the name of the video, "{split}" for
#: that of the split; the first pair that is there counts. Meta Transferring puts all of them as in the first.
CLIP_LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "gopro": (
        ("{split}/{video}/blur", "{split}/{video}/sharp"),
        ("{split}/{video}/blur_gamma", "{split}/{video}/sharp"),
    ),
    "dvd": (("{split}/{video}/input", "{split}/{video}/GT"), ("{video}/input", "{video}/GT")),
    "reds": (
        ("{split}/{video}/blur", "{split}/{video}/sharp"),
        ("{split}/{split}_blur/{video}", "{split}/{split}_sharp/{video}"),
        ("{split}_blur/{video}", "{split}_sharp/{video}"),
    ),
    "realblur": (("{split}/{video}/blur", "{split}/{video}/gt"), ("{video}/blur", "{video}/gt")),
}


def find_clips(root: str | Path, layout: str, split: str = "test") -> list[Clip]:
    """The videos of a data set in natural order; every file is looked for before the first one is read.

    Frames are in natural order (blur_2 before blur_10) and belong together by name or, where blurred and sharp files
    are named differently (blur_1 and gt_1), by the last number in it.

    Args:
        root: folder of the data set.
        layout: one of :data:`CLIP_LAYOUTS`: "gopro", "dvd", "reds", "realblur".
        split: "train", "val" or "test".

    Raises:
        ValueError: the layout is unknown, or folders or frames are missing; the message lists them.
    """
    checks.expect_choice("find_clips", "layout", layout, tuple(CLIP_LAYOUTS))
    checks.expect_choice("find_clips", "split", split, ("train", "val", "test"))
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    for pattern in CLIP_LAYOUTS[layout]:
        blurry, sharp = (part.format(split=split, video="{video}") for part in pattern)
        videos = _videos(root, blurry)
        if videos:
            break
    else:
        wanted = " or ".join(pattern[0].format(split=split, video="<video>") for pattern in CLIP_LAYOUTS[layout])
        there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise ValueError(f"{root}: expected videos in {wanted} for {layout}, found: {there}")
    clips, problems = [], []
    for video in videos:
        folders = [root / part.format(video=video) for part in (blurry, sharp)]
        try:
            clips.append(_clip(video, *folders))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{root}: {layout} ({split}) is not whole:\n  " + "\n  ".join(problems[:10]) + more)
    return clips


def clip_of_folder(folder: str | Path) -> Clip:
    """All pictures of one folder, in natural order, as a clip without originals.

    Raises:
        ValueError: there are none.
    """
    folder = Path(folder)
    return Clip(folder.name, ImageSequence(images_below(folder)))


def _videos(root: Path, pattern: str) -> list[str]:
    before, _, after = pattern.partition("{video}")
    parent = root / before
    if not parent.is_dir():
        return []
    inside = (path for path in parent.iterdir() if not path.name.startswith("."))
    return [path.name for path in sorted(inside, key=natural_order) if Path(f"{path}{after}").is_dir()]


def _clip(video: str, blurry: Path, sharp: Path) -> Clip:
    if not sharp.is_dir():
        raise ValueError(f"{video}: there is no folder {sharp}")
    frames, originals = images_below(blurry), images_below(sharp)
    for folder, found in ((blurry, frames), (sharp, originals)):
        if not found:
            raise ValueError(f"{video}: no pictures in {folder}")
    for key in (lambda path: path.stem, _number):
        partners = {key(path): path for path in originals}
        names = [key(path) for path in frames]
        alone = sorted(set(names) ^ set(partners), key=str)
        if not alone and None not in partners and len(partners) == len(originals) == len(frames):
            return Clip(video, ImageSequence(frames), ImageSequence(partners[name] for name in names))
    raise ValueError(
        f"{video}: {len(frames)} blurred and {len(originals)} sharp frames do not belong together"
        + (f"; without a partner: {', '.join(map(str, alone[:5]))}" if alone else "")
    )


def _number(path: Path) -> int | None:
    found = re.findall(r"\d+", path.stem)
    return int(found[-1]) if found else None
