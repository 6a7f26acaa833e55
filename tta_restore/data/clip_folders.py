"""Videos in folders, in the layouts in which deblurring data sets are handed out."""

from __future__ import annotations

import re
from pathlib import Path

from tta_restore import _checks
from tta_restore.data.clips import Clip, PictureFrames
from tta_restore.data.image_files import images_below, natural_order

#: Per data set, where a video's blurred and sharp frames lie. "{video}" stands for the name of the video, "{split}" for
#: that of the split; the first pair that is there counts. Meta Transferring puts all of them as in the first.
LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
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
        layout: one of :data:`LAYOUTS`: "gopro", "dvd", "reds", "realblur".
        split: "train", "val" or "test".

    Raises:
        ValueError: the layout is unknown, or folders or frames are missing; the message lists them.
    """
    _checks.expect_choice("find_clips", "layout", layout, tuple(LAYOUTS))
    _checks.expect_choice("find_clips", "split", split, ("train", "val", "test"))
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    for pattern in LAYOUTS[layout]:
        blurry, sharp = (part.format(split=split, video="{video}") for part in pattern)
        videos = _videos(root, blurry)
        if videos:
            break
    else:
        wanted = " or ".join(pattern[0].format(split=split, video="<video>") for pattern in LAYOUTS[layout])
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
    return Clip(folder.name, PictureFrames(images_below(folder)))


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
            return Clip(video, PictureFrames(frames), PictureFrames(partners[name] for name in names))
    raise ValueError(
        f"{video}: {len(frames)} blurred and {len(originals)} sharp frames do not belong together"
        + (f"; without a partner: {', '.join(map(str, alone[:5]))}" if alone else "")
    )


def _number(path: Path) -> int | None:
    found = re.findall(r"\d+", path.stem)
    return int(found[-1]) if found else None
