"""Choose the kernel of every op call: the fastest that can take the tensors, or the one that a caller asks for.

An op has one definition, its reference in plain torch, and up to two kernels that compute the same result faster:
``cpu`` (C++) and ``triton`` (CUDA). The kernel is chosen inside the op, at run time, so compiled graphs obey the choice
too. A fallback to the reference is logged with its reason.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from tta_restore._core import extension

__all__ = [
    "BACKENDS",
    "HALF_TYPES",
    "OPERATORS",
    "BackendUnavailable",
    "Operator",
    "backend",
    "interpreting",
    "requested",
    "show_config",
    "triton_missing",
]

BACKENDS = ("reference", "cpu", "triton")
HALF_TYPES = (torch.float16, torch.bfloat16)
OLDEST_CAPABILITY = (8, 0)  # Triton's bfloat16 products need Ampere
COMPILING_IS_SLOW = 2.0  # seconds of a first launch after which the wait is explained

_logger = logging.getLogger("tta_restore")
_logged: set[str] = set()


@dataclass(frozen=True, eq=False)
class _Block:
    """An entered ``backend(...)`` block and the block around it."""

    name: str
    outer: _Block | None


_innermost: contextvars.ContextVar[_Block | None] = contextvars.ContextVar("tta_restore_backend", default=None)
# Autograd runs the backward pass of CUDA tensors, eager or compiled, on threads of torch, which context variables do
# not reach. Such a thread obeys the blocks that are open in the process.
_open_blocks: set[_Block] = set()


class BackendUnavailable(RuntimeError):
    """The requested backend cannot run on this machine or on these tensors; the message gives the reason."""


@dataclass
class Operator:
    """A registered op: its reference and the kernels that can replace it."""

    name: str
    reference: Callable[..., Any]
    cpu: bool
    cpu_dtypes: tuple[torch.dtype, ...]
    triton: str | None
    triton_dtypes: tuple[torch.dtype, ...]
    _kernels: dict[str, Callable[..., Any]] = field(default_factory=dict)
    # Backend by device and dtype of the first tensor: looking it up again would cost 10 microseconds per call.
    _settled: dict[tuple[torch.device, torch.dtype], str] = field(default_factory=dict)
    _launched: set[tuple[Any, ...]] = field(default_factory=set)

    def __call__(self, *args: Any) -> Any:
        """Run the requested kernel, or the fastest one that can take these arguments."""
        wanted = requested()
        if wanted is None:
            wanted = self._fastest(args)
        elif reason := self.refusal(wanted, args):
            raise BackendUnavailable(f"{wanted}: {self.name} {reason}")
        kernel = self._kernel(wanted)
        if wanted == "triton":
            with self._explained_compilation(args):
                return kernel(*args)
        return kernel(*args)

    def _fastest(self, args: tuple[Any, ...]) -> str:
        first = _first_tensor(args)
        kind = (first.device, first.dtype)
        if kind in self._settled:
            return self._settled[kind]
        native = {"cpu": "cpu", "cuda": "triton"}.get(first.device.type)
        reason = self.refusal(native, args) if native else f"has no kernel for {first.device.type} tensors"
        if native and reason is None:
            self._settled[kind] = native
            return native
        declared = (native == "cpu" and self.cpu) or (native == "triton" and self.triton)
        _log_once(
            logging.WARNING if declared else logging.INFO,
            f"{self.name} runs its reference (plain torch, same result, slower) on {first.device.type}: it {reason}",
            about=f"{native} {reason}",
        )
        return "reference"

    def refusal(self, name: str, args: tuple[Any, ...]) -> str | None:
        """Return why backend ``name`` cannot run this op on these arguments, or None when it can."""
        if name == "reference":
            return None
        first = _first_tensor(args)
        missing = self.missing(name, first.device)
        if missing:
            return missing
        expected = "cpu" if name == "cpu" or interpreting() else "cuda"
        if first.device.type != expected:
            return f"needs a {expected.upper()} tensor, got {first.device}"
        supported = self.cpu_dtypes if name == "cpu" else self.triton_dtypes
        return None if first.dtype in supported else f"has no kernel for {first.dtype}"

    def missing(self, name: str, device: torch.device | None = None) -> str | None:
        """Return why backend ``name`` has no kernel for this op on this machine, or None when it has one."""
        if name == "cpu":
            if not self.cpu:
                return "has no C++ kernel: torch's own operators are the fast path"
            if not extension.AVAILABLE:
                return f"cannot run in C++: the extension is {extension.DETAIL}"
            if not extension.implements(self.name):
                return f"is not in the loaded binary {extension.DETAIL}: rebuild it with `make build`"
        if name == "triton":
            if self.triton is None:
                return "has no Triton kernel: torch's own operators are the fast path"
            reason = triton_missing(device)
            return reason and f"cannot run in Triton: {reason}"
        return None

    def _kernel(self, name: str) -> Callable[..., Any]:
        kernel = self._kernels.get(name)
        if kernel is None:
            if name == "reference":
                kernel = self.reference
            elif name == "cpu":
                kernel = getattr(torch.ops.tta_restore_cpu, self.name).default
            else:
                module, _, function = (self.triton or "").partition(":")
                kernel = getattr(importlib.import_module(module), function or self.name)
            self._kernels[name] = kernel
        return kernel

    @contextlib.contextmanager
    def _explained_compilation(self, args: tuple[Any, ...]) -> Iterator[None]:
        """Log why a first launch takes long: Triton compiles for up to a minute unless its cache holds the kernel."""
        first = _first_tensor(args)
        options = tuple(str(value) for value in args if not isinstance(value, Tensor))
        kind = (first.device, first.dtype, options)
        if kind in self._launched:
            yield
            return
        self._launched.add(kind)
        message = f"Triton compiles the kernels of {self.name} for {first.dtype}, which can take a minute"
        timer = threading.Timer(COMPILING_IS_SLOW, _log_once, (logging.WARNING, message), {"about": message})
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


OPERATORS: dict[str, Operator] = {}


class backend:  # noqa: N801  used as a function: with backend("cpu"): ...
    """Run every op inside the ``with`` block on one backend, or raise.

    ``name`` is ``"reference"`` (plain torch, any device), ``"cpu"`` (C++) or ``"triton"`` (CUDA). Without this context
    the fastest kernel that can take the arguments runs. The choice holds for the current thread or asyncio task, and
    for a backward pass started inside the block, compiled or not. Blocks nest. If blocks of several threads ask for
    different backends at the same time, backward passes of CUDA tensors run the fastest kernel and log it.

    Raises:
        ValueError: no backend has this name.
        BackendUnavailable: on entering, when the backend cannot run on this machine; from an op, when it cannot take
            these tensors.

    >>> with backend("reference"):
    ...     requested()
    'reference'
    """

    def __init__(self, name: str) -> None:
        if name not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
        self.name = name
        self._tokens: list[contextvars.Token[_Block | None]] = []

    def __enter__(self) -> backend:
        """Check that the backend exists on this machine, then request it."""
        reason = None
        if self.name == "cpu" and not extension.AVAILABLE:
            reason = f"the C++ extension is {extension.DETAIL}"
        elif self.name == "triton":
            reason = triton_missing()
        if reason:
            raise BackendUnavailable(f"{self.name}: {reason}")
        block = _Block(self.name, _innermost.get())
        _open_blocks.add(block)
        self._tokens.append(_innermost.set(block))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the previous choice."""
        block = _innermost.get()
        if block is not None:
            _open_blocks.discard(block)
        _innermost.reset(self._tokens.pop())


