"""Methods by name: registered ones, plug-ins and user classes, around any restorer, from images to images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore import adapters
from tta_restore.adapters import Adapter, Plan, StepReport
from tta_restore.data.datasets.clips import Frames, stack_frames, window
from tta_restore.engine.run.encoders import create_semantic
from tta_restore.engine.run.method_settings import not_taken, typed_settings
from tta_restore.engine.run.models import load_named
from tta_restore.engine.run.names import CLIP_METHODS
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.trust_tally import TrustTally
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.run.user_code import guarded, import_named, is_named, plugins, warn_of_namesake
from tta_restore.models import Restorer, create_model
from tta_restore.models.checkpoint import read, resolve
from tta_restore.models.motion_reblur import MotionReblur
from tta_restore.models.restorer import outputs
from tta_restore.models.restorer.outputs import find_image
from tta_restore.models.restorer.spec import SizeRequirements, pad

__all__ = [
    "BY_MOTION",
    "CLIP_METHODS",
    "MAX_VIEW_PIXELS",
    "METHODS",
    "ClipMethod",
    "ImageMethod",
    "create_clip_method",
    "create_method",
    "expect_one_frame",
    "expect_one_input",
    "find_method",
    "load_discriminator",
    "load_reblurrer",
]


#: Pixels of all views of an image together up to which views are averaged: four views of up to 16 megapixels.
MAX_VIEW_PIXELS = 64_000_000
_LARGE = 8_000_000  # pixels from which tiles are small: the image itself takes most of the memory
_SMALL_TILE = 512


class ImageMethod:
    """An adapter that returns the image only, whatever else its model returns.

    Args:
        adapter: the adapter.
        max_view_pixels: see :meth:`sized`; None for no limit.

    Shape: (B, 3, H, W) in [0, 1] -> (B, 3, s*H, s*W).
    """

    def __init__(self, adapter: Adapter, max_view_pixels: int | None = None) -> None:
        self.adapter, self.max_view_pixels = adapter, max_view_pixels
        self.tally = TrustTally()

    @contextmanager
    def sized(self, height: int, width: int) -> Iterator[str | None]:
        """Prepare for an image of that size: small tiles for large ones, and fewer views above the limit.

        Yields a note where there are fewer views, else None.
        """
        adapter, note = self.adapter, None
        views, tiles = adapter.views, adapter.tiles
        count = len(views)
        if self.max_view_pixels is not None:
            count = min(count, max(self.max_view_pixels // (height * width), 1))
        if count < len(views):
            adapter.views = tuple(views[i * len(views) // count] for i in range(count))
            note = (
                f"{height * width / 1e6:.0f} megapixels: averaged over {count} of {len(views)} turned views to "
                f"save time; --method.views {adapter.views_name} takes all"
            )
        if tiles is not None and height * width > _LARGE:
            adapter.tiles = replace(tiles, size=min(*tiles.sides, _SMALL_TILE))
        try:
            yield note
        finally:
            adapter.views, adapter.tiles = views, tiles

    def __call__(self, x: Tensor) -> Tensor:
        """Adapt on a frame and restore it."""
        try:
            output = self.adapter(x)
        except SystemExit as error:  # user code, such as an argparse inside the model
            raise RuntimeError(f"the model or method called sys.exit({error.code!r})") from error
        self.tally.add(self.adapter.report)
        return self._image_in(output, x)

    def predict(self, x: Tensor) -> Tensor:
        """Restore a frame with the weights as they are."""
        return self._image_in(self.adapter.predict(x), x)

    def _image_in(self, output: Any, x: Tensor) -> Tensor:
        spec = self.adapter.restorer.known_spec(x)
        return outputs.at(output, find_image(output, spec, (x.shape[-2], x.shape[-1]), clips=x.ndim == 5))

    @property
    def report(self) -> StepReport | None:
        """Report on the latest frame."""
        return self.adapter.report

    def plan(self) -> Plan:
        """Return what is adapted, and its cost."""
        return self.adapter.plan()

    def save(self, path: str | Path) -> None:
        """Write the adapted state."""
        self.adapter.save(path)

    def load(self, path: str | Path) -> None:
        """Load a state that :meth:`save` wrote; raises ValueError if it belongs to another method or model."""
        self.adapter.load(path)


def _with_estimator(name: str) -> Callable[..., Adapter]:
    """Return a builder that passes the shipped PSF estimator, on the restorer's device, to a method."""

    def make(restorer: Restorer, **options: Any) -> Adapter:
        device = next((p.device for p in restorer.parameters()), torch.device("cpu"))
        estimator = create_model("lens_estimator", checkpoint="lens_estimator").to(device)
        return adapters.create_adapter(name, restorer, estimator, **options)

    return make


