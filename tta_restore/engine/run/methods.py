"""The methods that the command line knows by name, around any restorer, with images in and images out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore import adapters
from tta_restore.adapters import Adapter, Plan, StepReport
from tta_restore.data.datasets.clips import Frames, stack_frames
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import Restorer, create_model
from tta_restore.models.checkpoint import read, resolve
from tta_restore.models.motion_reblur import MotionReblur
from tta_restore.models.restorer import outputs
from tta_restore.models.restorer.restorer import find_image


class ImageMethod:
    """An adapter that gives the image alone, whatever else its model returns, and restores large images in tiles.

    Shape: (B, 3, H, W) in [0, 1] -> (B, 3, s*H, s*W).
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def __call__(self, x: Tensor) -> Tensor:
        """Adapt on a frame and restore it."""
        output = self.adapter(x)
        spec = self.adapter.restorer.known_spec(x)
        return outputs.at(output, find_image(output, spec, (x.shape[-2], x.shape[-1])))

    @property
    def report(self) -> StepReport | None:
        """What happened on the latest frame."""
        return self.adapter.report

    def plan(self) -> Plan:
        """What is adapted, and at which cost."""
        return self.adapter.plan()

    def save(self, path: str | Path) -> None:
        """Write what was learned."""
        self.adapter.save(path)

    def load(self, path: str | Path) -> None:
        """Continue from what :meth:`save` wrote; raises ValueError when it belongs to another method or model."""
        self.adapter.load(path)


def _with_estimator(name: str) -> Callable[..., Adapter]:
    """A method that reads the lens, with the shipped estimator where the restorer is."""

    def make(restorer: Restorer, **options: Any) -> Adapter:
        device = next((p.device for p in restorer.parameters()), torch.device("cpu"))
        estimator = create_model("lens_estimator", checkpoint="lens_estimator").to(device)
        return adapters.create_adapter(name, restorer, estimator, **options)

    return make


def _siam_ctta(restorer: Restorer, **options: Any) -> Adapter:
    return adapters.SiamCTTA(restorer, select="all", **options)


def _literal(name: str) -> Callable[..., Adapter]:
    return lambda restorer, **options: adapters.create_adapter(name, restorer, variant="official", **options)


#: Methods that are not simply `create_adapter(name, restorer)`. "source" runs the restorer by the same core, unadapted.
METHODS: MappingProxyType[str, Callable[..., Adapter]] = MappingProxyType(
    {
        "recommended": adapters.recommended,
        "reblur-pairs": _with_estimator("reblur_pairs"),
        "reblur-consistency": _with_estimator("reblur_consistency"),
        "siam-ctta": _siam_ctta,
        "causiam": adapters.CauSiam,
        "causiam-repaired": partial(adapters.CauSiam, variant="ours"),
        "tent": adapters.Tent,
        "tent-literal": _literal("tent"),
        "cotta": adapters.CoTTA,
        "cotta-literal": _literal("cotta"),
        "sar": adapters.SAR,
        "sar-literal": _literal("sar"),
        "eata": adapters.EATA,
        "eata-literal": _literal("eata"),
        "roid": adapters.ROID,
        "srtta": adapters.SRTTA,
        "self-ensemble": adapters.SelfEnsemble,
        "source": Adapter,
    }
)


def create_method(name: str, restorer: Restorer, *, seed: int = 0, tile: int = 1024) -> ImageMethod:
    """A method around a restorer; images with a side longer than `tile` are restored in tiles of that size.

    Raises:
        UsageError: there is no such method, or it needs more than a restorer.
    """
    if name not in METHODS:
        raise UsageError(f"no method {name!r}; there are: {', '.join(METHODS)}")
    tiles = adapters.Tiles(size=tile)
    try:
        return ImageMethod(METHODS[name](restorer, seed=seed, tiles=tiles))
    except (ValueError, TypeError) as error:
        raise UsageError(f"method {name!r}: {error}") from error


#: From the frames of a clip, (3, H, W) in [0, 1] each, to the restored ones, one after another.
ClipMethod = Callable[[Frames], Iterator[Tensor]]

#: The methods that look at a whole clip before they restore its first frame.
CLIP_METHODS = ("meta-transfer",)


#: How "meta-transfer" goes with "motion_reblur": as in `benchmarks/meta_transfer.py`, at a third of its rate, for
#: models that nobody has tried it on.
BY_MOTION: dict[str, Any] = {
    "lr": 3e-4,
    "reblur_lr": 0.0,
    "num_epochs": 4,
    "num_extra_times": 2,
    "noise_std": 1 / 255,
    "min_blur_rms": 0.01,
    "skip_sharp_frames": True,
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
        name: "meta-transfer", or one of :data:`tta_restore.engine.run.methods.METHODS`.
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
