"""Build what a training configuration names: networks, clips, and the bundled photos."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore._core.progress import ProgressBar
from tta_restore.data.datasets.clip_folders import CLIP_LAYOUTS, find_clips
from tta_restore.data.datasets.clips import Clip, DegradedClips
from tta_restore.data.datasets.mining import random_patches
from tta_restore.data.datasets.misaligned import load_sharp_images
from tta_restore.data.io.files import images_below
from tta_restore.data.io.image import read_image
from tta_restore.data.io.pixels import ImageError
from tta_restore.data.synthetic import photos
from tta_restore.data.synthetic.camera_shake import ShakenClips
from tta_restore.degradations.motion import CameraShake
from tta_restore.engine.run.extensions import Metric, find_degradations, find_metrics, use_layout
from tta_restore.engine.run.method_settings import named_function
from tta_restore.engine.run.models import build_module, describe_network, read_origin
from tta_restore.engine.run.names import SHIPPED_MODELS
from tta_restore.engine.run.outputs import is_first_process
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.config import MetaConfig, ReblurConfig, WindowSettings, read_config
from tta_restore.models import list_models
from tta_restore.models.checkpoint import resolve

__all__ = [
    "SHAKES",
    "Built",
    "build_clip_networks",
    "build_network",
    "bundled_clips",
    "bundled_images",
    "bundled_pairs",
    "clips_from",
    "configured",
    "described",
    "distance_of",
    "expect_size",
    "seeded",
    "sharp_images",
    "take_layout",
    "take_metrics",
]

P = TypeVar("P")
T = TypeVar("T")

#: Registered name, or ``module.path:callable``, and the keywords that a network was built from.
Built = tuple[str, dict[str, Any]]


def build_network(section: Mapping[str, Any], *, default: str, kind: str = "restorer") -> nn.Module:
    """Return the network of a section: ``name``, ``checkpoint``, and keywords of its builder.

    Args:
        section: of the configuration; the name is that of a registered network, of shipped weights such as
            ``specialist``, ``module.path:callable``, or a file written by a training.
        default: name where neither the section nor the checkpoint has one.
        kind: of registered networks.

    Raises:
        ValueError: there is no such network or checkpoint, or the builder does not take one of the keywords.
        TypeError: the name is not text.
    """
    name, checkpoint, options = _entries(section, default, kind)
    return build_module(name, checkpoint=checkpoint, config=options, kind=kind)


def described(section: Mapping[str, Any], *, default: str, kind: str = "restorer") -> Built:
    """Return what a network of :func:`build_network` is built from, for the metadata of its weights."""
    return describe_network(*_entries(section, default, kind), kind)


def build_clip_networks(
    config: MetaConfig | ReblurConfig,
) -> tuple[nn.Module | None, nn.Module, nn.Module | None, dict[str, Built]]:
    """Return the restorer, the reblurring network and the discriminator of a training on clips, and their origins.

    Raises:
        ValueError: see :func:`build_network`.
        TypeError: a name is not text.
    """
    sections = {
        "restorer": (config.model, "lens_unet", "restorer"),
        "reblur": (config.reblur, "video_reblur", "reblurrer"),
        "discriminator": (config.discriminator, "patch_critic", "discriminator"),
    }
    networks: dict[str, Any] = dict.fromkeys(sections)
    built: dict[str, Built] = {}
    with seeded(config.run.seed):
        for name, (section, default, kind) in sections.items():
            if section is not None:
                networks[name] = build_network(section, default=default, kind=kind)
                built[name] = described(section, default=default, kind=kind)
    return networks["restorer"], networks["reblur"], networks["discriminator"], built


def _entries(section: Mapping[str, Any], default: str, kind: str) -> tuple[str, Any, dict[str, Any]]:
    """Return the name of a network, its checkpoint or None, and the other entries.

    A file in the place of the name is the checkpoint; without a name that of the model in its metadata is taken.
    """
    options = dict(section)
    name, checkpoint = options.pop("name", None), options.pop("checkpoint", None)
    if name is not None and not isinstance(name, str):
        raise TypeError(f"expected the name of a network, got {name!r}")
    if name and name not in list_models(kind) and checkpoint is None and Path(name).is_file():
        name, checkpoint = None, name
    if name is None:
        origin = None if checkpoint is None else read_origin(resolve(checkpoint), kind, run=True).get("model")
        name = default if origin is None or options.get("blur_map") else str(origin)
    if name in SHIPPED_MODELS and checkpoint is None:
        return SHIPPED_MODELS[name], name, options
    return name, checkpoint, options


def bundled_images(size: int, names: Sequence[str] = photos.TRAIN) -> Tensor:
    """Return eight crops of each of the bundled photos, always the same. Shape: (N, 3, size, size)."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat([random_patches(photos.load(name)[None], 8, size, generator) for name in names])


