"""Choose which of a model's weights an adapter may change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tta_restore.models.restorer.normalization import normalization_layers
from tta_restore.models.restorer.outputs import is_continuous

Select = str | type[nn.Module] | Iterable[str | type[nn.Module]]

_WRAPPING = re.compile(r"^(?:_orig_mod\.|module\.)+")
_LAST_STAGE_SHARE = 0.05  # of the weights, at least
_LAST_STAGE_LIMIT = 0.25  # of the weights, where that can be had
_MIN_DIMS = 2  # of kernels and matrices
_RANK = 4  # of a change in the preset "low_rank"


def select_parameters(
    module: nn.Module, select: Select, *, injected: Mapping[str, nn.Parameter] | None = None
) -> tuple[str, ...]:
    """Return the names of the selected weights in the order of the module; weights that share a tensor count once.

    An entry is a glob over dotted names (``"decoder.*"``; a module's name means everything in it), ``"re:..."`` for a
    full match, a module class, or a preset: ``"all"``, ``"norm"`` (scale and shift of every normalization layer),
    ``"bias"``, ``"last_stage"`` (the last modules, as defined, that make up 5 % of the weights), ``"injected"`` (what
    an adapter adds; given in ``injected``), ``"gains"`` and ``"low_rank"`` (the kernels and matrices of all layers,
    whose changes are one factor per output channel, or of rank 4). An entry ``"!..."`` takes away again. Prefixes of
    torch.compile and DataParallel may be written or left out. Presets leave out weights with ``requires_grad=False``
    where the model has others, such as fixed filters or the base of LoRA; of a model that is frozen as a whole, none.

    Raises:
        ValueError: an entry matches nothing (near names are listed), or nothing is left.
        TypeError: an entry is neither text nor a module class, or a weight is a tensor that holds others.
    """
    entries = [select] if isinstance(select, (str, type)) else list(select)
    injected = injected or {}
    canonical = {id(parameter): name for name, parameter in module.named_parameters()}
    canonical |= {id(parameter): name for name, parameter in injected.items()}
    aliases = {
        name: canonical[id(parameter)]
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if is_continuous(parameter)
    } | {name: name for name in injected}
    if not aliases:
        raise ValueError(
            f"select: {type(module).__name__} has no floating-point or complex weights of at least 16 bits"
        )
    taken: set[str] = set()
    if entries and all(isinstance(entry, str) and entry.startswith("!") for entry in entries):
        taken.update(_matches(module, aliases, "all"))
    for entry in entries:
        if isinstance(entry, str) and entry.startswith("!"):
            taken.difference_update(_matches(module, aliases, entry[1:]))
        else:
            taken.update(_matches(module, aliases, entry))
    if not taken:
        raise ValueError(f"select: {select!r} leaves no weight of {type(module).__name__} to adapt")
    named = dict(module.named_parameters())
    for name in canonical.values():
        if name in taken and name in named and is_traceable_wrapper_subclass(named[name]):
            raise TypeError(
                f"select: {name} is a {type(named[name]).__name__}, which holds other tensors and cannot be stepped; "
                f'leave it out, as by select=({select!r}, "!{name}")'
            )
    return tuple(name for name in canonical.values() if name in taken)


def subspaces(
    module: nn.Module, adapted: Iterable[str], select: Select
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return the projection of the change of each weight that ``"gains"`` or ``"low_rank"`` selects, by name.

    ``"gains"`` allows one factor per output channel (Mohan et al., "Adaptive Denoising via GainTuning", NeurIPS 2021);
    ``"low_rank"`` a change of rank 4, of the kernel as a matrix with a row per output channel (Hu et al., "LoRA", ICLR
    2022). Both project the changed weight after a step, so that any optimizer serves.

    Raises:
        ValueError: both are selected.
    """
    entries = [select] if isinstance(select, (str, type)) else list(select)
    chosen = [entry for entry in entries if isinstance(entry, str) and entry in _SUBSPACES]
    if len(set(chosen)) > 1:
        raise ValueError("select: expected 'gains' or 'low_rank', got both")
    if not chosen:
        return {}
    dims = {name: parameter.ndim for name, parameter in module.named_parameters()}
    return {name: _SUBSPACES[chosen[0]] for name in adapted if dims.get(name, 0) >= _MIN_DIMS}


def _gains(change: Tensor, source: Tensor) -> Tensor:
    rows, origin = change.flatten(1), source.flatten(1)
    energy = (origin.conj() * origin).real.sum(1, keepdim=True)
    gain = (rows * origin.conj()).sum(1, keepdim=True) / energy.clamp(min=1e-30)
    return (gain * origin).view_as(change)


def _low_rank(change: Tensor, source: Tensor) -> Tensor:
    rows = change.flatten(1)
    if min(rows.shape) <= _RANK or not bool(rows.isfinite().all()):
        return change
    wide = rows.shape[0] <= rows.shape[1]
    main = torch.linalg.eigh(rows @ rows.mH if wide else rows.mH @ rows).eigenvectors[:, -_RANK:]
    return (main @ (main.mH @ rows) if wide else (rows @ main) @ main.mH).view_as(change)


_SUBSPACES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"gains": _gains, "low_rank": _low_rank}


