"""`tta-restore restore`: images and clips by one command, each option passed to the function that takes it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.names import CLIP_METHODS
from tta_restore.engine.run.outputs import expect_file, expect_folder
from tta_restore.engine.run.usage import UsageError

__all__ = ["restore"]

#: Suffixes that a user means a file by.
_FILES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".avif", ".jxl", ".bmp", ".gif", ".exr", ".heic", ".jp2",
          ".mp4", ".mov", ".mkv", ".avi", ".webm", ".zip")  # fmt: skip


def restore(
    inputs: Sequence[str | Path],
    *,
    out: str | Path,
    clips: bool = False,
    state: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Any:
    """Restore images, folders of images, and videos.

    An image that was restored before is kept unless its input is newer, so that an interrupted run continues where it
    stopped. Videos, and with --clips folders of frames, are restored clip by clip.

    Args:
        inputs: image files, videos, or folders of them.
        out: folder, or a file for a single input.
        clips: treat every folder of images as a clip.
        state: file of the adapted state, loaded if it exists and saved after every image.
        progress: show progress and a summary on stderr.
        options: of :func:`~.restore.restore_inputs` or :func:`~.restore_clips.restore_clip_inputs`.

    Raises:
        UsageError: the command cannot be carried out as given; nothing was written.
    """
    _expect_output(inputs, Path(out))
    if state is not None:
        expect_file(state, flag="--state")
        options["state"] = state
    from tta_restore.engine.run.restore import restore_inputs
    from tta_restore.engine.run.restore_clips import holds_clips, restore_clip_inputs

    method = str(options.get("method", "recommended"))
    as_clips = clips or method in CLIP_METHODS or holds_clips(inputs)
    function = restore_clip_inputs if as_clips else restore_inputs
    other = restore_inputs if as_clips else restore_clip_inputs
    chosen = _options_of(function, other, options, "clips" if as_clips else "images")
    if "device" in inspect.signature(function).parameters:
        chosen["device"] = resolve_device(options.get("device"))
    if "progress" in inspect.signature(function).parameters:
        chosen["progress"] = progress
    summary = function(inputs, out, **chosen)
    if progress:
        print(f"{summary}; written to {out}", file=sys.stderr)  # noqa: T201 (what a command reports)
    return summary


def _expect_output(inputs: Sequence[str | Path], out: Path) -> None:
    """Refuse an output that cannot hold the results, before the first image is read.

    Raises:
        UsageError: it is a file where a folder is needed, or cannot be written.
    """
    several = len(inputs) > 1 or Path(inputs[0]).is_dir()
    if not several and not out.is_dir() and out.suffix:
        expect_file(out, flag="--out")
        return
    if several and out.suffix.lower() in _FILES:
        what = "several inputs" if len(inputs) > 1 else "a folder"
        raise UsageError(f"--out {out}: expected a folder for {what}, got the name of a file")
    expect_folder(out)


def _options_of(
    function: Callable[..., Any], other: Callable[..., Any], options: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """Options that the function takes; one of the other function that differs from its default is refused."""
    takes, others = (inspect.signature(called).parameters for called in (function, other))
    chosen = {}
    for name, value in options.items():
        if name in takes:
            chosen[name] = value
        elif name in others and value is not None and value != others[name].default:
            raise UsageError(f"--{name.replace('_', '-')} does not apply to {what}")
    return chosen