def sharp_images(pictures: str | Path, size: int) -> Tensor:
    """Return crops of sharp images: of "bundled" photos, or of those in a folder. Shape: (N, 3, size, size)."""
    return bundled_images(size) if pictures == "bundled" else load_sharp_images(Path(pictures), size=size)


def bundled_pairs(
    section: Mapping[str, Any], default: int, make: Callable[..., Callable[..., P]], margin: int
) -> list[P]:
    """Return validation pairs of the photos that are kept for development: entries ``size`` and ``count``.

    Args:
        section: the other entries are keywords of ``make``.
        default: size where the section has none, in pixels.
        make: maps crops, (N, 3, size + margin, size + margin), ``size`` and keywords to a source of batches.
        margin: pixels that the crops are larger.

    Raises:
        ValueError: the size is not a whole number of pixels.
    """
    options = {key: value for key, value in section.items() if key != "pictures"}
    size, count = expect_size(options.pop("size", default), "validation"), options.pop("count", 4)
    source = make(bundled_images(size + margin, photos.DEV), size=size, **options)
    generator = torch.Generator().manual_seed(1)
    return [source(1, generator) for _ in range(count)]


def take_layout(name: str, options: dict[str, Any], known: Mapping[str, Any], more: str = "") -> tuple[str, Any]:
    """Take layout and root of a data set out of the entries of a section.

    Args:
        name: of the section.
        options: its entries; both are removed.
        known: registered layouts.
        more: alternatives that the message names.

    Raises:
        ValueError: there is no such layout, or no root.
    """
    layout, root = use_layout(options.pop("layout", None)), options.pop("root", None)
    if layout not in known or root is None:
        there = "" if layout is None else f", got {layout!r} in {root}"
        raise ValueError(f"[{name}] expected root and layout, one of {', '.join(known)}{more}{there}")
    return layout, root


def take_metrics(validation: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Metric]]:
    """Return the other entries of a section [validation], and the metrics that its entry ``metrics`` names.

    Raises:
        UsageError: there is no such metric, or nothing to measure it on.
    """
    section = dict(validation)
    names = section.pop("metrics", [])
    names = [names] if isinstance(names, str) else names
    if not (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)):
        raise UsageError(f"[validation] metrics: expected names, got {names!r}")
    if names and not section:
        raise UsageError("[validation] metrics: expected layout and root, or pictures = 'bundled', to measure them on")
    return section, find_metrics(names, "[validation] metrics")


