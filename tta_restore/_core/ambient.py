"""Keep the caller's default dtype and device out of the tensors that the library creates."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["usual_defaults", "with_usual_defaults"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_FLOATING = frozenset(
    [
        torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.linspace, torch.logspace, torch.eye,
        torch.hann_window, torch.hamming_window, torch.fft.fftfreq, torch.fft.rfftfreq,
    ]
)  # fmt: skip
_INFERRED = frozenset([torch.arange, torch.tensor, torch.as_tensor, torch.full])


class _Float32(TorchFunctionMode):
    """Give factories without a dtype float32 where they would take the default one."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        if keywords.get("dtype") is not None or (function not in _FLOATING and function not in _INFERRED):
            return function(*args, **keywords)
        if function in _FLOATING:
            return function(*args, **keywords | {"dtype": torch.float32})
        made = function(*args, **keywords)
        from_tensor = bool(args) and isinstance(args[0], Tensor)
        return made.float() if made.dtype == torch.get_default_dtype() and not from_tensor else made


def usual_defaults(weight: Tensor | None = None) -> contextlib.AbstractContextManager[Any]:
    """Create tensors on the CPU and in float32 inside, whatever the defaults are.

    A model whose weights have the default dtype keeps it.
    """
    stack = contextlib.ExitStack()
    if torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))
    default = torch.get_default_dtype()
    if default != torch.float32 and (weight is None or weight.dtype != default):
        stack.enter_context(_Float32())
    return stack


def with_usual_defaults(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a function inside :func:`usual_defaults`; the weights of a module among its arguments keep their dtype."""

    @functools.wraps(function)
    def run(*arguments: _P.args, **keywords: _P.kwargs) -> _R:
        if torch.get_default_dtype() == torch.float32 and torch.get_default_device().type == "cpu":
            return function(*arguments, **keywords)
        modules = (value for value in arguments if isinstance(value, nn.Module) and "_parameters" in vars(value))
        weights = (weight for module in modules for weight in module.parameters() if weight.is_floating_point())
        with usual_defaults(next(weights, None)):
            return function(*arguments, **keywords)

    return run
