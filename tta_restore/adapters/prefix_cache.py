"""Cache the activations of the part of a model that the adapted tensors do not reach, for one frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore.models import Restoration
from tta_restore.models.restorer import outputs

__all__ = ["PrefixCache"]

Pass = Callable[[Mapping[str, Tensor] | None, Tensor, dict[str, Any]], Restoration]
"""One run of the model: tensors, frame, keywords."""


class PrefixCache:
    """Outputs of frozen modules on one frame.

    A module whose output requires no gradient, while the adapted tensors do, cannot depend on them: its output is the
    same for source, student and teacher, bit by bit. The first pass with gradients finds these modules: those called
    once that return one tensor which nobody wrote into afterwards, without those inside others. Replaying is then
    tried with other tensors, after a pass on another frame: a model may detach what it adapts, and hooks or attributes
    may carry activations past a module that is replayed. If the output differs in a bit, or the model raises, nothing
    is ever replayed. Only the frame itself is shared, not its views.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] | None = None
        """Modules to replay; None until looked for."""
        self.frame: Tensor | None = None
        self._records: dict[str, Tensor] = {}

    def share(self, frame: Tensor | None) -> None:
        """Name the tensor that the coming passes share; None lets go of everything."""
        self.frame, self._records = frame, {}

    def run(self, run: Pass, root: nn.Module, tensors: Any, frame: Tensor, arguments: dict[str, Any]) -> Restoration:
        """Run a pass whose frozen part is replayed from an earlier pass, or recorded for later ones."""
        if not self.names:
            return run(tensors, frame, arguments)
        if not self._records:
            return self._recorded(self.names, run, root, tensors, frame, arguments)
        with _swapped(root, {name: _replaying(output) for name, output in self._records.items()}):
            return run(tensors, frame, arguments)

    def discover(
        self, run: Pass, roots: tuple[nn.Module, nn.Module], tensors: Any, frame: Tensor, arguments: dict[str, Any]
    ) -> Restoration:
        """Run a pass with gradients, and find out what can be shared; ``roots`` are run with and without gradients."""
        self.names, (root, plain) = (), roots
        modules = [name for name, _ in root.named_modules() if name]
        restoration = self._recorded(modules, run, root, tensors, frame, arguments)
        frozen = [name for name, output in self._records.items() if not output.requires_grad]
        names = tuple(name for name in frozen if not any(name.startswith(f"{other}.") for other in frozen))
        self._records = {}
        if not any(True for name in names for _ in root.get_submodule(name).parameters()):
            return restoration  # nothing that costs time
        disturbed = {name: tensor.detach() * 1.1 + 0.01 for name, tensor in tensors.items()}
        try:
            with torch.no_grad():
                expected = run(disturbed, frame, arguments)
                self._recorded(names, run, plain, tensors, frame, arguments)
                run(disturbed, 0.9 - 0.8 * frame.flip(-1), arguments)
                self.names = names
                found = self.run(run, plain, disturbed, frame, arguments)
            self.names = names if _equal(expected.raw, found.raw) else ()
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


def _replaying(output: Tensor) -> Callable[..., Any]:
    return lambda *_inputs, **_keywords: output


def _recording(forward: Callable[..., Any], seen: list[tuple[Any, int | None]]) -> Callable[..., Any]:
    def run(*inputs: Any, **keywords: Any) -> Any:
        output = forward(*inputs, **keywords)
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
