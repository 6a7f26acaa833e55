"""`tta-restore restore`: images and clips by one command, each option passed to the function that takes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.names import CLIP_METHODS
from tta_restore.engine.run.usage import UsageError

__all__ = ["restore"]


def restore(inputs: Sequence[str | Path], *, out: str | Path, clips: bool = False, **options: Any) -> Any:
    """Restore images, folders of images, and videos.

    An image that was restored before is kept unless its input is newer, so that an interrupted run continues where it
    stopped. Videos, and with --clips folders of frames, are restored clip by clip.

    Args:
        inputs: image files, videos, or folders of them.
        out: folder, or a file for a single input.
        clips: treat every folder of images as a clip.
        options: of :func:`~.restore.restore_inputs` or :func:`~.restore_clips.restore_clip_inputs`.

    Raises:
        UsageError: the command cannot be carried out as given; nothing was written.
    """
    from tta_restore.engine.run.restore import restore_inputs
    from tta_restore.engine.run.restore_clips import holds_clips, restore_clip_inputs

    method = str(options.get("method", "recommended"))
    as_clips = clips or method in CLIP_METHODS or holds_clips(inputs)
    function = restore_clip_inputs if as_clips else restore_inputs
    other = restore_inputs if as_clips else restore_clip_inputs
    chosen = _options_of(function, other, options, "clips" if as_clips else "images")
    if "device" in inspect.signature(function).parameters:
        chosen["device"] = resolve_device(options.get("device"))
    return function(inputs, out, **chosen)


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
