"""Train any restorer on misaligned pairs: one process or several, killed and resumed at will, watched while it runs."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from tta_restore.data.atomic_file import atomic_file
from tta_restore.data.misaligned import MisalignedPair
from tta_restore.engine.misaligned import MisalignedObjective, MisalignedSettings, MisalignedStep
from tta_restore.engine.misaligned_pictures import draw_step
from tta_restore.engine.usage import UsageError
from tta_restore.models.jdrl import JdrlReblur
from tta_restore.models.optical_flow import LucasKanade

PairSource = Callable[[int, torch.Generator], MisalignedPair]


@dataclass(frozen=True)
class TrainingRun:
    """How long, how often, where to.

    Attributes:
        out: folder; ``state.pt`` in it is continued from when it is there.
        steps: in all.
        batch: pairs per step and process.
        save_every: steps between states.
        log_every: steps between lines of the log.
        draw_every: steps between pictures; 0 for none.
        seed: of pairs and dropout; weights are the caller's.
        device: of the networks.
        progress: whether a bar is shown on a terminal.
    """

    out: Path
    steps: int = 2000
    batch: int = 4
    save_every: int = 200
    log_every: int = 50
    draw_every: int = 500
    seed: int = 0
    device: str = "cpu"
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainingRun: expected {name} >= 1, got {getattr(self, name)}")


def train_misaligned(
    restorer: nn.Module,
    source: PairSource,
    run: TrainingRun,
    *,
    reblur: JdrlReblur | None = None,
    flow: Callable[[Tensor, Tensor], Tensor] | None = None,
    settings: MisalignedSettings = MisalignedSettings(),  # noqa: B008 (frozen)
    on_step: Callable[[int, MisalignedStep], None] | None = None,
) -> MisalignedObjective:
    """Train a restorer on misaligned pairs and return the objective that holds it, in eval mode.

    Every step draws its pairs and dropout masks from numbers that the seed, the step and the process alone decide, so a
    run that was killed and continued ends with the same weights as one that was not. Under ``torchrun`` every process
    takes batches of its own and gradients are averaged. Writes to ``run.out``: ``state.pt`` (to continue from),
    ``restorer.safetensors``, ``reblur.safetensors``, ``log.jsonl``, pictures, and TensorBoard events where the package
    ``tensorboard`` is installed.

    Raises:
        UsageError: ``run.out`` holds the state of a run with other settings.
    """
    rank, world, started_here = _join(run.device)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            objective = MisalignedObjective(restorer, reblur, flow=flow or LucasKanade(), settings=settings)
        objective.to(run.device).train()
        optimiser = torch.optim.Adam(objective.groups(), betas=(0.9, 0.999), eps=1e-8)
        first = _resume(objective, optimiser, run, settings, world)
        if world > 1:
            for tensor in objective.state_dict().values():
                dist.broadcast(tensor, 0)
        with _log(run, rank) as write:
            steps = range(first, run.steps)
            bar = tqdm(steps, initial=first, total=run.steps, disable=None if run.progress and rank == 0 else True)
            for step in bar:
                found = _step(objective, optimiser, source, run, step, rank, world)
                if on_step is not None:
                    on_step(step, found)
                last = step + 1 == run.steps
                if step % run.log_every == 0 or last:
                    loss = found.loss.item()
                    bar.set_postfix(loss=f"{loss:.4f}", stage=settings.stage(step))
                    write(step, {"loss": loss} | {name: part.item() for name, part in found.parts.items()})
                if rank == 0 and run.draw_every and (step % run.draw_every == 0 or last):
                    draw_step(found.tensors, run.out / "pictures" / f"{step:06d}.png")
                if (step + 1) % run.save_every == 0 or last:
                    if rank == 0:
                        _save(objective, optimiser, run, settings, world, step + 1)
                    if world > 1:
                        dist.barrier()
        objective.eval()
        if rank == 0:
            _export(objective, run)
        return objective
    finally:
        if started_here:
            dist.destroy_process_group()


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of everything random in a step of a process."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB + 1) & (2**64 - 1)
    mixed = (mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93 & (2**64 - 1)
    return (mixed ^ (mixed >> 32)) & (2**62 - 1)


def _step(
    objective: MisalignedObjective,
    optimiser: torch.optim.Optimizer,
    source: PairSource,
    run: TrainingRun,
    step: int,
    rank: int,
    world: int,
) -> MisalignedStep:
    seed = step_seed(run.seed, step, rank)
    pair = source(run.batch, torch.Generator().manual_seed(seed))
    moved = MisalignedPair(
        pair.blurry.to(run.device),
        pair.sharp.to(run.device),
        flow=None if pair.flow is None else pair.flow.to(run.device),
    )
    for group, base in zip(optimiser.param_groups, objective.groups(), strict=True):
        group["lr"] = base["lr"] * objective.settings.rate(step)
    devices = [torch.device(run.device)] if torch.device(run.device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # dropout draws from the global generator
        torch.manual_seed(seed)
        found = objective(moved, step)
        optimiser.zero_grad(set_to_none=True)
        found.loss.backward()
    if world > 1:
        # which parameters have gradients depends on the stage alone: all processes agree
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
    optimiser.step()
    return found


def _join(device: str) -> tuple[int, int, bool]:
    """Rank and number of processes; joins those that ``torchrun`` started."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size(), False
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1, False
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return dist.get_rank(), dist.get_world_size(), True


