"""The objective of reblurring-guided learning: any restorer, a batch of misaligned pairs, a loss with all its parts.

Source: JDRL (Li et al., AAAI 2023); Reblurring-guided defocus deblurring (Ren et al., IJCV 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import losses, ops
from tta_restore._core import checks
from tta_restore.data.datasets.layouts import LAYOUTS, find_pairs
from tta_restore.data.datasets.misaligned import (
    FolderPairs,
    GeneratedPairs,
    MisalignedPair,
    Misalignment,
    inverse_motion,
    load_sharp_images,
)
from tta_restore.data.io.pixels import ImageError
from tta_restore.engine.report.images import contact_sheet
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.config import bundled_pictures, from_section, model_from, read_config, run_from
from tta_restore.engine.train.loop import Objective, Step, TrainingRun, train
from tta_restore.models import as_restorer
from tta_restore.models.jdrl import BlurConditioned, JDRLReblur
from tta_restore.models.optical_flow import LucasKanade, create_flow
from tta_restore.nn.reblur import KERNEL_SIZES


@dataclass(frozen=True)
class MisalignedSettings:
    """Stages, weights and schedules. The defaults are ours where the comment says so; :meth:`released` has theirs.

    Attributes:
        reblur_first: steps in which the reblurring module alone learns, for a restorer that is trained already.
        warm_up: steps in which the restorer meets the sharp image warped by the flow from the blurry one, unmasked.
        reblur_weight: of the reblurring loss.
        map_weight: of the blur map's loss, for a :class:`BlurConditioned` restorer.
        edge_weight: of the edge loss against the warped sharp image, see :func:`tta_restore.losses.edge_loss`.
        outputs: ``"main"``, the restored image; ``"all"`` compares every image that a restorer of several stages
            returns, and reblurs each. Flow is that of the restored image, which alone is warped.
        sigma: of the calibration masks; None for no masks.
        exact: warp exactly; the release is half a pixel off at the borders.
        border: pixels that the reblurring loss leaves out at each side; the release leaves out none.
        map_compare: how maps are compared, see :func:`tta_restore.losses.blur_map_loss`.
        map_detach: whether the reblurring module is kept from moving towards the map.
        flow: where flow comes from: ``"estimate"``; ``"given"``, that of the pair, in all stages; or ``"pixel"``: no
            flow, no mask, no reblurring, the plain loss that this is to be compared with.
        lr: Adam's learning rate of the restorer.
        reblur_lr: of the reblurring module; None for the same.
        halve_every: steps after which the learning rates halve; 0 for never.
        precision: ``"bf16"`` runs the networks in bfloat16 autocast.
    """

    reblur_first: int = 0
    warm_up: int = 300
    reblur_weight: float = 0.5
    map_weight: float = 0.5
    edge_weight: float = 0.0
    outputs: Literal["main", "all"] = "main"
    sigma: float | None = 0.35
    exact: bool = True
    border: int = 7
    map_compare: Literal["signed", "absolute"] = "absolute"
    map_detach: bool = True
    flow: Literal["estimate", "given", "pixel"] = "estimate"
    lr: float = 5e-4
    reblur_lr: float | None = None
    halve_every: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        for name in ("reblur_first", "warm_up", "reblur_weight", "map_weight", "edge_weight", "border", "halve_every"):
            checks.expect_number("MisalignedSettings", name, getattr(self, name), minimum=0)
        choices_of = {"flow": ("estimate", "given", "pixel"), "precision": ("fp32", "bf16"), "outputs": ("main", "all")}
        for name, choices in choices_of.items():
            checks.expect_choice("MisalignedSettings", name, getattr(self, name), choices)
        checks.expect_number("MisalignedSettings", "lr", self.lr, above=0)

    @staticmethod
    def released(*, steps_per_epoch: int, journal: bool = False) -> MisalignedSettings:
        """Stages, weights and schedules of the released trainers, with their warp and without our corrections."""
        own: dict[str, Any] = {"lr": 1e-5, "halve_every": 70} if journal else {"lr": 2e-5, "halve_every": 60}
        own["halve_every"] *= steps_per_epoch
        kept: dict[str, Any] = {"exact": False, "border": 0, "map_compare": "signed", "map_detach": False}
        return MisalignedSettings(warm_up=15 * steps_per_epoch, **own, **kept)

    @staticmethod
    def multi_stage(**changes: Any) -> MisalignedSettings:
        """Terms of the recipe for MPRNet, a restorer of several stages, as ported; learning rates are not among them.

        Source: the MindSpore port of JDRL's MPRNet recipe; the release holds no training code for it.
        """
        ported: dict[str, Any] = {"outputs": "all", "edge_weight": 0.05, "sigma": 0.4, "exact": False, "border": 0}
        return MisalignedSettings(**ported | changes)

    def stage(self, step: int) -> Literal["reblur", "warm_up", "joint"]:
        """What is learned at a step."""
        if step < self.reblur_first:
            return "reblur"
        return "warm_up" if step < self.reblur_first + self.warm_up else "joint"

    def ramp(self, step: int) -> float:
        """Strength of the blur map: from almost none to all of it during the warm-up, in 15 stages as published."""
        done = step - self.reblur_first
        if not 0 <= done < self.warm_up:
            return 1.0
        return 0.001 + 0.999 * (done * 15 // self.warm_up + 1) / 15

    def rate(self, step: int) -> float:
        """Factor on the learning rates."""
        return 0.5 ** (step // self.halve_every) if self.halve_every else 1.0


class MisalignedObjective(Objective):
    """Loss of a restorer, and of the reblurring module that guides it, on misaligned pairs.

    Args:
        restorer: any module from (B, 3, H, W) to the same; a :class:`BlurConditioned` one also learns its blur map.
        reblur: the reblurring module; None for a new one.
        flow: estimator, see :mod:`tta_restore.models.optical_flow`.
        settings: stages and weights.
    """

    def __init__(
        self,
        restorer: nn.Module,
        reblur: JDRLReblur | None = None,
        *,
        flow: Callable[[Tensor, Tensor], Tensor],
        settings: MisalignedSettings = MisalignedSettings(),
    ) -> None:
        super().__init__()
        self.restorer = restorer
        self.reblur = JDRLReblur() if reblur is None else reblur
        self.flow = flow
        self.settings = settings
        self._run = as_restorer(restorer.restorer if isinstance(restorer, BlurConditioned) else restorer)

    def forward(self, batch: MisalignedPair, step: int) -> Step:
        """Loss of a batch at a step of the schedule."""
        settings, blurry, sharp = self.settings, batch.blurry, batch.sharp
        stage = "warm_up" if settings.flow == "pixel" else settings.stage(step)
        found: dict[str, Tensor] = {"blurry": blurry, "sharp": sharp}
        images, blur_map = self._restore(blurry, settings.ramp(step))
        if stage == "reblur":
            images = [image.detach() for image in images]
        found["restored"] = images[0]
        if blur_map is not None:
            found["blur_map"] = blur_map
        if stage == "reblur":
            return Step.sum_of(self._reblur_parts(images, found, None), found)
        if settings.flow == "pixel":
            return Step.sum_of({"pixel": _sum(losses.charbonnier_loss(image, sharp) for image in images)}, found)
        found["flow"] = self._flow(blurry if stage == "warm_up" else images[0], sharp, batch.flow)
        found["warped"] = ops.flow_warp(sharp, found["flow"], padding_mode="border", align_corners=settings.exact)
        if stage == "warm_up":
            parts = {"pair": _sum(losses.charbonnier_loss(image, found["warped"]) for image in images)}
            return Step.sum_of(parts | self._edge_parts(images, found), found)
        options: dict[str, Any] = {"mask_tolerance": settings.sigma, "align_corners": settings.exact}
        back = self._flow(sharp, images[0], None if batch.flow is None else inverse_motion(batch.flow))
        if settings.sigma is not None:
            found["mask"] = losses.calibration_mask(found["flow"], tolerance=settings.sigma)
        backs = [back, *[None] * (len(images) - 1)]
        pairs = (
            losses.deformation_loss(image, sharp, found["flow"], there, **options)
            for image, there in zip(images, backs, strict=True)
        )
        parts = {"pair": _sum(pairs)} | self._edge_parts(images, found)
        return Step.sum_of(parts | self._reblur_parts(images, found, blur_map), found)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""
        rate = self.settings.lr if self.settings.reblur_lr is None else self.settings.reblur_lr
        return [
            {"params": [p for p in self.restorer.parameters() if p.requires_grad], "lr": self.settings.lr},
            {"params": list(self.reblur.parameters()), "lr": rate},
        ]

    def rate(self, step: int) -> float:
        """Factor on the learning rates."""
        return self.settings.rate(step)

    def identity(self) -> dict[str, Any]:
        """The settings."""
        return asdict(self.settings)

    def exports(self) -> dict[str, nn.Module]:
        """Restorer and reblurring module."""
        return {"restorer": self.restorer, "reblur": self.reblur}

    def status(self, step: int) -> dict[str, str]:
        """The stage."""
        return {"stage": self.settings.stage(step)}

    def picture(self, found: Step) -> Tensor:
        """Images, flow, mask, blur radius and kernels of the first pair."""
        return draw_step(found.tensors)

    def _restore(self, blurry: Tensor, ramp: float) -> tuple[list[Tensor], Tensor | None]:
        """Images to compare, the restored one first, and the blur map of a conditioned restorer."""
        model, blur_map, call = self.restorer, None, None
        with self._precision(blurry):
            if isinstance(model, BlurConditioned):
                blur_map = own = model.estimator(blurry) * ramp

                def call(padded: Tensor) -> Any:
                    pads = (0, padded.shape[3] - blurry.shape[3], 0, padded.shape[2] - blurry.shape[2])
                    return model.restore_with(padded, nn.functional.pad(own, pads, mode="replicate"))

            restoration = self._run.restore(blurry, call=call)
        images = [restoration.image] if self.settings.outputs == "main" else self._run.images(restoration)
        return [image.float() for image in images], None if blur_map is None else blur_map.float()

    def _edge_parts(self, images: list[Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.settings.edge_weight:
            return {}
        mask = found.get("mask", 1)
        total = _sum(losses.edge_loss(mask * image, mask * found["warped"]) for image in images)
        return {"edge": self.settings.edge_weight * total}

    def _reblur_parts(
        self, images: list[Tensor], found: dict[str, Tensor], blur_map: Tensor | None
    ) -> dict[str, Tensor]:
        settings, blurry, terms = self.settings, found["blurry"], []
        for image in images:
            with self._precision(blurry):
                seeds, weights = self.reblur.predict(image, blurry)
            seeds, weights = seeds.float(), weights.float()
            reblurred = self.reblur.reblur(image, seeds, weights)
            terms.append(losses.reblur_loss(reblurred, blurry, distance="charbonnier", border=settings.border))
            if image is images[0]:
                found.update(seeds=seeds, weights=weights, reblurred=reblurred)
        parts = {"reblur": settings.reblur_weight * _sum(terms)}
        if blur_map is not None:
            difference = losses.blur_map_loss(
                blur_map, found["seeds"], compare=settings.map_compare, detach=settings.map_detach
            )
            parts["blur_map"] = settings.map_weight * difference
        return parts

    def _flow(self, first: Tensor, second: Tensor, given: Tensor | None) -> Tensor:
        if self.settings.flow == "given":
            if given is None:
                raise ValueError("MisalignedObjective: flow='given', but the pair brings none")
            return given
        with torch.no_grad():
            return self.flow(first.detach().clamp(0, 1), second.detach().clamp(0, 1))

    def _precision(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()


def blur_radius(seeds: Tensor, weights: Tensor) -> Tensor:
    """Root mean square distance, in pixels, that the mixed kernel of every pixel carries its light.

    Shape: seeds (B, 35, H, W), weights (B, 8, H, W) -> (B, 1, H, W).
    """
    total, first = torch.zeros_like(weights[:, :1]), 0
    for n, size in enumerate(KERNEL_SIZES, 1):
        count = (size + 1) // 2
        kernel = ops.isotropic_kernels(seeds[:, first : first + count], size)
        first += count
        axis = torch.arange(size, device=seeds.device, dtype=kernel.dtype) - size // 2
        squared = (axis[:, None].square() + axis.square()).view(1, -1, 1, 1)
        total = total + weights[:, n, None] * (kernel * squared).sum(1, keepdim=True)
    return total.sqrt()


def mixed_kernels(seeds: Tensor, weights: Tensor, pixels: list[tuple[int, int]]) -> Tensor:
    """The whole kernels of some pixels (y, x) of the first frame: (P, 15, 15)."""
    side = max(KERNEL_SIZES)
    drawn = []
    for y, x in pixels:
        out, first = torch.zeros(side, side), 0
        out[side // 2, side // 2] = weights[0, 0, y, x].cpu()
        for n, size in enumerate(KERNEL_SIZES, 1):
            count = (size + 1) // 2
            own = seeds[:1, first : first + count, y : y + 1, x : x + 1]
            first += count
            kernel = ops.isotropic_kernels(own, size).view(size, size).cpu() * weights[0, n, y, x].cpu()
            margin = (side - size) // 2
            out += F.pad(kernel, (margin,) * 4)
        drawn.append(out)
    return torch.stack(drawn)


def draw_step(tensors: dict[str, Tensor]) -> Tensor:
    """The first pair of a step as one picture (3, H, W): images, flow and mask, then blur radius and kernels."""
    height, width = tensors["blurry"].shape[2:]
    tiles = [tensors[name][0].clamp(0, 1) for name in ("blurry", "sharp", "restored") if name in tensors]
    if "warped" in tensors:
        tiles.append(tensors["warped"][0].clamp(0, 1))
    if "flow" in tensors:
        from torchvision.utils import flow_to_image  # slow to import, and few runs draw

        tiles.append(flow_to_image(tensors["flow"][0].float()) / 255)
    if "mask" in tensors:
        tiles.append(tensors["mask"][0].expand(3, -1, -1))
    if "reblurred" in tensors:
        tiles.append(tensors["reblurred"][0].clamp(0, 1))
    if "weights" in tensors and tensors["weights"].shape[1] > 1:  # the one-branch ablation has no kernel sizes
        seeds, weights = tensors["seeds"][:1], tensors["weights"][:1]
        tiles.append((blur_radius(seeds, weights)[0] / 6).clamp(0, 1).expand(3, -1, -1))
        places = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
        kernels = mixed_kernels(seeds, weights, places)
        kernels = (kernels / kernels.amax((1, 2), keepdim=True)).view(2, 2, *kernels.shape[1:])
        sheet = F.pad(kernels, (1, 1, 1, 1), value=0.3).permute(0, 2, 1, 3).reshape(1, 1, 34, 34)
        tiles.append(F.interpolate(sheet, size=(height, width))[0].expand(3, -1, -1))
    return contact_sheet(tiles, columns=min(len(tiles), 5))


PairSource = Callable[[int, torch.Generator], MisalignedPair]


def train_misaligned(
    restorer: nn.Module,
    source: PairSource,
    run: TrainingRun,
    *,
    reblur: JDRLReblur | None = None,
    flow: Callable[[Tensor, Tensor], Tensor] | None = None,
    settings: MisalignedSettings = MisalignedSettings(),
    on_step: Callable[[int, Step], None] | None = None,
) -> MisalignedObjective:
    """Train a restorer on misaligned pairs and return the objective that holds it, in eval mode.

    Runs as :func:`tta_restore.engine.train.loop.train` says, and writes ``restorer.safetensors`` and
    ``reblur.safetensors``.

    Raises:
        UsageError: ``run.out`` holds the state of a run with other settings.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        objective = MisalignedObjective(restorer, reblur, flow=flow or LucasKanade(), settings=settings)
    return train(objective, source, run, on_step=on_step)


