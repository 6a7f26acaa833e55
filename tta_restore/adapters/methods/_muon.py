"""Muon: momentum whose matrices are made orthogonal before they are stepped along."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from tta_restore._core import checks

# a, b, c of x -> a x + b x^3 + c x^5, which takes singular values from (0, 1] to near 1 in five rounds
_QUINTIC, _ROUNDS = (3.4445, -4.7750, 2.0315), 5
_LARGEST = 256  # a round costs the cube of a matrix's smaller side: beyond this, more than the pass through the model
_BETAS, _EPS = (0.9, 0.999), 1e-8


class Muon(torch.optim.Optimizer):
    """Steps filters and matrices along their orthogonalised momentum, and all other tensors as Adam does.

    Every direction that a layer can change in gets a step of like size, however small its share of the gradient, which
    pays where steps are few. Filters count as matrices of one row per output channel. :class:`torch.optim.Muon` takes
    matrices only.

    Args:
        parameters: tensors to step; those with one row, one column, or more than 256 of both go as in Adam.
        lr: learning rate; the step of a matrix of m rows and n columns has 0.2 sqrt(max(m, n)) times it as its singular
            values, and so entries like a step of Adam.
        momentum: share of itself that the momentum keeps at each step.

    Raises:
        ValueError: a setting is out of range.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the scale: Liu et al., "Muon
    is scalable for LLM training", 2025.
    """

    def __init__(self, parameters: list[Tensor], *, lr: float = 1e-3, momentum: float = 0.95) -> None:
        checks.expect_number("Muon", "lr", lr, minimum=0)
        checks.expect_number("Muon", "momentum", momentum, minimum=0, maximum=1)
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as every optimizer does, without torch's import of its compiler, which takes seconds."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Step every parameter that has a gradient; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[Any, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shape = (parameter.shape[0], parameter[0].numel()) if _is_matrix(parameter) else None
                    alike.setdefault((shape, parameter.dtype, parameter.device), []).append(parameter)
            for (shape, *_), parameters in alike.items():
                if shape is None:
                    self._step_as_adam(parameters, group["lr"])
                else:
                    self._step_matrices(parameters, group["lr"], group["momentum"])
        return loss

    def _step_matrices(self, parameters: list[Tensor], lr: float, momentum: float) -> None:
        """Step matrices of one shape, all at once."""
        gradients, kept = _gradients(parameters), []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            kept.append(state["momentum"])
        torch._foreach_mul_(kept, momentum)
        torch._foreach_add_(kept, gradients)
        ahead = torch._foreach_add(gradients, kept, alpha=momentum)  # Nesterov's
        with torch.autocast(ahead[0].device.type, enabled=False):
            steps = orthogonalised(torch.stack([one.flatten(1) for one in ahead]))
        scale = 0.2 * math.sqrt(max(steps.shape[1:]))
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.add_(step.reshape(parameter.shape), alpha=-lr * scale)

    def _step_as_adam(self, parameters: list[Tensor], lr: float) -> None:
        kept: dict[str, list[Tensor]] = {"step": [], "exp_avg": [], "exp_avg_sq": []}
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            for name, tensors in kept.items():
                tensors.append(state[name])
        adam(
            parameters,
            _gradients(parameters),
            kept["exp_avg"],
            kept["exp_avg_sq"],
            [],
            kept["step"],
            fused=parameters[0].device.type == "cpu" and not any(p.is_complex() for p in parameters),
            amsgrad=False,
            lr=lr,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            weight_decay=0.0,
            eps=_EPS,
            maximize=False,
        )


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1, between 0.7 and 1.2.

    Those below about a thousandth of the matrix's norm stay smaller; a matrix of zeros stays zero. The rounds are taken
    on the square of the smaller side instead of on the matrix, which differs in rounding only.

    Shape:
        - matrices: (L, M, N)
        - output: (L, M, N)
    """
    tall = matrices.shape[1] > matrices.shape[2]
    flat = matrices.mT if tall else matrices
    flat = flat / flat.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-30)
    gram = flat @ flat.mT
    product = factor = _quintic(gram)
    for _ in range(_ROUNDS - 1):
        gram = factor @ gram @ factor
        factor = _quintic(gram)
        product = product @ factor
    result = product @ flat
    return result.mT if tall else result


def _quintic(gram: Tensor) -> Tensor:
    """Return the factor of one round from the products of matrices with themselves: (L, M, M) -> (L, M, M)."""
    a, b, c = _QUINTIC
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


def _is_matrix(tensor: Tensor) -> bool:
    if tensor.ndim < 2 or tensor.numel() == 0 or not tensor.is_floating_point():
        return False
    smaller = min(tensor.shape[0], tensor[0].numel())
    return 1 < smaller <= _LARGEST
