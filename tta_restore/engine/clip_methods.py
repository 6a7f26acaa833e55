"""Methods that restore clips: those that adapt to a clip as a whole, and any method of frames, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore import adapters
from tta_restore.data.clips import Frames, stack_frames
from tta_restore.engine.methods import ImageMethod, create_method
from tta_restore.engine.usage import UsageError
from tta_restore.models import Restorer, create_model
from tta_restore.models.checkpoint import read, resolve
from tta_restore.models.motion_reblur import MotionReblur

#: From the frames of a clip, (3, H, W) in [0, 1] each, to the restored ones, one after another.
ClipMethod = Callable[[Frames], Iterator[Tensor]]

#: The methods that look at a whole clip before they restore its first frame.
CLIP_METHODS = ("meta-transfer",)


#: How "meta-transfer" goes with "motion_reblur": as in `benchmarks/meta_transfer.py`, at a third of its rate, for
#: models that nobody has tried it on.
BY_MOTION: dict[str, Any] = {
    "lr": 3e-4,
    "reblur_lr": 0.0,
    "passes": 4,
    "other_moments": 2,
    "noise": 1 / 255,
    "least_blur": 0.01,
    "leave_sharp": True,
}


def create_clip_method(
    name: str,
    restorer: Restorer,
    *,
    reblur: str | Path | None = None,
    critic: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **options: Any,
) -> ClipMethod:
    """The method called ``name``, for clips; it starts afresh with every clip.

    Args:
        name: "meta-transfer", or one of :data:`tta_restore.engine.methods.METHODS`.
        restorer: of frames or of clips.
        reblur: file of a reblurrer, for "meta-transfer"; None for "motion_reblur", which needs no training.
        critic: file of a critic, for "meta-transfer"; None for no adversarial loss.
        seed: of the method.
        device: where the frames go.
        options: for "meta-transfer", keywords of :class:`tta_restore.adapters.MetaTransfer`; with "motion_reblur" they
            go before :data:`BY_MOTION`.

    Raises:
        UsageError: there is no such method, or a file is missing or of another network.
    """
    if name not in CLIP_METHODS:
        if reblur is not None or critic is not None or options:
            given = [n for n, value in (("reblur", reblur), ("critic", critic)) if value is not None] + list(options)
            raise UsageError(f"method {name!r} takes no {given[0]}; that is for {', '.join(CLIP_METHODS)}")
        return _frame_by_frame(create_method(name, restorer, seed=seed), device)
    try:
        networks = [load_reblurrer(reblur).to(device)]
        if isinstance(networks[0], MotionReblur):
            options = BY_MOTION | options
        if critic is not None:
            networks.append(load_critic(critic).to(device))
        method = ImageMethod(adapters.create_adapter("meta_transfer", restorer, *networks, seed=seed, **options))
    except (ValueError, TypeError) as error:
        raise UsageError(f"method {name!r}: {error}") from error

    def restore(frames: Frames) -> Iterator[Tensor]:
        yield from method(stack_frames(frames).to(device))  # starts afresh by itself

    return restore


def load_reblurrer(path: str | Path | None) -> nn.Module:
    """The reblurrer whose weights are in a file, "video_reblur" or "motion_reblur"; None for the latter as it is.

    Raises:
        ValueError: the file is missing, damaged, or of another network.
    """
    if path is None:
        return create_model("motion_reblur")
    content = read(resolve(path))
    motion = isinstance(content, Mapping) and set(content) == {"exposure"}
    return create_model("motion_reblur" if motion else "video_reblur", checkpoint=str(path))


def load_critic(path: str | Path) -> nn.Module:
    """The critic whose weights are in a file: "vgg19_critic" or "patch_critic", by their names.

    Raises:
        ValueError: the file is missing, damaged, or of another network.
    """
    content = read(resolve(path))
    vgg = isinstance(content, Mapping) and any("features." in str(name) for name in content)
    return create_model("vgg19_critic" if vgg else "patch_critic", checkpoint=path)


def _frame_by_frame(method: Any, device: str | torch.device) -> ClipMethod:
    def restore(frames: Frames) -> Iterator[Tensor]:
        method.adapter.reset()
        for time in range(len(frames)):
            yield method(frames[time][None].to(device))[0]

    return restore