def requested() -> str | None:
    """Return the backend that a surrounding ``backend(...)`` block asks for, or None."""
    block = _innermost.get()
    if block is not None:
        return block.name
    if _open_blocks and isinstance(threading.current_thread(), threading._DummyThread):  # not started by Python
        blocks = tuple(_open_blocks)
        outer = {block.outer for block in blocks}
        names = {block.name for block in blocks if block not in outer}
        if len(names) == 1:
            return names.pop()
        listed = ", ".join(sorted(names))
        message = f"threads ask for different backends ({listed}): backward passes on CUDA run the fastest kernel"
        _log_once(logging.WARNING, message, about=message)
    return None


def interpreting() -> bool:
    """Return whether Triton kernels run in its interpreter, on CPU tensors (for tests; very slow)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_missing(device: torch.device | None = None) -> str | None:
    """Return why no Triton kernel can run on this machine, or on this CUDA device, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the triton package is not installed"
    if interpreting():
        return None
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    index = device.index if device is not None and device.type == "cuda" else None
    return _device_lacks(torch.cuda.current_device() if index is None else index)


@functools.cache
def _device_lacks(index: int) -> str | None:
    """Return why a CUDA device cannot run Triton kernels: its generation, or an error of a trivial kernel."""
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip is None and capability < OLDEST_CAPABILITY:
        oldest, found = (".".join(map(str, version)) for version in (OLDEST_CAPABILITY, capability))
        return f"{torch.cuda.get_device_name(index)} has compute capability {found}, the kernels need {oldest}"
    try:
        # Triton builds its launcher with a C compiler, which slim images lack.
        importlib.import_module("tta_restore._core._triton_probe").launch(torch.device("cuda", index))
    except Exception as error:
        words = str(error).strip().splitlines() or ["no message"]
        return f"a trivial kernel does not compile or run: {type(error).__name__}: {words[0]}"
    return None


def show_config() -> str:
    """Return a text report of which kernel every op runs on this machine, and why.

    >>> show_config().splitlines()[0].split()[0]
    'tta_restore'
    """
    package = importlib.import_module("tta_restore")
    importlib.import_module("tta_restore.ops")  # imported here because the core is a lower layer
    compiled = (
        f"loaded, {extension.instruction_set()}, {extension.DETAIL}"
        if extension.AVAILABLE
        else f"absent: {extension.DETAIL}"
    )
    gpu = triton_missing() or (
        "interpreter, on CPU tensors" if interpreting() else f"ready, {torch.cuda.get_device_name()}"
    )
    lines = [
        f"tta_restore {package.__version__} | torch {torch.__version__} | Python {platform.python_version()}",
        f"C++ kernels     {compiled}",
        f"Triton kernels  {gpu}",
        f"threads         {torch.get_num_threads()}",
        f"forced backend  {requested() or 'none: the fastest kernel that can take the tensors runs'}",
        "",
    ]
    width = max(map(len, OPERATORS), default=2) + 2
    lines.append(f"{'op':{width}}{'on CPU':12}on CUDA")
    for name, operator in sorted(OPERATORS.items()):
        reasons = {place: operator.missing(place) for place in ("cpu", "triton")}
        runs = {place: "reference" if reason else place for place, reason in reasons.items()}
        lines.append(f"{name:{width}}{runs['cpu']:12}{runs['triton']}")
    why = sorted(
        {
            f"{place}: {reason}"
            for o in OPERATORS.values()
            for place in ("cpu", "triton")
            if (reason := o.missing(place))
        }
    )
    if why:
        lines += ["", "reference, because an op", *(f"  {reason}" for reason in why)]
    return "\n".join(lines)


def _first_tensor(args: tuple[Any, ...]) -> Tensor:
    return next(value for value in args if isinstance(value, Tensor))


def _log_once(level: int, message: str, *, about: str) -> None:
    if about not in _logged:
        _logged.add(about)
        _logger.log(level, "tta_restore: %s (logged once)", message)
