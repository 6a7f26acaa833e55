"""The objective of reblurring-guided learning: any restorer, a batch of misaligned pairs, a loss with all its parts.

Source: JDRL (Li et al., AAAI 2023); Reblurring-guided defocus deblurring (Ren et al., IJCV 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from tta_restore.engine.report.images import contact_sheet
from tta_restore.engine.train.build import (
    Built,
    build_network,
    bundled_images,
    described,
    expect_size,
    seeded,
    usage_errors,
)
from tta_restore.engine.train.config import MisalignedConfig, MisalignedSettings, TrainingRun, read_config
from tta_restore.engine.train.loop import Objective, StepOutput, train
from tta_restore.models import as_restorer
from tta_restore.models.jdrl import BlurConditioned, JDRLReblur
from tta_restore.models.optical_flow import LucasKanade, create_flow
from tta_restore.nn.reblur import KERNEL_SIZES

__all__ = [
    "MisalignedObjective",
    "MisalignedPairSource",
    "blur_radius",
    "draw_step",
    "mixed_kernels",
    "train_misaligned",
    "train_misaligned_from_config",
]


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

    def forward(self, batch: MisalignedPair, step: int) -> StepOutput:
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
            return StepOutput.sum_of(self._reblur_parts(images, found, None), found)
        if settings.flow == "pixel":
            return StepOutput.sum_of({"pixel": _sum(losses.charbonnier_loss(image, sharp) for image in images)}, found)
        found["flow"] = self._flow(blurry if stage == "warm_up" else images[0], sharp, batch.flow)
        options: dict[str, Any] = {"align_corners": settings.align_corners}
        found["warped"] = ops.flow_warp(sharp, found["flow"], padding_mode="border", **options)
        if stage == "warm_up":
            parts = {"pair": _sum(losses.charbonnier_loss(image, found["warped"]) for image in images)}
            return StepOutput.sum_of(parts | self._edge_parts(images, found), found)
        options["mask_tolerance"] = settings.mask_tolerance
        back = self._flow(sharp, images[0], None if batch.flow is None else inverse_motion(batch.flow))
        if settings.mask_tolerance is not None:
            found["mask"] = losses.calibration_mask(found["flow"], tolerance=settings.mask_tolerance)
        backs = [back, *[None] * (len(images) - 1)]
        pairs = (
            losses.deformation_loss(image, sharp, found["flow"], there, **options)
            for image, there in zip(images, backs, strict=True)
        )
        parts = {"pair": _sum(pairs)} | self._edge_parts(images, found)
        return StepOutput.sum_of(parts | self._reblur_parts(images, found, blur_map), found)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""
        rate = self.settings.lr if self.settings.reblur_lr is None else self.settings.reblur_lr
        return [
            {"params": [p for p in self.restorer.parameters() if p.requires_grad], "lr": self.settings.lr},
            {"params": list(self.reblur.parameters()), "lr": rate},
        ]

    def rate(self, step: int) -> float:
        """Return the factor on the learning rates."""
        return self.settings.rate(step)

    def identity(self) -> dict[str, Any]:
        """Return the settings."""
        return asdict(self.settings)

    def exports(self) -> dict[str, nn.Module]:
        """Restorer and reblurring module."""
        return {"restorer": self.restorer, "reblur": self.reblur}

    def status(self, step: int) -> dict[str, str]:
        """Return the stage."""
        return {"stage": self.settings.stage(step)}

    def picture(self, found: StepOutput) -> Tensor:
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
    """Return the whole kernels of some pixels (y, x) of the first frame: (P, 15, 15)."""
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
    """Return the first pair of a step as one picture (3, H, W): images, flow and mask, then blur radius and kernels."""
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


MisalignedPairSource = Callable[[int, torch.Generator], MisalignedPair]


def train_misaligned(
    restorer: nn.Module,
    source: MisalignedPairSource,
    run: TrainingRun,
    *,
    reblur: JDRLReblur | None = None,
    flow: Callable[[Tensor, Tensor], Tensor] | None = None,
    settings: MisalignedSettings = MisalignedSettings(),
    built: dict[str, Built] | None = None,
    on_step: Callable[[int, StepOutput], None] | None = None,
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
    objective.built = built or {}
    return train(objective, source, run, on_step=on_step)


def train_misaligned_from_config(
    config: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    steps: int | None = None,
    device: str | None = None,
) -> MisalignedObjective:
    """Train a restorer on misaligned pairs, guided by a reblurring network, from a configuration.

    Args:
        config: TOML, YAML or JSON file, or sections by name; see
            :class:`tta_restore.engine.train.config.MisalignedConfig`.
        out: folder for results, overrides ``run.out``.
        steps: number of steps in total, overrides ``run.steps``.
        device: such as cpu or cuda (default: cuda where there is one)

    Raises:
        UsageError: the configuration, or the data it names, cannot be used.
    """
    chosen = read_config(config, MisalignedConfig, out=out, steps=steps, device=device)
    with usage_errors(config):
        with seeded(chosen.run.seed):
            restorer = build_network(chosen.model, default="jdrl_unet")
            reblur = JDRLReblur(**chosen.reblur)
        flow = create_flow(**({"name": "auto"} | chosen.flow))
        source = _source(chosen.data)
        built = {"restorer": described(chosen.model, default="jdrl_unet")}
        built["reblur"] = ("jdrl_reblur", dict(chosen.reblur))
        return train_misaligned(
            restorer,
            source,
            chosen.run,
            reblur=reblur,
            flow=flow,
            settings=chosen.settings,
            built={
                "restorer": described(chosen.model, default="jdrl_unet"),
                "reblur": ("jdrl_reblur", dict(chosen.reblur)),
            },
        )


def _source(section: Mapping[str, Any]) -> MisalignedPairSource:
    """Return pairs of a data set (``layout``, ``root``, ``split``), or made of ``pictures``: a folder, or "bundled"."""
    options = dict(section)
    size = expect_size(options.pop("size", 96))
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
    return GeneratedPairs(bundled_images(size + 64), size=size, misalignment=misalignment)
