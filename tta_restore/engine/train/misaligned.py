"""Train any restorer on misaligned pairs, guided by a reblurring network.

Source: JDRL (Li et al., AAAI 2023); Reblurring-guided defocus deblurring (Ren et al., IJCV 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore import losses, metrics, ops
from tta_restore._core import checks
from tta_restore.data.datasets.layouts import LAYOUTS, find_pairs
from tta_restore.data.datasets.misaligned import (
    FolderPairs,
    GeneratedPairs,
    MisalignedPair,
    Misalignment,
    inverse_motion,
)
from tta_restore.data.io.image import read_image
from tta_restore.degradations import Degradation
from tta_restore.engine.report.reblurring import draw_step
from tta_restore.engine.run.extensions import Metric, find_degradations
from tta_restore.engine.run.settings import nested, read_settings
from tta_restore.engine.train.build import (
    Built,
    build_network,
    bundled_pairs,
    configured,
    described,
    expect_size,
    seeded,
    sharp_images,
    take_layout,
    take_metrics,
    tell_of_bundled_photos,
)
from tta_restore.engine.train.config import MisalignedConfig, MisalignedSettings, TrainingRun, section_of
from tta_restore.engine.train.loop import Objective, StepOutput, train
from tta_restore.models import as_restorer
from tta_restore.models.jdrl import BlurConditioned, JDRLReblur
from tta_restore.models.optical_flow import LucasKanade, create_flow

__all__ = [
    "MisalignedObjective",
    "MisalignedPairSource",
    "aligned_scores",
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

    all_weights_learn = False  # either network rests in some stage

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

    def restored(self, blurry: Tensor) -> Tensor:
        """Return the restoration, clipped to [0, 1]. Shape: (B, 3, H, W) -> the same."""
        return self._restore(blurry, 1.0)[0][0].clamp(0, 1)

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
        """Return the settings, and how flow is estimated."""
        return asdict(self.settings) | {"flow_estimator": self.flow}

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


MisalignedPairSource = Callable[[int, torch.Generator], MisalignedPair]


def train_misaligned(
    restorer: nn.Module,
    source: MisalignedPairSource,
    run: TrainingRun,
    *,
    reblur: JDRLReblur | None = None,
    flow: Callable[[Tensor, Tensor], Tensor] | None = None,
    settings: MisalignedSettings = MisalignedSettings(),
    validation: Iterable[MisalignedPair] = (),
    more_metrics: Mapping[str, Metric] | None = None,
    built: dict[str, Built] | None = None,
    on_step: Callable[[int, StepOutput], None] | None = None,
) -> MisalignedObjective:
    """Train a restorer on misaligned pairs and return the objective that holds it, in eval mode.

    Runs as :func:`tta_restore.engine.train.loop.train` says, and writes ``restorer.safetensors`` and
    ``reblur.safetensors``, and to ``best/`` those with the highest PSNR in validation.

    Args:
        restorer: any module from (B, 3, H, W) to the same; initial weights are its own.
        source: makes batches, such as :class:`tta_restore.data.datasets.misaligned.FolderPairs`.
        run: how long and where to.
        reblur: reblurring network; None for a new one.
        flow: optical flow estimator; None for Lucas-Kanade.
        settings: stages and weights.
        validation: pairs that PSNR is measured on, see :func:`aligned_scores`, gone through anew every time.
        more_metrics: measured on them, too: functions of a restored and a sharp image, (1, 3, H, W) in [0, 1], by name.
        built: see :attr:`Objective.built`.
        on_step: called after every step.

    Raises:
        UsageError: ``run.out`` holds the state of a run with other settings.
    """
    with seeded(run.seed):
        objective = MisalignedObjective(restorer, reblur, flow=flow or LucasKanade(), settings=settings)
    objective.built = built or {}
    validate = None
    if not isinstance(validation, (list, tuple)) or validation:
        validate = lambda current: aligned_scores(current, validation, run.device, more_metrics)  # noqa: E731
    return train(objective, source, run, validate=validate, on_step=on_step)


@torch.no_grad()
def aligned_scores(
    objective: MisalignedObjective,
    pairs: Iterable[MisalignedPair],
    device: str = "cpu",
    more_metrics: Mapping[str, Metric] | None = None,
) -> dict[str, float]:
    """Return the mean PSNR in dB of restorations, against the aligned sharp image ("psnr") and as it is ("plain_psnr").

    The aligned image is that of the pair where it is known, else the sharp image, warped by the flow from the
    restoration; further metrics are measured against it.

    Args:
        objective: holds the restorer.
        pairs: images to restore, and their originals.
        device: where the restorer is.
        more_metrics: see :func:`train_misaligned`.

    Raises:
        ValueError: there are no pairs.
    """
    aligned, plain = [], []
    more: dict[str, list[float]] = {name: [] for name in more_metrics or {}}
    for pair in pairs:
        blurry, sharp = pair.blurry.to(device), pair.sharp.to(device)
        restored = objective.restored(blurry)
        target = None if pair.aligned is None else pair.aligned.to(device)
        if target is None:
            found = objective.flow(restored, sharp)
            options: dict[str, Any] = {"align_corners": objective.settings.align_corners}
            target = ops.flow_warp(sharp, found, padding_mode="border", **options)
        aligned += metrics.psnr(restored, target).tolist()
        plain += metrics.psnr(restored, sharp).tolist()
        for name, metric in (more_metrics or {}).items():
            images = zip(restored.split(1), target.clamp(0, 1).split(1), strict=True)
            more[name] += [float(metric(*both)) for both in images]
    if not aligned:
        raise ValueError("aligned_scores: expected at least one pair to validate on")
    return {name: sum(values) / len(values) for name, values in ({"psnr": aligned, "plain_psnr": plain} | more).items()}


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
    with configured(config, MisalignedConfig, out=out, steps=steps, device=device) as chosen:
        source = _source(chosen.data)
        content = nested(config if isinstance(config, Mapping) else read_settings(config))
        settings = _with_preset(content.get("settings") or {}, chosen, source)
        with seeded(chosen.run.seed):
            restorer = build_network(chosen.model, default="jdrl_unet")
            reblur = JDRLReblur(**chosen.reblur)
        flow = create_flow(**({"name": "auto"} | chosen.flow))
        validation, more_metrics = take_metrics(chosen.validation)
        pairs = _validation(validation) if validation else ()
        tell_of_bundled_photos(chosen)
        return train_misaligned(
            restorer,
            source,
            chosen.run,
            reblur=reblur,
            flow=flow,
            settings=settings,
            validation=pairs,
            more_metrics=more_metrics,
            built={
                "restorer": described(chosen.model, default="jdrl_unet"),
                "reblur": ("jdrl_reblur", dict(chosen.reblur)),
            },
        )


def _with_preset(
    given: Mapping[str, Any], chosen: MisalignedConfig, source: MisalignedPairSource
) -> MisalignedSettings:
    """Return the settings of the section's preset, with the entries that are given in their place."""
    preset = chosen.settings.preset
    if preset == "ours":
        return chosen.settings
    steps = chosen.settings.steps_per_epoch
    if not steps and isinstance(source, FolderPairs):
        steps = -(-len(source) // chosen.run.batch_size)
    journal = chosen.model.get("name") == "jdrl_journal" or bool(chosen.model.get("blur_map"))
    values = asdict(MisalignedSettings.of_preset(preset, steps_per_epoch=steps, journal=journal))
    return section_of("settings", MisalignedSettings, values | dict(given))


class _WholePairs:
    """Pairs of files, whole, cropped to sides that are multiples of 16; read when asked for."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        self.pairs = pairs

    def __iter__(self) -> Iterator[MisalignedPair]:
        for paths in self.pairs:
            blurry, sharp = (read_image(path).as_rgb()[None] for path in paths)
            height, width = (side // 16 * 16 for side in blurry.shape[-2:])
            yield MisalignedPair(blurry[..., :height, :width], sharp[..., :height, :width])


def _validation(section: Mapping[str, Any]) -> Iterable[MisalignedPair]:
    """Whole pairs of a data set, or ``pictures = "bundled"``: generated pairs of the photos kept for development."""
    options = dict(section)
    if options.get("pictures") == "bundled":
        degradations = _degradations("validation", options)
        own = {key: value for key, value in options.items() if key not in ("pictures", "size", "count")}
        checks.expect_keywords("[validation]", Misalignment, own)
        source = partial(GeneratedPairs, misalignment=Misalignment(**own), degradations=degradations)
        return bundled_pairs({key: options[key] for key in options if key not in own}, 96, source, 64)
    limit = options.pop("limit", None)
    layout, root = take_layout("validation", options, LAYOUTS, ", or pictures = 'bundled'")
    splits = LAYOUTS[layout]
    split = options.pop("split", "val" if callable(splits) or "val" in splits else "test")
    checks.expect_keywords("[validation]", find_pairs, options)
    return _WholePairs(find_pairs(root, layout, split)[:limit])


def _source(section: Mapping[str, Any]) -> MisalignedPairSource:
    """Return pairs of a data set (``layout``, ``root``, ``split``), or made of ``pictures``: a folder, or "bundled"."""
    options = dict(section)
    size = expect_size(options.pop("size", 96))
    if "layout" in options:
        layout, root = take_layout("data", options, LAYOUTS)
        checks.expect_keywords("[data]", find_pairs, options)
        return FolderPairs(find_pairs(root, layout, **options), size=size)
    pictures, degradations = options.pop("pictures", "bundled"), _degradations("data", options)
    checks.expect_keywords("[data]", Misalignment, options)
    margin = 64 if pictures == "bundled" else 96
    own: dict[str, Any] = {"misalignment": Misalignment(**options), "degradations": degradations}
    return GeneratedPairs(sharp_images(pictures, size + margin), size=size, **own)


def _degradations(section: str, options: dict[str, Any]) -> list[Degradation]:
    """Take the degradations out of the entries of a section; none for those of lenses."""
    names = options.pop("degradations", None)
    return [] if names is None else find_degradations(names, f"[{section}] degradations")
