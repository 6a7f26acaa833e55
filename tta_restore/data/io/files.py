"""Picture files below a folder: in natural order, and matched with their counterparts in another folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tta_restore.data.io.image import SUFFIXES


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


def match_files(blurry: Path, sharp: Path) -> list[tuple[Path, Path]]:
    """Every picture below one folder with its counterpart below another.

    The counterpart has the same path below its folder, the suffix aside; or is named like the folder that the picture
    is in (LFDOF: many blurry ones of a sharp one); or, where no names agree and the counts do, comes at its place in
    natural order (DPDD: the numbers of the exposures).

    Raises:
        ValueError: a folder holds no pictures, or pictures are left without a counterpart.
    """
    files, others = images_below(blurry), images_below(sharp)
    for folder, found in ((blurry, files), (sharp, others)):
        if not found:
            raise ValueError(f"{folder}: no images there")
    names = [path.relative_to(blurry).with_suffix("") for path in files]
    by_name = {path.relative_to(sharp).with_suffix(""): path for path in others}
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
