"""Training carried by Lightning Fabric: devices, precision, DDP, FSDP, gradient accumulation, several machines.

The loop of :mod:`tta_restore.engine.train.loop` resumes bit for bit and needs nothing but torch. This one takes over
where a run outgrows one machine: batches and seeds are the same, and a state can be continued on other hardware, but
not to the same bits.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tta_restore._core.progress import ProgressBar
from tta_restore.data.io.atomic import atomic_file
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.config import TrainingRun
from tta_restore.engine.train.files import expect_same_run, keep_best, open_log, write_weights
from tta_restore.engine.train.loop import (
    BatchSource,
    Objective,
    StepOutput,
    moved,
    run_identity,
    step_seed,
    tell_continued,
)

__all__ = ["create_fabric", "expect_carried", "train_with_fabric"]

O = TypeVar("O", bound=Objective)  # noqa: E741


def create_fabric(run: TrainingRun, **options: Any) -> Any:
    """Return a ``lightning.fabric.Fabric`` for the device of a run.

    Args:
        run: its device chooses the accelerator.
        options: of Fabric: ``accelerator``, ``strategy`` ("ddp", "fsdp", ...), ``devices``, ``num_nodes``,
            ``precision`` ("32-true", "bf16-mixed", ...). The strategy "fsdp2" shards weights, gradients and states of
            optimizers by ``torch.distributed.fsdp.fully_shard`` over all ``devices`` of all nodes, on CPUs as well;
            during a step the weights are whole.

    Raises:
        UsageError: Lightning Fabric is not installed, or does not take the options.
    """
    for name in ("lightning.fabric", "lightning_fabric"):
        try:
            fabric = importlib.import_module(name)
            break
        except ImportError:
            continue
    else:
        raise UsageError("[run] engine: fabric is not installed: pip install lightning-fabric")
    kind, _, index = run.device.partition(":")
    devices: Any = [int(index)] if index else "auto" if kind == "cuda" else 1
    chosen = {"accelerator": kind, "devices": devices} | options
    try:
        if chosen.get("strategy") == "fsdp2":
            if not isinstance(chosen["devices"], int):
                raise ValueError(f"strategy 'fsdp2': expected a number of devices, got {chosen['devices']!r}")
            strategies = importlib.import_module(f"{fabric.__name__}.strategies")
            count = chosen["devices"] * int(chosen.get("num_nodes", 1))
            chosen["strategy"] = strategies.ModelParallelStrategy(
                _shard, data_parallel_size=count, tensor_parallel_size=1
            )
        return fabric.Fabric(**chosen)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"[fabric] {' '.join(str(error).split())}") from error


def train_with_fabric(
    objective: O,
    source: BatchSource,
    run: TrainingRun,
    *,
    fabric: Any = None,
    validate: Callable[[O], Mapping[str, float]] | None = None,
    on_step: Callable[[int, StepOutput], None] | None = None,
) -> O:
    """Train the networks of an objective by Lightning Fabric and return it in eval mode.

    A step takes ``run.accumulate`` batches of ``run.batch_size`` per process. Writes what
    :func:`tta_restore.engine.train.loop.train` writes; the state is Fabric's own, ``fabric/``.

    Args:
        objective: networks and their loss; one that overrides ``update`` is refused.
        source: makes batches.
        run: how long and where to.
        fabric: launched or not; None for :func:`create_fabric` without options.
        validate: see :func:`tta_restore.engine.train.loop.train`.
        on_step: called after every step.

    Raises:
        UsageError: the objective has an update rule of its own, or ``run.out`` holds the state of other settings.
        FloatingPointError: the loss is not finite any more.
    """
    expect_carried(objective)
    fabric = create_fabric(run) if fabric is None else fabric
    fabric.launch()
    objective.train()
    carried = fabric.setup_module(_Carrier(objective), move_to_device=True)
    optimizers = objective.optimizers()  # after sharding, which replaces the parameters
    rates = {name: [group["lr"] for group in o.param_groups] for name, o in optimizers.items()}
    made = fabric.setup_optimizers(*optimizers.values())
    set_up = list(made) if len(optimizers) > 1 else [made]
    identity = run_identity(objective, source, run) | {"accumulate": run.accumulate}
    first = _resume(fabric, run.out, identity, carried, set_up)
    if first and run.progress and fabric.is_global_zero:
        tell_continued(run.out, first)
    with open_log(run.out, first, silent=not fabric.is_global_zero, logger=run.logger) as log:
        steps = range(first, run.steps)
        shown = run.progress and fabric.is_global_zero
        bar = ProgressBar(steps, initial=first, total=run.steps, unit="step", shown=shown)
        for step in bar:
            for name, optimizer in zip(optimizers, set_up, strict=True):
                for group, rate in zip(optimizer.param_groups, rates[name], strict=True):
                    group["lr"] = rate * objective.rate(step)
            found = _step(fabric, carried, objective, set_up, source, run, step)
            if on_step is not None:
                on_step(step, found)
            last = step + 1 == run.steps
            if step % run.log_every == 0 or last:
                loss = float(fabric.all_reduce(found.loss.detach(), reduce_op="mean"))
                if loss - loss != 0:
                    raise FloatingPointError(f"the loss at step {step} is {loss}; a lower learning rate may help")
                bar.set_postfix({"loss": f"{loss:.4f}", **objective.status(step)})
                log.numbers(step, {"loss": loss} | {name: part.item() for name, part in found.parts.items()})
            if validate is not None and run.validate_every and ((step + 1) % run.validate_every == 0 or last):
                _validate(fabric, carried, objective, validate, run.out, step, log)
            if (step + 1) % run.save_every == 0 or last:
                _save(fabric, run.out, identity, carried, set_up, step + 1)
    weights = _whole_weights(carried)
    if fabric.is_global_zero:
        _write(objective, weights, run.out)
    fabric.barrier()
    objective.eval()
    return objective


def expect_carried(objective: Objective) -> None:
    """Refuse an objective that Fabric cannot carry.

    Raises:
        UsageError: it has an update rule of its own.
    """
    kind: type[Objective] = type(objective)
    if kind.update is not Objective.update:
        raise UsageError(
            f"[run] engine: fabric does not carry {kind.__name__}, which takes more than one optimizer step on a loss; "
            "leave run.engine out: torchrun shares its batches among processes"
        )


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Shard all parameters in one group, which is whole during a step: networks use weights outside their layers."""
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, mesh=mesh["data_parallel"])  # type: ignore[bad-return]


