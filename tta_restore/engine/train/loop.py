"""The loop that every training here runs in: one process or several, killed and resumed at will, watched as it runs."""

from __future__ import annotations

import dataclasses
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tta_restore._core.processes import Processes
from tta_restore._core.progress import ProgressBar
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.run.device import physical_memory
from tta_restore.engine.run.outputs import locked_output
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.config import TrainingRun
from tta_restore.engine.train.files import keep_best, open_log, resume_state, save_state, write_weights
from tta_restore.engine.train.identity import plain

__all__ = [
    "BatchSource",
    "Objective",
    "Optimizers",
    "StepOutput",
    "expect_finite",
    "make_batches",
    "moved",
    "run_identity",
    "seeded_step",
    "step_seed",
    "tell_continued",
    "train",
    "write_picture",
]

Optimizers = dict[str, torch.optim.Optimizer]
BatchSource = Callable[[int, torch.Generator], Any]


@dataclass
class StepOutput:
    """Result of one step: the loss, its named terms, and images to draw."""

    loss: Tensor
    parts: dict[str, Tensor]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def sum_of(parts: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> StepOutput:
        """Return the step whose loss is the sum of its parts; only the loss keeps its graph."""
        loss = torch.stack(list(parts.values())).sum()
        detached = {name: part.detach() for name, part in parts.items()}
        return StepOutput(loss, detached, {name: tensor.detach() for name, tensor in tensors.items()})


class Objective(nn.Module, ABC):
    """Networks, and the rule by which a step of training changes them.

    A subclass has its networks as submodules and gives :meth:`groups`, :meth:`exports` and ``forward(batch, step)``,
    the :class:`StepOutput` of a batch; a rule that is not "loss, backward, one optimizer step" overrides :meth:`update`
    instead. Whatever must survive a restart is in the state dicts of the module and of its optimizers; everything
    random is drawn from the generator of the batch or, inside the networks, from the global one, which the loop seeds
    for every step.
    """

    #: Largest L2 norm of the gradient over all parameters of an optimizer; None for any.
    clip: float | None = None
    #: Whether every trained weight gets a gradient at every step.
    all_weights_learn: bool = True

    def __init__(self) -> None:
        super().__init__()
        #: Name of an export -> registered model and configuration that it was built from, written with its weights.
        self.built: dict[str, tuple[str, dict[str, Any]]] = {}

    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups, each with its ``lr`` where it has one of its own."""

    def optimizers(self) -> Optimizers:
        """Name -> optimizer; called once, when the networks are on their device."""
        return {"optimizer": torch.optim.Adam(self.groups(), betas=(0.9, 0.999), eps=1e-8)}

    def rate(self, step: int) -> float:
        """Return the factor on all learning rates at a step."""
        return 1.0

    def update(self, batch: Any, step: int, optimizers: Optimizers, processes: Processes) -> StepOutput:
        """Learn from a batch: gradients averaged over the processes, clipped, one step of every optimizer."""
        found = self(batch, step)
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        found.loss.backward()
        for optimizer in optimizers.values():
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            processes.average([p.grad for p in parameters if p.grad is not None])
            if self.clip is not None:
                nn.utils.clip_grad_norm_(parameters, self.clip)
            optimizer.step()
        return found

    def identity(self) -> dict[str, Any]:
        """Plain values that a state must agree with to be continued from."""
        return {}

    @abstractmethod
    def exports(self) -> dict[str, nn.Module]:
        """File name without suffix -> network whose weights are handed out at the end."""

    def write(self, folder: Path) -> None:
        """Write the exports."""
        write_weights(folder, self.exports(), self.built)

    def status(self, step: int) -> dict[str, str]:
        """Return the text that the progress bar shows next to the loss."""
        return {}

    def picture(self, found: StepOutput) -> Tensor | None:
        """Return a step as one picture (3, H, W) in [0, 1]; None for a step of which there is nothing to see."""
        return None


O = TypeVar("O", bound=Objective)  # noqa: E741


def train(
    objective: O,
    source: BatchSource,
    run: TrainingRun,
    *,
    validate: Callable[[O], Mapping[str, float]] | None = None,
    on_step: Callable[[int, StepOutput], None] | None = None,
) -> O:
    """Train the networks of an objective and return it in eval mode.

    Every step draws its batch and dropout masks from numbers that the seed, the step and the process alone decide, so a
    run that was killed and continued ends with the same weights as one that was not. Under ``torchrun`` every process
    takes batches of its own and gradients are averaged. Writes to ``run.out``: ``state.pt`` (to continue from), the
    exported networks as safetensors, ``log.jsonl``, images, and what ``run.logger`` asks for. With ``run.engine``
    "fabric" :mod:`tta_restore.engine.train.fabric` trains instead.

    Args:
        objective: networks and their rule.
        source: makes batches, called as ``source(run.batch_size, generator)``, from ``run.num_workers`` threads.
        run: how long and where to.
        validate: numbers of the networks as they are, in eval mode and without gradients, the first of them the better
            the higher; the weights that were best are kept in ``best/``.
        on_step: called after every step.

    Raises:
        UsageError: ``run.out`` holds the state of a run with other settings, or another run is using it.
        FloatingPointError: the loss is not finite any more; the last good state stays where it is.
    """
    if run.engine == "fabric":
        from tta_restore.engine.train.fabric import create_fabric, expect_carried, options_for, train_with_fabric

        expect_carried(objective, run)
        fabric = create_fabric(run, **options_for(objective, run))
        with locked_output(run.out, flag="--run.out"):
            return train_with_fabric(objective, source, run, fabric=fabric, validate=validate, on_step=on_step)
    with ExitStack() as stack:
        processes = stack.enter_context(Processes.join(run.device))
        if processes.first:
            stack.enter_context(locked_output(run.out, flag="--run.out"))
        objective.to(run.device).train()
        optimizers = objective.optimizers()
        rates = {name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in optimizers.items()}
        identity = run_identity(objective, source, run) | {"processes": processes.count}
        first = resume_state(run.out, identity, objective, optimizers, run.device)
        if first and run.progress and processes.first:
            tell_continued(run.out, first)
        processes.broadcast(objective.state_dict().values())
        with open_log(run.out, first, silent=not processes.first, logger=run.logger) as log:
            steps = range(first, run.steps)
            shown = run.progress and processes.first
            bar = ProgressBar(steps, initial=first, total=run.steps, unit="step", shown=shown)
            for step, batch in zip(bar, make_batches(source, run, steps, processes.rank), strict=True):
                for name, optimizer in optimizers.items():
                    for group, rate in zip(optimizer.param_groups, rates[name], strict=True):
                        group["lr"] = rate * objective.rate(step)
                with seeded_step(step_seed(run.seed, step, processes.rank), run.device):
                    found = objective.update(moved(batch, run.device), step, optimizers, processes)
                if on_step is not None:
                    on_step(step, found)
                last = step + 1 == run.steps
                saving = (step + 1) % run.save_every == 0 or last
                if step % run.log_every == 0 or last or saving:
                    loss = expect_finite(found, step)
                    bar.set_postfix({"loss": f"{loss:.4f}", **objective.status(step)})
                    if step % run.log_every == 0 or last:
                        log.numbers(step, {"loss": loss} | {name: part.item() for name, part in found.parts.items()})
                if processes.first and run.draw_every and (step % run.draw_every == 0 or last):
                    write_picture(objective, found, run.out, step, log.picture)
                if validate is not None and run.validate_every and ((step + 1) % run.validate_every == 0 or last):
                    scores = _validate(objective, validate, run.device) if processes.first else {}
                    log.numbers(step, {f"validation/{name}": score for name, score in scores.items()})
                    keep_best(run.out, step, scores, objective.write)
                if saving:
                    if processes.first:
                        save_state(run.out, identity, objective, optimizers, step + 1, built=objective.built)
                    processes.wait()
        objective.eval()
        if processes.first:
            objective.write(run.out)
        return objective


def run_identity(objective: Objective, source: BatchSource, run: TrainingRun) -> dict[str, Any]:
    """Return what a state of a run must agree with to be continued: settings, data, networks, batches and seed."""
    own = {"data": source, "networks": {name: {"model": m, **c} for name, (m, c) in objective.built.items()}}
    return {name: plain(value) for name, value in (objective.identity() | own).items()} | {
        "batch_size": run.batch_size,
        "seed": run.seed,
    }


def tell_continued(out: Path, first: int) -> None:
    """Write a line on a run that goes on; its weights are those of the state, whatever checkpoint is named."""
    ProgressBar.write(f"note: {out}: continued behind its first {first} steps, with their weights", file=sys.stderr)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of everything random in a step of a process."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB + 1) & (2**64 - 1)
    mixed = (mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93 & (2**64 - 1)
    return (mixed ^ (mixed >> 32)) & (2**62 - 1)


def moved(batch: Any, device: str | torch.device) -> Any:
    """The batch with its tensors on a device: tensors, dataclasses, mappings and sequences of them; others as is."""
    return _with_tensors(batch, lambda tensor: tensor.to(device))


def _with_tensors(batch: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        entries = {entry.name: _with_tensors(getattr(batch, entry.name), change) for entry in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **entries)
    if isinstance(batch, Mapping):
        return {name: _with_tensors(value, change) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_with_tensors(value, change) for value in batch)
    return batch


def make_batches(source: BatchSource, run: TrainingRun, steps: Sequence[int], rank: int) -> Iterator[Any]:
    """Return the batch of every step, ``run.num_workers`` of them made ahead.

    Raises:
        UsageError: this machine has no memory for one.
    """
    if steps:
        _expect_memory(source, run)

    def make(step: int) -> Any:
        return source(run.batch_size, torch.Generator().manual_seed(step_seed(run.seed, step, rank)))

    if not run.num_workers:
        yield from map(make, steps)
        return
    with ThreadPoolExecutor(run.num_workers) as pool:
        waiting: list[Future[Any]] = []
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > run.num_workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _expect_memory(source: BatchSource, run: TrainingRun) -> None:
    """Expect that batches fit into memory, by the size of a sample; a system that has none left ends the process."""
    sizes: list[int] = []

    def note_size(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    _with_tensors(source(1, torch.Generator().manual_seed(run.seed)), note_size)
    needed = sum(sizes) * run.batch_size * (1 + run.num_workers)
    available = physical_memory()
    if available is not None and needed > available:
        ahead = f" and {run.num_workers} ahead" if run.num_workers else ""
        raise UsageError(
            f"[run] batch_size {run.batch_size}: a batch{ahead} needs {needed / 1e9:.3g} GB of memory, "
            f"and this machine has {available / 1e9:.3g} GB"
        )


@contextmanager
def seeded_step(seed: int, device: str | torch.device) -> Iterator[None]:
    """Set the global generator, which dropout draws from, to a seed; afterwards it is as it was."""
    with torch.random.fork_rng(devices=[torch.device(device)] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def expect_finite(found: StepOutput, step: int) -> float:
    """Return the loss of a step as a number.

    Raises:
        FloatingPointError: it is not finite.
    """
    loss = found.loss.item()
    if loss - loss != 0:
        parts = ", ".join(f"{name} {part.item():g}" for name, part in found.parts.items())
        raise FloatingPointError(f"the loss at step {step} is {loss} ({parts}); a lower learning rate may help")
    return loss


def _validate(objective: O, validate: Callable[[O], Mapping[str, float]], device: str) -> dict[str, float]:
    objective.eval()
    try:
        with torch.no_grad():
            return {name: float(value) for name, value in validate(objective).items()}
    finally:
        objective.train()


def write_picture(
    objective: Objective, found: StepOutput, out: Path, step: int, show: Callable[[int, Tensor], None]
) -> None:
    """Write the picture of a step, where there is one, to ``pictures/``, and show it on the board of the log."""
    picture = objective.picture(found)
    if picture is None:
        return
    write_image(out / "pictures" / f"{step:06d}.png", Image(picture))
    show(step, picture)
