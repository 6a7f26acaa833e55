"""The adapter: one backbone, a few sets of adapted tensors, and what users call."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore.adapters import checkpoint, registry
from tta_restore.adapters.frame import Frame, Plan, StepReport
from tta_restore.adapters.guards import Guards
from tta_restore.adapters.injection import Semantic
from tta_restore.adapters.method import Method
from tta_restore.adapters.select import Select
from tta_restore.adapters.state import State, map_tensors
from tta_restore.adapters.tiling import CenterCrop, Tiles
from tta_restore.adapters.views import Views
from tta_restore.models import Restoration, RestorerSpec, as_restorer

_DIVERGED_FRAMES = 2
_BYTES = 32.0  # no picture in [0, 1] reaches this, nearly all of bytes do


class Adapter(Method):
    """A restorer that changes with what it sees, around a model that itself never changes.

    ``adapter(x)`` adapts on a frame and restores it, ``predict`` only restores, ``adapt`` only adapts. This class alone
    adapts nothing: it is the source with the same handles. The model's weights are the *source*; the *student*, which
    the optimizer steps, and the *teacher* are sets of the selected tensors in at least float32, and all of them run on
    the one model. ``parameters()`` are the model's own and those of injected layers. A frame
    is a transaction: after an error or an interrupt in the middle of it, the state is that of before. Adapters around
    one model take turns; a second thread waits.

    **To write a method**, subclass, name it (``class Mine(Adapter, method="mine")``), and override some of

    ==========================  ========================================================================================
    ``initial_extra()``         what the method remembers, as a tree of tensors and plain values; later ``self.extra``
    ``begin_frame(frame)``      look at the frame; may set ``frame.steps`` or, to learn nothing from it, ``frame.skip``,
                                call ``self.restart``, change ``self.extra``
    ``objective(frame)``        the loss of one step, gradients on; None to learn nothing
    ``accept(frame, loss)``     None, or why this step is not to be taken
    ``make_optimizer(tensors)`` a ``torch.optim`` optimizer of the student's tensors, or None for an own ``optimize``
    ``learning_rate(update)``   rate of the update with that number, or None to leave the optimizer's
    ``optimize(frame, loss)``   one optimizer step, by default ``step(frame, gradients(loss))``; for two-phase methods
    ``after_step(frame)``       averaging and restoring: ``self.update_teacher``, ``self.stochastic_restore``
    ``emit(frame)``             the restoration to give, called after the steps, and alone by ``predict``
    ``config()``, ``cost()``    settings that a saved state depends on; passes per frame in words
    ==========================  ========================================================================================

    with the help of ``self.run(role, image)`` and ``self.ensemble(role, image)`` (roles "source", "student",
    "teacher"; gradients reach the student only), ``self.student``, ``self.teacher``, ``self.source``,
    ``self.generator`` (the only source of randomness), ``self.snapshot()`` and ``self.extra`` (all memory between
    frames; its tensors are values: put new ones there instead of writing into them; they stay on the device that the
    method chose, and come from a file on the CPU). Modules set as attributes move with the adapter, run in eval mode
    and are not trained. What is not in ``self.extra`` is not saved, forked, reset or rolled back.

    Args:
        model: module, function, spandrel descriptor or :class:`tta_restore.models.Restorer`.
        select: which weights to adapt, see :func:`select_parameters`; None for methods that change none.
        views: a group of views or pairs of functions, see :func:`resolve_views`; ``ensemble`` averages over them.
        steps: optimizer steps per frame.
        region: what adaptation looks at in large frames; None for all of it.
        tiles: passes without gradient over images larger than a tile are made tile by tile.
        semantic: a context for every role but the source, by injected layers or by keyword, see :class:`Semantic`.
        guards: limits on losses, drift and divergence.
        share_prefix: run what the adapted tensors do not reach once per frame for all roles, bit by bit the same, for
            the memory of its outputs.
        memory_format: how frames (B, C, H, W) lie in memory when the model gets them; ``torch.channels_last`` makes
            plain convolutions faster on CPUs and rounds differently; models that call ``view`` may not take it.
        mode: the mode the model runs in.
        bad_frames: what to do with a frame that holds NaN or infinity: "raise", or "pass" it through unadapted.
        seed: source of all random numbers.
        spec: how to run the model, where it is neither declared by it nor to be measured.

    Raises:
        ValueError: a setting is out of range, or ``select`` matches nothing.
        TypeError: ``model`` cannot be called.
    """

    def __init_subclass__(cls, method: str | None = None, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if method is not None:
            registry.add(method, cls)

    def __init__(
        self,
        model: Any,
        *,
        select: Select | None = None,
        views: Views = "identity",
        steps: int = 1,
        region: CenterCrop | None = None,
        tiles: Tiles | None = None,
        semantic: Semantic | None = None,
        guards: Guards | None = None,
        share_prefix: bool = True,
        memory_format: torch.memory_format = torch.contiguous_format,
        mode: Literal["eval", "train"] = "eval",
        bad_frames: Literal["raise", "pass"] = "raise",
        seed: int = 0,
        spec: RestorerSpec | None = None,
    ) -> None:
        name = type(self).__name__
        checks.expect_int(name, "steps", steps, minimum=0)
        checks.expect_int(name, "seed", seed, minimum=0)
        checks.expect_choice(name, "mode", mode, ("eval", "train"))
        formats = (torch.contiguous_format, torch.channels_last)
        checks.expect_choice(name, "memory_format", memory_format, formats)
        checks.expect_choice(name, "bad_frames", bad_frames, ("raise", "pass"))
        restorer = as_restorer(model, spec)
        super().__init__(
            restorer,
            select=select,
            views=views,
            tiles=tiles,
            semantic=semantic,
            training=mode == "train",
            share_prefix=share_prefix,
            memory_format=memory_format,
            seed=seed,
        )
        self.steps, self.region, self.bad_frames = steps, region, bad_frames
        self.guards = guards or Guards()
        self.report: StepReport | None = None
        """What happened on the latest frame."""

    def forward(self, x: Tensor) -> Any:
        """Adapt on a frame and restore it.

        Shape:
            - x: (B, C, H, W), or (B, T, C, H, W) for a model of clips, RGB in [0, 1]
            - output: as the model returns it, the image replaced by the adapter's, (B, C, scale * H, scale * W)

        Raises:
            ValueError: the frame holds NaN or infinity (unless ``bad_frames="pass"``) or bytes, or does not fit the
                model.
            TypeError: ``x`` is no floating-point tensor.
        """
        if self._refuses(x):
            return self.predict(x)
        return self._transact(x, emit=True)[1]

    def adapt(self, x: Tensor) -> StepReport:
        """Adapt on a frame without restoring it, and say what happened. Takes and raises what a call does."""
        return self._refuses(x) or self._transact(x, emit=False)[0]

    def predict(self, x: Tensor) -> Any:
        """Restore a frame with what was learned so far; nothing changes.

        Takes and returns what a call does, and raises for bytes as it does; NaN passes through.
        """
        with self._session(x) as frame, self._working_on(self.state.view()):
            return self.emit(frame).output()

    def stream(self, frames: Iterable[Tensor], *, adapt_every: int = 1) -> Iterator[Any]:
        """Restore frame after frame, adapting on each, or on every ``adapt_every``-th."""
        checks.expect_int("stream", "adapt_every", adapt_every, minimum=1)
        for number, x in enumerate(frames):
            yield self(x) if number % adapt_every == 0 else self.predict(x)

    def reset(self) -> None:
        """Forget everything: state, random numbers and schedule are those of construction, bit by bit."""
        with self._backbone.lock:
            self._expect_attached()
            self._state, self._moved = self._initial_state(), False

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Everything that was learned, as plain values and CPU tensors; the model's own weights are not in it."""
        with self._backbone.lock:
            return checkpoint.state_dict(self)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:  # type: ignore[override]
        """Continue from a :meth:`state_dict`; everything is checked before anything changes.

        ``strict=False`` accepts a state made with other settings or other frozen weights.

        Raises:
            ValueError: the state is damaged, or was made by another method, selection, model or configuration.
        """
        with self._backbone.lock:
            self._expect_attached()
            state = checkpoint.state_from(self, state_dict, strict=strict)
            self._state, self._moved = state.copy(self.make_optimizer, self._devices()), False

    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file, which at any moment is the old one or the new one, whole."""
        checkpoint.write(path, self.state_dict())

    def load(self, path: str | Path, *, strict: bool = True) -> None:
        """Continue from a file that :meth:`save` wrote; raises like :meth:`load_state_dict`."""
        self.load_state_dict(checkpoint.read(path), strict)

    def fork(self, *, seed: int | None = None) -> Adapter:
        """Another adapter over the same model, for another camera, starting from what this one knows."""
        with self._backbone.lock:
            twin = type(self).__new__(type(self))
            for name, value in vars(self).items():
                twin.__dict__[name] = copy.copy(value) if isinstance(value, (dict, list, set)) else value
            twin._backbone = self._backbone.twin()
            twin._state = self.state.copy(self.make_optimizer)
            if seed is not None:
                checks.expect_int("fork", "seed", seed, minimum=0)
                twin._seed = twin._state.seed = seed
            return twin

    def export(self, role: str | None = None) -> nn.Module:
        """A copy of the plain model with the weights of a role, by default of the one whose restoration is given."""
        with self._backbone.lock:
            return checkpoint.export(self, role)

    def detach(self) -> Any:
        """The model back, as it was; the adapter is of no use afterwards."""
        with self._backbone.lock:
            self._expect_attached()
            self._detached, self._state = True, None
            return self.restorer.module

    def plan(self) -> Plan:
        """What is adapted, where, and at which cost; nothing is run or changed."""
        return checkpoint.plan(self)

    def train(self, mode: bool = True) -> Adapter:
        """Does nothing to the model: the adapter owns the mode it runs in."""
        self.training = mode
        return self

    def extra_repr(self) -> str:
        """Settings shown by repr."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config().items())

    def _refuses(self, x: Tensor) -> StepReport | None:
        """Report on a frame that is not adapted on, because it holds NaN or infinity; None for good frames."""
        if math.isfinite(self._largest(x)):
            return None
        bad = x.numel() - int(x.isfinite().sum())
        problem = f"the frame holds NaN or infinity in {bad} of {x.numel()} values"
        if self.bad_frames == "raise":
            name = type(self).__name__
            raise ValueError(f'{name}: {problem}; bad_frames="pass" would restore it without adapting')
        self.report = StepReport(frame=self.state.frames, skipped_because=problem)
        return self.report

    def _largest(self, x: Tensor) -> float:
        """The largest magnitude in a frame, NaN where a value is."""
        checks.expect_floating(type(self).__name__, x=x)
        return max(abs(float(bound)) for bound in x.aminmax()) if x.numel() else 0.0

    def _transact(self, x: Tensor, *, emit: bool) -> tuple[StepReport, Any]:
        """Adapt on a frame and, if asked, restore it; the state changes at the end, at once, or not at all."""
        with self._session(x) as frame:
            kept = self.state
            values: list[tuple[Tensor, int]] = []
            map_tensors(kept.extra, lambda tensor: values.append((tensor, tensor._version)) or tensor)
            state = kept.copy(self.make_optimizer, self._devices())
            with self._working_on(state):
                report = self._take_steps(frame)
                restoration = self.emit(frame) if emit or self.guards.divergence is not None else None
                source = self.run("source", frame.image) if self.guards.divergence is not None else None
            if any(tensor._version != version for tensor, version in values):
                raise RuntimeError(
                    f"{type(self).__name__}: a tensor in self.extra was written into; put a new one in its place"
                )
            if restoration is not None and source is not None:
                state, report, restoration = self._judge(kept, state, report, restoration, source)
            output = restoration.output() if restoration is not None and emit else None
            self._state, self.report = state, report
            return report, output

    def _judge(
        self, kept: State, state: State, report: StepReport, restoration: Restoration, source: Restoration
    ) -> tuple[State, StepReport, Restoration]:
        """Undo a frame whose output strays from the source's; start afresh when that happens again."""
        strays = self.guards.strays(restoration.image, source.image)
        if strays is None:
            state.diverged = 0
            return state, report, restoration
        lost = kept.diverged + 1 >= _DIVERGED_FRAMES
        state = self._initial_state() if lost else kept.copy(self.make_optimizer, self._devices())
        state.seed, state.frames, state.diverged = kept.seed, kept.frames + 1, 0 if lost else kept.diverged + 1
        return state, replace(report, updated=False, skipped_because=strays), source

    @contextlib.contextmanager
    def _session(self, x: Tensor) -> Iterator[Frame]:
        self._expect_attached()
        if _BYTES < (largest := self._largest(x)) < math.inf:
            name = type(self).__name__
            raise ValueError(f"{name}: expected values in [0, 1], got up to {largest:g}; divide bytes by 255")
        with torch.inference_mode(False):
            image = x.clone() if x.is_inference() else x.detach()
        companions = [module for name, module in self.named_children() if name != "restorer"]
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._backbone.session(image, companions))
            if self._backbone.training:  # dropout draws from the global generator
                stack.enter_context(torch.random.fork_rng([image.device] if image.is_cuda else []))
                torch.manual_seed(self.state.generator().initial_seed())
            self._expect_dense(image)
            region = image if self.region is None else self.region(image, self.restorer.known_spec(image).size)
            self._backbone.look_at(region)
            self._frame = Frame(image=image, region=region, steps=self.steps)
            stack.callback(setattr, self, "_frame", None)
            yield self._frame

    @contextlib.contextmanager
    def _working_on(self, state: State) -> Iterator[None]:
        self._live, self._generator = state, state.generator()
        try:
            yield
        finally:
            self._live = self._generator = None