def distance_of(windows: WindowSettings) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of two images that the section [windows] names.

    Raises:
        ValueError: it cannot be imported, or is no function.
    """
    chosen = windows.distance
    return F.l1_loss if chosen is None else named_function("[windows] distance", chosen)


def expect_size(size: Any, section: str = "data") -> int:
    """Return the side of crops.

    Raises:
        ValueError: it is not a whole number of pixels >= 1.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"[{section}] size: expected a whole number of pixels >= 1, got {size}")
    return size


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from a seed; the global generator of the CPU is restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def configured(config: str | Path | Mapping[str, Any], kind: type[T], **overrides: Any) -> Iterator[T]:
    """Read a configuration, and turn errors of what it names into a :class:`UsageError` of one line.

    Args:
        config: file, or sections by name.
        kind: dataclass of the sections.
        overrides: see :func:`tta_restore.engine.train.config.read_config`.
    """
    chosen = read_config(config, kind, **overrides)
    where = "" if isinstance(config, Mapping) else f"{config}: "
    try:
        yield chosen
    except UsageError:
        raise
    except (TypeError, ValueError, ImageError, ImportError) as error:
        raise UsageError(f"{where}{error}") from error


def tell_of_bundled_photos(chosen: Any) -> None:
    """Print that a training runs on the bundled photos, where its configuration names no data."""
    if chosen.run.progress and is_first_process() and not chosen.data.keys() & {"layout", "root", "pictures"}:
        ProgressBar.write(
            f"note: [data] names no layout and no pictures: training on the {len(photos.TRAIN)} bundled photos, with "
            "simulated blur",
            file=sys.stderr,
        )


#: Default motions of generated clips: pans of all directions, hand-held shake, turns and zooms.
SHAKES = (
    CameraShake(pan=5.0),
    CameraShake(pan=10.0),
    CameraShake(pan=3.0, rotation=0.02, tremor=0.7),
    CameraShake(pan=3.0, zoom=0.02, exposure_fraction=1.0),
)


class _Images(Sequence[tuple[str, Tensor]]):
    """Names and images, read on access."""

    def __init__(self, names: Sequence[str], paths: Sequence[Path] | None = None) -> None:
        self.names, self.paths = names, paths

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:  # type: ignore[override]
        name = self.names[index]
        return name, photos.load(name) if self.paths is None else read_image(self.paths[index]).as_rgb()


def bundled_clips(names: Sequence[str], shakes: Sequence[CameraShake] = SHAKES, **options: Any) -> ShakenClips:
    """Return clips of bundled photos, see :class:`tta_restore.data.synthetic.camera_shake.ShakenClips`."""
    return ShakenClips(_Images(names), shakes, **options)


def clips_from(section: Mapping[str, Any]) -> Sequence[Clip]:
    """Return clips of a data set (``layout``, ``root``, ``split``), or of ``pictures``: a folder, or "bundled".

    Generated clips take ``frames``, ``size``, ``length``, ``seed``, and ``shakes``: a list of tables of
    :class:`tta_restore.data.synthetic.camera_shake.CameraShake`. With ``degradations`` the blurred frames of every clip
    carry one of them, too, of one strength all the time.

    Raises:
        ValueError: there are none, or an option is out of range.
        TypeError: an entry is unknown.
    """
    options = dict(section)
    if "degradations" in options:
        degradations = find_degradations(options.pop("degradations"), "[data] degradations")
        return DegradedClips(clips_from(options), degradations, seed=options.get("seed", 0))
    if "layout" in options:
        layout, root = take_layout("data", options, CLIP_LAYOUTS)
        checks.expect_keywords("[data]", find_clips, options)
        return find_clips(root, layout, **({"split": "train"} | options))
    pictures = options.pop("pictures", "bundled")
    moved = options.pop("shakes", [])
    for shake in moved:
        checks.expect_keywords("[data] shakes", CameraShake, shake)
    shakes = [CameraShake(**shake) for shake in moved] or list(SHAKES)
    checks.expect_keywords("[data]", ShakenClips, options)
    if pictures == "bundled":
        return bundled_clips(photos.TRAIN, shakes, **options)
    if not Path(pictures).is_dir():
        raise ValueError(f"[data] pictures: there is no folder {pictures}")
    paths = images_below(Path(pictures))
    return ShakenClips(_Images([path.stem for path in paths], paths), shakes, **options)
