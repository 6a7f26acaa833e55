"""The contract of a degradation: parameters as tensors, a prior to draw them from, and their effect on an image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore._core.ambient import with_usual_defaults

__all__ = ["STEP", "Degradation", "Parameters", "just_noticeable", "quantity"]

STEP = math.log(1.2)
"""Logarithm of the ratio of two magnitudes that an observer just notices."""


def quantity(
    unit: str, *, minimum: float = -math.inf, maximum: float = math.inf, shape: str = "(N,)", default: Any = ...
) -> Any:
    """Declare a field of :class:`Parameters` with its unit, its range and its shape.

    Args:
        unit: unit or meaning of the values, for error messages and documentation.
        minimum: lowest value.
        maximum: highest value.
        shape: shape in letters; the first axis is the batch.
        default: default value; without one the field is required.
    """
    metadata = {"unit": unit, "minimum": minimum, "maximum": maximum, "shape": shape}
    return field(metadata=metadata) if default is ... else field(metadata=metadata, default=default)


def just_noticeable(first: Tensor, second: Tensor, floor: float) -> Tensor:
    """Return the distance of two magnitudes in steps of 20 %, about the change that an observer notices.

    ``floor`` is the magnitude that is not visible: ``|log((first + floor) / (second + floor))| / log(1.2)``.
    """
    return ((first + floor) / (second + floor)).log().abs() / STEP


@dataclass(frozen=True, eq=False)
class Parameters:
    """A batch of parameters of a degradation; the first axis of every tensor is the batch.

    Subclasses are frozen dataclasses whose fields are declared with ``quantity``.

    Raises:
        TypeError: a field is no tensor.
        ValueError: a field has another number of axes or another batch size than declared, or a value out of range.
    """

    def __post_init__(self) -> None:
        kind, size = type(self).__name__, None
        for declared in fields(self):
            value, limits = getattr(self, declared.name), declared.metadata
            if value is None and declared.default is None:
                continue
            checks.expect_tensor(kind, **{declared.name: value})
            shape, letters = tuple(value.shape), limits["shape"]
            if len(shape) != len([letter for letter in letters.strip("()").split(",") if letter]):
                raise ValueError(f"{kind}: expected {declared.name} of shape {letters}, got {shape}")
            size = shape[0] if size is None else size
            if shape[0] != size:
                raise ValueError(f"{kind}: expected {declared.name} {limits['shape']} with N = {size}, got {shape}")
            low, high = limits["minimum"], limits["maximum"]
            if value.numel() and not bool(((value >= low) & (value <= high)).all()):
                raise ValueError(
                    f"{kind}: expected {declared.name} ({limits['unit']}) in [{low}, {high}], "
                    f"got {float(value.min())} to {float(value.max())}"
                )

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, index: slice | Tensor | Sequence[int] | int) -> Self:
        """Select samples; an integer selects a batch of one."""
        where = slice(index, index + 1 or None) if isinstance(index, int) else index
        return self._map(lambda value: value[where])

    def to(self, device: torch.device | str) -> Self:
        """Move all tensors to a device."""
        return self._map(lambda value: value.to(device))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate batches of the same kind."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(**{name: None if values[0] is None else torch.cat(values) for name, values in columns.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return nested lists that JSON can hold; :meth:`from_dict` reads them back exactly."""
        values = {declared.name: getattr(self, declared.name) for declared in fields(self)}
        return {name: None if value is None else tensor_to_json(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Return the parameters that :meth:`to_dict` wrote."""
        checks.expect_known(cls.__name__, content, [declared.name for declared in fields(cls)])
        return cls(**{name: None if value is None else tensor_from_json(value) for name, value in content.items()})

    def _map(self, change: Any) -> Self:
        values = {declared.name: getattr(self, declared.name) for declared in fields(self)}
        return type(self)(**{name: None if value is None else change(value) for name, value in values.items()})


class Degradation(ABC):
    """A degradation of frames by a camera: a prior over parameters, and the effect of given ones.

    Subclasses are frozen dataclasses: fields hold the ranges that :meth:`sample` draws from. Randomness comes from the
    generator passed in; nothing else is read or changed. Parameters live on the CPU until :meth:`apply` moves them.
    """

    kind: ClassVar[str]
    """Name in the registry; set by ``register_degradation``."""
    Parameters: ClassVar[type[Parameters]]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name in ("sample", "apply", "distance"):
            if name in cls.__dict__:
                setattr(cls, name, with_usual_defaults(cls.__dict__[name]))

    @abstractmethod
    def sample(self, generator: torch.Generator, n: int) -> Any:
        """Draw ``n`` sets of parameters."""

    @abstractmethod
    def apply(self, sharp: Tensor, parameters: Any, generator: torch.Generator) -> Tensor:
        """Degrade a batch, each image with its own parameters.

        Args:
            sharp: images in [0, 1], floating point.
            parameters: one set per image, or a single one for all.
            generator: source of the randomness that is no parameter, such as the noise itself.

        Shape:
            - sharp: (B, C, H, W)
            - output: the same dtype and device; (B, C, H, W) unless the degradation resizes

        Raises:
            TypeError: ``sharp`` is no floating-point tensor, or ``parameters`` are of another degradation.
            ValueError: ``sharp`` is not (B, C, H, W), or there are neither one nor B sets of parameters.
        """

    @abstractmethod
    def distance(self, a: Any, b: Any) -> Tensor:
        """Return how far two batches of parameters are apart, (N,), in just noticeable steps (about 20 %)."""

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the settings as JSON; ``create_degradation`` reads it back."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {"kind": self.kind} | {name: settings_to_json(value) for name, value in settings.items()}

    def parameters_from_dict(self, content: dict[str, Any]) -> Any:
        """Return the parameters that their ``to_dict`` wrote."""
        return self.Parameters.from_dict(content)

    def _expect(self, sharp: Tensor, parameters: Any) -> Any:
        """Check the arguments of :meth:`apply` and return one set of parameters per image."""
        name = type(self).__name__
        checks.expect_shape(name, "sharp", sharp, "(B, C, H, W)")
        checks.expect_floating(name, sharp=sharp)
        if not isinstance(parameters, self.Parameters):
            found = type(parameters).__name__
            raise TypeError(f"{name}: expected parameters to be {self.Parameters.__name__}, got {found}")
        if len(parameters) not in (1, len(sharp)):
            raise ValueError(
                f"{name}: expected 1 or B = {len(sharp)} sets of parameters, one per image, got {len(parameters)}"
            )
        if len(parameters) != len(sharp):
            parameters = parameters[[0] * len(sharp)]
        return parameters


def normal(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    """Draw standard normal values on the generator's device, and move them to the device of ``like`` as float32."""
    return torch.randn(*shape, generator=generator, device=generator.device, dtype=torch.float32).to(like.device)


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half-precision values for arithmetic."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def tensor_to_json(value: Tensor) -> dict[str, Any]:
    """Return a tensor as nested lists with its dtype."""
    return {"dtype": str(value.dtype).removeprefix("torch."), "values": value.tolist(), "shape": list(value.shape)}


def tensor_from_json(content: dict[str, Any]) -> Tensor:
    """Return the tensor that :func:`tensor_to_json` wrote."""
    return torch.tensor(content["values"], dtype=getattr(torch, content["dtype"])).reshape(content["shape"])


def settings_to_json(value: Any) -> Any:
    """Return a setting as JSON: numbers, names, tuples of them, tensors, degradations."""
    if isinstance(value, Tensor):
        return tensor_to_json(value)
    if isinstance(value, Degradation):
        return value.to_dict()
    return [settings_to_json(item) for item in value] if isinstance(value, (tuple, list)) else value


def settings_from_json(value: Any) -> Any:
    """Return the setting that :func:`settings_to_json` wrote; degradations stay dictionaries."""
    if isinstance(value, dict) and "dtype" in value:
        return tensor_from_json(value)
    return tuple(settings_from_json(item) for item in value) if isinstance(value, list) else value
