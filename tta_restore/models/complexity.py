"""Count multiply-accumulate operations of a model from shapes, fused ops included."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tta_restore.models.restorer.preserve import preserve_state

__all__ = ["Macs", "count_macs"]

_FUSED = ("_transformer_encoder_layer_fwd", "_native_multi_head_attention")  # torch's fast paths without gradients
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU)


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulate operations (MACs) of one call.

    Attributes:
        total: MACs of the operators for which torch or this package registers a FLOP formula.
        by_operator: MACs by operator name.
        biases: number of bias additions.
        activations: number of values that pass activation modules; functional activations are not counted.
    """

    total: int
    by_operator: dict[str, int]
    biases: int
    activations: int

    @property
    def with_additions(self) -> int:
        """Total with biases and activation modules, the convention of ptflops and of many papers."""
        return self.total + self.biases + self.activations

    def __str__(self) -> str:
        rows = {"multiply-adds": self.total, "with biases and activations": self.with_additions, **self.by_operator}
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {number / 1e9:.3f} G" for name, number in rows.items())


class Operators(TorchDispatchMode):
    """Mode that counts what the operators do that run within it, by torch's formulas.

    ``FlopCounterMode``, whose formulas these are, imports the compiler, which takes seconds; it also follows modules,
    and fails on weights that one module passes to another without gradients.

    Attributes:
        macs: multiply-adds by name of the operator, as far as there is a formula for it.
        biases: number of bias additions, for which torch has no formula.
        activations: number of values that pass activation modules, where hooks count them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs: dict[str, int] = {}
        self.biases = self.activations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Answer torch that nothing here is compiled, for whose prevention it imports the compiler."""
        return False

    @property
    def total(self) -> int:
        """Multiply-adds of all operators."""
        return sum(self.macs.values())

    @property
    def counts(self) -> Macs:
        """All that was counted."""
        return Macs(self.total, self.macs, self.biases, self.activations)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operator = func.overloadpacket
        macs = _macs(operator, args, kwargs, out)
        if macs is not None:
            self.macs[str(operator)] = self.macs.get(str(operator), 0) + macs
        self.biases += _biases(operator.__name__, args, out)
        return out


def _macs(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int | None:
    formula = flop_registry.get(operator)
    if formula is not None:
        return formula(*args, **kwargs, out_val=out) // 2  # torch counts a multiplication and an addition as two
    if operator.__name__ in _FUSED:
        matrices = [value for value in args[1:] if isinstance(value, Tensor) and value.ndim == 2]
        return args[0].numel() // args[0].shape[-1] * sum(matrix.numel() for matrix in matrices)
    return None


def _biases(name: str, args: tuple[Any, ...], out: Any) -> int:
    if (name == "convolution" and args[2] is not None) or name == "addmm":
        return out.numel()
    if name == "iac_from_features":
        features, bias = args[1], args[3]
        return features.numel() // features.shape[1] * bias.numel()  # one per filter tap and pixel of the features
    return 0


def count_macs(model: nn.Module, *inputs: Tensor, **arguments: Any) -> Macs:
    """Return the multiply-accumulate operations of one call of ``model``.

    Only shapes are propagated: nothing is computed and no memory is allocated.

    Args:
        model: module to be counted.
        inputs: inputs of the module; only their shapes matter, such as ``torch.empty(1, 3, 720, 1280, device="meta")``.
        arguments: keyword arguments of the call.

    Raises:
        TypeError: ``model`` is not a module.
        RuntimeError: The model's control flow depends on values.

    >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), torch.empty(1, 3, 10, 10)).total
    21600
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"count_macs: expected model to be a torch.nn.Module, got {type(model).__name__}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    # Fake tensors carry the strides of the inputs, since layers choose paths by memory format.
    with _counted(model) as operators, FakeTensorMode(allow_non_fake_inputs=True), operators:
        fake = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device) for x in inputs]
        weights = {n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers())}
        functional_call(model, weights, tuple(fake), arguments)
    return operators.counts


def extrapolate_macs(
    model: nn.Module, frames: Sequence[Tensor], sides: Sequence[int], size: tuple[int, int]
) -> Macs | None:
    """Return the MACs for a frame of some size, from calls on four small frames.

    Small calls take less time than to import what :func:`count_macs` needs. Returns None where the counts are not a
    polynomial of second degree in the side, such as those of attention over all pixels, or of a model that pads frames.

    Args:
        model: module to be counted, a restorer that pads its frames.
        frames: four square frames that grow.
        sides: their sides as the network itself gets them, with borders.
        size: height and width as the network would get them.
    """
    counts = []
    for frame in frames:
        with _counted(model) as operators, operators:
            model(frame)
        counts.append(operators.counts)
    names = list(counts[0].by_operator)
    growing = all(one.total < other.total for one, other in itertools.pairwise(counts))  # else padded to one size
    if not growing or any(list(one.by_operator) != names for one in counts):
        return None
    found = []
    for values in zip(*([*one.by_operator.values(), one.biases, one.activations] for one in counts), strict=True):
        value = _extrapolated(sides, values, size)
        if value is None:
            return None
        found.append(value)
    *macs, biases, activations = found
    return Macs(sum(macs), dict(zip(names, macs, strict=True)), biases, activations)


def _extrapolated(sides: Sequence[int], values: Sequence[int], size: tuple[int, int]) -> int | None:
    """Return a sum of products (height - a) (width - a) for a size, from its values for four squares; None if none."""
    (s, t, u, v), (first, second, third, fourth) = sides, values
    slope = Fraction(second - first, t - s)
    curve = (Fraction(third - second, u - t) - slope) / (u - s)
    linear, constant = slope - curve * (s + t), first - slope * s + curve * s * t
    if curve * v * v + linear * v + constant != fourth:
        return None
    height, width = size
    total = curve * height * width + linear * (height + width) / 2 + constant
    return int(total) if total.denominator == 1 else None


@contextlib.contextmanager
def _counted(model: nn.Module) -> Iterator[Operators]:
    """Yield a mode that also counts what passes the activation modules of a model, which stays as it was."""
    operators = Operators()

    def activated(module: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> None:
        operators.activations += out.numel()

    with torch.inference_mode(False), torch.no_grad(), preserve_state(model), contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _ACTIVATIONS):
                stack.callback(module.register_forward_hook(activated).remove)
        yield operators
