"""The adapter: one restorer, a few sets of adapted tensors, the loop over the steps of a frame, and what users call."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Self, cast

import torch
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore._core.ambient import delay_forks, is_captured, outside_of_graphs, refuse_capture
from tta_restore._core.processes import Processes
from tta_restore.adapters import checkpoint, registry
from tta_restore.adapters import plan as plans
from tta_restore.adapters import state as parameter_sets
from tta_restore.adapters.arguments import fit_arguments, name_inputs, view_arguments
from tta_restore.adapters.backbone import Backbone
from tta_restore.adapters.examination import expect_exchangeable, expect_unsharded, explain_backward
from tta_restore.adapters.frame import FrameContext, StepReport
from tta_restore.adapters.injection import Semantic
from tta_restore.adapters.select import Select, select_parameters, subspaces
from tta_restore.adapters.settings import RecordedModule
from tta_restore.adapters.state import Guards, ParameterSet, State, map_tensors
from tta_restore.adapters.views import NAMED, CenterCrop, View, Views, Windows, by_frames, resolve_views
from tta_restore.models import Restoration, RestorerSpec, as_restorer
from tta_restore.models.restorer import outputs
from tta_restore.models.restorer.tiles import Tiles

if TYPE_CHECKING:
    from tta_restore.adapters.calibration import CalibrationReport

__all__ = ["Adapter"]

_DIVERGED_FRAMES = 2
_BAD_GRADIENT = "gradient holds NaN or infinity"
_BYTES = 32.0  # no image in [0, 1] reaches this, nearly all of bytes do
_ROUNDING = 1e-3  # values this far outside [0, 1] are not reported
_adapters: weakref.WeakSet[Adapter] = weakref.WeakSet()


class Adapter(RecordedModule):
    """A restorer that adapts to the frames it gets, around a model that itself never changes.

    ``adapter(x)`` adapts on a frame and restores it, ``predict`` only restores, ``adapt`` only adapts. This class alone
    adapts nothing: it is the source with the same methods. The model's weights are the *source*; the *student*, which
    the optimizer steps, and the *teacher* are sets of the selected tensors in at least float32. All of them run on
    private replicas of the model, so that other threads may call the model at any time. ``parameters()`` are the
    model's own and those of injected layers. A frame is a transaction: after an error or an interrupt in the middle of
    it, the state is that of before. Adapters around one model take turns; a second thread waits.

    **To write a method**, subclass, name it (``class Mine(Adapter, method="mine")``), and override some of

    ===========================  =======================================================================================
    ``initial_memory()``         memory between frames, as a tree of tensors and plain values; later ``self.memory``
    ``initial_sets()``           sets of tensors besides student and teacher that are trained, by role
    ``expect_suitable(spec)``    raise ValueError for a model that the method cannot take
    ``begin_frame(frame)``       inspect the frame; may set ``frame.steps`` or, to learn nothing, ``frame.skip``,
                                 call ``self.restart``, change ``self.memory``
    ``objective(frame)``         loss of one step, gradients on; None to learn nothing; may set ``frame.trained``
    ``accept(frame, loss)``      None, or why this step is not to be taken
    ``make_optimizer(tensors)``  a ``torch.optim`` optimizer of the student's tensors
    ``learning_rate(update)``    learning rate of the update with that number, or None to leave the optimizer's
    ``optimize(frame, loss)``    one optimizer step, by default ``step(frame, gradients(loss))``; for two-phase methods
    ``after_step(frame)``        averaging and restoring: ``self.update_teacher``, ``self.stochastic_restore``
    ``emit(frame)``              the restoration to return, called after the steps, and alone by ``predict``
    ``cost()``                   passes per frame in words
    ===========================  =======================================================================================

    with the help of ``self.run(role, image)``, ``self.run_view(role, image, view)`` and ``self.ensemble(role, image)``
    (roles "source", "student", "teacher"; gradients reach the student only), ``self.student``, ``self.teacher``,
    ``self.source``, ``self.generator`` (the only source of randomness), ``self.snapshot()`` and ``self.memory`` (all
    memory between frames; its tensors are values: put new ones there instead of writing into them; they stay on the
    device that the method chose, and come from a file on the CPU). Modules set as attributes move with the adapter, run
    in eval mode and are not trained. What is not in ``self.memory`` is not saved, forked, reset or rolled back. The
    arguments of the constructor are recorded as ``settings``, and a saved state loads under the same settings only.

    Args:
        model: module, function, spandrel descriptor or :class:`tta_restore.models.Restorer`.
        select: which weights to adapt, see :func:`select_parameters`; None for methods that change none.
        views: a group of views or pairs of functions, see :func:`resolve_views`; ``ensemble`` averages over them.
        steps: optimizer steps per frame.
        region: part of large frames that adaptation uses; None for all of it.
        tiles: passes without gradient over images larger than a tile are made tile by tile.
        semantic: a context for every role but the source, by injected layers or by keyword, see :class:`Semantic`.
        guards: limits on losses, drift and divergence.
        share_prefix: cache the activations of the frozen prefix and reuse them for source, student and teacher. Results
            are bit-identical; costs the memory of the cached activations.
        memory_format: memory format of frames (B, C, H, W) when the model gets them; ``torch.channels_last`` makes
            plain convolutions faster on CPUs and rounds differently; models that call ``view`` may not take it.
        mode: the mode the model runs in.
        bad_frames: what to do with a frame that holds NaN or infinity: "raise", or "pass" it through unadapted.
        out_of_range: what to do with values outside [0, 1]: "report" them, in ``report.messages`` and by one warning,
            or "raise".
        seed: source of all random numbers.
        spec: how to run the model, where it is neither declared by it nor to be measured.

    Raises:
        ValueError: a setting is out of range, or ``select`` matches nothing.
        TypeError: ``model`` cannot be called, or its weights cannot be exchanged.
    """

    roles: ClassVar[tuple[str, ...]] = ("student", "teacher")
    """Sets that a method keeps of the selected tensors; the default ``emit`` returns the last one's restoration."""
    keeps_size: ClassVar[bool] = False
    """True if a method takes models at scale 1 only."""
    keeps_channels: ClassVar[bool] = False
    """True if a method compares restorations with the frame, so that both have the same channels."""
    takes_clips: ClassVar[bool] = False
    """True if a *frame* of this method is a clip (T, C, H, W), restored frame by frame by ``run`` and ``ensemble``."""
    show_progress: bool = False
    """Show the progress of the tiles of a large image on stderr, as a bar on a terminal and as lines elsewhere."""
    processes: Processes = Processes()
    """Processes that adapt on the same frames and average their gradients; see :func:`calibrate`."""

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
        region: CenterCrop | Windows | None = None,
        tiles: Tiles | None = None,
        semantic: Semantic | None = None,
        guards: Guards | None = None,
        share_prefix: bool = True,
        memory_format: torch.memory_format = torch.contiguous_format,
        mode: Literal["eval", "train"] = "eval",
        bad_frames: Literal["raise", "pass"] = "raise",
        out_of_range: Literal["report", "raise"] = "report",
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
        checks.expect_choice(name, "out_of_range", out_of_range, ("report", "raise"))
        super().__init__()
        self.restorer = as_restorer(model, spec)
        if isinstance(self.restorer.module, Adapter):
            raise TypeError(f"{name}: expected a model, got an adapter; pass its export() or restorer.module")
        self.semantic = semantic
        self.injection = None if semantic is None else semantic.injection(self.restorer)
        expect_exchangeable(name, self.restorer.module, select)
        self._backbone = Backbone(
            self.restorer,
            self.injection,
            training=mode == "train",
            share=share_prefix,
            memory_format=memory_format,
            asker=name,
            adapts=select is not None,
        )
        injected = None if self.injection is None else self.injection.weights()
        self.adapted = () if select is None else select_parameters(self._backbone.root, select, injected=injected)
        self._subspaces = {} if select is None else subspaces(self._backbone.root, self.adapted, select)
        self.views = resolve_views(views)
        self.views_name = views if isinstance(views, str) else f"{len(self.views)} own views"
        self.steps, self.region, self.tiles = steps, region, tiles
        self.bad_frames, self.out_of_range = bad_frames, out_of_range
        self.guards = guards or Guards()
        self.report: StepReport | None = None
        """Report of the latest frame."""
        self._seed = seed
        self._state: State | None = None  # the last good one; made on first use, when a subclass is complete
        self._live: State | None = None  # the one that a frame works on
        self._generator: torch.Generator | None = None
        self._frame: FrameContext | None = None  # the one in work
        self._source: ParameterSet | None = None  # the model's own tensors, while a frame is in work
        self._moved = False  # whether a step ever changed the student, so that it need not be watched any more
        self._accumulates = False  # whether gradients are found in .grad, see :func:`outputs.differentiate`
        self._warned = False  # of values outside [0, 1]
        self._warned_of_no_step = False
        self._remarked = False  # of what the backbone has to say
        self._detached = False
        if self.restorer.spec is not None:
            Adapter.expect_suitable(self, self.restorer.spec)  # a subclass is not complete yet
        _adapters.add(self)

    # What users call.

    def forward(self, x: Tensor, *inputs: Any, **arguments: Any) -> Any:
        """Adapt on a frame and restore it; further ``inputs`` and ``arguments`` go to every call of the model.

        Shape:
            - x: (B, C, H, W), or (B, T, C, H, W) for a model of clips, RGB in [0, 1]
            - output: as the model returns it, the image replaced by the adapter's, (B, C, scale * H, scale * W)

        Raises:
            ValueError: the frame holds NaN or infinity (unless ``bad_frames="pass"``) or bytes, or does not fit the
                model.
            TypeError: ``x`` is no floating-point tensor.
        """
        return self._respond(x, inputs, arguments).output()

    def restore(self, x: Tensor, *inputs: Any, **arguments: Any) -> Tensor:
        """Adapt on a frame and return its restored image alone, whatever else the model returns."""
        return self._respond(x, inputs, arguments).image

    @outside_of_graphs
    def adapt(self, x: Tensor, *inputs: Any, **arguments: Any) -> StepReport:
        """Adapt on a frame without restoring it, and report what happened. Takes and raises what a call does."""
        arguments = self._named(x, inputs, arguments)
        problem, messages = self._inspect(x, arguments)
        problem = problem or self._frozen_reason()
        if problem is not None:
            return self._skip(problem)
        return self._transact(x, arguments, messages, emit=False)[0]

    @outside_of_graphs
    def predict(self, x: Tensor, *inputs: Any, **arguments: Any) -> Any:
        """Restore a frame with what was learned so far; nothing changes.

        Takes and returns what a call does, and raises for bytes as it does; NaN passes through.
        """
        arguments = self._named(x, inputs, arguments)
        self._inspect(x, arguments, adapting=False)
        return self._predict(x, arguments).output()

    def stream(self, frames: Iterable[Tensor], *, adapt_every: int = 1, **arguments: Any) -> Iterator[Any]:
        """Restore frame after frame, adapting on each, or on every ``adapt_every``-th."""
        checks.expect_int("stream", "adapt_every", adapt_every, minimum=1)
        for number, x in enumerate(frames):
            yield self(x, **arguments) if number % adapt_every == 0 else self.predict(x, **arguments)

    def calibrate(self, frames: Iterable[Tensor], *, budget: str | None = None) -> CalibrationReport:
        """Adapt on frames of one camera, within a time budget; see :func:`tta_restore.adapters.calibrate`."""
        from tta_restore.adapters.calibration import calibrate  # it builds on the methods, which build on this class

        return calibrate(self, frames, budget=budget)

    def freeze(self) -> None:
        """Restore further frames with what was learned so far, without steps, until :meth:`thaw` or :meth:`reset`."""
        with self._backbone.lock:
            self.state.frozen = True

    def thaw(self) -> None:
        """Adapt again after :meth:`freeze`."""
        with self._backbone.lock:
            self.state.frozen = False

    def reset(self) -> None:
        """Return to the state, random numbers and schedule of construction, bit by bit."""
        with self._backbone.lock:
            self._expect_attached()
            self._expect_whole()
            self._state, self._moved = self._initial_state(), False

    def state_dict(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the adapted state as plain values and CPU tensors; the model's own weights are not in it.

        As part of another module's ``state_dict()`` an adapter holds the model's weights under their names and this
        state as extra state, as any module.
        """
        if arguments or keywords:
            return super().state_dict(*arguments, **keywords)
        with self._backbone.lock:
            self._expect_whole()
            return checkpoint.state_dict(self)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Continue from a :meth:`state_dict`; everything is checked before anything changes.

        ``strict=False`` accepts a state made with other settings or other frozen weights.

        Raises:
            ValueError: the state is damaged, or was made by another method, selection, model or configuration.
        """
        with self._backbone.lock:
            self._expect_attached()
            self._expect_whole()
            state = checkpoint.state_from(self, state_dict, strict=strict)
            self._state, self._moved = state.copy(self._optimizer_of, self._devices()), False

    def get_extra_state(self) -> Tensor:
        """Return the adapted state, for the state dict of a module that holds this adapter: a tensor, as its others."""
        return checkpoint.to_bytes(self.state_dict())

    def set_extra_state(self, state: Any) -> None:
        """Take the adapted state back; frozen weights are not compared, as they are loaded after it."""
        with self._backbone.lock:
            self._expect_attached()
            loaded = checkpoint.state_from(self, checkpoint.from_bytes(state), strict=True, weights=False)
            self._state, self._moved = loaded.copy(self._optimizer_of, self._devices()), False

    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file, which at any moment is the old one or the new one, whole."""
        checkpoint.write(path, self.state_dict())

    def load(self, path: str | Path, *, strict: bool = True) -> None:
        """Continue from a file that :meth:`save` wrote; raises like :meth:`load_state_dict`."""
        self.load_state_dict(checkpoint.read(path), strict)

    def fork(self, *, seed: int | None = None) -> Adapter:
        """Return another adapter over the same model, for another camera, that starts from this one's state."""
        with self._backbone.lock:
            self._expect_whole()
            twin = type(self).__new__(type(self))
            for name, value in vars(self).items():
                twin.__dict__[name] = copy.copy(value) if isinstance(value, (dict, list, set)) else value
            twin._backbone = self._backbone.twin()
            twin._state = self.state.copy(self._optimizer_of)
            if seed is not None:
                checks.expect_int("fork", "seed", seed, minimum=0)
                twin._seed = twin._state.seed = seed
            _adapters.add(twin)
            return twin

    def export(self, role: str | None = None) -> nn.Module:
        """Return a copy of the plain model with the weights of a role, by default of the one that is emitted."""
        with self._backbone.lock:
            self._expect_whole()
            return checkpoint.export(self, role)

    def detach(self) -> Any:
        """Return the model, as it was; the adapter cannot be used afterwards."""
        with self._backbone.lock:
            self._expect_attached()
            self._detached, self._state = True, None
            self._backbone.drop_replicas()
            return self.restorer.module

    def plan(self, x: Tensor | None = None, **arguments: Any) -> plans.Plan:
        """Return what is adapted, where, and at which cost; nothing changes.

        With a frame ``x``, memory of activations and seconds per frame are measured by one call on a fork.
        """
        return plans.plan(self, x, arguments)

    def train(self, mode: bool = True) -> Self:
        """Set the flag of the adapter alone: it owns the mode that the model runs in."""
        self.training = mode
        return self

    def extra_repr(self) -> str:
        """Settings shown by repr."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())

    def __getstate__(self) -> dict[str, Any]:
        with self._backbone.lock:
            return (
                vars(self)
                | {"_state": None, "_live": None, "_generator": None, "_frame": None, "_source": None}
                | {"_saved": None if self._detached else self.state.tree()}
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("_saved", None)
        super().__setstate__(state)
        if saved is not None:
            self._state = State.from_tree(saved, self._optimizer_of)
        _adapters.add(self)

    # What methods use.

    @property
    def state(self) -> State:
        """State of the adapter; inside a frame, the state that the frame works on."""
        if self._live is not None:
            return self._live
        self._expect_attached()
        if self._state is None:
            self._state = self._initial_state()
        return self._state

    @property
    def memory(self) -> dict[str, Any]:
        """Memory of the method between frames."""
        return self.state.memory

    @property
    def student(self) -> ParameterSet:
        """Tensors that the optimizer steps."""
        return self._set_of("student")

    @property
    def teacher(self) -> ParameterSet:
        """Tensors that follow the student slowly."""
        return self._set_of("teacher")

    def _set_of(self, role: str) -> ParameterSet:
        if role not in self.state.sets:
            raise AttributeError(role)  # worded by __getattr__
        return self.state.sets[role]

    def __prepare_scriptable__(self) -> NoReturn:  # called by torch.jit.script
        refuse_capture(self)

    def __getattr__(self, name: str) -> Any:
        if name == "generator":
            raise AttributeError(f"{type(self).__name__}: random numbers exist only while a frame is worked on")
        if name in ("student", "teacher"):
            raise AttributeError(f"{type(self).__name__}: has no {name}")
        return super().__getattr__(name)

    @property
    def source(self) -> ParameterSet:
        """The model's own tensors, at least float32."""
        if self._source is None:
            expect_exchangeable(type(self).__name__, self.restorer.module, self.adapted or None)
            return self._own_tensors()
        return self._source

    @property
    def generator(self) -> torch.Generator:
        """Random numbers of this frame, on the CPU; the only randomness a method may use."""
        if self._generator is None:
            raise AttributeError("generator")  # worded by __getattr__
        return self._generator

    def run(self, role: str, image: Tensor, **arguments: Any) -> Restoration:
        """Restore an image with the weights of a role; gradients reach the student only, where they are switched on.

        The frame's keywords go to the model, and to every role but the source the semantic context, if there is one.
        """
        return self._run(role, image, self._keywords(role, image) | arguments)

    def run_view(self, role: str, image: Tensor, view: View) -> Restoration:
        """Restore a view of an image as :meth:`run` does, with its maps in that view, and transform the image back."""
        there, back = view
        restoration = self._run(role, there(image), view_arguments(self._keywords(role, image), there, image))
        return restoration.with_image(back(restoration.image))

    def ensemble(self, role: str | Mapping[str, float], image: Tensor, **arguments: Any) -> Restoration:
        """Average the views of an image without gradient; what is not the image is the first view's.

        With weights by role, return the weighted sum of the roles' averages, of a large image tile by tile; what is not
        the image is the last role's.
        """
        if isinstance(role, str):
            tensors, arguments = self._tensors(role), self._keywords(role, image) | arguments
            with torch.no_grad():
                return self._with_channels(image, self._in_parts(self._restore_views, tensors, image, arguments))
        parts = [(weight, self._tensors(name), self._context(name)) for name, weight in role.items()]
        with torch.no_grad():
            return self._in_parts(self._restore_weighted, parts, image, self._keywords("source", image) | arguments)

    def update_teacher(self, momentum: float, *, interpolation: float = 1.0) -> None:
        """Move the teacher towards the student: ``teacher = momentum * teacher + (1 - momentum) * student``.

        With an ``interpolation`` below 1, towards ``source + interpolation * (student - source)``.
        """
        newest = self.student
        if interpolation != 1:
            newest = parameter_sets.interpolate(self.source, self.student, interpolation)
        parameter_sets.ema_update(self.teacher, newest, momentum)

    def stochastic_restore(self, prob: float) -> None:
        """Set each scalar of the student to the source's value with probability ``prob``."""
        parameter_sets.stochastic_restore(self.student, self.source, prob, self.generator)

    def snapshot(self) -> dict[str, ParameterSet]:
        """Return copies of the student and the teacher, for ``memory`` and :meth:`restart`."""
        return {role: parameter_sets.copy(self.state.sets[role]) for role in self._kept_roles()}

    def restart(self, student: ParameterSet | None = None, teacher: ParameterSet | None = None) -> None:
        """Continue from given values, by default the source's, with fresh optimizers and a fresh schedule."""
        state, start = self.state, student or self.source
        parameter_sets.assign(state.sets["student"], start)
        if "teacher" in state.sets:
            parameter_sets.assign(state.sets["teacher"], teacher or start)
        for role, tensors in self.initial_sets().items():
            parameter_sets.assign(state.sets[role], tensors)
        state.optimizers = self._make_optimizers(state.sets)
        state.updates, state.losses = 0, []

    def gradients(self, loss: Tensor, roles: tuple[str, ...] = ("student",)) -> list[Tensor | None]:
        """Return the gradient of a loss for each tensor of the student, None for those it does not depend on.

        With other ``roles``, for the tensors of each of them in turn.

        Raises:
            RuntimeError: it depends on none, or an operator has no second derivative.
        """
        tensors = [tensor for role in roles for tensor in self.state.sets[role].values()]
        self._accumulates = self._accumulates or next(outputs.third_party_functions(loss), None) is not None
        try:
            gradients = outputs.differentiate(loss, tensors, accumulate=self._accumulates) if loss.requires_grad else []
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise RuntimeError(f"{type(self).__name__}: {explain_backward(error)}") from error
        if all(gradient is None for gradient in gradients):
            raise RuntimeError(
                f"{type(self).__name__}: the loss depends on none of the {len(tensors)} adapted tensors "
                f"({', '.join(self.adapted[:3])}, ...); models.probe shows which weights a gradient reaches"
            )
        if self.processes.count > 1:
            self.processes.average([gradient for gradient in gradients if gradient is not None])
        return gradients

    def step(self, frame: FrameContext, gradients: list[Tensor | None]) -> str | None:
        """Take one optimizer step with these gradients of ``frame.trained``; return why it was not taken, or None."""
        norm = parameter_sets.overall_norm([gradient for gradient in gradients if gradient is not None])
        if not math.isfinite(norm):
            return _BAD_GRADIENT
        frame.grad_norm = norm
        remaining = iter(gradients)
        for role in frame.trained:
            self._step_set(role, frame, [next(remaining) for _ in self.state.sets[role]])
        self.state.updates += 1
        return None

    # Hooks, for methods to override.

    def initial_memory(self) -> dict[str, Any]:
        """Return the memory at the start: tensors, numbers, text, None in dicts, lists and tuples."""
        return {}

    def initial_sets(self) -> dict[str, ParameterSet]:
        """Return sets of tensors, by role, that are trained besides the student; they start from these at a restart."""
        return {}

    def make_optimizer(self, tensors: list[Tensor], role: str = "student") -> torch.optim.Optimizer | None:
        """Return the optimizer of a role's tensors: Adam, with the method's ``lr`` and ``betas`` if it has them."""
        return torch.optim.Adam(tensors, lr=getattr(self, "lr", 1e-4), betas=getattr(self, "betas", (0.9, 0.999)))

    def expect_suitable(self, spec: RestorerSpec) -> None:
        """Raise ValueError for a model that the method cannot take; called before the first frame is adapted on."""
        if self.keeps_size and spec.scale != 1:
            raise ValueError(f"{type(self).__name__}: expected a model of scale 1, got scale {spec.scale}")

    def begin_frame(self, frame: FrameContext) -> None:
        """Inspect a frame before any step on it."""

    def objective(self, frame: FrameContext) -> Tensor | None:
        """Return the loss of one step, or None where there is nothing to learn."""
        return None

    def accept(self, frame: FrameContext, loss: Tensor) -> str | None:
        """Return why a step is not to be taken, or None to take it."""
        return None

    def learning_rate(self, update: int) -> float | None:
        """Return the learning rate of update 0, 1, 2, ..., or None to leave the optimizer's."""
        return None

    def optimize(self, frame: FrameContext, loss: Tensor) -> str | None:
        """Take one optimizer step on ``frame.trained``; return why it was not taken, or None."""
        gradients = self.gradients(loss) if frame.trained == ("student",) else self.gradients(loss, frame.trained)
        return self.step(frame, gradients)

    def after_step(self, frame: FrameContext) -> None:
        """Average, restore, count: what follows every optimizer step."""

    def emit(self, frame: FrameContext) -> Restoration:
        """Return the restoration of a frame, by default the ensemble of the last role."""
        return self.ensemble((self._kept_roles() or ("source",))[-1], frame.image)

    def cost(self) -> str:
        """Return the passes through the model for each frame, in words."""
        return f"{len(self.views)} forward per frame"

    # A frame, from inspection to restoration.

    def _inspect(self, x: Tensor, arguments: dict[str, Any], *, adapting: bool = True) -> tuple[str | None, list[str]]:
        """Read a frame once: why it is not adapted on, if it is not, and messages on it."""
        name = type(self).__name__
        checks.expect_floating(name, x=x)
        checks.expect_values(name, x=x)
        if not x.numel():
            return "the batch is empty: there is no frame", []
        low, high = (float(bound) for bound in x.detach().aminmax())
        if math.isfinite(low) and math.isfinite(high):
            if max(-low, high) > _BYTES:
                values = f"up to {high:g}" if low >= 0 else f"{low:g} to {high:g}"
                raise ValueError(f"{name}: expected values in [0, 1], got {values}; divide bytes by 255")
            return None, self._check_range(x, arguments, low, high)
        if not adapting:
            return None, []
        bad = x.numel() - int(x.isfinite().sum())
        problem = f"the frame holds NaN or infinity in {bad} of {x.numel()} values"
        if self.bad_frames == "raise":
            raise ValueError(f'{name}: {problem}; bad_frames="pass" would restore it without adapting')
        return problem, []

    def _check_range(self, x: Tensor, arguments: dict[str, Any], low: float, high: float) -> list[str]:
        if low >= -_ROUNDING and high <= 1 + _ROUNDING:
            return []
        if not self._backbone.measure(x, arguments).dense:  # inputs of classifiers are standardized
            return []
        found = f"expected values in [0, 1], got {low:.4g} to {high:.4g}"
        if self.out_of_range == "raise":
            raise ValueError(f'{type(self).__name__}: {found}; clamp the frame or pass out_of_range="report"')
        if not self._warned:
            self._warned = True
            warnings.warn(f"{type(self).__name__}: {found}; reported once", stacklevel=4)
        return [found]

    def _frozen_reason(self) -> str | None:
        return "the adapter is frozen; thaw() lets it adapt" if self.state.frozen else None

    def _skip(self, problem: str) -> StepReport:
        self.report = StepReport(frame=self.state.frames, skipped_because=problem)
        return self.report

    @outside_of_graphs
    def _respond(self, x: Tensor, inputs: tuple[Any, ...], arguments: dict[str, Any]) -> Restoration:
        arguments = self._named(x, inputs, arguments)
        problem, messages = self._inspect(x, arguments)
        problem = problem or self._frozen_reason()
        if problem is not None:
            self._skip(problem)
            return self._predict(x, arguments)
        return cast("Restoration", self._transact(x, arguments, messages, emit=True)[1])

    def _predict(self, x: Tensor, arguments: dict[str, Any]) -> Restoration:
        if x.ndim > 3 and not x.shape[0]:  # a model may not take an empty batch
            one = self._predict(x.new_zeros((1, *x.shape[1:])), arguments)
            empty = outputs.transform(one.output(), lambda _, leaf: leaf[:0] if leaf.ndim else leaf)
            return Restoration(outputs.at(empty, one.path), empty, one.path)
        with self._session(x, arguments) as frame, self._working_on(self.state.view()):
            return self._batched(x, self._emitted(frame))

    def _transact(
        self, x: Tensor, arguments: dict[str, Any], messages: list[str], *, emit: bool
    ) -> tuple[StepReport, Restoration | None]:
        """Adapt on a frame and, if asked, restore it; the state changes at the end, at once, or not at all."""
        started = time.perf_counter()
        checked = self.guards.min_source_psnr is not None
        with self._session(x, arguments) as frame:
            frame.messages += messages
            kept = self.state
            values: list[tuple[Tensor, int]] = []
            map_tensors(kept.memory, lambda tensor: values.append((tensor, tensor._version)) or tensor)
            state = kept.copy(self._optimizer_of, self._devices())
            with self._working_on(state):
                report = self._take_steps(frame)
                restoration = self._emitted(frame) if emit or checked else None
                source = self.run("source", frame.image) if checked else None
            if any(tensor._version != version for tensor, version in values):
                raise RuntimeError(
                    f"{type(self).__name__}: a tensor in self.memory was written into; put a new one in its place"
                )
            if restoration is not None and source is not None:
                state, report, restoration = self._check_output(kept, state, report, restoration, source)
            if restoration is not None:
                restoration = self._batched(x, restoration)
            report = replace(
                report,
                seconds=time.perf_counter() - started,
                metrics=dict(frame.metrics),
                messages=tuple(frame.messages),
            )
            self._state, self.report = state, report
            return report, restoration

    def _take_steps(self, frame: FrameContext) -> StepReport:
        state = self.state
        number, taken, losses = state.frames, 0, []
        self.expect_suitable(self.restorer.known_spec(frame.image))
        self.begin_frame(frame)
        checks.expect_int(type(self).__name__, "frame.steps", frame.steps, minimum=0)
        skipped = frame.skip
        for _ in range(0 if frame.skip else frame.steps):
            with torch.enable_grad():
                loss = self.objective(frame)
            if loss is None:
                skipped = f"{type(self).__name__} learns nothing"
                break
            self._expect_loss(loss)
            losses.append(loss.item())
            refusal = self.guards.check_loss(losses[-1], state.losses) or self.accept(frame, loss)
            self.guards.record_loss(losses[-1], state.losses)
            refusal = refusal or self.optimize(frame, loss)
            del loss  # and the graph with it
            if refusal:
                skipped = refusal
                continue
            taken += 1
            self.after_step(frame)
            if self.guards.max_drift is not None:
                parameter_sets.project(self.student, self.source, self.guards.max_drift)
        state.frames += 1
        if not taken and ((losses and not math.isfinite(losses[-1])) or skipped == _BAD_GRADIENT):
            self._warn_of_no_step(str(skipped))
        return StepReport(
            frame=number,
            updated=taken > 0,
            loss=sum(losses) / len(losses) if losses else None,
            steps=taken,
            skipped_because=skipped,
            drift=parameter_sets.drift(state.sets.get("student", {}), self.source),
            grad_norm=frame.grad_norm,
            learning_rate=frame.learning_rate,
        )

    def _expect_loss(self, loss: Any) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            name = type(self).__name__
            raise TypeError(f"{name}: expected objective to return a loss of one value or None, got {got}")

    def _emitted(self, frame: FrameContext) -> Restoration:
        restoration = self.emit(frame)
        if not isinstance(restoration, Restoration):
            raise TypeError(
                f"{type(self).__name__}: expected emit to return a Restoration, as self.run and self.ensemble do, got "
                f"{type(restoration).__name__}; self.run(role, image).with_image(x) makes one"
            )
        self._expect_image(frame, restoration)
        return restoration

    def _expect_image(self, frame: FrameContext, restoration: Restoration) -> None:
        """Raise where the emitted image is none that the model could have returned for the frame."""
        image, expected = restoration.image, f"{type(self).__name__}: expected emit to return an image"
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"{expected} of floats in [0, 1], got {got}")
        spec = self.restorer.spec or self.restorer.known_spec(frame.image)
        if not spec.dense:
            return
        raw = restoration.raw if isinstance(restoration.raw, Tensor) else outputs.at(restoration.raw, restoration.path)
        sides = raw.shape  # of a part of the frame, where there are tiles
        is_clip = len(sides) > frame.image.ndim  # a model of whole clips takes (T, C, H, W) and returns (1, T, C, H, W)
        count = sides[0] if is_clip else len(frame.image)
        shape = (count, *sides[1:-2], *(spec.scale * side for side in frame.image.shape[-2:]))
        if image.shape != shape:
            raise ValueError(f"{expected} {shape}, as the model does for this frame, got {tuple(image.shape)}")
        largest = max(map(abs, map(float, image.detach().aminmax()))) if image.numel() else 0.0
        if _BYTES < largest < math.inf:
            images = (self.run(role, frame.image).image for role in ("source", *self._kept_roles()))
            own = max(float(one.detach().abs().amax()) for one in images)
            if own <= _BYTES:  # else the model returns such values, or adaptation diverged
                raise ValueError(
                    f"{expected} in [0, 1], got values up to {largest:g}, where the model returns up to {own:.2g}; "
                    "divide bytes by 255"
                )

    def _warn_of_no_step(self, reason: str) -> None:
        if not self._warned_of_no_step:
            self._warned_of_no_step = True
            warnings.warn(f"{type(self).__name__}: no step was taken on a frame: {reason}; reported once", stacklevel=2)

    def _step_set(self, role: str, frame: FrameContext, gradients: list[Tensor | None]) -> None:
        tensors = list(self.state.sets[role].values())
        optimizer = self.state.optimizers.get(role)
        if optimizer is None:
            problem = "make_optimizer returned none" if tensors else "there is nothing to optimize; pass select"
            raise RuntimeError(f"{type(self).__name__}: {problem}")
        rate = self.learning_rate(self.state.updates)
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate
        frame.learning_rate = float(optimizer.param_groups[0]["lr"])
        watched = role == "student" and not self._moved
        before = [tensor.detach().clone() for tensor in tensors] if watched else None
        for tensor, gradient in zip(tensors, gradients, strict=True):
            # torch's fused optimizers read a gradient in the tensor's order, whatever its strides say
            laid_out = gradient is None or gradient.stride() == tensor.stride()
            tensor.grad = gradient if laid_out else torch.empty_like(tensor).copy_(gradient)
        optimizer.step()
        for tensor in tensors:
            tensor.grad = None
        parameter_sets.project_changes(self.state.sets[role], self.source, self._subspaces)
        if before is not None:
            self._watch(before, tensors)

    def _watch(self, before: list[Tensor], student: list[Tensor]) -> None:
        if any(not torch.equal(old, new) for old, new in zip(before, student, strict=True)):
            self._moved, self.state.still = True, 0
            return
        self.state.still += 1
        if self.state.still == 2:
            warnings.warn(
                f"{type(self).__name__}: two steps changed none of the adapted tensors ({', '.join(self.adapted[:3])}, "
                "...); their gradient is zero or the learning rate too small for them",
                stacklevel=2,
            )

    def _check_output(
        self, kept: State, state: State, report: StepReport, restoration: Restoration, source: Restoration
    ) -> tuple[State, StepReport, Restoration]:
        """Undo a frame whose output diverged from the source's; reset when that happens again."""
        problem = self.guards.check_output(restoration.image, source.image)
        if problem is None:
            state.diverged = 0
            return state, report, restoration
        lost = kept.diverged + 1 >= _DIVERGED_FRAMES
        state = self._initial_state() if lost else kept.copy(self._optimizer_of, self._devices())
        state.seed, state.frames, state.diverged = kept.seed, kept.frames + 1, 0 if lost else kept.diverged + 1
        return state, replace(report, updated=False, skipped_because=problem), source

    @contextlib.contextmanager
    def _session(self, x: Tensor, arguments: dict[str, Any] | None = None) -> Iterator[FrameContext]:
        arguments = arguments or {}
        self._expect_attached()
        with torch.inference_mode(False):
            image = self._clip_of(x.clone() if x.is_inference() else x.detach())
        companions = [module for name, module in self.named_children() if name != "restorer"]
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                self._backbone.session(image, companions, arguments, lambda: self.state.generator().initial_seed())
            )
            if self.adapted and self._backbone.problem:
                raise TypeError(
                    f"{type(self).__name__}: {type(self._backbone.root).__name__} cannot be run with other weights on "
                    f"a private copy, and other threads must not get adapted weights: {self._backbone.problem}"
                )
            spec = self.restorer.known_spec(image)
            self._expect_dense(image, spec)
            region = image if self.region is None else self.region(image, spec.size)
            self._backbone.share(region)
            if self._backbone.remark and not self._remarked:
                self._remarked = True
                warnings.warn(f"{type(self).__name__}: {self._backbone.remark}", stacklevel=5)
            self._source = self._own_tensors()
            self._frame = FrameContext(image, region, self.steps, arguments, cropped=region is not image)
            stack.callback(self._leave)
            yield self._frame

    def _own_tensors(self) -> ParameterSet:
        own = self._backbone.parameters()
        for name, tensor in next(iter(self._state.sets.values()), {}).items() if self._state else ():
            if name not in own or own[name].shape != tensor.shape:
                now = f"is {tuple(own[name].shape)} now" if name in own else "is gone"
                raise ValueError(
                    f"{type(self).__name__}: the model was rebuilt: {name}, adapted as {tuple(tensor.shape)}, {now}; "
                    "make a new adapter"
                )
        return {
            name: own[name].detach().to(torch.promote_types(own[name].dtype, torch.float32)) for name in self.adapted
        }

    def _leave(self) -> None:
        """Discard what belongs to the frame in work."""
        self._live = self._generator = self._frame = self._source = None

    @contextlib.contextmanager
    def _working_on(self, state: State) -> Iterator[None]:
        self._live, self._generator = state, state.generator()
        try:
            yield
        finally:
            self._live = self._generator = None

    def _clip_of(self, x: Tensor) -> Tensor:
        """Return the clip of a batch with one, for methods of clips; what came otherwise."""
        if not self.takes_clips or x.ndim != 5:
            return x
        if x.shape[0] != 1:
            raise ValueError(
                f"{type(self).__name__}: expected one clip (1, T, C, H, W) at a time, got {tuple(x.shape)}"
            )
        return x[0]

    def _batched(self, x: Tensor, restoration: Restoration) -> Restoration:
        """Undo :meth:`_clip_of` in an output."""
        if not self.takes_clips or x.ndim != 5:
            return restoration
        length = x.shape[1]
        whole = outputs.transform(
            restoration.output(), lambda _, leaf: leaf[None] if leaf.ndim and leaf.shape[0] == length else leaf
        )
        return Restoration(outputs.at(whole, restoration.path), whole, restoration.path)

    def _run(self, role: str, image: Tensor, arguments: dict[str, Any]) -> Restoration:
        tensors = self._tensors(role)
        if role == "student" and torch.is_grad_enabled():
            return self._with_channels(image, self._backbone.restore(tensors, image, **arguments))
        with torch.no_grad():
            return self._with_channels(image, self._in_parts(self._restore_plainly, tensors, image, arguments))

    def _with_channels(self, image: Tensor, restoration: Restoration) -> Restoration:
        if self.keeps_channels and restoration.image.ndim > 3 and restoration.image.shape[-3] != image.shape[-3]:
            raise ValueError(
                f"{type(self).__name__}: expected a model that returns as many channels as it takes, "
                f"{image.shape[-3]}, got {restoration.image.shape[-3]}: this method compares its output with the frame"
            )
        return restoration

    def _tensors(self, role: str) -> ParameterSet | None:
        if role != "source" and role not in self._kept_roles():
            kept = self._kept_roles()
            remedy = "" if kept else '; without select no weights are adapted: pass, for example, select="all"'
            known = ", ".join(["source", *kept])
            raise ValueError(f"{type(self).__name__}: expected one of the roles {known}, got {role!r}{remedy}")
        return None if role == "source" else self.state.sets[role]

    def _named(self, x: Tensor, inputs: tuple[Any, ...], arguments: dict[str, Any]) -> dict[str, Any]:
        if is_captured(x):
            refuse_capture(self)
        return name_inputs(type(self).__name__, self._backbone.root, inputs, arguments) if inputs else arguments

    def _keywords(self, role: str, image: Tensor) -> dict[str, Any]:
        """Keywords for the model: those of the call, cut as the image is cut from the frame, and the context."""
        frame = self._frame
        if frame is None:
            return {}
        arguments = frame.arguments
        if arguments:
            arguments = fit_arguments(type(self).__name__, arguments, frame, image)
        return arguments | self._context(role)

    def _context(self, role: str) -> dict[str, Any]:
        """Keywords with the semantic context of the frame, for every role but the source."""
        frame, state = self._frame, self.state
        if frame is None or role == "source" or self.semantic is None:
            return {}
        if "context" not in frame.scratch:
            kept, every = state.context, self.semantic.every
            count, region = frame.image.shape[0], frame.region
            if region.shape[0] > count:  # windows: the middle one
                region = region[region.shape[0] // count // 2 * count :][:count]
            if kept is None or state.frames % every == 0 or kept.shape[0] != count:
                with torch.no_grad():
                    kept = self.semantic(self.run("source", region).image)
                state.context = kept if every > 1 else None
            frame.scratch["context"] = self.semantic.keywords(kept.to(frame.region.device))
        return frame.scratch["context"]

    def _in_parts(self, restore: Any, tensors: Any, image: Tensor, arguments: dict) -> Restoration:
        """Run a pass without gradients over a clip frame by frame, and over a large image tile by tile."""
        spec = self.restorer.known_spec(image)
        if self.takes_clips and image.ndim == 4:
            return by_frames(self._in_tiles, image, spec.frames, restore, tensors, arguments)
        return self._in_tiles(image, restore, tensors, arguments)

    def _in_tiles(self, image: Tensor, restore: Any, tensors: Any, arguments: dict) -> Restoration:
        if self.tiles is None or not self.tiles.needed(image):
            return restore(image, tensors, arguments)
        spec = self.restorer.known_spec(image)
        options: dict[str, Any] = {"scale": spec.scale, "size": spec.size, "progress": self.show_progress}
        return self.tiles.run(restore, image, tensors, arguments, **options)

    def _restore_plainly(self, image: Tensor, tensors: ParameterSet | None, arguments: dict) -> Restoration:
        return self._backbone.restore(tensors, image, **arguments)

    def _restore_views(self, image: Tensor, tensors: ParameterSet | None, arguments: dict) -> Restoration:
        first = self._restore_view(self.views[0], image, tensors, arguments)
        if len(self.views) == 1:
            return first
        total = first.image.float()
        for view in self.views[1:]:
            total = total + self._restore_view(view, image, tensors, arguments).image.float()
        return first.with_image((total / len(self.views)).to(first.image.dtype))

    def _restore_view(self, view: View, image: Tensor, tensors: ParameterSet | None, arguments: dict) -> Restoration:
        there, back = view
        turned = arguments and view_arguments(arguments, there, image)
        restoration = self._backbone.restore(tensors, there(image), **turned)
        return restoration.with_image(back(restoration.image))

    def _restore_weighted(
        self, image: Tensor, parts: list[tuple[float, ParameterSet | None, dict]], arguments: dict
    ) -> Restoration:
        total: Restoration | None = None
        for weight, tensors, context in parts:
            one = self._restore_views(image, tensors, arguments | context)
            total = one.with_image(weight * one.image if total is None else total.image + weight * one.image)
        if total is None:
            raise ValueError(f"{type(self).__name__}: expected weights of at least one role, got none")
        return total

    def _expect_dense(self, image: Tensor, spec: RestorerSpec) -> None:
        """Raise where a model that returns no image, such as a classifier, would have one transformed or tiled."""
        if spec.dense:
            return
        name = type(self).__name__
        if self.views_name in NAMED and self.views_name != "identity":
            raise ValueError(
                f"{name}: the model gives no image, and what it gives cannot be turned back as views="
                f'"{self.views_name}" asks; pass views="identity" or pairs (view, way back) of your own'
            )
        if self.tiles is not None and self.tiles.needed(image):
            raise ValueError(f"{name}: the model gives no image that tiles could be put together to; pass tiles=None")

    def _initial_state(self) -> State:
        source = self.source
        sets = {role: parameter_sets.copy(source, trained=role == "student") for role in self._kept_roles()}
        sets |= {role: parameter_sets.copy(tensors, trained=True) for role, tensors in self.initial_sets().items()}
        return State(self._seed, sets, self._make_optimizers(sets), memory=self.initial_memory())

    def _make_optimizers(self, sets: dict[str, ParameterSet]) -> dict[str, torch.optim.Optimizer]:
        made = {
            role: self._optimizer_of(role, list(tensors.values()))
            for role, tensors in sets.items()
            if role == "student" or role not in self.roles
        }
        return {role: optimizer for role, optimizer in made.items() if optimizer is not None}

    def _optimizer_of(self, role: str, tensors: list[Tensor]) -> torch.optim.Optimizer | None:
        if not tensors:
            return None
        with delay_forks():  # the first optimizer of a process imports torch._dynamo
            return self.make_optimizer(tensors) if role == "student" else self.make_optimizer(tensors, role)

    def _kept_roles(self) -> tuple[str, ...]:
        return self.roles if self.adapted else ()

    def _devices(self) -> dict[str, torch.device]:
        return {name: tensor.device for name, tensor in self.source.items()}

    def _expect_whole(self) -> None:
        """Raise where the model's weights have no values here, or are sharded over processes."""
        expect_unsharded(type(self).__name__, self)
        expect_exchangeable(type(self).__name__, self.restorer.module, self.adapted or None)

    def _expect_attached(self) -> None:
        if self._detached:
            raise RuntimeError(f"{type(self).__name__}: was detached from its model; make a new adapter")


def _after_fork() -> None:
    """Discard frames that other threads of the parent process were working on."""
    for adapter in list(_adapters):
        adapter._leave()


os.register_at_fork(after_in_child=_after_fork)
