"""Count multiplications with their additions, without running anything: fused ops included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU)


@dataclass(frozen=True)
class Macs:
    """Multiplications with an addition each, of one call.

    Attributes:
        total: of everything that torch has a formula for, and of the ops of this package.
        by_operator: the same by the name of the op.
        biases: additions of biases.
        activations: values that pass activation modules; functions that a module calls itself are not among them.
    """

    total: int
    by_operator: dict[str, int]
    biases: int
    activations: int

    @property
    def with_additions(self) -> int:
        """Total with biases and activation modules, which ptflops and the tables of many papers count."""
        return self.total + self.biases + self.activations

    def __str__(self) -> str:
        rows = {"multiply-adds": self.total, "with biases and activations": self.with_additions, **self.by_operator}
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {number / 1e9:.3f} G" for name, number in rows.items())


class _Biases(TorchDispatchMode):
    """Sums the additions of biases."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if (name == "convolution" and args[2] is not None) or name == "addmm":
            self.total += out.numel()
        elif name == "iac_from_features":
            features, bias = args[1], args[3]
            self.total += features.numel() // features.shape[1] * bias.numel()
        return out


def count_macs(model: nn.Module, *inputs: Tensor, **arguments: Any) -> Macs:
    """Count what a call of ``model`` takes, by shapes alone: nothing is computed, no memory is needed.

    Shape: inputs as the model takes them; only their shapes matter, such as ``torch.empty(1, 3, 720, 1280,
    device="meta")``.

    Raises:
        TypeError: the model is no module.
        RuntimeError: the model looks at values, which are not there.

    >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), torch.empty(1, 3, 10, 10)).total
    21600
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"count_macs: expected a module, got {type(model).__name__}")
    activations = 0

    def activated(module: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> None:
        nonlocal activations
        activations += out.numel()

    hooks = [m.register_forward_hook(activated) for m in model.modules() if isinstance(m, _ACTIVATIONS)]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    biases, counter = _Biases(), FlopCounterMode(display=False)
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            fake = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device) for x in inputs]
            with counter, biases:
                model(*fake, **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    counts = {str(op): flops // 2 for op, flops in counter.get_flop_counts().get("Global", {}).items()}
    return Macs(sum(counts.values()), counts, biases.total, activations)