def _siam_ctta(restorer: Restorer, **options: Any) -> Adapter:
    options.setdefault("select", "all")
    return adapters.SiamCTTA(restorer, **options)


#: Builder of every method in :data:`tta_restore.engine.run.names.METHODS`, and the class whose settings it takes.
#: "source" runs the unadapted restorer through the same core.
METHODS: MappingProxyType[str, tuple[Callable[..., Any], type[Adapter] | None]] = MappingProxyType(
    {
        "recommended": (adapters.recommended, adapters.DegradationPairs),
        "degradation-pairs": (adapters.DegradationPairs, adapters.DegradationPairs),
        "reblur-pairs": (adapters.ReblurPairs, adapters.ReblurPairs),
        "reblur-consistency": (_with_estimator("reblur_consistency"), adapters.ReblurConsistency),
        "self-denoise": (adapters.SelfDenoise, adapters.SelfDenoise),
        "siam-ctta": (_siam_ctta, adapters.SiamCTTA),
        "causiam": (adapters.CauSiam, adapters.CauSiam),
        "tent": (adapters.Tent, adapters.Tent),
        "cotta": (adapters.CoTTA, adapters.CoTTA),
        "sar": (adapters.SAR, adapters.SAR),
        "eata": (adapters.EATA, adapters.EATA),
        "roid": (adapters.ROID, adapters.ROID),
        "rotta": (adapters.RoTTA, adapters.RoTTA),
        "srtta": (adapters.SRTTA, adapters.SRTTA),
        "self-ensemble": (adapters.SelfEnsemble, adapters.SelfEnsemble),
        "source": (Adapter, Adapter),
    }
)


def create_method(
    name: str | Named, restorer: Restorer, *, seed: int = 0, tile: int = 1024, **options: Any
) -> ImageMethod:
    """Return a method around a restorer; images with a side longer than `tile` are restored in tiles of that size.

    Args:
        name: one of :data:`METHODS`, another registered adapter, an entry point of ``tta_restore.methods``, or
            ``module.path:Class``; with settings as :class:`~.settings.Named`.
        restorer: of single frames.
        seed: of the method.
        tile: side of tiles, in pixels.
        options: settings of the method.

    Raises:
        UsageError: there is no such method, it does not take a setting, or it does not suit the restorer.
    """
    named = Named.of(name)
    build, kind = find_method(named.name)
    expect_one_input(restorer)
    try:
        settings = {**named.settings, **options}
        if isinstance(settings.get("semantic"), (str, Mapping)):
            settings["semantic"] = create_semantic(settings["semantic"], variant=settings.get("variant", "official"))
        settings = typed_settings(kind, settings)
        adapter = build(restorer, **({"seed": seed, "tiles": adapters.Tiles(size=tile)} | settings))
        if not isinstance(adapter, Adapter):
            raise TypeError(f"expected an Adapter, got {type(adapter).__name__}")
        if not hasattr(adapter, "report"):
            raise TypeError("its constructor does not call super().__init__(model, ...)")
        _expect_suitable(adapter)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        given = {*named.settings, *options}
        raise UsageError(f"method {named.name!r}: {not_taken(error, kind, given) or error}") from error
    return ImageMethod(adapter, None if "views" in settings else MAX_VIEW_PIXELS)


