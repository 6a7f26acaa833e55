"""The loop over the steps of a frame, and the points at which a method fills it in."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor

from tta_restore.adapters import state as parameter_sets
from tta_restore.adapters.frame import Frame, StepReport
from tta_restore.adapters.guards import Guards
from tta_restore.adapters.roles import Roles
from tta_restore.adapters.tiling import CenterCrop
from tta_restore.models import Restoration


class Method(Roles):
    """The part of an adapter that methods override; see :class:`Adapter`, which users make."""

    guards: Guards
    region: CenterCrop | None
    steps: int
    _moved = False  # whether a step ever changed the student, so that it need not be watched any more

    def begin_frame(self, frame: Frame) -> None:
        """Look at a frame before any step on it."""

    def objective(self, frame: Frame) -> Tensor | None:
        """Loss of one step, or None where there is nothing to learn."""
        return None

    def accept(self, frame: Frame, loss: Tensor) -> str | None:
        """Why a step is not to be taken, or None to take it."""
        return None

    def learning_rate(self, update: int) -> float | None:
        """Learning rate of update 0, 1, 2, ..., or None to leave the optimizer's."""
        return None

    def optimize(self, frame: Frame, loss: Tensor) -> str | None:
        """One optimizer step on the student; why it was not taken, or None."""
        return self.step(frame, self.gradients(loss))

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        """Gradient of a loss for each of the student's tensors, None for those it does not depend on.

        Raises:
            RuntimeError: it depends on none.
        """
        student = list(self.student.values())
        gradients = torch.autograd.grad(loss, student, allow_unused=True) if loss.requires_grad else ()
        if all(gradient is None for gradient in gradients):
            raise RuntimeError(
                f"{type(self).__name__}: the loss depends on none of the {len(student)} adapted tensors "
                f"({', '.join(self.adapted[:3])}, ...); models.probe shows which weights a gradient reaches"
            )
        return list(gradients)

    def step(self, frame: Frame, gradients: list[Tensor | None]) -> str | None:
        """One optimizer step on the student with these gradients; why it was not taken, or None."""
        student = list(self.student.values())
        reached = [gradient for gradient in gradients if gradient is not None]
        norm = parameter_sets.overall_norm(reached)
        if not math.isfinite(norm):
            return "gradient holds NaN or infinity"
        frame.grad_norm = norm
        optimizer = self.state.optimizer
        if optimizer is None:
            raise RuntimeError(f"{type(self).__name__}: there is nothing to optimize; pass select")
        rate = self.learning_rate(self.state.updates)
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate
        frame.learning_rate = float(optimizer.param_groups[0]["lr"])
        before = None if self._moved else [tensor.detach().clone() for tensor in student]
        for tensor, gradient in zip(student, gradients, strict=True):
            # torch's fused optimizers read a gradient in the tensor's order, whatever its strides say
            laid_out = gradient is None or gradient.stride() == tensor.stride()
            tensor.grad = gradient if laid_out else torch.empty_like(tensor).copy_(gradient)
        optimizer.step()
        for tensor in student:
            tensor.grad = None
        self.state.updates += 1
        self._watch(before, student)
        return None

    def after_step(self, frame: Frame) -> None:
        """Average, restore, count: what follows every optimizer step."""

    def emit(self, frame: Frame) -> Restoration:
        """The restoration to give for a frame."""
        return self.ensemble((self._kept_roles() or ("source",))[-1], frame.image)

    def config(self) -> dict[str, Any]:
        """Settings that a saved state depends on, as JSON values."""
        return {
            "views": self.views_name,
            "steps": self.steps,
            "region": None if self.region is None else str(self.region),
            "guards": str(self.guards),
            "training": self._backbone.training,
            "semantic": None if self.semantic is None else repr(self.semantic),
        }

    def cost(self) -> str:
        """Passes through the model for each frame, in words."""
        return f"{len(self.views)} forward per frame"

    def _take_steps(self, frame: Frame) -> StepReport:
        started = time.perf_counter()
        state = self.state
        number, taken, losses = state.frames, 0, []
        self.begin_frame(frame)
        skipped = frame.skip
        for _ in range(0 if frame.skip else frame.steps):
            with torch.enable_grad():
                loss = self.objective(frame)
            if loss is None:
                skipped = f"{type(self).__name__} learns nothing"
                break
            losses.append(loss.item())
            refusal = self.guards.refuses(losses[-1], state.losses) or self.accept(frame, loss)
            self.guards.remember(losses[-1], state.losses)
            refusal = refusal or self.optimize(frame, loss)
            del loss  # and the graph with it
            if refusal:
                skipped = refusal
                continue
            taken += 1
            self.after_step(frame)
            if self.guards.drift is not None:
                parameter_sets.pull_back(self.student, self.source, self.guards.drift)
        state.frames += 1
        return StepReport(
            frame=number,
            updated=taken > 0,
            loss=sum(losses) / len(losses) if losses else None,
            steps=taken,
            skipped_because=skipped,
            drift=parameter_sets.drift(state.sets.get("student", {}), self.source),
            grad_norm=frame.grad_norm,
            learning_rate=frame.learning_rate,
            seconds=time.perf_counter() - started,
            extra=dict(frame.extra),
            remarks=tuple(frame.remarks),
        )

    def _watch(self, before: list[Tensor] | None, student: list[Tensor]) -> None:
        if before is None:
            return
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