_SECTIONS = ("model", "data", "flow", "reblur", "settings", "run")


def train_from_config(
    path: str | Path, *, out: Path | None = None, steps: int | None = None, device: str | None = None
) -> MisalignedObjective:
    """Train as a configuration file says; arguments go before what it says.

    Raises:
        UsageError: something in it is wrong; the message says what.
    """
    config = read_config(path, _SECTIONS)
    own = dict(config.get("settings", {}))
    if "sigma" in own and own["sigma"] is False:  # TOML has no null
        own["sigma"] = None
    try:
        run = run_from(config.get("run", {}), default_out="runs/misaligned", out=out, steps=steps, device=device)
        settings = from_section("settings", MisalignedSettings, own)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            restorer = _restorer(config.get("model", {}))
            reblur = JDRLReblur(**config.get("reblur", {}))
        flow = create_flow(**({"name": "auto"} | config.get("flow", {})))
        source = _source(config.get("data", {}))
    except (TypeError, ValueError, ImageError) as error:
        raise UsageError(f"{path}: {error}") from error
    return train_misaligned(restorer, source, run, reblur=reblur, flow=flow, settings=settings)


def _restorer(section: Mapping[str, Any]) -> nn.Module:
    """A registered restorer or one's own, with ``blur_map`` for one that is told the blur."""
    options = dict(section)
    if not options.pop("blur_map", False):
        return model_from(options, default="jdrl_unet")
    if options.get("name", "jdrl_unet") == "jdrl_unet":
        return BlurConditioned(model_from(options | {"prior": True}, default="jdrl_unet"), argument="blur_map")
    return BlurConditioned(model_from(options, default="jdrl_unet"))


def _source(section: Mapping[str, Any]) -> PairSource:
    """Pairs of a data set (``layout``, ``root``, ``split``), or made of ``pictures``: a folder, or "bundled"."""
    options = dict(section)
    size = options.pop("size", 96)
    if "layout" in options:
        layout = options.pop("layout")
        if layout not in LAYOUTS or "root" not in options:
            raise ValueError(f"[data] expected root and layout, one of {', '.join(LAYOUTS)}, got {dict(section)}")
        checks.expect_keywords("[data]", find_pairs, options)
        return FolderPairs(find_pairs(options.pop("root"), layout, **options), size=size)
    pictures = options.pop("pictures", "bundled")
    checks.expect_keywords("[data]", Misalignment, options)
    misalignment = Misalignment(**options)
    if pictures != "bundled":
        return GeneratedPairs(load_sharp_images(Path(pictures), size=size + 96), size=size, misalignment=misalignment)
    return GeneratedPairs(bundled_pictures(size + 64), size=size, misalignment=misalignment)
