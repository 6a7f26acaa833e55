"""Cache the activations of the part of a model that the adapted tensors do not reach, for one frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tta_restore._core.ambient import uncompiled
from tta_restore.adapters.injection import CONTEXT
from tta_restore.models import Restoration
from tta_restore.models.restorer import outputs

__all__ = ["PrefixCache"]

Pass = Callable[[Mapping[str, Tensor] | None, Tensor, dict[str, Any]], Restoration]
"""One run of the model: tensors, frame, keywords."""
_TRIALS = 8  # of kinds of calls, before nothing is shared any more
_PLAIN = (bool, int, float, str, type(None))
_READING = frozenset(
    [
        torch.allclose, torch.equal, torch.is_nonzero, torch.masked_select, torch.nonzero, torch.unique,
        Tensor.__bool__, Tensor.__complex__, Tensor.__contains__, Tensor.__float__, Tensor.__index__, Tensor.__int__,
        Tensor.allclose, Tensor.equal, Tensor.is_nonzero, Tensor.item, Tensor.masked_select, Tensor.nonzero,
        Tensor.numpy, Tensor.tolist, Tensor.unique,
    ]
)  # fmt: skip


class PrefixCache:
    """Outputs of frozen modules on one frame.

    A module whose output requires no gradient, while the adapted tensors do, cannot depend on them: its output is the
    same for source, student and teacher, bit by bit. The first pass with gradients finds these modules: those called
    once that return one tensor which nobody wrote into afterwards, without those inside others. Replaying is then
    tried with other tensors, after a pass on another frame: a model may detach what it adapts, and hooks or attributes
    may carry activations past a module that is replayed. If the output differs in a bit, the model raises, or it reads
    values of tensors, on which its way may depend, nothing is replayed. What was found holds for frames of one shape
    and keywords of one kind. Only the frame itself is shared, not its views, and only between calls with the same
    keywords.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] | None = None
        """Modules to replay in the latest kind of call; None until looked for."""
        self.frame: Tensor | None = None
        self.nothing: set[torch.Size] = set()
        """Shapes of frames for which a kind of call had nothing to share."""
        self._found: dict[Any, tuple[str, ...]] = {}
        self._records: dict[str, Tensor] = {}
        self._keywords: dict[str, Any] = {}

    def share(self, frame: Tensor | None) -> None:
        """Name the tensor that the coming passes share; None lets go of everything."""
        self.frame, self._records, self._keywords = frame, {}, {}

    def forget(self) -> None:
        """Look for modules to replay again: the model has changed."""
        self._found.clear()
        self.nothing.clear()

    def run(
        self,
        run: Pass,
        roots: tuple[nn.Module, nn.Module],
        tensors: Mapping[str, Tensor] | None,
        frame: Tensor,
        arguments: dict[str, Any],
    ) -> Restoration:
        """Run a pass whose frozen part is replayed from an earlier pass, or recorded for later ones.

        A pass with gradients finds out what can be shared. ``roots`` are run with and without gradients.
        """
        keywords = {name: value for name, value in arguments.items() if name != CONTEXT}  # for adapted layers alone
        kind, with_graph = _kind(frame, keywords), tensors is not None and torch.is_grad_enabled()
        self.names = self._found.get(kind)
        if self.names is None and with_graph and len(self._found) < _TRIALS:
            restoration = self._discover(run, roots, tensors, frame, arguments)
            self._found[kind] = self.names = self.names or ()
            if not self.names:
                self.nothing.add(frame.shape)
            return restoration
        root = roots[0 if with_graph else 1]
        if self.names and not self._records:
            self._keywords = keywords
            return self._recorded(self.names, run, root, tensors, frame, arguments)
        if self.names and _are_same(keywords, self._keywords):
            return self._replayed(run, root, tensors, frame, arguments)
        return run(tensors, frame, arguments)

    def _replayed(
        self, run: Pass, root: nn.Module, tensors: Any, frame: Tensor, arguments: dict[str, Any]
    ) -> Restoration:
        with _swapped(root, {name: _replaying(output) for name, output in self._records.items()}):
            return run(tensors, frame, arguments)

    def _discover(
        self, run: Pass, roots: tuple[nn.Module, nn.Module], tensors: Any, frame: Tensor, arguments: dict[str, Any]
    ) -> Restoration:
        """Run a pass with gradients, and find out what can be shared."""
        self.names, (root, plain) = (), roots
        modules = [name for name, _ in root.named_modules() if name and "_orig_mod" not in name.split(".")]
        restoration = self._recorded(modules, run, root, tensors, frame, arguments)
        frozen = [name for name, output in self._records.items() if not output.requires_grad]
        names = tuple(name for name in frozen if not any(name.startswith(f"{other}.") for other in frozen))
        self._records = {}
        if not any(True for name in names for _ in root.get_submodule(name).parameters()):
            return restoration  # nothing that costs time
        disturbed = {name: tensor.detach() * 1.1 + 0.01 for name, tensor in tensors.items()}
        try:
            with torch.no_grad(), uncompiled():
                with _Reading() as reading:
                    expected = run(disturbed, frame, arguments)
                self._recorded(names, run, plain, tensors, frame, arguments)
                run(disturbed, 0.9 - 0.8 * frame.flip(-1), arguments)
                found = self._replayed(run, plain, disturbed, frame, arguments)
            self.names = names if _equal(expected.raw, found.raw) and not reading.found else ()
        except Exception:  # whatever a third-party model raises when part of it is left out
            self.names = ()
        self._records = {}
        return restoration

    def _recorded(
        self, names: Iterable[str], run: Pass, root: nn.Module, tensors: Any, frame: Tensor, arguments: dict[str, Any]
    ) -> Restoration:
        calls: dict[str, list[tuple[Any, int | None]]] = {}
        recording = {name: _recording(root.get_submodule(name).forward, calls.setdefault(name, [])) for name in names}
        with _swapped(root, recording):
            restoration = run(tensors, frame, arguments)
        self._records = {
            name: seen[0][0]
            for name, seen in calls.items()
            if len(seen) == 1 and seen[0][1] is not None and _version(seen[0][0]) == seen[0][1]
        }
        return restoration


