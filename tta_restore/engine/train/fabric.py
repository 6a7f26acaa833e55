"""Training carried by Lightning Fabric: devices, precision, DDP, FSDP, gradient accumulation, several machines.

The loop of :mod:`tta_restore.engine.train.loop` resumes bit for bit and needs nothing but torch. This one takes over
where a run outgrows one machine: batches and seeds are the same, and a state can be continued on other hardware, but
not to the same bits.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tta_restore._core.processes import Processes
from tta_restore._core.progress import ProgressBar
from tta_restore.data.io.atomic import atomic_file
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.config import TrainingRun
from tta_restore.engine.train.files import expect_same_run, keep_best, open_log, write_weights
from tta_restore.engine.train.loop import (
    BatchSource,
    Objective,
    Optimizers,
    StepOutput,
    make_batches,
    moved,
    run_identity,
    seeded_step,
    step_seed,
    tell_continued,
    write_picture,
)
from tta_restore.models.restorer.outputs import transform

__all__ = ["create_fabric", "expect_carried", "options_for", "train_with_fabric"]

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


def options_for(objective: Objective, run: TrainingRun) -> dict[str, Any]:
    """Return the options of :func:`create_fabric` in a run; DDP waits for no weights that may lack a gradient."""
    options = dict(run.fabric)
    if options.get("strategy") == "ddp" and not objective.all_weights_learn:
        options["strategy"] = "ddp_find_unused_parameters_true"
    return options


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

    A step takes ``run.accumulate`` batches of ``run.batch_size`` per process. An objective that overrides ``update``
    takes its own optimizer steps: Fabric starts the processes, places the networks and keeps the state, gradients are
    averaged as in :func:`tta_restore.engine.train.loop.train`, and "bf16-mixed" runs the networks in autocast. Writes
    what that function writes; the state is Fabric's own, ``fabric/``, and the weights of that step are next to it.

    Args:
        objective: networks and their loss.
        source: makes batches.
        run: how long and where to.
        fabric: launched or not; None for :func:`create_fabric` with the options of the run.
        validate: see :func:`tta_restore.engine.train.loop.train`.
        on_step: called after every step.

    Raises:
        UsageError: Fabric cannot carry the objective with these options, or ``run.out`` holds the state of other
            settings.
        FloatingPointError: the loss is not finite any more.
    """
    expect_carried(objective, run)
    fabric = create_fabric(run, **options_for(objective, run)) if fabric is None else fabric
    fabric.launch()
    objective.train()
    with ExitStack() as stack:
        kind = _OwnRule if _has_own_rule(objective) else _Wrapped
        carried = kind(fabric, objective, stack)
        rates = {name: [group["lr"] for group in o.param_groups] for name, o in carried.optimizers.items()}
        identity = run_identity(objective, source, run) | {"accumulate": run.accumulate}
        first = _resume(fabric, run.out, identity, carried.state)
        if first and run.progress and fabric.is_global_zero:
            tell_continued(run.out, first)
        log = stack.enter_context(open_log(run.out, first, silent=not fabric.is_global_zero, logger=run.logger))
        shown = run.progress and fabric.is_global_zero
        bar = ProgressBar(range(first, run.steps), initial=first, total=run.steps, unit="step", shown=shown)
        parts = range(first * run.accumulate, run.steps * run.accumulate)
        batches = make_batches(source, run, parts, fabric.global_rank)
        for step in bar:
            for name, optimizer in carried.optimizers.items():
                for group, rate in zip(optimizer.param_groups, rates[name], strict=True):
                    group["lr"] = rate * objective.rate(step)
            found = carried.step(batches, step, run)
            if on_step is not None:
                on_step(step, found)
            last = step + 1 == run.steps
            if step % run.log_every == 0 or last:
                loss = float(fabric.all_reduce(found.loss.detach(), reduce_op="mean"))
                if loss - loss != 0:
                    raise FloatingPointError(f"the loss at step {step} is {loss}; a lower learning rate may help")
                bar.set_postfix({"loss": f"{loss:.4f}", **objective.status(step)})
                log.numbers(step, {"loss": loss} | {name: part.item() for name, part in found.parts.items()})
            if fabric.is_global_zero and run.draw_every and (step % run.draw_every == 0 or last):
                write_picture(objective, found, run.out, step, log.picture)
            if validate is not None and run.validate_every and ((step + 1) % run.validate_every == 0 or last):
                _validate(fabric, carried, validate, run.out, step, log)
            if (step + 1) % run.save_every == 0 or last:
                _save(fabric, run.out, identity, carried, step + 1)
        weights = carried.weights()
    if fabric.is_global_zero:
        _write(objective, weights, run.out)
    fabric.barrier()
    objective.eval()
    return objective


