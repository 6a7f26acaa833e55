"""Source, student and teacher: sets of tensors over one backbone, and what methods do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tta_restore.adapters import registry
from tta_restore.adapters import state as parameter_sets
from tta_restore.adapters.backbone import Backbone
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.injection import Semantic
from tta_restore.adapters.select import Select, select_parameters
from tta_restore.adapters.state import ParameterSet, State
from tta_restore.adapters.tiling import Tiles
from tta_restore.adapters.views import NAMED, Views, resolve_views
from tta_restore.models import Restoration, Restorer


class Roles(nn.Module):
    """The part of an adapter that methods work with; see :class:`Adapter`, which users make."""

    roles: ClassVar[tuple[str, ...]] = ("student", "teacher")
    """Sets that a method keeps of the selected tensors; the default ``emit`` gives the last one's restoration."""

    def __new__(cls, *_arguments: Any, **keywords: Any) -> Self:
        """Answer a keyword that neither the method nor what it passes its options to takes, by near names."""
        registry.expect_options(cls, keywords)
        return super().__new__(cls)

    def __init__(
        self,
        restorer: Restorer,
        *,
        select: Select | None,
        views: Views,
        tiles: Tiles | None,
        semantic: Semantic | None,
        training: bool,
        share_prefix: bool,
        memory_format: torch.memory_format,
        seed: int,
    ) -> None:
        super().__init__()
        self.restorer = restorer
        self.semantic = semantic
        self.injection = None if semantic is None else semantic.injection(restorer)
        self._backbone = Backbone(
            restorer, self.injection, training=training, share=share_prefix, memory_format=memory_format
        )
        if select is not None and not isinstance(self._backbone.root, nn.Module):
            raise TypeError(f"{type(self).__name__}: a function has no weights to select; expected a module")
        injected = None if self.injection is None else self.injection.weights()
        self.adapted = () if select is None else select_parameters(self._backbone.root, select, injected=injected)
        self.views = resolve_views(views)
        self.views_name = views if isinstance(views, str) else f"{len(self.views)} own views"
        self.tiles = tiles
        self._seed = seed
        self._state: State | None = None  # the last good one; made on first use, when a subclass is complete
        self._live: State | None = None  # the one that a frame is working on
        self._generator: torch.Generator | None = None
        self._frame: Frame | None = None  # the one in work
        self._detached = False

    @property
    def state(self) -> State:
        """What the adapter remembers; inside a frame, the state that the frame works on."""
        if self._live is not None:
            return self._live
        self._expect_attached()
        if self._state is None:
            self._state = self._initial_state()
        return self._state

    @property
    def extra(self) -> dict[str, Any]:
        """What the method itself remembers."""
        return self.state.extra

    @property
    def student(self) -> ParameterSet:
        """Tensors that the optimizer steps."""
        return self.state.sets["student"]

    @property
    def teacher(self) -> ParameterSet:
        """Tensors that follow the student slowly."""
        return self.state.sets["teacher"]

    @property
    def source(self) -> ParameterSet:
        """The model's own tensors, at least float32."""
        own = self._backbone.parameters()
        return {
            name: own[name].detach().to(torch.promote_types(own[name].dtype, torch.float32)) for name in self.adapted
        }

    @property
    def generator(self) -> torch.Generator:
        """Random numbers of this frame, on the CPU; the only randomness a method may use."""
        if self._generator is None:
            raise RuntimeError(f"{type(self).__name__}: random numbers exist only while a frame is worked on")
        return self._generator

    def run(self, role: str, image: Tensor, **arguments: Any) -> Restoration:
        """Restoration with the weights of a role; gradients reach the student only, where they are switched on.

        Every role but the source is told the context of the frame in work, if there is a ``semantic``.
        """
        tensors, arguments = self._tensors(role), self._context(role) | arguments
        if role == "student" and torch.is_grad_enabled():
            return self._backbone.restore(tensors, image, **arguments)
        with torch.no_grad():
            return self._tiled(lambda part: self._backbone.restore(tensors, part, **arguments), image)

    def ensemble(self, role: str, image: Tensor, **arguments: Any) -> Restoration:
        """Mean over the views, each turned back, without gradient; what is not the image is the first view's."""
        tensors, arguments = self._tensors(role), self._context(role) | arguments

        def over_views(part: Tensor) -> Restoration:
            turned = [self._backbone.restore(tensors, self.views[0][0](part), **arguments)]
            image = self.views[0][1](turned[0].image)
            if len(self.views) == 1:
                return turned[0].with_image(image)
            total = image.float()
            for there, back in self.views[1:]:
                total = total + back(self._backbone.restore(tensors, there(part), **arguments).image).float()
            return turned[0].with_image((total / len(self.views)).to(image.dtype))

        with torch.no_grad():
            return self._tiled(over_views, image)

    def update_teacher(self, keep: float, *, share: float = 1.0) -> None:
        """Move the teacher towards the student: ``teacher = keep * teacher + (1 - keep) * student``.

        With a ``share`` below 1, towards the point that far on the way from the source to the student.
        """
        newest = self.student if share == 1 else parameter_sets.between(self.source, self.student, share)
        parameter_sets.average(self.teacher, newest, keep)

    def stochastic_restore(self, probability: float) -> None:
        """Put source values back into random scalars of the student."""
        parameter_sets.restore(self.student, self.source, probability, self.generator)

    def snapshot(self) -> dict[str, ParameterSet]:
        """Copies of the student and the teacher, to be kept in ``extra`` and given to :meth:`restart`."""
        return {role: parameter_sets.copied(tensors) for role, tensors in self.state.sets.items()}

    def restart(self, student: ParameterSet | None = None, teacher: ParameterSet | None = None) -> None:
        """Continue from given values, by default the source's, with a fresh optimizer and schedule."""
        state, start = self.state, student or self.source
        parameter_sets.assign(state.sets["student"], start)
        if "teacher" in state.sets:
            parameter_sets.assign(state.sets["teacher"], teacher or start)
        state.optimizer = self.make_optimizer(list(state.sets["student"].values()))
        state.updates, state.losses = 0, []

    def initial_extra(self) -> dict[str, Any]:
        """What the method remembers at the start: tensors, numbers, text, None in dicts, lists and tuples."""
        return {}

    def make_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer | None:
        """Optimizer of the student's tensors; None for a method whose ``optimize`` does without."""
        return torch.optim.Adam(parameters, lr=1e-4)

    def _tensors(self, role: str) -> ParameterSet | None:
        if role != "source" and role not in self.state.sets:
            known = ", ".join(["source", *self.state.sets])
            raise ValueError(f"{type(self).__name__}: expected one of the roles {known}, got {role!r}")
        return None if role == "source" else self.state.sets[role]

    def _context(self, role: str) -> dict[str, Any]:
        frame, state = self._frame, self.state
        if role == "source" or self.semantic is None or frame is None:
            return {}
        if "context" not in frame.notes:
            kept, every = state.context, self.semantic.every
            if kept is None or state.frames % every == 0 or kept.shape[0] != frame.region.shape[0]:
                with torch.no_grad():
                    kept = self.semantic(self.run("source", frame.region).image)
                state.context = kept if every > 1 else None
            frame.notes["context"] = self.semantic.keywords(kept.to(frame.region.device))
        return frame.notes["context"]

    def _tiled(self, restore: Callable[[Tensor], Restoration], image: Tensor) -> Restoration:
        if self.tiles is None or not self.tiles.needed(image):
            return restore(image)
        spec = self.restorer.known_spec(image)
        return self.tiles.run(restore, image, scale=spec.scale, size=spec.size)

    def _expect_dense(self, image: Tensor) -> None:
        """Raise where a model that gives no image, such as a classifier, would have one turned back or put together."""
        if self.restorer.known_spec(image).dense:
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
        sets = {role: parameter_sets.copied(source, trained=role == "student") for role in self._kept_roles()}
        optimizer = self.make_optimizer(list(sets["student"].values())) if "student" in sets else None
        return State(self._seed, sets, optimizer, extra=self.initial_extra())

    def _kept_roles(self) -> tuple[str, ...]:
        return self.roles if self.adapted else ()

    def _devices(self) -> dict[str, torch.device]:
        own = self._backbone.parameters()
        return {name: own[name].device for name in self.adapted}

    def _expect_attached(self) -> None:
        if self._detached:
            raise RuntimeError(f"{type(self).__name__}: was detached from its model; make a new adapter")