class _Reading(TorchFunctionMode):
    """Notes whether a value of a tensor, or a shape that depends on one, gets into Python."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= function in _READING
        return function(*args, **(kwargs or {}))


def _kind(frame: Tensor, arguments: Mapping[str, Any]) -> Any:
    """Return what the way of a pass through a model may depend on, besides the values of tensors."""
    described = {
        name: (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
        if isinstance(value, (Tensor, *_PLAIN))
    }
    return tuple(frame.shape), frame.dtype, frame.device, frozenset(arguments), frozenset(described.items())


def _are_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[name] is b[name] for name in a)


def _replaying(output: Tensor) -> Callable[..., Any]:
    return lambda *_inputs, **_keywords: output


def _recording(forward: Callable[..., Any], seen: list[tuple[Any, int | None]]) -> Callable[..., Any]:
    def run(*inputs: Any, **keywords: Any) -> Any:
        output = forward(*inputs, **keywords)
        if not torch.compiler.is_compiling():  # such as a branch of torch.cond
            seen.append((output, _version(output)))
        return output

    return run


def _version(output: Any) -> int | None:
    """Return how often a tensor was written into; None where that is not counted."""
    return output._version if isinstance(output, Tensor) and not output.is_inference() else None


@contextmanager
def _swapped(root: nn.Module, forwards: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Put other forwards in place of those of the modules named, for the time of the block."""
    modules = [(root.get_submodule(name), forward) for name, forward in forwards.items()]
    held = [(module, module.__dict__.get("forward")) for module, _ in modules]
    try:
        for module, forward in modules:
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, forward in held:
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


def _equal(a: Any, b: Any) -> bool:
    first, second = dict(outputs.leaves(a)), dict(outputs.leaves(b))
    return first.keys() == second.keys() and all(torch.equal(first[path], second[path]) for path in first)