class _Held:
    """A batch, and the output for it, in an object that Fabric does not open: batches are frozen dataclasses."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.found: Any = None


class _Carrier(nn.Module):
    """Module whose forward returns the loss of an objective."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, held: _Held, step: int) -> Tensor:
        """Return the loss of a held batch, and keep the whole output there."""
        held.found = self.objective(held.batch, step)
        return held.found.loss


def _step(
    fabric: Any,
    carried: Any,
    objective: Objective,
    optimizers: Sequence[Any],
    source: BatchSource,
    run: TrainingRun,
    step: int,
) -> StepOutput:
    """Take one optimizer step on the batches of a step; return the last one's output with the mean loss."""
    losses: list[Tensor] = []
    found: Any = None
    for part in range(run.accumulate):
        seed = step_seed(run.seed, step * run.accumulate + part, fabric.global_rank)
        batch = moved(source(run.batch_size, torch.Generator().manual_seed(seed)), fabric.device)
        torch.manual_seed(seed)
        with fabric.no_backward_sync(carried, enabled=part + 1 < run.accumulate):
            held = _Held(batch)
            loss = carried(held, step)
            fabric.backward(loss / run.accumulate)
            found = held.found
        losses.append(found.loss.detach())
    for optimizer in optimizers:
        if objective.clip is not None:
            fabric.clip_gradients(carried, optimizer, max_norm=objective.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return StepOutput(torch.stack(losses).mean(), found.parts, found.tensors)


def _validate(
    fabric: Any,
    carried: Any,
    objective: O,
    validate: Callable[[O], Mapping[str, float]],
    out: Path,
    step: int,
    log: Any,
) -> None:
    objective.eval()
    with torch.no_grad():
        scores = {name: float(value) for name, value in validate(objective).items()}
    objective.train()
    log.numbers(step, {f"validation/{name}": score for name, score in scores.items()})
    weights = _whole_weights(carried)
    if fabric.is_global_zero:
        keep_best(out, step, scores, lambda folder: _write(objective, weights, folder))
    fabric.barrier()


def _whole_weights(carried: Any) -> dict[str, Tensor]:
    """Return the whole weights, gathered from shards where a strategy holds shards."""
    found = {}
    for name, tensor in carried.state_dict().items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        found[name.removeprefix("objective.")] = whole.detach().cpu()
    return found


def _write(objective: Objective, weights: Mapping[str, Tensor], out: Path) -> None:
    """Write the exports with these weights of the objective."""
    prefixes = {id(module): name for name, module in objective.named_modules()}
    networks = {}
    for name, module in objective.exports().items():
        prefix = f"{prefixes[id(module)]}."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        networks[name] = _Weights(own)
    out.mkdir(parents=True, exist_ok=True)
    write_weights(out, networks, objective.built)  # type: ignore[bad-argument-type]


class _Weights:
    """A state dict in the place of a module."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = dict(weights)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights."""
        return self._weights


def _save(
    fabric: Any, out: Path, identity: Mapping[str, Any], carried: Any, optimizers: Sequence[Any], step: int
) -> None:
    state = {"model": carried} | {f"optimizer{i}": optimizer for i, optimizer in enumerate(optimizers)}
    fabric.save(out / "fabric" / f"{step}.ckpt", state)
    fabric.barrier()
    if fabric.is_global_zero:
        text = json.dumps({"step": step, "identity": dict(identity)})
        with atomic_file(out / "fabric" / "state.json") as partial:
            partial.write_text(text, encoding="utf-8")
        for old in (out / "fabric").glob("*.ckpt"):
            if old.stem != str(step):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    fabric.barrier()


def _resume(fabric: Any, out: Path, identity: Mapping[str, Any], carried: Any, optimizers: Sequence[Any]) -> int:
    path = out / "fabric" / "state.json"
    if not path.is_file():
        if (out / "state.pt").is_file():
            raise UsageError(f"{out} holds a run of the engine own; continue it with that engine or move it away")
        return 0
    known = json.loads(path.read_text(encoding="utf-8"))
    expect_same_run(path, known["identity"], identity)
    state = {"model": carried} | {f"optimizer{i}": optimizer for i, optimizer in enumerate(optimizers)}
    fabric.load(out / "fabric" / f"{known['step']}.ckpt", state)
    return int(known["step"])