def _matches(module: nn.Module, aliases: dict[str, str], entry: str | type[nn.Module]) -> set[str]:
    if isinstance(entry, type) and issubclass(entry, nn.Module):
        owners = [name for name, part in module.named_modules() if isinstance(part, entry)]
        found = {alias for alias in aliases if any(_inside(alias, owner) for owner in owners)}
        problem = f"select: {type(module).__name__} holds no {entry.__name__} with weights"
    elif not isinstance(entry, str):
        raise TypeError(f"select: expected patterns, presets or module classes, got {entry!r}")
    elif entry in _PRESETS:
        frozen = _frozen(module)
        found = _PRESETS[entry](module, aliases) - frozen
        kind = " that requires gradients" if frozen else ""
        problem = f"select: preset {entry!r} finds nothing{kind} in {type(module).__name__}"
    else:
        found = _by_pattern(aliases, entry) or _by_pattern(aliases, _WRAPPING.sub("", entry))
        problem = f"select: {entry!r} matches no weight of {type(module).__name__}"
    if not found:
        raise ValueError(f"{problem}; {_hint(module, aliases, entry)}")
    return {aliases[alias] for alias in found}


def _frozen(module: nn.Module) -> set[str]:
    """Return the names of the frozen weights of a model that has others."""
    named = dict(module.named_parameters(remove_duplicate=False))
    frozen = {name for name, parameter in named.items() if not parameter.requires_grad}
    return frozen if any(is_continuous(parameter) for name, parameter in named.items() if name not in frozen) else set()


def _by_pattern(aliases: Iterable[str], pattern: str) -> set[str]:
    if pattern.startswith("re:"):
        expression = re.compile(pattern[3:])
        return {alias for alias in aliases if expression.fullmatch(alias)}
    return {alias for alias in aliases if fnmatchcase(alias, pattern) or fnmatchcase(alias, f"{pattern}.*")}


def _hint(module: nn.Module, aliases: Iterable[str], entry: object) -> str:
    names = list(aliases)
    if isinstance(entry, str) and entry not in _PRESETS:
        parts = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
        wanted = _WRAPPING.sub("", entry.removeprefix("re:")).replace("*", "").strip(".")
        near = get_close_matches(wanted, sorted(parts), n=4, cutoff=0.5)
        near += get_close_matches(entry, list(_PRESETS), n=1, cutoff=0.7)
        if near:
            return f"did you mean {', '.join(near)}?"
    tops = dict.fromkeys(name.split(".")[0] for name in names)
    return f"its parts are {', '.join(tops)}; presets are {', '.join(_PRESETS)}"


def _inside(name: str, owner: str) -> bool:
    return owner == "" or name.startswith(f"{owner}.")


def _norms(module: nn.Module, aliases: dict[str, str]) -> set[str]:
    owned = chain.from_iterable(
        (f"{name}.{leaf}" if name else leaf for leaf, _ in layer.named_parameters(recurse=False))
        for name, layer in normalization_layers(module)
    )
    return set(owned) & set(aliases)


def _biases(module: nn.Module, aliases: dict[str, str]) -> set[str]:
    return {alias for alias in aliases if alias.split(".")[-1].endswith("bias")}


def _last_stage(module: nn.Module, aliases: dict[str, str]) -> set[str]:
    weights = {id(p): p for p in module.parameters() if is_continuous(p)}
    total = sum(parameter.numel() for parameter in weights.values())
    taken: dict[int, Tensor] = {}

    def share(parameters: Iterable[Tensor]) -> float:
        return sum(p.numel() for p in {id(p): p for p in parameters}.values()) / total

    def take_from(part: nn.Module) -> None:
        children = [child for child in part.children() if any(True for _ in child.parameters())]
        if not children:
            taken.update((id(p), p) for p in part.parameters())
        for child in reversed(children):
            if share(taken.values()) >= _LAST_STAGE_SHARE:
                return
            if share(child.parameters()) > _LAST_STAGE_LIMIT:
                take_from(child)
            else:
                taken.update((id(p), p) for p in child.parameters())

    take_from(module)
    return {alias for alias, p in module.named_parameters(remove_duplicate=False) if id(p) in taken} & set(aliases)


def _matrices(module: nn.Module, aliases: dict[str, str]) -> set[str]:
    shapes = {name: p.ndim for name, p in module.named_parameters(remove_duplicate=False)}
    return {alias for alias in aliases if shapes.get(alias, 0) >= _MIN_DIMS and not alias.startswith("injected.")}


_PRESETS: dict[str, Callable[[nn.Module, dict[str, str]], set[str]]] = {
    "injected": lambda module, aliases: {alias for alias in aliases if alias.startswith("injected.")},
    "norm": _norms,
    "bias": _biases,
    "last_stage": _last_stage,
    "gains": _matrices,
    "low_rank": _matrices,
    "all": lambda module, aliases: set(aliases),
}
