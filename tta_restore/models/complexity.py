"""Count multiply-accumulate operations of a model from shapes, fused ops included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Macs", "count_macs"]

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


class CountingMode(TorchDispatchMode):
    """Mode that sums a count over the operators that run, in ``total``."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def count(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
        """Return the count of one call of an operator."""
        raise NotImplementedError

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.total += self.count(func, args, kwargs or {}, out)
        return out


class _Biases(CountingMode):
    """Mode that counts the additions of biases, for which torch has no formula."""

    def count(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
        name = func.overloadpacket.__name__
        if (name == "convolution" and args[2] is not None) or name == "addmm":
            return out.numel()
        if name == "iac_from_features":
            # One bias per filter tap and pixel of the features.
            features, bias = args[1], args[3]
            return features.numel() // features.shape[1] * bias.numel()
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
    activations = 0

    def activated(module: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> None:
        nonlocal activations
        activations += out.numel()

    hooks = [m.register_forward_hook(activated) for m in model.modules() if isinstance(m, _ACTIVATIONS)]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    # Fake tensors carry the strides of the inputs, since layers choose paths by memory format.
    biases, counter = _Biases(), FlopCounterMode(display=False)
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            fake = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device) for x in inputs]
            # Detached, since the counter asks weights that a module passes to another one for a gradient function.
            weights = {n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers())}
            with counter, biases:
                functional_call(model, weights, tuple(fake), arguments)
    finally:
        for hook in hooks:
            hook.remove()
    # torch counts a multiplication and an addition as two operations.
    counts = {str(op): flops // 2 for op, flops in counter.get_flop_counts().get("Global", {}).items()}
    return Macs(sum(counts.values()), counts, biases.total, activations)