def find_method(name: str) -> tuple[Callable[..., Any], type | None]:
    """Return the builder of a method, and the class whose settings it takes, None for a function.

    Raises:
        UsageError: there is no such method.
    """
    if name in METHODS:
        warn_of_namesake(name, "tta_restore.methods")
        return METHODS[name]
    if is_named(name):
        try:
            found = import_named(name)
        except ValueError as error:
            raise UsageError(f"method {error}") from error
    else:
        registered = {key.replace("_", "-"): key for key in adapters.list_adapters()}
        own = plugins("tta_restore.methods")
        if name in registered:
            found = partial(adapters.create_adapter, registered[name])
        elif name in own:
            try:
                found = own[name]()
            except ValueError as error:
                raise UsageError(f"method {name}: {error}") from error
        else:
            there = ", ".join(dict.fromkeys([*METHODS, *CLIP_METHODS, *own]))
            raise UsageError(f"no method {name!r}; there are: {there}, and your own by module.path:Class")
    if not callable(found):
        raise UsageError(f"method {name}: expected a class or function, got {type(found).__name__}")
    if isinstance(found, type) and not issubclass(found, Adapter):
        raise UsageError(f"method {name}: expected a subclass of adapters.Adapter, got class {found.__name__}")

    def build(*arguments: Any, **options: Any) -> Any:
        with guarded(name):
            return found(*arguments, **options)

    return build, found if isinstance(found, type) else None


def expect_one_input(restorer: Restorer) -> None:
    """Refuse a network that needs more than a frame, such as the two views of a dual-pixel sensor.

    Raises:
        UsageError: the network has further required arguments.
    """
    module = restorer.module
    try:
        parameters = inspect.signature(module.forward if isinstance(module, nn.Module) else module).parameters
    except (TypeError, ValueError):
        return
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters.values() if p.kind in kinds and p.default is p.empty]
    if len(needed) > 1 or {"right", "left"} <= set(parameters):
        names = ", ".join(parameters)
        raise UsageError(f"{type(module).__name__} takes {names}: methods run on networks of one input")


def expect_one_frame(restorer: Restorer) -> None:
    """Refuse a network that needs more than one image, or takes several frames of a clip.

    Raises:
        UsageError: it does.
    """
    expect_one_input(restorer)
    if restorer.spec is not None and restorer.spec.frames != 1:
        count = "" if restorer.spec.frames is None else f" of {restorer.spec.frames} frames"
        raise UsageError(
            f"{type(restorer.module).__name__} takes clips{count}, and this command single images; restore --clips, "
            "evaluate-clips and train meta take such models"
        )


def _expect_suitable(adapter: Adapter) -> None:
    """Refuse a restorer that a method cannot take, before the first image is read."""
    if adapter.takes_clips:
        return
    restricted = adapter.keeps_size or type(adapter).expect_suitable is not Adapter.expect_suitable
    if restricted:
        frame = torch.rand(1, 3, 64, 64, generator=torch.Generator()).to(_weight(adapter))
        adapter.expect_suitable(adapter.restorer.known_spec(frame))


def _weight(adapter: Adapter) -> Tensor:
    return next((p for p in adapter.restorer.parameters() if p.is_floating_point()), torch.empty(0))


#: Maps the frames of a clip, (3, H, W) in [0, 1] each, to the restored frames, one after another. Those of
#: :func:`create_clip_method` have their adapter as attribute ``adapter``.
ClipMethod = Callable[[Frames], Iterator[Tensor]]

