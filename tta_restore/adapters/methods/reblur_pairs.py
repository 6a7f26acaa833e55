"""ReblurPairs: estimate the lens from the frames, blur sharp material with it, and fine-tune on those pairs."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.adapters.frame import FrameContext
from tta_restore.adapters.methods._muon import Muon
from tta_restore.adapters.methods.defocus import DefocusAdapter, disagreement
from tta_restore.adapters.methods.psf_tracking import Reading, mean_log_radius, nearest, radii_of, reading_of
from tta_restore.adapters.select import Select
from tta_restore.adapters.views import Views
from tta_restore.data.datasets.mining import random_patches
from tta_restore.data.synthetic import dead_leaves
from tta_restore.data.synthetic.soften import soften
from tta_restore.degradations import lens as optics
from tta_restore.losses import charbonnier_loss
from tta_restore.models.defocus.estimator import frame_crops
from tta_restore.models.defocus.pupil import rasterize_pupil

_FULL_LEAD = 1.25  # dB that the student is ahead of the source on pairs when all of it is trusted
_TRIED = 16  # pairs that what is known is tried on after a change of lens
_SOFT = 0.8  # share of the material that is soft by itself, as most of a photograph is
_MARGIN = optics.KERNEL_SIZE - 1


class ReblurPairs(DefocusAdapter, method="reblur_pairs"):
    """Fine-tunes a restorer on pairs blurred with the point spread function (PSF) of the lens that took the frames.

    :class:`DegradationPairs` for defocus alone, with a change detector for lenses. On every frame the estimator reads
    the pupil function and the blur radii; the estimates of the latest frames are pooled. Then, `steps` times: sharp
    patches are rendered through that pupil (linear light, noise, rounding) at radii that occur in the frames, varied by
    the estimator's uncertainty, the student restores them, and the teacher follows the student. When no pupil function
    that fits a frame is near the pooled one, or its radii are of another size, the PSF has changed: the weights are
    cached, and the adapter continues with `warmup_multiplier` times the steps on that frame from whatever restores
    pairs of the new PSF best: the current weights, those cached for an earlier lens, or the source. The output is the
    teacher's self-ensemble after the steps.

    The target of a pair is known and does not depend on the adapting restorer, so that errors do not accumulate. Some
    of the sharp patches are from the frame as the source restores it: inherently soft content looks as if the lens had
    blurred it, and a restorer that is trained on it blurred once more learns to leave it soft.

    Args:
        model: a restorer of single frames at scale 1; see :class:`Adapter`, as for ``options``.
        estimator: a ``tta_restore.models.defocus.DefocusEstimator``; the shipped one by default.
        sharp_images: custom images to blur, (N, 3, S, S) in [0, 1] or uint8; None for dead leaves, most of them
            softened (``tta_restore.data.synthetic.soften``).
        scene_fraction: fraction of the pairs whose sharp patch is taken from the frame as the source restores it.
        select: which weights to adapt.
        steps: optimizer steps per frame.
        warmup_multiplier: multiple of `steps` that is taken on the first frame of a lens.
        batch_size: pairs per step.
        patch_size: side of a pair in pixels.
        lr: learning rate of the first step with a lens.
        lr_half_life: steps with a lens after which the learning rate has halved: ``lr / (1 + t / lr_half_life)``.
        ema: EMA momentum of the teacher. It follows the point between source and student that the student's PSNR gain
            over the source on pairs allows: the source at 0 dB, the student at 1.25 dB.
        restore: probability of the stochastic restoration of each scalar of the student, per step.
        num_candidates: number of pupil functions that fit the frames; the pairs are rendered with them.
        no_harm_weight: weight of a hinge penalty on pairs that the student restores worse than the source, relative to
            the source's error on the pair. It keeps a gain on one candidate PSF or image from being paid for by
            another.
        radius_jitter: standard deviation of the radii around the estimated ones, relative to the estimator's own
            uncertainty.
        window: number of latest frames whose estimates are pooled.
        psf_change_threshold: distance, 0 to 2, of the pooled pupil function from all candidates of a frame, beyond
            which the PSF counts as changed; None to never test it.
        radius_change_threshold: change of the mean log radius beyond which the PSF counts as changed.
        num_cached: number of earlier lenses whose weights are kept.
        noise_std: standard deviation of the camera's noise, in [0, 1] values.
        consistency_weight: weight of the loss of :class:`ReblurConsistency` on the frame; 0 omits it.
        null_space_weight: weight, in that loss, of the component that the blur removes.
        views: test-time augmentations that the output is averaged over, see :func:`resolve_views`.
        seed: source of patches, noise and masks.

    Raises:
        ValueError: a setting is out of range; the model enlarges, or takes clips or other than 1 or 3 channels.
    """

    def __init__(
        self,
        model: Any,
        estimator: nn.Module | None = None,
        *,
        sharp_images: Tensor | None = None,
        scene_fraction: float = 0.25,
        select: Select = "all",
        steps: int = 144,
        warmup_multiplier: int = 3,
        batch_size: int = 4,
        patch_size: int = 48,
        lr: float = 1e-3,
        lr_half_life: float = 192.0,
        ema: float = 0.9,
        restore: float = 0.0,
        num_candidates: int = 16,
        no_harm_weight: float = 0.5,
        radius_jitter: float = 0.8,
        window: int = 4,
        psf_change_threshold: float | None = 0.25,
        radius_change_threshold: float = 0.6,
        num_cached: int = 4,
        noise_std: float = 1 / 255,
        consistency_weight: float = 0.0,
        null_space_weight: float = 0.5,
        views: Views = "rot4",
        seed: int = 0,
        **options: Any,
    ) -> None:
        counts = {
            "warmup_multiplier": warmup_multiplier,
            "batch_size": batch_size,
            "patch_size": patch_size,
            "window": window,
            "num_candidates": num_candidates,
        }
        for name, value in counts.items():
            checks.expect_int("ReblurPairs", name, value, minimum=1)
        checks.expect_int("ReblurPairs", "num_cached", num_cached, minimum=0)
        for name, value in (("ema", ema), ("restore", restore), ("scene_fraction", scene_fraction)):
            checks.expect_number("ReblurPairs", name, value, minimum=0, maximum=1)
        rates = {"lr": lr, "lr_half_life": lr_half_life, "radius_change_threshold": radius_change_threshold}
        for name, value in rates.items():
            checks.expect_number("ReblurPairs", name, value, above=0)
        if psf_change_threshold is not None:
            checks.expect_number("ReblurPairs", "psf_change_threshold", psf_change_threshold, minimum=0, maximum=2)
        weights = {
            "noise_std": noise_std,
            "radius_jitter": radius_jitter,
            "no_harm_weight": no_harm_weight,
            "consistency_weight": consistency_weight,
            "null_space_weight": null_space_weight,
        }
        for name, value in weights.items():
            checks.expect_number("ReblurPairs", name, value, minimum=0)
        if sharp_images is not None:
            checks.expect_tensor("ReblurPairs", sharp_images=sharp_images)
            smallest = patch_size + _MARGIN
            if sharp_images.ndim != 4 or sharp_images.shape[1] != 3 or min(sharp_images.shape[-2:]) < smallest:
                raise ValueError(
                    f"ReblurPairs: expected sharp_images (N, 3, S, S) with S >= patch_size + {_MARGIN} = {smallest}, "
                    f"got {tuple(sharp_images.shape)}"
                )
        super().__init__(model, estimator, select=select, views=views, steps=steps, seed=seed, **options)
        self._sharp_images, self.scene_fraction = sharp_images, scene_fraction
        self.warmup_multiplier, self.batch_size, self.patch_size = warmup_multiplier, batch_size, patch_size
        self.lr, self.lr_half_life = lr, lr_half_life
        self.ema, self.restore_prob, self.radius_change_threshold = ema, restore, radius_change_threshold
        self.num_candidates, self.no_harm_weight = num_candidates, no_harm_weight
        self.radius_jitter, self.window, self.num_cached = radius_jitter, window, num_cached
        self.psf_change_threshold, self.noise_std = psf_change_threshold, noise_std
        self.consistency_weight, self.null_space_weight = consistency_weight, null_space_weight

    def initial_memory(self) -> dict[str, Any]:
        """Readings of the latest frames, and lenses seen before with what was learned for them."""
        return {"readings": [], "lenses": [], "switches": 0, "lead": 0.0}

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """:class:`Muon`, which gets further than Adam in the few steps that a frame allows."""
        return Muon(parameters, lr=self.lr)

    def learning_rate(self, update: int) -> float:
        """Falls hyperbolically from the first step with a lens."""
        return self.lr / (1 + update / self.lr_half_life)

    def begin_frame(self, frame: FrameContext) -> None:
        """Read the lens; on a change of lens remember the old one and start from what fits the new one best."""
        super().begin_frame(frame)
        reading = reading_of(self.read_lens(frame_crops(frame.image)))
        readings = self.memory["readings"]
        fitting = self._plausible([reading])
        distance = growth = 0.0
        if readings:
            distance = nearest(fitting, self.aperture())
            growth = abs(mean_log_radius([reading]) - mean_log_radius(readings))
        changed = self.psf_change_threshold is not None and (
            distance > self.psf_change_threshold or growth > self.radius_change_threshold
        )
        if changed:
            readings = []
        if not readings:
            frame.steps *= self.warmup_multiplier
        self.memory["readings"] = [*readings, reading][-self.window :]
        frame.scratch["apertures"], frame.scratch["radii"] = (
            self._plausible(self.memory["readings"]),
            radii_of(self.memory["readings"], self.generator),
        )
        frame.scratch["scene"] = self._scene(frame.region) if self.scene_fraction else None
        if changed:
            self._change_lens(frame)
        if self.consistency_weight:
            frame.scratch["seeds"] = self.blur_map(frame.region)
            frame.scratch["source"] = self.run("source", frame.region).image.float()
        frame.metrics.update(aperture_distance=distance, radius_change=growth, lens_changed=float(changed))

    def objective(self, frame: FrameContext) -> Tensor:
        """Charbonnier distance of the student's restoration of reblurred patches from the sharp ones, plus caution."""
        blurry, sharp = self._pair_for(frame)
        error = _errors(self.run("student", blurry).image, sharp)
        with torch.no_grad():
            before = _errors(self.run("source", blurry).image, sharp)
        frame.scratch["lead"] = _lead(float(before.mean()), float(error.detach().mean()))
        lost = (error / before - 1).clamp(min=0).mean()
        loss = error.mean() + self.no_harm_weight * before.mean() * lost
        return loss + self.consistency_weight * self._inconsistency(frame) if self.consistency_weight else loss

    def after_step(self, frame: FrameContext) -> None:
        """The teacher follows as far as the student is trusted; single scalars of the student return to the source."""
        lead = self.ema * self.memory["lead"] + (1 - self.ema) * frame.scratch["lead"]
        self.memory["lead"] = lead
        share = min(max(lead / _FULL_LEAD, 0.0), 1.0)
        self.update_teacher(self.ema, interpolation=share)
        frame.metrics.update(lead=lead, share=share)
        if self.restore_prob:
            self.stochastic_restore(self.restore_prob)

    def aperture(self) -> Tensor:
        """Return the aperture that pairs are made with now: (A, A) at unit root mean square radius, summing to 1.

        Raises:
            ValueError: no frame was seen yet.
        """
        readings = self.memory["readings"]
        if not readings:
            raise ValueError("ReblurPairs.aperture: no frame was seen yet")
        return self._aperture(self._statistics(readings))

    def kernels(self, x: Tensor, *, grid: int = 4) -> Tensor:
        """Estimated point spread functions of a frame on a grid of tiles, for looking at; nothing changes.

        Shape:
            - x: (B, C, H, W), RGB in [0, 1]
            - output: (B, G, G, K, K) with G = `grid`, each summing to 1
        """
        with torch.no_grad():
            estimate = self.read_lens(x)
            picture = self.aperture() if self.memory["readings"] else self._aperture(estimate.statistics)
            logs = F.interpolate((estimate.radius.log() * estimate.confidence)[:, None], size=(grid, grid), mode="area")
            weights = F.interpolate(estimate.confidence[:, None], size=(grid, grid), mode="area")
        radius = (logs / weights).exp().flatten().cpu()
        kernels = rasterize_pupil(picture, radius, size=optics.KERNEL_SIZE, reach=self.estimator.reach)
        return kernels.view(len(x), grid, grid, *kernels.shape[-2:])

    def cost(self) -> str:
        """Passes through the model for each frame."""
        frame = " and on the frame" if self.consistency_weight else ""
        size, views = self.patch_size, len(self.views)
        scene = " by the source and by the teacher" if self.scene_fraction else ""
        return (
            f"per frame 1 forward of the estimator, {self.steps} forward and backward on {self.batch_size} patches of "
            f"{size} x {size}{frame} ({self.warmup_multiplier} times as many after a change of lens), "
            f"{views} forward of the frame{scene}"
        )

    def _inconsistency(self, frame: FrameContext) -> Tensor:
        """Return the reblurring error of the student's restoration plus its null-space component."""
        restored, border = self.run("student", frame.region).image.float(), optics.KERNEL_SIZE // 2
        seen, loss = disagreement(
            restored,
            frame.region,
            frame.scratch["seeds"],
            source=frame.scratch["source"],
            anchor=self.null_space_weight,
            border=border,
        )
        frame.metrics["reblur_loss"] = seen.mean().item()
        return loss.mean()

    def _aperture(self, statistics: Tensor) -> Tensor:
        with torch.no_grad():  # a custom estimator may need gradients
            return self.estimator.aperture(statistics)[0].cpu()

    def _statistics(self, readings: list[Reading]) -> Tensor:
        return torch.stack([reading["statistics"] for reading in readings]).sum(0).to(self._estimator_device())

    def _plausible(self, readings: list[Reading]) -> Tensor:
        """Apertures that the frames may have been taken through: (N, A, A)."""
        with torch.no_grad():
            return self.estimator.candidates(self._statistics(readings)[0], self.num_candidates).cpu()

    def _scene(self, image: Tensor) -> Tensor | None:
        """Return patches of the frame as the source restores it, (N, 3, h, w); None for frames smaller than a patch."""
        if min(image.shape[-2:]) < self.patch_size + _MARGIN:
            return None
        return self.ensemble("source", frame_crops(image)).image.float().clamp(0, 1).expand(-1, 3, -1, -1).cpu()

    def _pair(
        self, apertures: Tensor, radii: Tensor, error: Tensor, scene: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Patches photographed through one aperture each, blur growing across each from one radius to another."""
        generator, count, side = self.generator, self.batch_size, self.patch_size
        material = _material() if self._sharp_images is None else self._sharp_images
        sharp = random_patches(material, count, side + _MARGIN, generator)
        if scene is not None:
            lent = math.floor(self.scene_fraction * count + torch.rand((), generator=generator).item())
            if lent:
                sharp[:lent] = random_patches(scene, lent, side + _MARGIN, generator)
        chosen = torch.randint(0, len(radii), (count,), generator=generator)
        ends = radii[chosen] * torch.exp(
            self.radius_jitter * error[chosen] * torch.randn(count, 1, generator=generator)
        )
        pictures = apertures[torch.randint(0, len(apertures), (count,), generator=generator)].repeat_interleave(2, 0)
        kernels = rasterize_pupil(pictures, ends.flatten(), size=optics.KERNEL_SIZE, reach=self.estimator.reach)
        angle = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
        axis = torch.linspace(-0.7, 0.7, side)
        ramp = (angle.cos() * axis + angle.sin() * axis[:, None] + 0.5).clamp(0, 1)
        weights = torch.stack([1 - ramp, ramp], dim=1)
        kernels = kernels.view(count, 2, *kernels.shape[-2:])
        blurry = optics.simulate_capture(sharp, kernels, weights, generator, noise_std=self.noise_std)
        return blurry, sharp[..., _MARGIN // 2 : -(_MARGIN // 2), _MARGIN // 2 : -(_MARGIN // 2)]

    def _change_lens(self, frame: FrameContext) -> None:
        """Store what was learned; continue from what restores pairs of the new lens best: that, or the source."""
        known: list[dict[str, Any]] = [*self.memory["lenses"], self.snapshot()]
        pairs = [self._pair_for(frame) for _ in range(math.ceil(_TRIED / self.batch_size))]
        source, errors = self._mean_error("source", pairs), []
        for lens in known:
            self.restart(lens["student"], lens["teacher"])
            errors.append(self._mean_error("student", pairs))
        best = errors.index(min(errors))
        if errors[best] < source:
            start = known.pop(best)
            self.restart(start["student"], start["teacher"])
            self.memory["lead"] = _lead(source, errors[best])
        else:
            self.restart()
            self.memory["lead"] = 0.0
        self.memory["lenses"] = known[max(len(known) - self.num_cached, 0) :]
        self.memory["switches"] += 1

    @torch.no_grad()
    def _mean_error(self, role: str, pairs: list[tuple[Tensor, Tensor]]) -> float:
        return float(torch.cat([_errors(self.run(role, blurry).image, sharp) for blurry, sharp in pairs]).mean())

    def _pair_for(self, frame: FrameContext) -> tuple[Tensor, Tensor]:
        """Return pairs for a frame, of its kind and where it is."""
        radii, error = frame.scratch["radii"]
        blurry, sharp = self._pair(frame.scratch["apertures"], radii, error, frame.scratch["scene"])
        if frame.image.shape[1] == 1:
            blurry, sharp = blurry.mean(1, keepdim=True), sharp.mean(1, keepdim=True)
        return blurry.to(frame.image), sharp.to(frame.image.device)


def _errors(restored: Tensor, sharp: Tensor) -> Tensor:
    return torch.stack([charbonnier_loss(one.float(), other) for one, other in zip(restored, sharp, strict=True)])


def _lead(source: float, student: float) -> float:
    """Return the PSNR gain of a student over the source in dB."""
    # not of the ratio: a student without bounds is infinitely behind, which the guards then say
    return 20 * (math.log10(max(source, 1e-12)) - math.log10(max(student, 1e-12)))


@cache
def _material() -> Tensor:
    """Dead leaves; most of them soft, so that the student undoes the lens instead of sharpening all it sees."""
    generator = torch.Generator().manual_seed(0)
    leaves = dead_leaves.bank(48, 96, generator).repeat(2, 1, 1, 1)
    return (soften(leaves, generator, share=_SOFT) * 255).round().to(torch.uint8)
