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
from tta_restore.adapters.methods.psf_tracking import Reading, looks, mean_log_radius, nearest, radii_of, reading_of
from tta_restore.adapters.select import Select
from tta_restore.adapters.views import Views
from tta_restore.data.datasets.mining import random_patches
from tta_restore.data.synthetic import dead_leaves
from tta_restore.data.synthetic.soften import soften
from tta_restore.degradations import lens as optics
from tta_restore.losses import charbonnier_loss
from tta_restore.models.defocus.pupil import rasterize_pupil

_FULL_LEAD = 1.25  # dB that the student is ahead of the source on pairs when all of it is trusted
_TRIED = 16  # pairs that what is known is tried on after a change of lens
_SOFT = 0.8  # share of the material that is soft by itself, as most of a photograph is
_MARGIN = optics.KERNEL_SIZE - 1


class ReblurPairs(DefocusAdapter, method="reblur_pairs"):
    """Fine-tunes a restorer on pairs blurred with the lens that took the frames.

    On every frame the estimator reads the aperture and the blur radii; the apertures of the latest frames are pooled.
    Then, `steps` times: sharp patches are photographed through that aperture (linear light, noise, rounding) at radii
    that occur in the frames, or as far from them as the estimator is unsure, the student restores them, and the teacher
    follows the student. When no aperture that fits a frame is near the pooled one, or its radii are of another size,
    the lens was changed: what was learned is remembered, and the adapter continues with `burst` times the steps on that
    frame from what restores pairs of the new lens best: that, what was learned for an earlier lens, or the source.
    What is given is the teacher's self-ensemble, after the steps.

    The target of a pair is known and does not depend on the adapting restorer, so that no error feeds on itself. Some
    of the sharp patches are of the frame, as the source restores it: what is soft by itself looks as if the lens had
    blurred it, and a restorer that meets it blurred once more learns to leave it soft.

    Args:
        model: a restorer of single frames at scale 1; see :class:`Adapter`, as for ``options``.
        estimator: a :class:`tta_restore.models.defocus.estimator.DefocusEstimator`; the shipped one by default.
        sharp: pictures to blur, (N, 3, S, S) in [0, 1] or uint8; None for dead leaves made on the spot, most of them
            softened (:func:`tta_restore.data.synthetic.soften.soften`).
        scene: share of the pairs whose sharp patch is taken from the frame as the source restores it.
        select: which weights to adapt.
        steps: optimizer steps per frame.
        burst: how many times as many on the first frame of a lens.
        batch: pairs per step.
        patch: side of a pair in pixels.
        lr: learning rate of the first steps with a lens.
        lr_half: steps with a lens after which the learning rate has halved; it falls as 1 / (1 + t / lr_half).
        ema: share of itself that the teacher keeps at each step. It follows only a share of the way from the source to
            the student, which grows with the student's lead over the source on pairs: none at 0 dB, all at 1.25 dB.
        restore: probability with which a scalar of the student returns to the source, per step.
        hypotheses: how many apertures that fit the frames are looked at; the pairs are made with them.
        caution: weight of what is lost to the source on single pairs, each in parts of the source's error on it, so
            that nothing is gained for one aperture by losing for another one that fits as well, nor for hard pictures
            by losing for easy ones.
        spread: how far radii are drawn from those read, in units of what the estimator says that they may be off by.
        memory: frames whose readings are pooled.
        switch: distance, 0 to 2, of the pooled aperture from all that fit a frame by itself, beyond which the lens
            counts as changed; None to never ask.
        rescale: change of the mean logarithm of the radii beyond which it counts as changed, too.
        remember: lenses of which it is kept what was learned.
        noise: standard deviation of the camera's noise, in stored values.
        consistency: weight of what :class:`ReblurConsistency` asks for, beside the pairs: the student's restoration of
            the frame, blurred again with the blur that was read, has to meet the frame. 0 leaves it out.
        anchor: weight in it of the change that blurring hides.
        views: views that the output is averaged over, see :func:`resolve_views`.
        seed: source of patches, noise and masks.

    Raises:
        ValueError: a setting is out of range; the model enlarges, or takes clips or other than 1 or 3 channels.
    """

    def __init__(
        self,
        model: Any,
        estimator: nn.Module | None = None,
        *,
        sharp: Tensor | None = None,
        scene: float = 0.25,
        select: Select = "all",
        steps: int = 144,
        burst: int = 3,
        batch: int = 4,
        patch: int = 48,
        lr: float = 1e-3,
        lr_half: float = 192.0,
        ema: float = 0.9,
        restore: float = 0.0,
        hypotheses: int = 16,
        caution: float = 0.5,
        spread: float = 0.8,
        memory: int = 4,
        switch: float | None = 0.25,
        rescale: float = 0.6,
        remember: int = 4,
        noise: float = 1 / 255,
        consistency: float = 0.0,
        anchor: float = 0.5,
        views: Views = "rot4",
        seed: int = 0,
        **options: Any,
    ) -> None:
        counts = {"burst": burst, "batch": batch, "patch": patch, "memory": memory, "hypotheses": hypotheses}
        for name, value in counts.items():
            checks.expect_int("ReblurPairs", name, value, minimum=1)
        checks.expect_int("ReblurPairs", "remember", remember, minimum=0)
        for name, value in (("ema", ema), ("restore", restore), ("scene", scene)):
            checks.expect_number("ReblurPairs", name, value, minimum=0, maximum=1)
        for name, value in (("lr", lr), ("lr_half", lr_half), ("rescale", rescale)):
            checks.expect_number("ReblurPairs", name, value, above=0)
        if switch is not None:
            checks.expect_number("ReblurPairs", "switch", switch, minimum=0, maximum=2)
        weights = {"noise": noise, "spread": spread, "caution": caution, "consistency": consistency, "anchor": anchor}
        for name, value in weights.items():
            checks.expect_number("ReblurPairs", name, value, minimum=0)
        if sharp is not None:
            checks.expect_tensor("ReblurPairs", sharp=sharp)
            if sharp.ndim != 4 or sharp.shape[1] != 3 or min(sharp.shape[-2:]) < patch + _MARGIN:
                raise ValueError(
                    f"ReblurPairs: expected sharp (N, 3, S, S) with S >= patch + {_MARGIN} = {patch + _MARGIN}, "
                    f"got {tuple(sharp.shape)}"
                )
        super().__init__(model, estimator, select=select, views=views, steps=steps, seed=seed, **options)
        self._sharp, self.scene = sharp, scene
        self.burst, self.batch, self.patch = burst, batch, patch
        self.lr, self.lr_half = lr, lr_half
        self.ema, self.restore_prob, self.rescale = ema, restore, rescale
        self.hypotheses, self.caution = hypotheses, caution
        self.spread, self.window, self.switch, self.remember, self.noise = spread, memory, switch, remember, noise
        self.consistency, self.anchor = consistency, anchor

    def initial_memory(self) -> dict[str, Any]:
        """Readings of the latest frames, and lenses seen before with what was learned for them."""
        return {"readings": [], "lenses": [], "switches": 0, "lead": 0.0}

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """:class:`Muon`, which gets further than Adam in the few steps that a frame allows."""
        return Muon(parameters, lr=self.lr)

    def learning_rate(self, update: int) -> float:
        """Falls hyperbolically from the first step with a lens."""
        return self.lr / (1 + update / self.lr_half)

    def begin_frame(self, frame: FrameContext) -> None:
        """Read the lens; on a change of lens remember the old one and start from what fits the new one best."""
        super().begin_frame(frame)
        reading = reading_of(self.read_lens(looks(frame.image)))
        readings = self.memory["readings"]
        fitting = self._plausible([reading])
        distance = growth = 0.0
        if readings:
            distance = nearest(fitting, self.aperture())
            growth = abs(mean_log_radius([reading]) - mean_log_radius(readings))
        changed = self.switch is not None and (distance > self.switch or growth > self.rescale)
        if changed:
            readings = []
        if not readings:
            frame.steps *= self.burst
        self.memory["readings"] = [*readings, reading][-self.window :]
        frame.scratch["apertures"], frame.scratch["radii"] = (
            self._plausible(self.memory["readings"]),
            radii_of(self.memory["readings"], self.generator),
        )
        frame.scratch["scene"] = self._scene(frame.region) if self.scene else None
        if changed:
            self._change_lens(frame)
        if self.consistency:
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
        loss = error.mean() + self.caution * before.mean() * lost
        return loss + self.consistency * self._inconsistency(frame) if self.consistency else loss

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
        """The aperture that pairs are made with now: (A, A) at unit root mean square radius, summing to 1.

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
        frame = " and on the frame" if self.consistency else ""
        return (
            f"per frame 1 look of the estimator, {self.steps} forward and backward on {self.batch} patches of "
            f"{self.patch} x {self.patch}{frame} ({self.burst} times as many after a change of lens), "
            f"{len(self.views)} forward of the frame{' by the source and by the teacher' if self.scene else ''}"
        )

    def _inconsistency(self, frame: FrameContext) -> Tensor:
        """How far the student's restoration of the frame, blurred again, is from it, with what blurring hides."""
        restored, border = self.run("student", frame.region).image.float(), optics.KERNEL_SIZE // 2
        seen, loss = disagreement(
            restored,
            frame.region,
            frame.scratch["seeds"],
            source=frame.scratch["source"],
            anchor=self.anchor,
            border=border,
        )
        frame.metrics["reblur_loss"] = seen.mean().item()
        return loss.mean()

    def _aperture(self, statistics: Tensor) -> Tensor:
        with torch.no_grad():  # an estimator of one's own may want gradients
            return self.estimator.aperture(statistics)[0].cpu()

    def _statistics(self, readings: list[Reading]) -> Tensor:
        return torch.stack([reading["statistics"] for reading in readings]).sum(0).to(self._estimator_device())

    def _plausible(self, readings: list[Reading]) -> Tensor:
        """Apertures that the frames may have been taken through: (N, A, A)."""
        with torch.no_grad():
            return self.estimator.candidates(self._statistics(readings)[0], self.hypotheses).cpu()

    def _scene(self, image: Tensor) -> Tensor | None:
        """What a frame shows, as the source restores it: (N, 3, h, w); None for frames smaller than a patch."""
        if min(image.shape[-2:]) < self.patch + _MARGIN:
            return None
        return self.ensemble("source", looks(image)).image.float().clamp(0, 1).expand(-1, 3, -1, -1).cpu()

    def _pair(
        self, apertures: Tensor, radii: Tensor, error: Tensor, scene: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Patches photographed through one aperture each, blur growing across each from one radius to another."""
        generator, count, side = self.generator, self.batch, self.patch
        material = _material() if self._sharp is None else self._sharp
        sharp = random_patches(material, count, side + _MARGIN, generator)
        if scene is not None:
            lent = math.floor(self.scene * count + torch.rand((), generator=generator).item())
            if lent:
                sharp[:lent] = random_patches(scene, lent, side + _MARGIN, generator)
        chosen = torch.randint(0, len(radii), (count,), generator=generator)
        ends = radii[chosen] * torch.exp(self.spread * error[chosen] * torch.randn(count, 1, generator=generator))
        pictures = apertures[torch.randint(0, len(apertures), (count,), generator=generator)].repeat_interleave(2, 0)
        kernels = rasterize_pupil(pictures, ends.flatten(), size=optics.KERNEL_SIZE, reach=self.estimator.reach)
        angle = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
        axis = torch.linspace(-0.7, 0.7, side)
        ramp = (angle.cos() * axis + angle.sin() * axis[:, None] + 0.5).clamp(0, 1)
        weights = torch.stack([1 - ramp, ramp], dim=1)
        kernels = kernels.view(count, 2, *kernels.shape[-2:])
        blurry = optics.simulate_capture(sharp, kernels, weights, generator, noise_std=self.noise)
        return blurry, sharp[..., _MARGIN // 2 : -(_MARGIN // 2), _MARGIN // 2 : -(_MARGIN // 2)]

    def _change_lens(self, frame: FrameContext) -> None:
        """Store what was learned; continue from what restores pairs of the new lens best: that, or the source."""
        known: list[dict[str, Any]] = [*self.memory["lenses"], self.snapshot()]
        pairs = [self._pair_for(frame) for _ in range(math.ceil(_TRIED / self.batch))]
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
        self.memory["lenses"] = known[max(len(known) - self.remember, 0) :]
        self.memory["switches"] += 1

    @torch.no_grad()
    def _mean_error(self, role: str, pairs: list[tuple[Tensor, Tensor]]) -> float:
        return float(torch.cat([_errors(self.run(role, blurry).image, sharp) for blurry, sharp in pairs]).mean())

    def _pair_for(self, frame: FrameContext) -> tuple[Tensor, Tensor]:
        """Pairs for a frame, of its kind and where it is."""
        radii, error = frame.scratch["radii"]
        blurry, sharp = self._pair(frame.scratch["apertures"], radii, error, frame.scratch["scene"])
        if frame.image.shape[1] == 1:
            blurry, sharp = blurry.mean(1, keepdim=True), sharp.mean(1, keepdim=True)
        return blurry.to(frame.image), sharp.to(frame.image.device)


def _errors(restored: Tensor, sharp: Tensor) -> Tensor:
    return torch.stack([charbonnier_loss(one.float(), other) for one, other in zip(restored, sharp, strict=True)])


def _lead(source: float, student: float) -> float:
    """How much less a student's error is than the source's, dB."""
    # not of the ratio: a student without bounds is infinitely behind, which the guards then say
    return 20 * (math.log10(max(source, 1e-12)) - math.log10(max(student, 1e-12)))


@cache
def _material() -> Tensor:
    """Dead leaves; most of them soft, so that the student undoes the lens instead of sharpening all it sees."""
    generator = torch.Generator().manual_seed(0)
    leaves = dead_leaves.bank(48, 96, generator).repeat(2, 1, 1, 1)
    return (soften(leaves, generator, share=_SOFT) * 255).round().to(torch.uint8)