#: Settings of "meta-transfer" with "motion_reblur": those of `benchmarks/meta_transfer.py` at a third of its learning
#: rate, because the model may be any.
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
    name: str | Named,
    restorer: Restorer,
    *,
    reblur: str | Path | None = None,
    discriminator: str | Path | None = None,
    multiple: int = 1,
    tile: int = 1024,
    seed: int = 0,
    device: str | torch.device = "cpu",
    **options: Any,
) -> ClipMethod:
    """Return a method for clips; it is reset at the start of every clip.

    Args:
        name: "meta-transfer", or what :func:`create_method` takes.
        restorer: of frames or of clips.
        reblur: file of a reblurring network, for "meta-transfer"; None for "motion_reblur", which needs no training.
        discriminator: file of a discriminator, for "meta-transfer"; None for no adversarial loss.
        multiple: restore frames that are extended by reflection at the right and the bottom to a multiple of this, and
            return them whole; adaptation sees the clip as it is.
        tile: see :func:`create_method`, for methods of single frames.
        seed: of the method.
        device: where the frames go.
        options: settings of the method; those of "meta-transfer" with "motion_reblur" override :data:`BY_MOTION`.

    Raises:
        UsageError: there is no such method, or a file is missing or of another network.
    """
    named, size = Named.of(name), SizeRequirements(1, multiple)
    settings = {**named.settings, **options}
    reblur, discriminator = settings.pop("reblur", reblur), settings.pop("discriminator", discriminator)
    if named.name not in CLIP_METHODS:
        networks = (("reblur", reblur), ("discriminator", discriminator))
        if given := [n for n, value in networks if value is not None]:
            raise UsageError(f"method {named.name!r} takes no {given[0]}; that is for {', '.join(CLIP_METHODS)}")
        plain = create_method(Named(named.name, settings), restorer, seed=seed, tile=tile)
        return _frame_by_frame(plain, device, size)
    try:
        modules = [load_reblurrer(reblur).to(device)]
        settings = typed_settings(adapters.MetaTransfer, settings)
        if isinstance(modules[0], MotionReblur):
            settings = BY_MOTION | settings
        if discriminator is not None:
            modules.append(load_discriminator(discriminator).to(device))
        method = ImageMethod(adapters.create_adapter("meta_transfer", restorer, *modules, seed=seed, **settings))
    except (ValueError, TypeError) as error:
        raise UsageError(f"method {named.name!r}: {error}") from error

    def restore(frames: Frames) -> Iterator[Tensor]:
        clip = stack_frames(frames).to(device)  # MetaTransfer resets itself for every clip
        whole = pad(clip, size)
        if whole.shape == clip.shape:
            yield from method(clip)
        else:
            method.adapter.adapt(clip)
            yield from method.predict(whole)

    restore.adapter = method.adapter  # type: ignore[missing-attribute]
    return restore


def load_reblurrer(path: str | Path | None) -> nn.Module:
    """Return the reblurring network of a file: "video_reblur" or "motion_reblur"; None gives the latter untrained.

    Raises:
        ValueError: the file is missing, damaged, or of another network.
    """
    if path is None:
        return create_model("motion_reblur")
    found = load_named(resolve(path), "reblurrer")
    if found is not None:
        return found
    content = read(resolve(path))
    motion = isinstance(content, Mapping) and set(content) == {"exposure"}
    return create_model("motion_reblur" if motion else "video_reblur", checkpoint=str(path))


def load_discriminator(path: str | Path) -> nn.Module:
    """Return the discriminator of a file, "vgg19_critic" or "patch_critic", recognized by its keys.

    Raises:
        ValueError: the file is missing, damaged, or of another network.
    """
    found = load_named(resolve(path), "discriminator")
    if found is not None:
        return found
    content = read(resolve(path))
    vgg = isinstance(content, Mapping) and any("features." in str(name) for name in content)
    return create_model("vgg19_critic" if vgg else "patch_critic", checkpoint=path)


def _frame_by_frame(method: ImageMethod, device: str | torch.device, size: SizeRequirements) -> ClipMethod:
    """Return a method for clips that gives a method each frame, or what a model of clips takes for it."""

    def restore(frames: Frames) -> Iterator[Tensor]:
        method.adapter.reset()
        spec, length = method.adapter.restorer.spec, len(frames)
        count = 1 if spec is None else spec.frames
        if count is None:
            yield from method(pad(stack_frames(frames)[None].to(device), size))[0]
            return
        for time in range(length):
            around = frames[time] if count == 1 else stack_frames(frames, window(time, length, count))
            yield method(pad(around[None].to(device), size))[0]

    restore.adapter = method.adapter  # type: ignore[missing-attribute]
    return restore