def expect_carried(objective: Objective, run: TrainingRun) -> None:
    """Refuse options of a run that do not go with the update rule of an objective.

    Raises:
        UsageError: the objective takes its own optimizer steps, and weights would be sharded or batches accumulated.
    """
    if not _has_own_rule(objective):
        return
    name = type(objective).__name__
    strategy, precision = run.fabric.get("strategy", "auto"), run.fabric.get("precision", "32-true")
    if strategy not in ("auto", "ddp", "dp") and not str(strategy).startswith("ddp_"):
        raise UsageError(
            f"[run] fabric: strategy {strategy!r} does not go with {name}, which takes more than one optimizer step on "
            "a loss: expected 'ddp'"
        )
    if str(precision) not in ("32", "32-true", "bf16-mixed"):
        raise UsageError(f"[run] fabric: expected precision '32-true' or 'bf16-mixed' for {name}, got {precision!r}")
    if run.accumulate != 1:
        raise UsageError(f"[run] accumulate: {name} takes its own optimizer steps; a larger batch_size does the same")


def _has_own_rule(objective: Objective) -> bool:
    return type(objective).update is not Objective.update


class _Wrapped:
    """Networks that Fabric wraps: it averages gradients, shards weights and scales losses."""

    def __init__(self, fabric: Any, objective: Objective, stack: ExitStack) -> None:
        self.fabric, self.objective = fabric, objective
        self.module = fabric.setup_module(_Carrier(objective), move_to_device=True)
        made = objective.optimizers()  # after sharding, which replaces the parameters
        set_up = fabric.setup_optimizers(*made.values())
        self.optimizers: Optimizers = dict(zip(made, set_up if len(made) > 1 else [set_up], strict=True))

    @property
    def state(self) -> dict[str, Any]:
        """Objects that a state holds."""
        return {"model": self.module, **_numbered(self.optimizers)}

    def step(self, batches: Iterator[Any], step: int, run: TrainingRun) -> StepOutput:
        """Take one optimizer step on the next batches; return the last one's output with the mean loss."""
        fabric, losses = self.fabric, []
        found: Any = None
        for part in range(run.accumulate):
            held = _Held(moved(next(batches), fabric.device))
            seed = step_seed(run.seed, step * run.accumulate + part, fabric.global_rank)
            with (
                seeded_step(seed, fabric.device),
                fabric.no_backward_sync(self.module, enabled=part + 1 < run.accumulate),
            ):
                fabric.backward(self.module(held, step) / run.accumulate)
            found = held.found
            losses.append(found.loss.detach())
        for optimizer in self.optimizers.values():
            if self.objective.clip is not None:
                fabric.clip_gradients(self.module, optimizer, max_norm=self.objective.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return StepOutput(torch.stack(losses).mean(), found.parts, found.tensors)

    def weights(self) -> dict[str, Tensor]:
        """Return the whole weights, gathered from shards where a strategy holds shards."""
        found = {}
        for name, tensor in self.module.state_dict().items():
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            found[name.removeprefix("objective.")] = whole.detach().cpu()
        return found


class _OwnRule:
    """Networks whose objective takes its own optimizer steps, in the processes that Fabric started."""

    def __init__(self, fabric: Any, objective: Objective, stack: ExitStack) -> None:
        self.fabric, self.objective = fabric, objective.to(fabric.device)
        self.processes = Processes(fabric.global_rank, fabric.world_size, str(fabric.device))
        self.processes.broadcast(objective.state_dict().values())
        self.optimizers = objective.optimizers()
        if fabric.strategy.precision.precision == "bf16-mixed":
            for network in objective.children():
                stack.callback(_Bfloat16(network, fabric.device.type).remove)

    @property
    def state(self) -> dict[str, Any]:
        """Objects that a state holds."""
        return {"model": self.objective, **_numbered(self.optimizers)}

    def step(self, batches: Iterator[Any], step: int, run: TrainingRun) -> StepOutput:
        """Have the objective learn from the next batch."""
        batch = moved(next(batches), self.fabric.device)
        with seeded_step(step_seed(run.seed, step, self.fabric.global_rank), self.fabric.device):
            return self.objective.update(batch, step, self.optimizers, self.processes)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights."""
        return {name: tensor.detach().cpu() for name, tensor in self.objective.state_dict().items()}


class _Bfloat16:
    """Hooks that run a network in bfloat16 autocast and return float32; copies of the network have copies of them."""

    def __init__(self, module: nn.Module, device_type: str) -> None:
        self.device_type = device_type
        self.entered: list[torch.autocast] = []
        self.handles = (
            module.register_forward_pre_hook(self.enter),
            module.register_forward_hook(self.leave, always_call=True),
        )

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """Start autocast."""
        self.entered.append(torch.autocast(self.device_type, torch.bfloat16))
        self.entered[-1].__enter__()

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """End it, after a forward pass that failed, too."""
        self.entered.pop().__exit__(None, None, None)
        return transform(output, lambda _, leaf: leaf.float() if leaf.dtype == torch.bfloat16 else leaf)

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def _numbered(optimizers: Mapping[str, Any]) -> dict[str, Any]:
    return {f"optimizer{number}": optimizer for number, optimizer in enumerate(optimizers.values())}


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


def _validate(
    fabric: Any,
    carried: _Wrapped | _OwnRule,
    validate: Callable[[Any], Mapping[str, float]],
    out: Path,
    step: int,
    log: Any,
) -> None:
    objective = carried.objective
    objective.eval()
    with torch.no_grad():
        scores = {name: float(value) for name, value in validate(objective).items()}
    objective.train()
    log.numbers(step, {f"validation/{name}": score for name, score in scores.items()})
    weights = carried.weights()
    if fabric.is_global_zero:
        keep_best(out, step, scores, lambda folder: _write(objective, weights, folder))
    fabric.barrier()


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


def _save(fabric: Any, out: Path, identity: Mapping[str, Any], carried: _Wrapped | _OwnRule, step: int) -> None:
    fabric.save(out / "fabric" / f"{step}.ckpt", carried.state)
    weights = carried.weights()
    fabric.barrier()
    if fabric.is_global_zero:
        _write(carried.objective, weights, out / "fabric")
        text = json.dumps({"step": step, "identity": dict(identity)})
        with atomic_file(out / "fabric" / "state.json") as partial:
            partial.write_text(text, encoding="utf-8")
        for old in (out / "fabric").glob("*.ckpt"):
            if old.stem != str(step):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    fabric.barrier()


def _resume(fabric: Any, out: Path, identity: Mapping[str, Any], state: dict[str, Any]) -> int:
    path = out / "fabric" / "state.json"
    if not path.is_file():
        if (out / "state.pt").is_file():
            raise UsageError(f"{out} holds a run of the engine own; continue it with that engine or move it away")
        return 0
    known = json.loads(path.read_text(encoding="utf-8"))
    expect_same_run(path, known["identity"], identity)
    fabric.load(out / "fabric" / f"{known['step']}.ckpt", state)
    return int(known["step"])
