"""Folder layouts of published data sets of videos, and clips of their frames."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tta_restore._core import checks
from tta_restore.data.datasets.clips import Clip, ImageSequence
from tta_restore.data.io.files import images_below, natural_order

__all__ = ["CLIP_LAYOUTS", "ClipFunction", "clip_of_folder", "find_clips"]

ClipFunction = Callable[[Path, str], Sequence[Clip]]
"""From the folder of a data set and a split to its videos."""

#: Per data set, the folders of the blurred and the sharp frames of a video. "{video}" stands for the name of the video,
#: "{split}" for that of the split; the first pair that exists counts. Meta Transferring uses the first one for all.
#: A pair without "{split}" needs list files next to the videos that tell the splits.
CLIP_LAYOUTS: dict[str, tuple[tuple[str, str], ...] | ClipFunction] = {
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
    """Return the videos of a data set in natural order; every file is looked for before the first one is read.

    Frames are in natural order (blur_2 before blur_10) and belong together by name or, where blurred and sharp files
    are named differently (blur_1 and gt_1), by the last number in it. Where a data set as published mixes its splits
    in one folder (RealBlur, DVD), the text files next to the videos that have the split in their names tell which
    videos belong to it: each line names files or a video.

    Args:
        root: folder of the data set.
        layout: one of :data:`CLIP_LAYOUTS`: "gopro", "dvd", "reds", "realblur", or a registered one.
        split: "train", "val" or "test".

    Raises:
        ValueError: the layout is unknown, nothing tells which videos belong to the split, or folders or frames are
            missing; the message lists them.
    """
    checks.expect_choice("find_clips", "layout", layout, tuple(CLIP_LAYOUTS))
    checks.expect_choice("find_clips", "split", split, ("train", "val", "test"))
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    patterns = CLIP_LAYOUTS[layout]
    if callable(patterns):
        try:
            listed = list(patterns(root, split))
        except Exception as error:  # code of any user
            raise ValueError(f"{layout}: {type(error).__name__}: {error}") from error
        if not listed or not all(isinstance(clip, Clip) for clip in listed):
            raise ValueError(f"{root}: {layout} ({split}) lists no clips")
        return listed
    for pattern in patterns:
        blurry, sharp = (part.format(split=split, video="{video}") for part in pattern)
        videos = _videos(root, blurry)
        if videos:
            if "{split}" not in pattern[0]:
                videos = _of_split(root, layout, split, videos)
            break
    else:
        wanted = " or ".join(pattern[0].format(split=split, video="<video>") for pattern in patterns)
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
    """Return all images of one folder, in natural order, as a clip without originals.

    Raises:
        ValueError: there are none.
    """
    folder = Path(folder)
    return Clip(folder.name, ImageSequence(images_below(folder)))


def _of_split(root: Path, layout: str, split: str, videos: list[str]) -> list[str]:
    """Return the videos of a split by the list files next to them.

    Without a list of its own, the training split is what the lists of the other splits leave.
    """
    listed = {name: _listed(root, name, videos) for name in ("train", "val", "test")}
    if listed[split]:
        chosen = listed[split]
    elif split == "train" and (others := listed["val"] | listed["test"]):
        chosen = set(videos) - others
    else:
        raise ValueError(
            f"{root}: {layout} mixes its splits in one folder, and nothing tells which of its {len(videos)} videos "
            f"are for {split}: put a file such as {layout}_{split}_list.txt there, a video or a file per line, or "
            f"move them to {split}/"
        )
    return [video for video in videos if video in chosen]


def _listed(root: Path, split: str, videos: list[str]) -> set[str]:
    """Return the videos that the text files of a split name."""
    found: set[str] = set()
    for path in sorted(root.glob("*.txt")):
        if split not in re.split(r"[^a-z]+", path.stem.lower()) or not path.is_file():
            continue
        text = _decoded(path.read_bytes())
        for apart in (r"[\s/\\,;\"']+", r"[\r\n\t/\\,;\"']+"):  # names may hold spaces
            found |= set(videos) & {word.strip() for word in re.split(apart, text)}
    return found


def _decoded(content: bytes) -> str:
    """Return the text of a file; editors and shells of Windows put a mark first, or write UTF-16."""
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_wide else "utf-8-sig", errors="replace")


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
            raise ValueError(f"{video}: no images in {folder}")
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
