"""A frame on its way through an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Frame:
    """One frame on its way through an adapter.

    Attributes:
        image: the whole frame, (B, C, H, W) or (B, T, C, H, W), RGB in [0, 1].
        region: the part that adaptation looks at; the frame itself where that is all of it.
        steps: optimizer steps to take on it; a method may change it in ``begin_frame``.
        skip: why there is nothing to learn from it, where a method finds that in ``begin_frame``.
        remarks: for the :class:`StepReport`, in words.
        notes: what a method keeps until the frame is done.
        extra: numbers for the :class:`StepReport`.
        grad_norm: norm of the latest gradient.
        learning_rate: of the latest step.
    """

    image: Tensor
    region: Tensor
    steps: int
    skip: str | None = None
    remarks: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    grad_norm: float | None = None
    learning_rate: float | None = None

    @property
    def cropped(self) -> bool:
        """Whether adaptation looks at a part only."""
        return self.region is not self.image


@dataclass(frozen=True)
class StepReport:
    """What happened on one frame.

    Attributes:
        frame: how many frames were adapted on before this one.
        updated: whether any step changed the adapted tensors' optimizer; see ``skipped_because`` where not.
        loss: mean over the steps taken or refused; None where no loss was computed.
        steps: optimizer steps taken.
        skipped_because: why the last skipped step was skipped, None when none was.
        drift: distance of the adapted tensors from the source, relative to the source's norm.
        grad_norm: Euclidean norm of the last gradient.
        learning_rate: of the last step.
        seconds: wall time.
        extra: numbers that the method adds.
        remarks: what the method has to say about the frame, in words.
    """

    frame: int
    updated: bool = False
    loss: float | None = None
    steps: int = 0
    skipped_because: str | None = None
    drift: float = 0.0
    grad_norm: float | None = None
    learning_rate: float | None = None
    seconds: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What an adapter would change, and what that costs; ``print`` it.

    Attributes:
        method: name of the adapter's class.
        tensors: name and shape of each adapted tensor.
        total: scalars in all the model's weights.
        roles: which sets of adapted tensors exist, besides the source.
        bytes: memory of those sets and of the optimizer's moments.
        sites: where modules are injected.
        cost: passes through the model for each frame.
    """

    method: str
    tensors: dict[str, tuple[int, ...]]
    total: int
    roles: tuple[str, ...]
    bytes: int
    sites: tuple[str, ...]
    cost: str

    @property
    def adapted(self) -> int:
        """Scalars that are adapted."""
        return sum(_count(shape) for shape in self.tensors.values())

    def __str__(self) -> str:
        width = max([len(name) for name in self.tensors] + [20])
        lines = [f"{name:<{width}}  {_count(shape):>10}  {shape}" for name, shape in self.tensors.items()]
        share = f"{100 * self.adapted / self.total:.1f} % of {self.total} weights" if self.total else "no weights"
        lines += [
            f"{'adapted':<{width}}  {self.adapted:>10}  {share}",
            f"{'memory':<{width}}  {self.bytes:>10}  bytes: {', '.join(self.roles) or 'no copies'}",
            f"{'injected at':<{width}}  {len(self.sites):>10}  {', '.join(self.sites) or 'nowhere'}",
            f"{self.method}: {self.cost}",
        ]
        return "\n".join(lines)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
