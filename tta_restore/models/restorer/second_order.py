"""Check second derivatives of a model numerically, and replace a LayerNorm whose second derivative is wrong."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tta_restore._core.ambient import with_usual_defaults
from tta_restore.models.restorer.normalization import normalization_layers
from tta_restore.models.restorer.outputs import own_functions
from tta_restore.models.restorer.restorer import Restorer, as_restorer

#: Relative error of a second derivative from which on it is called wrong. In float64, right ones differ by 1e-6 or less
#: from finite differences; the known wrong ones by 7e-4 and more.
TOLERANCE = 1e-4
_STEPS = (1e-6, 1e-7, 1e-8, 1e-9)


@dataclass(frozen=True)
class SecondOrderReport:
    """Result of the comparison of a second derivative with finite differences.

    Attributes:
        error: of the product of the Hessian with a vector, relative to finite differences in float64; infinity where
            the second backward fails.
        functions: Python autograd Functions in the graph, the usual culprits.
        problem: what the second backward said, None where it runs.
    """

    error: float
    functions: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def right(self) -> bool:
        """Return whether it can be trusted."""
        return self.error <= TOLERANCE

    def __str__(self) -> str:
        told = self.problem or f"its second derivative is wrong by {self.error:.1e}, relative to finite differences"
        by = f"; autograd Functions of its own: {', '.join(self.functions)}" if self.functions else ""
        return told + by


@with_usual_defaults
def examine_second_order(
    model: nn.Module | Restorer, example: Tensor, *, steps: Sequence[float] = _STEPS
) -> SecondOrderReport:
    """Compare the second backward of a restorer's weights with finite differences of the first, in float64.

    A copy is examined; the model is not touched. A custom autograd Function that saves intermediate results gives first
    derivatives that are right and second derivatives that are wrong without a word; only numbers tell.

    Args:
        model: a module, or a restorer around one.
        example: frames (B, C, H, W) or clips (B, T, C, H, W) that it takes, small ones for speed.
        steps: steps of the differences, relative to the norm of all weights. The least error counts: a long step
            crosses kinks, such as those of ReLU, and a short one rounds.

    Raises:
        ValueError: the model has no weights.
    """
    restorer = as_restorer(model)
    if not isinstance(restorer.module, nn.Module) or not any(True for _ in restorer.module.parameters()):
        raise ValueError("examine_second_order: expected a model with weights")
    spec = restorer.known_spec(example)
    module = copy.deepcopy(restorer.module).double().eval()
    trial = Restorer(module, spec)
    example = example.detach().double()
    weights = {n: p.detach().requires_grad_() for n, p in module.named_parameters() if p.is_floating_point()}
    generator = torch.Generator().manual_seed(0)

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)

    def image(values: dict[str, Tensor]) -> Tensor:
        return trial.restore(example, call=lambda x: functional_call(module, values, (x,))).image

    def gradient(values: dict[str, Tensor], *, graph: bool = False) -> list[Tensor]:
        loss = (image(values) - target).square().mean()
        found = torch.autograd.grad(loss, list(values.values()), create_graph=graph, allow_unused=True)
        return [torch.zeros_like(v) if g is None else g for g, v in zip(found, values.values(), strict=True)]

    direction = {name: like(weight) for name, weight in weights.items()}
    length = torch.stack([part.norm() for part in direction.values()]).norm()
    size = torch.stack([weight.detach().norm() for weight in weights.values()]).norm().clamp(min=1e-3)
    direction = {name: part / length * size for name, part in direction.items()}
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third-party code
        found = image(weights)
        target = found.detach() + like(found)
        functions = tuple(sorted({type(node).__name__.removesuffix("Backward") for node in own_functions(found)}))
        try:
            first = gradient(weights, graph=True)
            along = torch.stack([(g * d).sum() for g, d in zip(first, direction.values(), strict=True)]).sum()
            second = torch.autograd.grad(along, list(weights.values()), allow_unused=True)
        except Exception as error:  # whatever a third-party backward raises
            return SecondOrderReport(float("inf"), functions, f"{type(error).__name__}: {str(error).splitlines()[0]}")
        error = math.inf
        for step in steps:
            ends = [
                gradient({n: (w.detach() + s * step * direction[n]).requires_grad_() for n, w in weights.items()})
                for s in (1, -1)
            ]
            exact = [(a - b) / (2 * step) for a, b in zip(*ends, strict=True)]
            product = [torch.zeros_like(e) if s is None else s for s, e in zip(second, exact, strict=True)]
            wrong = torch.stack([(p - e).norm() for p, e in zip(product, exact, strict=True)]).norm()
            right = torch.stack([e.norm() for e in exact]).norm()
            error = min(error, float(wrong / right.clamp(min=1e-12)))
            if error <= TOLERANCE:
                break
    return SecondOrderReport(error, functions)


@contextmanager
def plain_layer_norms(module: nn.Module) -> Iterator[tuple[str, ...]]:
    """Inside, LayerNorms over channels that bring an autograd Function of their own run in plain torch instead.

    NAFNet's and its relatives': first derivatives right, second ones wrong. Only layers whose results are those of the
    plain formula are exchanged; the module has its own ``forward`` back afterwards. Gives their names.
    """
    exchanged = []
    for name, layer in normalization_layers(module):
        if _brings_function(layer):
            layer.forward = _PlainLayerNorm(layer)
            exchanged.append((name, layer))
    try:
        yield tuple(name for name, _ in exchanged)
    finally:
        for _, layer in exchanged:
            del layer.forward


class _PlainLayerNorm:
    """The formula, for a layer's own weights."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        centerd = x - x.mean(1, keepdim=True)
        normed = centerd * (centerd.square().mean(1, keepdim=True) + self.layer.eps).rsqrt()
        return normed * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def _brings_function(layer: nn.Module) -> bool:
    """Return whether it behaves as a LayerNorm over channels by a Python autograd Function, whatever its name."""
    weight, bias = (getattr(layer, name, None) for name in ("weight", "bias"))
    if not (isinstance(weight, Tensor) and isinstance(bias, Tensor) and isinstance(getattr(layer, "eps", None), float)):
        return False
    x = torch.randn(2, weight.numel(), 3, 5, generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        with torch.enable_grad():
            y = layer(x.requires_grad_())
        if not any(True for _ in own_functions(y)):
            return False
        with torch.no_grad():
            return torch.allclose(_PlainLayerNorm(layer)(x), y, atol=1e-5, rtol=1e-4)
    except Exception:  # it is something else
        return False
