"""Several degradations one after another, in the order of a camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.degradations.degradation import Degradation, Parameters
from tta_restore.degradations.registry import create_degradation, register_degradation

__all__ = ["Compose", "ComposeParameters"]


@dataclass(frozen=True, eq=False)
class ComposeParameters(Parameters):
    """A batch of parameters per degradation, in their order."""

    parts: tuple[Parameters, ...]

    def __post_init__(self) -> None:
        sizes = {len(part) for part in self.parts}
        if len(sizes) > 1:
            raise ValueError(f"ComposeParameters: expected parts of one batch size, got {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.parts[0]) if self.parts else 0

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate batches of the same kind."""
        columns = zip(*(batch.parts for batch in parts), strict=True)
        return cls(tuple(type(column[0]).cat(column) for column in columns))

    def to_dict(self) -> dict[str, Any]:
        """Return nested lists that JSON can hold."""
        return {"parts": [part.to_dict() for part in self.parts]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Not possible without the degradations: use :meth:`Compose.parameters_from_dict`."""
        raise TypeError("ComposeParameters: use Compose.parameters_from_dict, which knows the kinds of the parts")

    def _map(self, change: Any) -> Self:
        return type(self)(tuple(part._map(change) for part in self.parts))


@register_degradation("compose")
@dataclass(frozen=True, eq=False)
class Compose(Degradation):
    """Degradations applied one after another; the order is the camera's: blur, resize, noise, clip, quantize, JPEG.

    Args:
        degradations: instances, or dictionaries of ``to_dict``.

    Raises:
        ValueError: there is no degradation.

    Example:
        >>> import torch
        >>> from tta_restore.degradations import Blur, Clip, Compose, Jpeg, Noise
        >>> generator = torch.Generator().manual_seed(0)
        >>> camera = Compose([Blur(radius=(0.5, 2.0)), Noise(), Clip(), Jpeg(quality=(40, 90))])
        >>> parameters = camera.sample(generator, 2)
        >>> camera.apply(torch.rand(2, 3, 64, 64), parameters, generator).shape
        torch.Size([2, 3, 64, 64])
    """

    degradations: Sequence[Degradation]

    Parameters = ComposeParameters

    def __post_init__(self) -> None:
        built = tuple(create_degradation(item) if isinstance(item, dict) else item for item in self.degradations)
        for item in built:
            if not isinstance(item, Degradation):
                raise TypeError(f"Compose: expected degradations, got {type(item).__name__} {item!r}")
        if not built:
            raise ValueError("Compose: expected at least one degradation, got none")
        object.__setattr__(self, "degradations", built)

    def sample(self, generator: torch.Generator, n: int) -> ComposeParameters:
        """Draw ``n`` sets of parameters of every degradation."""
        return ComposeParameters(tuple(item.sample(generator, n) for item in self.degradations))

    def apply(self, sharp: Tensor, parameters: ComposeParameters, generator: torch.Generator) -> Tensor:
        """Apply the degradations in order; see :meth:`Degradation.apply`."""
        parameters = self._expect(sharp, parameters)
        if len(parameters.parts) != len(self.degradations):
            raise ValueError(
                f"Compose: expected parameters of {len(self.degradations)} degradations, got {len(parameters.parts)}"
            )
        for item, part in zip(self.degradations, parameters.parts, strict=True):
            sharp = item.apply(sharp, part, generator)
        return sharp

    def distance(self, a: ComposeParameters, b: ComposeParameters) -> Tensor:
        """Return the root of the sum of the squared distances of all parts, (N,)."""
        each = [item.distance(x, y).square() for item, x, y in zip(self.degradations, a.parts, b.parts, strict=True)]
        return torch.stack(each).sum(0).sqrt()

    def parameters_from_dict(self, content: dict[str, Any]) -> ComposeParameters:
        """Return the parameters that ``to_dict`` wrote."""
        checks.expect_known("Compose", content, ["parts"])
        pairs = zip(self.degradations, content["parts"], strict=True)
        return ComposeParameters(tuple(item.parameters_from_dict(part) for item, part in pairs))
