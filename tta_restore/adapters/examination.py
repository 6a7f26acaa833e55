"""Find out whether weights of a module can be exchanged: by what it is made of, and by a few passes on copies."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tta_restore._core.ambient import global_random, uncompiled
from tta_restore.adapters.replica import Replica, Watch, outputs_agree, outside_functions
from tta_restore.models import Restorer
from tta_restore.models.restorer import outputs
from tta_restore.models.restorer.outputs import is_continuous
from tta_restore.models.restorer.preserve import Values, preserve_state
from tta_restore.models.restorer.tiles import is_map

__all__ = ["Findings", "examine_copies", "expect_exchangeable", "expect_unsharded", "explain_backward"]

_REPEATS = 32
_SIDE = 64  # in pixels, of the crops that are tried first
_BY_NAME = (
    "something in it refers to the module by a global name, a function's closure or an object that is not copied, so "
    "that a copy would run the original"
)
_KEEPS = (
    "it keeps what it computed from its weights where a copy cannot undo it, such as a global table, so that a pass "
    "would use weights of another one"
)
_BYPASSES = (
    "it uses a weight by another reference than its modules' own attributes, such as a list of weights or a view of "
    "one, which would keep the old values"
)
_WRITES = (
    "a pass writes into its weights, as a clamp, an average of weights or an embedding with max_norm does, and would "
    "change the model, or what an adapter has learned"
)
_NO_SECOND_ORDER = (
    "the model differentiates within its pass, and the fast attentions of torch have no second derivative; run the "
    "adapter within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
)
_DIFFERS = "a copy of it gives other images, as where a function keeps what it saw in the module"


_SHARDED = (
    "the model's weights are sharded over processes (DTensor, FSDP2); make the adapter around the model before "
    "fully_shard, shard the adapter as a whole and call it (FSDP2 gathers weights during a call only), or use a copy "
    "with full weights"
)


@dataclass(frozen=True)
class Findings:
    """Behavior of a module on private copies.

    Attributes:
        problem: why copies do not work; empty where they do.
        replicas: the copies that were examined, where they work.
        remembers: whether its output depends on its earlier calls.
        reuses_memory: whether it returns the same memory from call to call, with new values.
        created: names of weights that a pass adds.
    """

    problem: str = ""
    replicas: tuple[Replica, Replica] | None = None
    remembers: bool = False
    reuses_memory: bool = False
    created: tuple[str, ...] = ()


def examine_copies(
    make: Callable[[], Replica],
    restorer: Restorer,
    frame: Tensor,
    arguments: Mapping[str, Any],
    *,
    training: bool,
    memory_format: torch.memory_format,
) -> Findings:
    """Examine a module on two copies that ``make`` makes.

    They have to agree on two frames in opposite order, and with other weights before and after a pass with their own,
    without a trace of one pass in the other, without touching a tensor of the module or writing into the memory of its
    weights, and without using a weight that was exchanged. Where functions of the user's take part, the module is run
    as well.
    """
    root: Any = getattr(restorer.module, "_orig_mod", restorer.module)
    try:
        replicas = make(), make()
    except Exception as error:  # whatever copying a third-party module raises
        return Findings(f"copying it raises {type(error).__name__}: {error}")
    frames = restorer.known_spec(frame).frames
    if frame.ndim == 4 and frames != 1:  # a clip, for methods that restore it frame by frame
        frame = frame[torch.arange(frames or len(frame)) % len(frame)][None]

    def run(host: Replica | nn.Module, x: Tensor, watch: Watch | None = None, *, reset: bool = True) -> Any:
        call = host if isinstance(host, nn.Module) else host.root

        def watched(*inputs: Any, **keywords: Any) -> Any:
            with watch or contextlib.nullcontext():
                return call(*inputs, **keywords)

        drawn.seed(0)
        if reset and isinstance(host, Replica):
            host.reset()
        return restorer.restore(x, call=watched, memory_format=memory_format, **given).raw

    problem, pair, given, weights = "", [frame], dict(arguments), Values(root.parameters())
    for side in (_SIDE, None):
        crop = (frame if arguments else frame[:1])[..., :side, :side]
        pair = [crop, 0.9 - 0.8 * crop.flip(-1)]
        for key, value in arguments.items():
            given[key] = value[..., :side, :side] if is_map(value, frame.shape[-2:]) else value
        try:
            with global_random(frame.device) as drawn, torch.no_grad(), uncompiled():
                try:
                    found = _compare(root, replicas, run, pair, training=training)
                finally:
                    written = weights.restore()
                found = replace(found, problem=_WRITES) if written else found
                return found if found.problem else replace(found, replicas=replicas)
        except Exception as error:  # whatever a third-party module raises for a size it cannot take
            problem = f"a copy of it raises {type(error).__name__}: {error}"
    with global_random(frame.device) as drawn, preserve_state(root, training=training), torch.no_grad():
        try:
            run(root, pair[0])
        except Exception:  # the module itself raises, and will again
            problem = ""
    return Findings(problem)


def expect_exchangeable(name: str, module: Any, select: Any) -> None:
    """Raise where the weights of a model cannot be exchanged, with the remedy."""
    root = getattr(module, "_orig_mod", module)
    if not isinstance(root, nn.Module):
        if select is not None:
            raise TypeError(f"{name}: a function has no weights to select; expected a module")
        return
    if any(kind.__name__ == "FullyShardedDataParallel" for part in root.modules() for kind in type(part).__mro__):
        raise TypeError(f"{name}: the model is sharded by FullyShardedDataParallel; pass the module that it wraps")
    if any(parameter.is_meta for parameter in root.parameters()):
        raise ValueError(f"{name}: the model has weights without values (device meta); load its weights first")
    if select is None:
        return
    for path, part in root.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError(
                f"{name}: TorchScript hides the weights of {path or 'a model'}; pass the module that was scripted or "
                "traced"
            )
    if any(hasattr(parameter, "full_tensor") for parameter in root.parameters()):
        raise TypeError(f"{name}: {_SHARDED}")
    if overlap := _overlap(root):
        raise TypeError(
            f"{name}: the weights {overlap[0]} and {overlap[1]} share memory and are two parameters, so that a step on "
            "one would change the other; make them one parameter, or give one of them its own copy"
        )


def explain_backward(error: RuntimeError) -> str:
    """Return what an error of a backward pass means for the model."""
    no_second_order = "scaled_dot_product" in str(error)
    return _NO_SECOND_ORDER if no_second_order else f"the backward pass of the model raised: {error}"


def _overlap(root: nn.Module) -> tuple[str, str] | None:
    """Return the names of two parameters that share memory."""
    spans: list[tuple[torch.device, int, int, str]] = []
    for name, weight in root.named_parameters():
        if not is_continuous(weight) or is_traceable_wrapper_subclass(weight) or not weight.data_ptr():
            continue
        last = sum((side - 1) * stride for side, stride in zip(weight.shape, weight.stride(), strict=True))
        spans.append((weight.device, weight.data_ptr(), weight.data_ptr() + (last + 1) * weight.itemsize, name))
    spans.sort(key=lambda span: (str(span[0]), span[1]))
    for first, second in pairwise(spans):
        if first[0] == second[0] and second[1] < first[2]:
            return first[3], second[3]
    return None


def expect_unsharded(name: str, module: nn.Module) -> None:
    """Raise where parts of a module are sharded over processes."""
    if any(kind.__name__ == "FSDPModule" for part in module.modules() for kind in type(part).__mro__):
        raise TypeError(f"{name}: {_SHARDED}")


def _compare(
    root: nn.Module, replicas: tuple[Replica, Replica], run: Callable[..., Any], frames: list[Tensor], *, training: bool
) -> Findings:
    of_module = Watch([*root.parameters(), *root.buffers()])
    first, second = replicas
    with _started(first, training=training):
        found, places, kept = [], [], []
        for x in frames:
            kept.append(run(first, x, of_module))  # alive, so that another place is another tensor
            places.append(_places(kept[-1]))
            found.append(_cloned(kept[-1]))
            if created := [name for name, _ in first.root.named_parameters() if name not in first.places]:
                return Findings("it creates weights", created=tuple(created))
        reuses = bool(places[0] & places[1])
        # a module with a source of randomness of its own is examined no further
        of_random = Findings(_BY_NAME if of_module.touched else "", reuses_memory=reuses)
        if not outputs_agree(found[0], _cloned(run(first, frames[0], of_module))):
            return of_random
        run(first, frames[1], of_module, reset=False)  # a mean over calls remembers nothing of the same frame
        remembers = not outputs_agree(found[0], run(first, frames[0], of_module, reset=False))
        changed = _with_other_weights(first, run, frames[0])
    with _started(second, training=training):
        again = _with_other_weights(second, run, frames[0])
        others = [[_cloned(run(second, x, of_module)) for x in frames[::-1]][::-1]]
    if outside_functions(root):
        others.append([])
        for x in frames:
            with preserve_state(root, training=training):
                others[-1].append(_cloned(run(root, x)))
    keeps = changed is not None and again is not None and not outputs_agree(changed[0], again[0])
    differs = any(not outputs_agree(a, b) for other in others for a, b in zip(found, other, strict=True))
    if keeps or differs or remembers:
        with _started(first, training=training):  # randomness near the tolerance may pass for none at first
            once = _cloned(run(first, frames[0]))
            if any(not outputs_agree(once, run(first, frames[0])) for _ in range(_REPEATS)):
                return of_random
    bypassed = any(result is not None and result[1] for result in (changed, again))
    problems = {_BY_NAME: of_module.touched, _BYPASSES: bypassed, _KEEPS: keeps, _DIFFERS: differs}
    problem = next((text for text, holds in problems.items() if holds), "")
    return Findings(problem, remembers=remembers, reuses_memory=reuses)


def _with_other_weights(replica: Replica, run: Callable[..., Any], x: Tensor) -> tuple[Any, bool] | None:
    """Return the output with other weights, and whether one of its own was used; None where it raises."""
    own = {name: tensor for name, tensor in replica.weights.items() if is_continuous(tensor)}
    watch = Watch([*own.values(), *replica.aliases])
    replica.reset()
    try:
        with replica.holding({name: tensor * 1.02 + 1e-3 for name, tensor in own.items()}):
            raw = run(replica, x, watch, reset=False)
    except Exception:  # it does not take such weights
        return None
    return _cloned(raw), watch.touched


@contextlib.contextmanager
def _started(replica: Replica, *, training: bool) -> Iterator[None]:
    replica.start(training=training)
    try:
        yield
    finally:
        replica.end()


def _places(raw: Any) -> set[int]:
    return {leaf.data_ptr() for _, leaf in outputs.leaves(raw) if leaf.numel()}


def _cloned(raw: Any) -> Any:
    return outputs.transform(raw, lambda _, leaf: leaf.clone())
