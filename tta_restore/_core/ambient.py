"""Keep the caller's defaults, random numbers, graphs and forks apart from the library and the models that it runs."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

__all__ = [
    "GlobalRandom",
    "delay_forks",
    "global_random",
    "is_captured",
    "outside_of_graphs",
    "refuse_capture",
    "uncompiled",
    "usual_defaults",
    "with_usual_defaults",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_FLOATING = frozenset(
    [
        torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.linspace, torch.logspace, torch.eye,
        torch.hann_window, torch.hamming_window, torch.fft.fftfreq, torch.fft.rfftfreq,
    ]
)  # fmt: skip
_INFERRED = frozenset([torch.arange, torch.tensor, torch.as_tensor, torch.full])

_forks = threading.RLock()
os.register_at_fork(before=_forks.acquire, after_in_parent=_forks.release, after_in_child=_forks.release)


class GlobalRandom:
    """Global random numbers of torch, NumPy and Python, while they are borrowed."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._seeded = self._states()

    def seed(self, seed: int) -> None:
        """Start all of them from a seed."""
        # torch.manual_seed formats a stack trace at each call as long as no GPU is in use, which costs more than a pass
        torch.default_generator.manual_seed(seed)
        if self._cuda is not None:
            with torch.cuda.device(self._cuda):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (the one that models draw from)
        random.seed(seed)
        self._seeded = self._states()

    def drawn(self) -> bool:
        """Return whether numbers have been drawn since."""
        now = self._states()
        tensors = zip(self._seeded[0], now[0], strict=True)
        return self._seeded[1:] != now[1:] or any(not torch.equal(a, b) for a, b in tensors)

    def _states(self) -> tuple[list[Tensor], Any, Any]:
        torches = [torch.get_rng_state()]
        if self._cuda is not None:
            torches.append(torch.cuda.get_rng_state(self._cuda))
        state: Any = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
        return torches, (state["key"].tobytes(), state["pos"]), random.getstate()


@contextlib.contextmanager
def global_random(device: torch.device) -> Iterator[GlobalRandom]:
    """Borrow the global random numbers, which go on afterwards as if nothing had drawn from them."""
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield GlobalRandom(device)
        finally:
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)


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
        if made.dtype != torch.get_default_dtype() or (args and isinstance(args[0], Tensor)):
            return made
        return function(*args, **keywords | {"dtype": torch.float32})  # again, as a cast would keep its rounding


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


def is_captured(x: Any) -> bool:
    """Return whether a call with ``x`` is recorded or transformed as a function, and not run for its values."""
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # what make_fx imports
    return (
        isinstance(x, (torch.fx.Proxy, FakeTensor))
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
        or _functorch.peek_interpreter_stack() is not None  # grad, vmap, jvp
        or (proxies is not None and proxies.get_proxy_mode() is not None)
    )


def refuse_capture(adapter: Any) -> NoReturn:
    """Raise a TypeError that names what can be recorded or transformed instead of an adapter."""
    raise TypeError(
        f"{type(adapter).__name__}: an adapter changes from frame to frame and cannot be exported, traced, scripted or "
        "transformed; pass what adapter.export() returns, a plain model with the adapted weights"
    )


def outside_of_graphs(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a method of an adapter as it is where ``torch.compile`` reaches it, as in a module that holds the adapter.

    ``torch.compiler.disable`` would do as much, and import the compiler with the library; an export ends in its words.
    """

    @functools.wraps(function)
    def run(*arguments: _P.args, **keywords: _P.kwargs) -> _R:
        if torch.compiler.is_exporting():
            refuse_capture(arguments[0])
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*arguments, **keywords)
        return function(*arguments, **keywords)

    return run


class _Uncompiled:
    """The stance of ``torch.compile``, which is one for all threads: the first one sets it, and the last one resets."""

    def __init__(self) -> None:
        self._users = 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with _forks:
            self._users += 1
            if self._stance is None and "torch._dynamo" in sys.modules:
                self._stance = torch.compiler.set_stance("force_eager")

    def __exit__(self, *_: object) -> None:
        with _forks:
            self._users -= 1
            if self._stance is not None and not self._users:
                self._stance.__exit__(None, None, None)
                self._stance = None


_uncompiled = _Uncompiled()


def uncompiled() -> contextlib.AbstractContextManager[None]:
    """Return a context in which compiled functions run as they were before; the compiler is not imported for it.

    Trial passes, of many sizes and under watch, would compile each function again until its limit is reached.
    """
    return _uncompiled


def delay_forks() -> contextlib.AbstractContextManager[bool]:
    """Return a context within which other threads wait to fork; a child would find a half imported module locked."""
    return _forks