def _identity(run: TrainingRun, settings: MisalignedSettings, world: int) -> dict[str, Any]:
    """What a state must agree with to be continued from."""
    return settings.as_dict() | {"batch": run.batch, "seed": run.seed, "processes": world}


def _save(
    objective: MisalignedObjective,
    optimiser: torch.optim.Optimizer,
    run: TrainingRun,
    settings: MisalignedSettings,
    world: int,
    step: int,
) -> None:
    state = {
        "step": step,
        "identity": _identity(run, settings, world),
        "weights": objective.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    with atomic_file(run.out / "state.pt") as partial:
        torch.save(state, partial)


def _resume(
    objective: MisalignedObjective,
    optimiser: torch.optim.Optimizer,
    run: TrainingRun,
    settings: MisalignedSettings,
    world: int,
) -> int:
    path = run.out / "state.pt"
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, map_location=run.device, weights_only=True)
        differing = [
            f"{name} {state['identity'].get(name)!r} there, {value!r} here"
            for name, value in _identity(run, settings, world).items()
            if state["identity"].get(name) != value
        ]
        if differing:
            raise UsageError(f"{path} is of another run ({'; '.join(differing)}); continue that one or move it away")
        objective.load_state_dict(state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is damaged or of other networks: {str(error).splitlines()[0]}") from error


def _export(objective: MisalignedObjective, run: TrainingRun) -> None:
    for name, module in (("restorer", objective.restorer), ("reblur", objective.reblur)):
        weights = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in module.state_dict().items()}
        with atomic_file(run.out / f"{name}.safetensors") as partial:
            save_file(weights, partial)


@contextmanager
def _log(run: TrainingRun, rank: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Lines of numbers in ``log.jsonl``, and in TensorBoard where it is installed."""
    if rank:
        yield lambda step, values: None
        return
    run.out.mkdir(parents=True, exist_ok=True)
    try:
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(run.out / "tensorboard"))
    except ImportError:
        board = None
    started = time.perf_counter()
    with open(run.out / "log.jsonl", "a", encoding="utf-8") as file:

        def write(step: int, values: dict[str, float]) -> None:
            line = {"step": step, **values, "seconds": round(time.perf_counter() - started, 2)}
            file.write(json.dumps(line) + "\n")
            file.flush()
            if board is not None:
                for name, value in values.items():
                    board.add_scalar(f"loss/{name}", value, step)

        yield write
    if board is not None:
        board.close()
