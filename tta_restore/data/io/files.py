"""Find image and video files below a folder, in natural order, and match them with their counterparts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from tta_restore.data.io.formats import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    RAW_SUFFIXES,
    VIDEO_SUFFIXES,
    irregular_kind,
    sniff_file,
)

__all__ = [
    "FolderContent",
    "images_below",
    "match_files",
    "natural_order",
    "printable",
    "real_path",
    "scan_folder",
    "suggest_path",
]


@dataclass
class FolderContent:
    """Content of a folder and the folders below it.

    Attributes:
        images: image files in natural order, camera files (RAW) included.
        videos: video files in natural order.
        others: number of the remaining files by kind, for example ``{".txt": 2}``.
    """

    images: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def scan_folder(folder: Path, *, skip: Iterable[Path] = (), recursive: bool = True) -> FolderContent:
    """Return the images and videos below a folder, and how many other files of each kind it holds.

    A file counts as an image or a video by its name or, where the name is unknown, by its content. Linked folders are
    followed, each real folder is entered once. Hidden files are counted as others.

    Args:
        folder: where to look.
        skip: folders that are left out, such as the output folder.
        recursive: whether the folders inside are searched, too.
    """
    found = FolderContent()
    entered: set[tuple[int, int]] = set()
    skipped = {real_path(path) for path in skip}
    for root, folders, names in os.walk(folder, followlinks=True):
        state = os.stat(root)
        here = Path(root)
        if (state.st_dev, state.st_ino) in entered or real_path(here) in skipped:
            folders.clear()
            continue
        entered.add((state.st_dev, state.st_ino))
        found.others["hidden folder"] += sum(name.startswith(".") for name in folders)
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        for name in names:
            path = here / name
            kind = "hidden" if name.startswith(".") else _kind(path)
            if kind == "image":
                found.images.append(path)
            elif kind == "video":
                found.videos.append(path)
            else:
                found.others[kind] += 1
    found.others = +found.others
    found.images.sort(key=natural_order)
    found.videos.sort(key=natural_order)
    return found


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    try:
        if (special := irregular_kind(path)) is not None:
            return special.split()[-1]
        if suffix in IMAGE_SUFFIXES or suffix in RAW_SUFFIXES:
            return "image"
        if suffix in AUDIO_SUFFIXES:
            return suffix
        detected = sniff_file(path)
    except OSError:  # a broken link, or a file that may not be read: named when it is opened
        known = (*IMAGE_SUFFIXES, *RAW_SUFFIXES, *VIDEO_SUFFIXES)
        return ("video" if suffix in VIDEO_SUFFIXES else "image") if suffix in known else "unreadable"
    if detected is None:
        # ".ts" is also TypeScript, which is no damaged video
        return "video" if suffix in VIDEO_SUFFIXES and suffix != ".ts" else suffix or "without suffix"
    if detected.kind == "unsupported":
        return detected.name
    return "video" if detected.kind == "video" else "image"


def images_below(folder: Path) -> list[Path]:
    """Return the image files below a folder in natural order, by their suffixes; hidden ones are left out."""
    found = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return sorted(found, key=natural_order)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that puts frame2 before frame10: adaptation visits frames in time."""
    pieces: Iterable[str] = re.split(r"(\d+)", str(path))
    # isdecimal, not isdigit: "²" is a digit that int() refuses
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def suggest_path(path: Path) -> str:
    """Return "; did you mean PATH?" for a path that does not exist beside a similar one, else an empty string."""
    try:
        names = {name.casefold(): name for name in os.listdir(path.parent) if not name.startswith(".")}
    except (OSError, ValueError):  # no such folder, or a path that no file can have
        return ""
    near = get_close_matches(path.name.casefold(), names, n=1, cutoff=0.75)
    return f"; did you mean {printable(str(path.with_name(names[near[0]])))}?" if near else ""


def real_path(path: Path) -> Path:
    """Return an absolute path without links; a link to itself, for which `Path.resolve` raises, stays."""
    return Path(os.path.realpath(path))


def printable(text: str) -> str:
    """Return text with control characters, line breaks and undecodable bytes escaped, for one line on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def match_files(blurry: Path, sharp: Path) -> list[tuple[Path, Path]]:
    """Return every image below one folder with its counterpart below another.

    The counterpart has the same path below its folder, the suffix aside; or it is named like the folder that the image
    is in (LFDOF: many blurry images of a sharp one); or, where no names agree and the counts do, it has the same place
    in natural order (DPDD: the numbers of the exposures).

    Raises:
        ValueError: a folder holds no images, two images differ in nothing but the suffix, or images have no
            counterpart.
    """
    files, others = images_below(blurry), images_below(sharp)
    for folder, found in ((blurry, files), (sharp, others)):
        if not found:
            raise ValueError(f"{folder}: no images there")
    names = [path.relative_to(blurry).with_suffix("") for path in files]
    by_name = {path.relative_to(sharp).with_suffix(""): path for path in others}
    if len(by_name) < len(others):
        twice = next(
            name for name, count in Counter(p.relative_to(sharp).with_suffix("") for p in others).items() if count > 1
        )
        raise ValueError(f"{sharp}: several files are named {twice}, and their suffixes alone differ: which is meant?")
    if set(names) == set(by_name):
        return [(path, by_name[name]) for path, name in zip(files, names, strict=True)]
    if {name.parent for name in names} == set(by_name):
        return [(path, by_name[name.parent]) for path, name in zip(files, names, strict=True)]
    if not set(names) & set(by_name) and len(files) == len(others):
        return list(zip(files, others, strict=True))
    alone = sorted(set(names) ^ set(by_name), key=natural_order)
    raise ValueError(
        f"{blurry} and {sharp}: {len(files)} blurry and {len(others)} sharp files do not pair up; "
        f"without a partner: {', '.join(map(str, alone[:5]))}"
    )
