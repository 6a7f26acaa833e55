"""Run the part of a model that adapted tensors do not reach once per frame, and replay it for every other role."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore.models import Restoration
from tta_restore.models.restorer import outputs

Pass = Callable[[], Restoration]
"""One run of the model on the frame in work."""
Forward = Callable[..., Any]


class PrefixCache:
    """Outputs of frozen modules on one frame.

    A module whose output does not require grad, while the adapted tensors do, cannot depend on them: what it gives is
    the same for source, student and teacher, bit by bit. Which modules these are is found at the first pass with
    gradients: those called once that put out one tensor nobody wrote into afterwards, without those inside others. It
    is then tried with other tensors whether replaying changes anything (a model may detach what it adapts); if it
    does, nothing is ever replayed. Only the frame as it is can be shared, not its turned views.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.names: tuple[str, ...] | None = None
        """Modules to replay; None until looked for."""
        self.frame: Tensor | None = None
        self._records: dict[str, Tensor] = {}

    def look_at(self, frame: Tensor | None) -> None:
        """Say which tensor the passes to come share; None to let go of everything."""
        self.frame, self._records = frame, {}

    def run(self, plain: Pass) -> Restoration:
        """``plain()``, its frozen part replayed from an earlier pass, or recorded for later ones."""
        if not self.names:
            return plain()
        if self._records:
            with self._swapped(lambda name, forward: lambda *_, **__: self._records[name], self._records):
                return plain()
        return self._recorded(plain, self.names)

    def discover(self, plain: Pass, disturbed: Pass) -> Restoration:
        """``plain()``, a pass with gradients, and find out what can be shared; ``disturbed`` has other tensors."""
        self.names = ()
        restoration = self._recorded(plain, [name for name, _ in self.root.named_modules() if name])
        frozen = [name for name, output in self._records.items() if not output.requires_grad]
        names = tuple(name for name in frozen if not any(name.startswith(f"{other}.") for other in frozen))
        self._records = {}
        if not any(True for name in names for _ in self.root.get_submodule(name).parameters()):
            return restoration  # nothing that costs time
        with torch.no_grad():
            expected = disturbed()
            self.names = names
            self._recorded(plain, names)
            found = self.run(disturbed)
        self._records = {}
        if not _equal(expected.raw, found.raw):
            self.names = ()
        return restoration

    def _recorded(self, plain: Pass, names: Iterable[str]) -> Restoration:
        calls: dict[str, list[tuple[Any, int]]] = {}

        def recording(name: str, forward: Forward) -> Forward:
            def run(*inputs: Any, **keywords: Any) -> Any:
                output = forward(*inputs, **keywords)
                calls.setdefault(name, []).append((output, getattr(output, "_version", -1)))
                return output

            return run

        with self._swapped(recording, names):
            restoration = plain()
        self._records = {
            name: seen[0][0]
            for name, seen in calls.items()
            if len(seen) == 1 and isinstance(seen[0][0], Tensor) and seen[0][0]._version == seen[0][1]
        }
        return restoration

    @contextmanager
    def _swapped(
        self, change: Callable[[str, Callable[..., Any]], Callable[..., Any]], names: Iterable[str]
    ) -> Iterator[None]:
        """For the time of the block, ``change(name, forward)`` in place of the forward of each module named."""
        modules = [(name, self.root.get_submodule(name)) for name in names]
        held = [(module, module.__dict__.get("forward")) for _, module in modules]
        try:
            for name, module in modules:
                module.__dict__["forward"] = change(name, module.forward)
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
