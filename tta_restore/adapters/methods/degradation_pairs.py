"""DegradationPairs: fine-tune any restorer on pairs with the degradation of the frames, estimated blindly."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore._core.color import is_gray
from tta_restore._core.progress import ProgressBar
from tta_restore.adapters import state as parameter_sets
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.frame import FrameContext
from tta_restore.adapters.methods import _blend, _trust
from tta_restore.adapters.methods._muon import Muon
from tta_restore.adapters.methods._pair_sampler import PairSampler, clipped_fraction, patch_size_for, upsampled
from tta_restore.adapters.select import Select
from tta_restore.adapters.views import Views, Windows
from tta_restore.degradations import Degradation, Estimator, Reading
from tta_restore.degradations.noise import unit_noise
from tta_restore.degradations.reading import PARTS
from tta_restore.losses import charbonnier_loss
from tta_restore.models import Competence, Restoration, competence

__all__ = ["DegradationPairs"]

_RATES = (1e-3, 3e-4, 1e-4)  # learning rates that are tried first
_HIGHER = (3e-3, 1e-2)  # tried one after another as long as the highest one is the best
_LOWER = (3e-5, 1e-5)  # tried one after another if all of those fall behind the source
_TRIAL = 16  # a trial takes this part of a frame's steps, from 4 to 8 of them
_INTERVAL = 12  # steps between two looks at the held-out pairs
_HELD_OUT = 12  # held-out pairs
_COMPARED = 24  # of which few are like a frame, where that counts
_RECENT = 3  # frames whose weights are compared for the camera's
_BACK_OFF = 0.15  # dB below its best from which the student returns to its best, at half the rate
_PATIENCE = 3  # looks without a new best after which a frame's steps end
_MIN_PROGRESS = 0.05  # dB by which a new best has to be better
_STEADY, _STEADY_WITHOUT_LEAD = 2, 3  # frames in a row that gain less than _MIN_GAIN, after which adaptation ends
_MIN_GAIN = 0.1  # dB of lead; the best of several looks at few pairs is a little too good
_STEADY_LEAD = 0.8  # part of the lead that counts against content that a steady student removes from a frame
_KEPT_LEAD = 0.5  # part of the lead that the student must keep on a frame of the same camera
# Part of the threshold of a change that counts for two frames in a row together: of a steady camera, and before
_NEAR, _NEAR_CALIBRATING = 0.4, 0.6
_SUSPICIOUS = 0.5  # part of it from which the next frame of a steady camera is read, too
_LEAST_BEFORE = 2  # frames that such two are compared with
_MAX_NEAR = 2  # times ``calibration_frames`` after which changes below that part do not count
_VAIN = 0.2  # added to it by each change after which nothing was gained
_DOUBTFUL = 2  # frames of a steady camera in a row without that lead, which are a change
_MARGIN = 0.3  # dB by which weights must lead over the source to be worth keeping
_LEAST_WEIGHT = 0.05  # of the student in an average; a lower limit on it excludes the student
_EXPLAINED = 0.5  # part of a frame's detail that must be explained, or the report says so
_RECORRUPTION = 0.3  # strength of the noise that the frame is tested with, relative to its own
_WINDOW = 256  # side in pixels of the part of a frame that is tested
_SILENT = 10.0  # seconds of a frame's steps before their progress is shown
_LR_HALF_LIFE = 192.0  # steps after which the learning rate has halved
_DEBLURRING = ("defocus", "motion", "sr")
# What is kept of a camera
_CAMERA = (
    "readings",
    "gray",
    "shared",
    "filtered",
    "rate",
    "lead",
    "exported_lead",
    "weights",
    "recent",
    "correlation",
    "removed",
    "source_error",
    "risk",
    "unimproved",
    "adapted",
    "start",
)
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(s|x)")


class DegradationPairs(Adapter, method="degradation_pairs"):
    """Fine-tunes a restorer on pairs that carry the degradation of the frames.

    The degradation of every frame (noise, blur, JPEG compression) is estimated without a reference and pooled over the
    latest frames. Sharp images are degraded by samples of the estimate, and the student learns to restore them.
    What the restorer removes is measured once (:func:`tta_restore.models.competence`): the targets of a deblurring or
    super-resolution model are sharp, those of a denoiser or JPEG cleaner keep the blur of their frame; noise and
    JPEG artifacts are removed by all.

    Nothing has to be tuned for a model. Several learning rates run a few steps each on the first frame, and the one
    that is furthest ahead on held-out pairs is kept; when the student falls behind its best it returns there at half
    the rate. The output is the average of three candidates: the input (for a scale above 1 its bicubic upsampling),
    the self-ensemble of the source, and that of the student. Its weights minimize the error on held-out pairs, with
    losses to the source counted twice, among the averages that a test on the frame itself permits: noise of the
    frame's strength is added, and the restorations are compared with an independent noisy copy of the frame. For a
    deblurrer, pairs count as far as source and student differ on them as they do on the frame. Where a
    frame holds something else than noise, blur and compression, restorers that keep blur are left as they are. Frames
    may be less blurred than they look, because their content is soft: pairs with less blur, and with none, count for
    the output of a restorer that removes blur. Where no lead could earn the student any weight, no steps are taken.

    Frames of more than 2.5 million pixels are sampled in 3 x 3 windows for all of this (``region``); only the output
    takes passes over the whole frame.

    While frames still gain, the adapter is *calibrating*; after two frames without progress (three if nothing was
    gained), or ``calibration_frames`` of them, it is *steady*: it then takes no steps and costs a self-ensemble and an
    estimate of the degradation now and then. A *changed* degradation makes it calibrate again, from the source or from
    weights that were learned for another camera; a lens is compared by the latest two estimates together. That of an
    earlier camera is recognized: its weights, estimates and progress are taken up again.

    Args:
        model: a restorer of single frames with 1 or 3 channels, of any scale; see :class:`Adapter`, as for ``options``.
        estimator: estimator of degradations; :class:`tta_restore.degradations.Estimator` by default.
        task: what the model was trained to undo: "defocus", "motion", "denoise", "jpeg", "sr" or "any"; None to take
            the one in its spec, or to measure it.
        degradation: degradation that the frames are known to carry, which replaces the estimate in the pairs; None to
            estimate it. A frame cannot test a restoration of what is not noise, so the weight of the student then
            follows from its lead on held-out pairs alone: the gain is as good as the degradation fits the frames.
        sharp_images: custom sharp material, (N, 3, S, S) in [0, 1] or uint8; None for dead leaves, most of them
            softened.
        select: which weights to adapt.
        steps: maximum number of optimizer steps per frame; fewer are taken where held-out pairs stop improving.
        budget: limit on the time that the steps of a frame may take: ``"60s"``, or ``"10x"`` for 10 times the plain
            forward pass of the frame; None for no limit.
        lr: learning rate of the first step; None to find it.
        batch_size: pairs per step.
        patch_size: side of the degraded patches in pixels, rounded up to what the model takes; None for 48 at scale 1,
            40 at scale 2 and 32 above.
        scene_fraction: fraction of the pairs whose sharp patch is taken from the restored frame.
        ema: EMA momentum of the teacher, which is what is tested and returned.
        no_harm_weight: weight of a hinge penalty on pairs that the student restores worse than the source, relative to
            the source's error on the pair.
        spread: multiple of the estimate's uncertainty that the degradations of the pairs vary by.
        calibration_frames: maximum number of frames of one camera that are adapted on.
        window: number of latest frames whose estimates are pooled.
        change_threshold: distance of a frame's degradation from the pooled one, in just noticeable steps, beyond which
            it counts as changed.
        read_interval: number of steady frames per estimate of the degradation.
        num_cached: number of earlier cameras whose weights are kept.
        views: test-time augmentations that the output is averaged over, see :func:`resolve_views`.
        seed: source of patches and noise.

    Raises:
        ValueError: a setting is out of range, or a frame has other than 1 or 3 channels or is a clip.
    """

    keeps_channels: ClassVar[bool] = True
    show_progress = True
    """Show a progress bar on a terminal for frames that take more than 10 seconds, lines elsewhere, and tiles."""

    def __init__(
        self,
        model: Any,
        estimator: nn.Module | None = None,
        *,
        task: str | None = None,
        degradation: Degradation | None = None,
        sharp_images: Tensor | None = None,
        select: Select = "all",
        steps: int = 96,
        budget: str | None = None,
        lr: float | None = None,
        batch_size: int = 4,
        patch_size: int | None = None,
        scene_fraction: float = 0.25,
        ema: float = 0.9,
        no_harm_weight: float = 0.5,
        spread: float = 1.0,
        calibration_frames: int = 6,
        window: int = 8,
        change_threshold: float = 2.5,
        read_interval: int = 8,
        num_cached: int = 2,
        views: Views = "rot4",
        seed: int = 0,
        **options: Any,
    ) -> None:
        name = type(self).__name__
        if task is not None:
            checks.expect_choice(name, "task", task, (*_DEBLURRING, "denoise", "jpeg", "any"))
        if degradation is not None and not isinstance(degradation, Degradation):
            raise TypeError(f"{name}: expected degradation to be a Degradation or None, got {degradation!r}")
        counts = {"batch_size": batch_size, "window": window, "read_interval": read_interval}
        for key, count in (counts | {"calibration_frames": calibration_frames}).items():
            checks.expect_int(name, key, count, minimum=1)
        checks.expect_int(name, "num_cached", num_cached, minimum=0)
        if patch_size is not None:
            checks.expect_int(name, "patch_size", patch_size, minimum=16)
        checks.expect_number(name, "lr", lr, above=0, optional=True)
        for key, value in (("scene_fraction", scene_fraction), ("ema", ema)):
            checks.expect_number(name, key, value, minimum=0, maximum=1)
        for key, value in (("no_harm_weight", no_harm_weight), ("spread", spread)):
            checks.expect_number(name, key, value, minimum=0)
        checks.expect_number(name, "change_threshold", change_threshold, above=0)
        if sharp_images is not None:
            checks.expect_shape(name, "sharp_images", sharp_images, "(N, 3, S, S)", [None, 3, None, None])
        self._budget = _parse_budget(name, budget)
        options.setdefault("region", Windows())
        super().__init__(model, select=select, views=views, steps=steps, seed=seed, **options)
        self.estimator: Any = Estimator() if estimator is None else estimator
        self.task, self.sharp_images, self.budget = task, sharp_images, budget
        self.degradation = degradation
        self.lr, self.batch_size, self.patch_size, self.scene_fraction = lr, batch_size, patch_size, scene_fraction
        self.ema, self.no_harm_weight, self.spread = ema, no_harm_weight, spread
        self.window, self.change_threshold, self.read_interval = window, change_threshold, read_interval
        self.num_cached, self.calibration_frames = num_cached, calibration_frames
        self._competence: Competence | None = None
        self._one_camera = False

    @property
    def phase(self) -> str:
        """``"calibrating"``, ``"steady"`` or ``"changed"``."""
        return self.memory["phase"]

    @property
    def reading(self) -> Reading | None:
        """Pooled estimate of the degradation; None before the first frame."""
        return self._pooled(self.memory["readings"]) if self.memory["readings"] else None

    def resolved_task(self) -> str:
        """Return the task given, declared in the spec or measured."""
        spec = self.restorer.spec
        if self.task is not None:
            return self.task
        if spec is not None and spec.task is not None:
            return spec.task
        return "sr" if spec is not None and spec.scale > 1 else self.competence().task

    @contextlib.contextmanager
    def calibrating(self, budget: str | None, *, continued: bool) -> Iterator[None]:
        """Limit the time of a frame's steps in a ``with`` block; a ``continued`` camera is not checked for changes."""
        kept = self._budget
        self._budget, self._one_camera = _parse_budget(type(self).__name__, budget) or kept, continued
        try:
            yield
        finally:
            self._budget, self._one_camera = kept, False

    def competence(self) -> Competence:
        """Return what the model removes, measured once."""
        if self._competence is None:
            self._competence = competence(self.restorer)
        return self._competence

    def initial_memory(self) -> dict[str, Any]:
        """Estimates of the latest frames, phase, learning rate, output weights and weights of earlier cameras."""
        return {
            "phase": "calibrating",
            "readings": [],
            "gray": False,
            "shared": False,
            "filtered": False,
            "rate": 0.0,
            "lead": 0.0,
            "exported_lead": 0.0,
            "weights": [0.0, 1.0, 0.0],
            "recent": [],
            "correlation": [],
            "removed": None,
            "source_error": 0.0,
            "risk": None,
            "unimproved": 0,
            "adapted": 0,
            "unread": 0,
            "interval": 1,
            "doubtful": 0,
            "vain": 0,
            "start": None,
            "latest": [],
            "adapted_near": 0,
            "known": [],
        }

    def make_optimizer(self, tensors: list[Tensor], role: str = "student") -> torch.optim.Optimizer:
        """:class:`Muon`, which gets further than Adam in the few steps that a frame allows."""
        return Muon(tensors, lr=self.lr or _RATES[0])

    def learning_rate(self, update: int) -> float:
        """Falls hyperbolically from the rate that was found."""
        return self.memory["rate"] / (1 + update / _LR_HALF_LIFE)

    def begin_frame(self, frame: FrameContext) -> None:
        """Estimate the degradation, and find a learning rate where there is none yet."""
        if frame.image.ndim != 4 or frame.image.shape[1] not in (1, 3):
            raise ValueError(
                f"{type(self).__name__}: expected frames (B, C, H, W) with C of 1 or 3, got {tuple(frame.image.shape)}"
            )
        memory, notes = self.memory, frame.scratch
        reading = self._read(frame)
        if reading is None:
            self._keep(frame)
            return
        notes.update(read=reading, sampler=self._sampler(frame), clipped=clipped_fraction(frame.region))
        if self.phase == "steady" and not self._has_changed(frame, reading):
            return
        started = time.perf_counter()
        source = self.ensemble("source", frame.region)
        forward = (time.perf_counter() - started) / len(self.views) * frame.image.numel() / frame.region.numel()
        notes.update(source=source, scene=source.image.float().clamp(0, 1).expand(-1, 3, -1, -1).cpu())
        changed = bool(notes.get("changed")) or (not self._one_camera and self._outdated(frame, reading))
        if changed:
            self._hold_out(frame, reading)
            if self._change(frame):
                return
        memory["gray"] = _has_equal_channels(frame)
        memory["readings"] = [*memory["readings"], reading.tensors()][-self.window :]
        pooled = self.reading
        memory["shared"] = pooled is not None and pooled.between_channels > 0
        memory["filtered"] = pooled is not None and _trust.is_filtered([pooled])
        self._hold_out(frame, pooled)
        frame.metrics["changed"] = float(changed)
        in_vain = not self._may_be_trusted(frame)
        if in_vain:
            frame.steps = 0
        rates = 0 if memory["rate"] else len(_RATES) if self.lr is None else 1
        count = frame.steps + (rates * self._trial_steps if frame.steps else 0)
        shown = {"shown": self.show_progress and self.processes.first, "delay": _SILENT, "leave": False}
        notes["bar"] = ProgressBar(total=count, desc="adapting, steps", unit="step", **shown)
        if frame.steps and not memory["rate"]:
            self._find_rate(frame, forward)
        lead = self._lead(frame, "teacher")
        notes.update(taken=0, since_best=0, best=lead, first=lead, kept=self.snapshot(), forward=forward, started=None)
        if in_vain:
            self._finish(frame)

    def objective(self, frame: FrameContext) -> Tensor | None:
        """Charbonnier distance of the restored pairs from their targets, plus the no-harm penalty."""
        if frame.scratch.get("finished"):
            return None
        if frame.scratch["started"] is None:
            frame.scratch["started"] = time.perf_counter()
        return self._loss(self._pairs(frame, self.batch_size))

    def after_step(self, frame: FrameContext) -> None:
        """Update the teacher; at intervals test it on held-out pairs and return to its best if it fell back."""
        notes = frame.scratch
        self.update_teacher(self.ema)
        notes["taken"] += 1
        notes["bar"].update()
        spent = time.perf_counter() - notes["started"]
        over = self._budget is not None and spent * (1 + 1 / notes["taken"]) > self._seconds(notes["forward"])
        over = bool(self.processes.agree(over))
        last = notes["taken"] >= frame.steps or over
        if last or notes["taken"] % _INTERVAL == 0:
            self._test(frame)
            if last or notes["since_best"] >= _PATIENCE:
                self._finish(frame)

    def emit(self, frame: FrameContext) -> Restoration:
        """Return the weighted average of input, source and student."""
        if "kept" in frame.scratch and not frame.scratch.get("finished"):
            self._finish(frame)  # all steps were rejected, or there was none to take
        weights = frame.scratch.get("weights") or self.memory["weights"]
        return self._average(frame, weights if "kept" in frame.scratch else self._tested(frame, weights))

    def export(self, role: str | None = None) -> nn.Module:
        """Return a copy of the plain model with the weights of a role.

        By default those that come nearest to the output in one set of weights: between source and student, as far as
        the student is trusted.
        """
        exported = super().export(role or "teacher")
        _, kept, new = self.memory["weights"]
        share = new / (kept + new) if kept + new else 0.0
        if role is None and share < 1:
            mixed = parameter_sets.interpolate(self.source, self.teacher, share)
            with torch.no_grad():
                for name, parameter in exported.named_parameters():
                    if name in mixed:
                        parameter.copy_(mixed[name])
        return exported

    def cost(self) -> str:
        """Passes through the model for each frame."""
        limit = "" if self.budget is None else f", at most {self.budget}"
        return (
            f"calibrating: up to {self.steps} steps of {self.batch_size} patches (forward and backward{limit}), "
            f"{2 * len(self.views)} forward of the frame; steady: {len(self.views)} to {2 * len(self.views)} forward"
        )

    def _sampler(self, frame: FrameContext) -> PairSampler:
        spec = self.restorer.known_spec(frame.image)
        task = self.resolved_task()
        return PairSampler(
            scale=spec.scale,
            sharpens=task in _DEBLURRING or spec.scale > 1,  # upscalers restore resolution, whatever else they do
            motion=task == "motion",
            channels=frame.image.shape[1],
            gray=_has_equal_channels(frame),
            patch_size=patch_size_for(spec.size, spec.scale, self.patch_size),
            scene_fraction=self.scene_fraction,
            spread=self.spread,
            sharp_images=self.sharp_images,
            degradation=self.degradation,
        )

    def _read(self, frame: FrameContext) -> Reading | None:
        """Estimate the frame's degradation; None for frames of a steady camera that are not due."""
        memory = self.memory
        is_like = _has_equal_channels(frame) == memory["gray"]
        if self.phase == "steady" and is_like and memory["unread"] + 1 < memory["interval"]:
            memory["unread"] += 1
            return None
        memory["unread"] = 0
        reading = self.estimator.read(frame.image)
        if self.restorer.known_spec(frame.image).scale > 1:
            reading = reading.with_even_blur()
        if memory["filtered"] and is_like:
            reading = _trust.with_filter_of(self._pooled(memory["readings"]), reading, _NEAR * self.change_threshold)
        mean = reading.mean
        frame.metrics.update(noise=255 * mean["noise_std"], blur=mean["blur_radius"], jpeg_quality=mean["jpeg_quality"])
        if reading.between_pixels:
            frame.metrics["noise_filter"] = reading.between_pixels
        return reading

    def _pooled(self, readings: list[dict[str, Tensor]]) -> Reading:
        return Reading.pool([Reading.from_tensors(dict(tensors)) for tensors in readings], self.estimator)

    def _keep(self, frame: FrameContext, lead: float | None = None) -> None:
        """Restore a frame without steps; a ``lead`` that was measured on it limits the student's weight."""
        plain, kept, new = self.memory["weights"]
        if lead is not None:
            allowed = min(new, self._max_share(lead, [frame.scratch["read"]], frame.scratch["sampler"]))
            kept, new = kept + new - allowed, allowed
        frame.steps = 0
        frame.scratch["weights"] = [plain, kept, new]
        frame.metrics.update(trust=new, lead=self.memory["lead"] if lead is None else lead, changed=0.0)

    def _carried(self, frame: FrameContext) -> tuple[str, ...]:
        """Return the parts of a degradation that the pairs carry."""
        return PARTS if frame.scratch["sampler"].sharpens else PARTS[1:]

    def _is_pair_apart(self, frame: FrameContext, reading: Reading) -> bool:
        """Return whether a frame and the one that was read before it are together far from those before them.

        Two frames show a lens better than each, and their distance counts as soon as it is noticeable; that of noise
        and compression, which content is taken for, only where the student hardly leads.
        """
        memory, sampler = self.memory, frame.scratch["sampler"]
        steady = self.phase == "steady"
        parts = self._carried(frame) if steady and memory["lead"] <= _MARGIN else ("blur",)
        before, latest = memory["readings"], memory["latest"]
        if not steady:
            before, latest = before[:-1], before[-1:]
        if not latest or len(before) < _LEAST_BEFORE or (parts == ("blur",) and not sampler.deblurs):
            return False
        pair = [*latest, reading.tensors()]
        frame.metrics["pair_distance"] = distance = self._pooled(pair).distance(self._pooled(before), parts)
        share = min((_NEAR if steady else _NEAR_CALIBRATING) + _VAIN * memory["vain"], 1.0)
        if distance <= share * self.change_threshold:
            return False
        frame.scratch.update(pair=pair, before=before)
        return True

    def _hold_out(self, frame: FrameContext, reading: Reading | None) -> float:
        """Draw held-out pairs of a degradation; return the teacher's lead on them in dB."""
        notes = frame.scratch
        notes["reading"] = reading
        notes["held_out"] = self._pairs(frame, _HELD_OUT, held_out=True)
        notes["source_error"] = self._errors("source", notes["held_out"])
        return self._lead(frame, "teacher")

    def _outdated(self, frame: FrameContext, reading: Reading) -> bool:
        """Return whether the estimate of a frame is far from the pooled one, or costs the student its lead.

        The leads under both estimates are measured on the same sharp material: that the student leads by less on the
        scene of a frame is not a change of the camera. Estimates of one camera differ, too: once enough frames were
        adapted on, those near the pooled one do not count, so that adaptation ends.
        """
        if self.degradation is not None:
            return False  # the frames are known to carry it
        pooled = self.reading
        distance = 0.0 if pooled is None else reading.distance(pooled, self._carried(frame))
        if pooled is not None and _has_equal_channels(frame) != self.memory["gray"]:
            distance = max(distance, 2 * self.change_threshold)  # noise of gray frames is the same in all channels
        frame.metrics["distance"] = distance
        if pooled is None or distance > self.change_threshold or self._is_pair_apart(frame, reading):
            return pooled is not None
        near = distance <= _NEAR * self.change_threshold
        if near and self.memory["adapted_near"] >= _MAX_NEAR * self.calibration_frames:
            return False
        if _KEPT_LEAD * self.memory["lead"] <= _MIN_PROGRESS:
            return False
        drawn = self.generator.get_state()
        expected = self._hold_out(frame, pooled)
        self.generator.set_state(drawn)
        frame.metrics["lead_on_frame"] = lead = self._hold_out(frame, reading)
        return lead < _KEPT_LEAD * expected and _KEPT_LEAD * expected > _MIN_PROGRESS

    def _has_changed(self, frame: FrameContext, reading: Reading) -> bool:
        """Compare a frame of a steady camera with those that were adapted on; restore it if it is like them.

        Frames whose estimate costs the student its lead get as much of it as the lead that is left allows. The second
        one in a row counts as a change: single estimates are uncertain.
        """
        memory = self.memory
        outdated = self._outdated(frame, reading)
        near = frame.metrics["distance"] <= _SUSPICIOUS * self.change_threshold
        lead = frame.metrics.get("lead_on_frame")
        memory["latest"] = [reading.tensors()]
        memory["interval"] = min(2 * memory["interval"], self.read_interval) if near and not outdated else 1
        if not outdated:
            memory["doubtful"] = 0
            self._keep(frame)  # like its neighbors, which are not looked at: a film must not flicker
            return False
        memory["doubtful"] += 1
        beyond_doubt = "pair" in frame.scratch or frame.metrics["distance"] > self.change_threshold
        if memory["doubtful"] >= _DOUBTFUL or beyond_doubt:
            memory["doubtful"], frame.scratch["changed"] = 0, True
            return True
        self._keep(frame, lead)
        if lead is not None:
            frame.messages.append(
                f"the degradation may have changed: the student leads by {lead:.1f} dB instead of {memory['lead']:.1f}"
            )
        return False

    def _change(self, frame: FrameContext) -> bool:
        """Return to an earlier camera, or start on a new one; return whether the frame is restored without steps.

        An earlier camera is one whose estimates are like the frame's and whose student still leads on its pairs. A
        new one starts from the weights that restore its pairs best.
        """
        memory, reading = self.memory, frame.scratch["read"]
        if frame.metrics["distance"] > _NEAR * self.change_threshold:
            memory["adapted_near"] = 0
        pair = frame.scratch.get("pair", [reading.tensors()])
        memory["readings"] = frame.scratch.get("before", memory["readings"])
        left = {"teacher": parameter_sets.copy(self.teacher)} | {key: memory[key] for key in _CAMERA}
        known: list[dict[str, Any]] = [*memory["known"], left]
        leads, distances = [], []
        for entry in known:
            self.restart(entry["teacher"])
            leads.append(self._lead(frame, "teacher"))
            near = entry is not left and leads[-1] >= _KEPT_LEAD * entry["lead"]
            near &= entry["gray"] == _has_equal_channels(frame)
            camera = self._pooled(entry["readings"])
            distances.append(self._pooled(pair).distance(camera, self._carried(frame)) if near else math.inf)
        nearest = min(range(len(known)), key=distances.__getitem__)
        best = max(range(len(known)), key=leads.__getitem__)
        again = distances[nearest] <= (_NEAR if len(pair) > 1 else 1.0) * self.change_threshold
        lead = leads[nearest if again else best]
        entry = known.pop(nearest) if again else known[best] if lead > _MARGIN else {}
        self.restart(entry.get("teacher"))
        memory["known"] = known[max(len(known) - self.num_cached, 0) :]
        memory.update(phase="changed", interval=1)
        if not again:
            memory.update(rate=entry.get("rate", 0.0), unimproved=0, adapted=0, readings=pair[:-1], recent=[])
            memory["start"] = max(leads[-1], 0.0)  # of the weights that were left
            start = f"earlier weights, {lead:.1f} dB ahead of the source" if entry else "the source"
            frame.messages.append(f"the degradation changed; adaptation starts from {start}")
            return False
        memory.update({key: entry[key] for key in _CAMERA})
        frame.messages.append("the degradation changed to that of an earlier camera, whose weights are used again")
        if not self._is_complete():
            return False
        memory["phase"] = "steady"
        self._keep(frame, lead)
        frame.metrics["changed"] = 1.0
        return True

    def _is_complete(self) -> bool:
        """Return whether the adaptation to a camera has ended."""
        memory = self.memory
        patience = _STEADY if memory["lead"] > _MARGIN else _STEADY_WITHOUT_LEAD
        return memory["unimproved"] >= patience or memory["adapted"] >= self.calibration_frames

    @property
    def _trial_steps(self) -> int:
        """Steps at each learning rate that is tried."""
        return min(max(self.steps // _TRIAL, 4), 8)

    def _find_rate(self, frame: FrameContext, forward: float) -> None:
        """Run a few steps at each of several learning rates on the same pairs; continue with the best."""
        batches = [self._pairs(frame, self.batch_size) for _ in range(self._trial_steps)]
        started, best = time.perf_counter(), None
        tried: list[str] = []
        rates = [self.lr] if self.lr is not None else list(_RATES)
        while rates:
            rate = rates.pop(0)
            self.restart()
            self.memory["rate"] = rate
            for batch in batches:
                with torch.enable_grad():
                    loss = self._loss(batch)
                if math.isfinite(float(loss.detach())):
                    self.optimize(frame, loss)
                frame.scratch["bar"].update()
            lead = self._lead(frame, "student")
            tried.append(f"{rate:g}: {lead:+.2f} dB")
            if best is None or lead > best[0]:
                optimizer = self.state.optimizers["student"]
                best = lead, rate, parameter_sets.copy(self.student), optimizer, self.state.updates
            slow = self._budget is not None and time.perf_counter() - started > 0.5 * self._seconds(forward)
            if self.processes.agree(slow):
                break
            if not rates and self.lr is None:
                rates = _next_rates(rate, best[1], best[0])
                frame.scratch["bar"].total += len(rates) * self._trial_steps
        assert best is not None  # noqa: S101 (there is a rate)
        lead, rate, student, optimizer, updates = best
        self.restart(student, self.source if lead <= 0 else student)
        self.state.optimizers["student"], self.state.updates = optimizer, updates
        self.memory["rate"] = rate
        if lead <= 0:
            self.restart()  # no rate gained anything: start the slowest from the source
        frame.messages.append(f"learning rate {rate:g} of those tried ({', '.join(tried)})")

    def _test(self, frame: FrameContext) -> None:
        notes, lead = frame.scratch, self._lead(frame, "teacher")
        if lead > notes["best"]:
            notes["since_best"] = 0 if lead > notes["best"] + _MIN_PROGRESS else notes["since_best"] + 1
            notes["best"], notes["kept"] = lead, self.snapshot()
            return
        notes["since_best"] += 1
        if not lead > notes["best"] - _BACK_OFF:
            updates = self.state.updates
            self.restart(notes["kept"]["student"], notes["kept"]["teacher"])
            self.state.updates = updates
            self.memory["rate"] /= 2

    def _finish(self, frame: FrameContext) -> None:
        """Return to the best weights of the frame, decide how far they are trusted, and whether to go on."""
        notes, memory = frame.scratch, self.memory
        notes["finished"] = True
        notes["bar"].close()
        parameter_sets.assign(self.student, notes["kept"]["student"])
        parameter_sets.assign(self.teacher, notes["kept"]["teacher"])
        drawn = self.generator.get_state()
        memory["risk"] = pairs = self._pair_risk(frame)
        max_student, max_input, content = self._limits(frame)
        index = _blend.choose(
            pairs + content[:, None, None],
            self._frame_risk(frame),
            others=self._risk_of_other_blur(frame),
            measured=not notes["sampler"].sharpens and _trust.is_noisy(notes["reading"]),
            max_student=max_student,
            max_input=max_input,
        )
        index = int(self.processes.agree(index))
        weights = _blend.grid()[index].tolist()
        notes["weights"] = weights
        memory["recent"] = [*memory["recent"], weights][-_RECENT:]
        # one frame that the student does not suit does not decide for the camera
        memory["weights"] = sorted(memory["recent"], key=lambda one: one[2])[(len(memory["recent"]) - 1) // 2]
        memory["lead"] = notes["best"]
        progress = notes["best"] - notes["first"]
        if frame.steps or not self.steps:  # frames that cannot show progress do not end the adaptation of the others
            memory["unimproved"] = memory["unimproved"] + 1 if progress < _MIN_GAIN else 0
        memory["adapted"] += 1
        memory["adapted_near"] += 1
        memory["phase"] = "calibrating"
        if self._is_complete():
            memory["phase"], memory["latest"] = "steady", []
            if memory["start"] is not None:
                memory["vain"] = memory["vain"] + 1 if notes["best"] < memory["start"] + _MARGIN else 0
                memory["start"] = None
        self._merge(frame, drawn, _gain(pairs, memory["weights"]))
        frame.metrics.update(
            trust=weights[2], input_weight=weights[0], lead=notes["best"], rate=memory["rate"], taken=notes["taken"]
        )
        if notes["best"] <= 0 and notes["taken"]:
            frame.messages.append(
                "the student never got ahead of the source on held-out pairs: it is not used "
                f"(last learning rate {memory['rate']:g})"
            )
        elif weights[2] < _LEAST_WEIGHT:
            reason = (
                "nothing in it shows that the estimate is right"
                if max_student < _LEAST_WEIGHT
                else "a test on it failed"
            )
            frame.messages.append(
                f"the student was not trusted on this frame, because {reason}: the output is the source's or the input"
            )
        if memory["phase"] == "steady":
            frame.messages.append("steady: further frames are restored without steps until the degradation changes")

    def _pair_risk(self, frame: FrameContext) -> Tensor:
        """Return the relative errors of all averages on new held-out pairs of G possible degradations, (M, G, N)."""
        reading = frame.scratch["reading"]
        return self._risks(frame, _trust.hypotheses(reading, deblurs=frame.scratch["sampler"].deblurs))

    def _risk_of_other_blur(self, frame: FrameContext) -> list[tuple[Tensor, float]]:
        """Return the errors on pairs with other blur than was read, and its probabilities: for lenses only."""
        if self.degradation is not None or not frame.scratch["sampler"].deblurs:
            return []
        readings = [frame.scratch["read"], frame.scratch["reading"]]
        frame.metrics["blurred"] = _trust.probability_of_blur(readings)
        other, shares = zip(*_trust.other_blur(readings), strict=True)
        return list(zip(self._risks(frame, other).unbind(1), shares, strict=True))

    def _risks(self, frame: FrameContext, readings: Sequence[Reading]) -> Tensor:
        """Return the relative errors of all averages on held-out pairs of the same material, (M, G, N).

        For deblurrers pairs count as far as they are like the frame, and none are of the scene: the source restored it.
        """
        sampler, drawn, risks = frame.scratch["sampler"], self.generator.get_state(), []
        changes = None
        if sampler.deblurs:
            restored = self._image("source", frame.region), self._image("teacher", frame.region)
            changes = _patch_distances(*restored, sampler.patch_size)
        count = _HELD_OUT if changes is None else _COMPARED
        for reading in readings:
            self.generator.set_state(drawn)
            degraded, target = self._pairs(frame, count, held_out=True, reading=reading, scene=changes is None)
            source, teacher = (self._image(role, degraded) for role in ("source", "teacher"))
            like = None
            if changes is not None:
                like = _blend.likeness(changes, _patch_distances(source, teacher, sampler.patch_size))
            risks.append(_blend.pair_risk((upsampled(degraded, sampler.scale), source, teacher), target, like))
        return torch.stack(risks, 1)

    def _limits(self, frame: FrameContext) -> tuple[float, float, Tensor]:
        """Return the largest weights of student and input, 0 to 1, and the risk of removing content, (M,)."""
        notes, none = frame.scratch, torch.zeros(len(_blend.grid()))
        if self.degradation is not None:
            self.memory.update(correlation=[], removed=None)
            return 1.0, 1.0, none
        sampler, readings = notes["sampler"], [notes["read"], notes["reading"]]
        share = self._max_share(notes["best"], readings, sampler)
        self.memory.update(correlation=[], removed=None)
        plain = _trust.max_input(readings, scale=sampler.scale) if sampler.sharpens else 1.0
        if not sampler.sharpens:
            explained = self._explained(frame)
            share, plain = share * explained, plain * explained
        if sampler.sharpens and (sampler.scale == 1 or not _trust.is_noisy(notes["reading"], doubt=1.0)):
            return share, plain, none
        if not sampler.sharpens and _trust.is_compressed(readings):
            return share, plain, none
        degraded, target = notes["held_out"]
        images = {"source": notes["source"].image}
        if not sampler.sharpens:
            images["teacher"] = self._image("teacher", frame.region)
        excesses, correlation, on_pairs = {}, [], {}
        for role, image in images.items():
            on_pairs[role] = _downsampled(self._image(role, degraded), sampler.scale)
            expected = _trust.residual_correlation(degraded, on_pairs[role])
            excesses[role] = self._structure_excess(frame.region, image, expected)
            correlation += expected
        self.memory["correlation"] = correlation if "teacher" in images else []
        shown = "teacher" in images and _trust.is_shown(readings)  # it is noise, whatever the source removes
        weighed = "teacher" in images and not shown and not self._is_colorless(frame)
        if weighed:
            self.memory["removed"] = _trust.shared_removal(degraded, list(on_pairs.values()))
            self.memory["source_error"] = float((on_pairs["source"] - target).square().mean())
        excess = excesses["teacher"] if shown else max(excesses.values())
        if shown and _trust.is_filtered(readings):
            excess = _trust.excess_over(excesses["source"], excess)
        frame.metrics["structure_excess"] = excess
        kept, even = _trust.structure_share(excess, notes["best"], scale=sampler.scale), 1.0
        if "teacher" in images and self._is_colorless(frame):
            gentle = _trust.colorless_share(excesses["teacher"], excesses["source"], notes["best"])
            even = _trust.even_share(frame.region)
            kept = min(kept, gentle, even)
        if kept < 1 and weighed and _trust.weighs_content(notes["reading"], notes["best"], frame.metrics["explained"]):
            frame.messages.append(
                "restoration removes content that is as fine as noise, which counts as an error of the output "
                f"({_evidence(excess, even)})"
            )
            return share, plain, self._content_risk(frame.region, list(images.values()))
        if kept < 1 and notes["best"] > 0:  # without a lead it is not the content that excludes the student
            frame.messages.append(
                "restoration removes content that is as fine as noise: the estimate of the noise is not trusted "
                f"({_evidence(excess, even)})"
            )
        return share * kept, plain * kept if sampler.sharpens else plain, none

    def _content_risk(self, x: Tensor, restored: list[Tensor]) -> Tensor:
        """Return the risk of removing content by restorations of source and student, (M,)."""
        removed = _trust.shared_removal(x, [image.float().clamp(0, 1) for image in restored])
        return _blend.content_risk(removed - self.memory["removed"], self.memory["source_error"])

    def _may_be_trusted(self, frame: FrameContext) -> bool:
        """Return whether a student could get any weight on a frame, however far it gets ahead on pairs."""
        notes = frame.scratch
        readings = [notes["read"], notes["reading"]]
        share = self._max_share(math.inf, readings, notes["sampler"])
        if self.degradation is None and not notes["sampler"].sharpens:
            share *= self._explained(frame)
        elif self.degradation is None and notes["sampler"].deblurs and not _trust.is_noisy(notes["reading"]):
            share *= _trust.probability_of_blur(readings)
        return share >= _LEAST_WEIGHT

    def _explained(self, frame: FrameContext) -> float:
        """Return how far the estimate explains what is in the frame, 0 to 1."""
        notes = frame.scratch
        if "explained" in frame.metrics:
            return frame.metrics["explained"]
        degraded, _ = notes["held_out"]
        pairs = (self._image("source", degraded) - degraded).square().mean((1, 2, 3))
        removed = (notes["source"].image.float().clamp(0, 1) - frame.region).square().mean()
        explained = _trust.explained(
            notes["read"], frame.region, (math.sqrt(float(removed)), math.sqrt(float(pairs.mean())))
        )
        frame.metrics["explained"] = explained
        if explained < _EXPLAINED:
            frame.messages.append(
                "the frame holds detail that is neither the noise nor the compression that was estimated: the source's "
                "output has most of the weight"
            )
        return explained

    def _structure_excess(self, x: Tensor, restored: Tensor, expected: tuple[float, float]) -> float:
        scale = restored.shape[-1] // x.shape[-1]
        return _trust.structure_excess((x, _downsampled(restored.float().clamp(0, 1), scale)), expected)

    def _tested(self, frame: FrameContext, weights: list[float]) -> list[float]:
        """Return the weights for a frame without steps: less of a student that removes more content than noise."""
        plain, kept, new = weights
        if not self.memory["correlation"] or new == 0:
            return weights

        def excess_of(role: str) -> float:
            of_source, of_teacher = self.memory["correlation"][:2], self.memory["correlation"][2:]
            across, near = of_source if role == "source" else of_teacher
            return self._structure_excess(frame.region, self._restored(frame, role), (across, near))

        excess = student = excess_of("teacher")
        lead = _STEADY_LEAD * self.memory["lead"]
        if self.memory["filtered"] and _trust.structure_share(student, lead, scale=1) < 1:
            excess = _trust.excess_over(excess_of("source"), student)
        share = _trust.structure_share(excess, lead, scale=1)
        colorless = self._is_colorless(frame)
        even = _trust.even_share(frame.region) if colorless else 1.0
        share = min(share, even)
        if colorless and _trust.colorless_share(student, -math.inf, lead) < 1:
            share = min(share, _trust.colorless_share(student, excess_of("source"), lead))
        frame.metrics["structure_excess"] = excess
        if share == 1:
            return weights
        weights = [plain, kept + (1 - share) * new, share * new]
        camera = self._pooled(self.memory["readings"])
        if self.memory["removed"] is not None and not colorless and _trust.weighs_content(camera, lead, explained=1.0):
            content = self._content_risk(frame.region, [self._restored(frame, role) for role in ("source", "teacher")])
            risk = self.memory["risk"] + content[:, None, None]
            weights = _blend.grid()[_blend.choose(risk, None, max_student=new, max_input=plain)].tolist()
        if weights[2] == new:
            return weights
        frame.metrics["trust"] = weights[2]
        frame.messages.append(
            f"the student removes content that is as fine as noise here: its weight is {weights[2]:.2f} instead of "
            f"{new:.2f} ({_evidence(excess, even)})"
        )
        return weights

    def _is_colorless(self, frame: FrameContext) -> bool:
        """Return whether noise and content are the same in all channels of a frame."""
        return frame.image.shape[1] == 1 or _has_equal_channels(frame) or self.memory["shared"]

    def _restored(self, frame: FrameContext, role: str) -> Tensor:
        """Restore a frame, or the parts of a large one that tests are made on; whole frames are kept for the output."""
        if frame.cropped:
            return self._image(role, frame.region)
        if role not in frame.scratch:
            frame.scratch[role] = self.ensemble(role, frame.image)
        return frame.scratch[role].image

    def _max_share(self, lead: float, readings: list[Reading], sampler: PairSampler) -> float:
        if self.degradation is not None:
            return 1.0
        denoises = self.resolved_task() in ("denoise", "any")
        return _trust.max_student(lead, readings, sharpens=sampler.sharpens, scale=sampler.scale, denoises=denoises)

    def _merge(self, frame: FrameContext, drawn: Tensor, averaged: float) -> None:
        """Measure the weights between source and student that come nearest to the averaged output.

        In the steady phase they replace the average, which costs two self-ensembles, if they are as good on pairs.

        Args:
            frame: the frame.
            drawn: state of the generator from which the pairs were drawn that the average was measured on.
            averaged: gain of the average on them, dB.
        """
        memory = self.memory
        plain, kept, new = memory["weights"]
        share = new / (kept + new) if kept + new else 0.0
        copy = parameter_sets.copy(self.teacher)
        parameter_sets.assign(self.teacher, parameter_sets.interpolate(self.source, self.teacher, share))
        memory["exported_lead"] = self._lead(frame, "teacher") if share else 0.0
        if memory["phase"] == "steady" and plain == 0:
            merged = [0.0, 0.0, 1.0] if share else [0.0, 1.0, 0.0]
            after = self.generator.get_state()
            self.generator.set_state(drawn)
            risk = self._pair_risk(frame)
            self.generator.set_state(after)
            if self.processes.agree(_gain(risk, merged) > averaged - _MIN_PROGRESS):
                # what a change of the camera can take away
                memory.update(weights=merged, lead=memory["exported_lead"], risk=risk)
                return
        parameter_sets.assign(self.teacher, copy)

    def _frame_risk(self, frame: FrameContext) -> _blend.FrameRisk | None:
        """Compare the candidates on the frame, recorrupted by noise of its own strength; None where that is not valid.

        Restorations of a deblurring or super-resolution model are degraded by the blur that was read first, so that
        they can be compared with a frame that is blurred.
        """
        notes = frame.scratch
        sampler, reading = notes["sampler"], notes["reading"]
        if self.degradation is not None or _trust.is_compressed([reading]):
            return None
        height, width = (min(side, _WINDOW) for side in frame.region.shape[-2:])
        windows = frame.region[..., :height, :width]
        y = windows[:: math.ceil(windows[:, 0].numel() / _WINDOW**2)]  # of a large frame some of them
        between = torch.tensor(1.0 if sampler.gray else reading.between_channels)
        noise = unit_noise(y, torch.tensor(reading.between_pixels), between, self.generator) * reading.mean["noise_std"]
        stages: list[tuple[Any, Any]] = []
        if sampler.sharpens:
            parts = ("blur",)
            camera = reading.degradation(parts, scale=sampler.scale)
            parameters = reading.sample(self.generator, 1, parts, scale=sampler.scale, spread=0.0, varying=False)
            stages = [
                (stage, part)
                for stage, part in zip(camera.degradations, parameters.parts, strict=True)
                if stage.kind in ("blur", "resize")
            ]
        candidates, noises = [], [noise, -noise]
        for signed in noises:
            first = y + _RECORRUPTION * signed
            restored = [self.ensemble(role, first).image.float().clamp(0, 1) for role in ("source", "teacher")]
            images = [upsampled(first, sampler.scale), *restored]
            for stage, part in stages:
                images = [stage.apply(one.clamp(0, 1), part, self.generator) for one in images]
            candidates.append((images[0], images[1], images[2]))
        return _blend.frame_risk(candidates, noises, y, strength=_RECORRUPTION, log_std=float(reading.noise[1]))

    def _average(self, frame: FrameContext, weights: list[float]) -> Restoration:
        scale = self.restorer.known_spec(frame.image).scale
        total: Restoration | None = None
        roles = [(role, weight) for role, weight in zip(("source", "teacher"), weights[1:], strict=True) if weight > 0]
        if weights[0] == 0 and len(roles) == 1 and roles[0][0] == "teacher":
            student = frame.scratch.get("teacher")
            return self.ensemble("teacher", frame.image) if student is None else student
        if not roles:
            roles = [("source", 0.0)]  # for the structure that the model returns
        if frame.cropped:  # large: in one round of tiles
            total = self.ensemble(dict(roles), frame.image)
            return total.with_image(total.image.add_(upsampled(frame.image, scale), alpha=weights[0]))
        image = weights[0] * upsampled(frame.image, scale) if weights[0] else 0.0
        for role, weight in roles:
            kept = frame.scratch.get(role)
            total = kept if kept is not None else self.ensemble(role, frame.image)
            image = image + weight * total.image
        assert total is not None  # noqa: S101
        return total.with_image(image if isinstance(image, Tensor) else total.image)

    def _pairs(
        self,
        frame: FrameContext,
        count: int,
        *,
        held_out: bool = False,
        reading: Reading | None = None,
        scene: bool = True,
    ) -> tuple[Tensor, Tensor]:
        notes, image = frame.scratch, frame.image
        degraded, target = notes["sampler"].draw(
            _trust.plausible(reading or notes["reading"], scale=notes["sampler"].scale),
            notes.get("scene") if scene else None,
            count,
            self.generator,
            clipped=notes["clipped"],
            held_out=held_out,
        )
        return degraded.to(image), target.to(image.device)

    def _loss(self, pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a batch; with several processes its gradient is that of this one's part."""
        whole, (rank, count) = len(pairs[0]), (self.processes.rank, self.processes.count)
        degraded, target = (part[rank::count] for part in pairs)
        share = count * len(degraded) / whole  # the average over processes is then the mean over the batch
        error = _distances(self.run("student", degraded).image, target)
        loss = share * error.mean()
        if self.no_harm_weight:
            with torch.no_grad():
                before = _distances(self.run("source", degraded).image, target)
                level = self._mean(share * before.mean())
            lost = (error / before.clamp(min=1e-4) - 1).clamp(min=0).mean()
            loss = loss + self.no_harm_weight * level * (share * lost)
        return loss if count == 1 else loss + (self._mean(loss) - loss).detach()

    def _mean(self, value: Tensor) -> Tensor:
        """Return the mean of a value over the processes."""
        if self.processes.count == 1:
            return value
        value = value.detach().clone()
        self.processes.average([value])
        return value

    @torch.no_grad()
    def _errors(self, role: str, pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean squared error on each pair; every process measures some of them."""
        rank, count = self.processes.rank, self.processes.count
        degraded, target = (part[rank::count] for part in pairs)
        errors = torch.zeros(len(pairs[0]), device=target.device)
        if len(degraded):
            errors[rank::count] = count * (self._image(role, degraded) - target).square().mean((1, 2, 3))
        return self._mean(errors).nan_to_num(1.0, 1.0).clamp(min=1e-7)

    def _lead(self, frame: FrameContext, role: str) -> float:
        """Return the mean PSNR gain of a role over the source on the held-out pairs, dB."""
        ratio = frame.scratch["source_error"] / self._errors(role, frame.scratch["held_out"])
        return float(10 * ratio.log10().mean())

    def _image(self, role: str, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.run(role, x).image.float().clamp(0, 1)

    def _seconds(self, forward: float) -> float:
        assert self._budget is not None  # noqa: S101
        amount, unit = self._budget
        return amount if unit == "s" else amount * forward


def _has_equal_channels(frame: FrameContext) -> bool:
    """Return whether the three channels of a frame are equal."""
    if "gray" not in frame.scratch:
        frame.scratch["gray"] = frame.image.shape[1] == 3 and bool(is_gray(frame.region).all())
    return frame.scratch["gray"]


def _evidence(excess: float, even: float) -> str:
    found = f"the residual correlates by {excess:.2f} more than noise"
    return found if even == 1 else found + ", and content fills most of the frame"


def _downsampled(image: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return image
    return F.interpolate(image, scale_factor=1 / scale, mode="bicubic", antialias=True, align_corners=False)


def _gain(risk: Tensor, weights: list[float]) -> float:
    """Return the PSNR gain over the source of an average on pairs with the degradation that was read, dB."""
    errors = risk[_blend.grid().tolist().index(weights), 0]
    return float(-10 * errors.mean().clamp(min=1e-6).log10())


def _patch_distances(first: Tensor, second: Tensor, side: int) -> Tensor:
    """Return the mean squared differences of two images (B, C, H, W) on their patches, (Q,)."""
    side = min(side, *first.shape[-2:])
    return F.avg_pool2d((first - second).square().mean(1, keepdim=True), side).flatten()


def _next_rates(tried: float, best: float, lead: float) -> list[float]:
    """Return the learning rate to try after ``tried``: higher ones while they win, lower ones while none gains."""
    if lead <= 0:
        return [rate for rate in _LOWER if rate < tried][:1]
    top = best == max(_RATES) if tried == min(_RATES) else best == tried
    return [rate for rate in _HIGHER if rate > best][:1] if top else []


def _distances(restored: Tensor, target: Tensor) -> Tensor:
    return charbonnier_loss(restored.float(), target, reduction="none").mean((1, 2, 3))


def _parse_budget(name: str, budget: str | None) -> tuple[float, str] | None:
    if budget is None:
        return None
    match = _BUDGET.fullmatch(budget) if isinstance(budget, str) else None
    if match is None or float(match[1]) <= 0:
        raise ValueError(f'{name}: expected budget such as "60s" or "10x" (times a plain forward pass), got {budget!r}')
    return float(match[1]), match[2]
