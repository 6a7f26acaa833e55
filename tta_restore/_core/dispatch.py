"""Which kernel runs: choose one per call, fall back audibly, obey a caller who asks for one, and report it all.

An op has one definition, its reference in plain torch, and up to two kernels that compute the same faster: ``cpu``
(C++) and ``triton`` (CUDA). The choice is made inside the op, at run time, so a compiled graph obeys it too.
"""

from __future__ import annotations

import contextvars
import ctypes
import importlib
import importlib.util
import logging
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from tta_restore._core import extension as _extension

BACKENDS = ("reference", "cpu", "triton")
HALF_TYPES = (torch.float16, torch.bfloat16)

_logger = logging.getLogger("tta_restore")
_requested: contextvars.ContextVar[str | None] = contextvars.ContextVar("tta_restore_backend", default=None)
# Autograd runs the backward pass of CUDA tensors on threads of its own. Context variables do not reach them; what
# torch keeps in its thread-local state does.
_BACKWARD_THREAD_KEY = "tta_restore_backend"
_said: set[str] = set()


class BackendUnavailable(RuntimeError):
    """The backend that the caller asked for cannot run here, or not on these tensors; the message says why."""


@dataclass
class Operator:
    """One registered op: its reference and the kernels that can take its place."""

    name: str
    reference: Callable[..., Any]
    cpu: bool
    cpu_dtypes: tuple[torch.dtype, ...]
    triton: str | None
    triton_dtypes: tuple[torch.dtype, ...]
    _kernels: dict[str, Callable[..., Any]] = field(default_factory=dict)
    # Device and dtype of the first tensor to backend, once it ran there: saves 10 microseconds a call.
    _settled: dict[tuple[str, torch.dtype], str] = field(default_factory=dict)

    def __call__(self, *args: Any) -> Any:
        """Run the kernel that the caller asked for, or the fastest one that can take these arguments."""
        wanted = requested()
        if wanted is None:
            wanted = self._fastest(args)
        elif reason := self.refusal(wanted, args):
            raise BackendUnavailable(f"{wanted}: {self.name} {reason}")
        return self._kernel(wanted)(*args)

    def _fastest(self, args: tuple[Any, ...]) -> str:
        first = _first_tensor(args)
        kind = (first.device.type, first.dtype)
        if kind in self._settled:
            return self._settled[kind]
        native = {"cpu": "cpu", "cuda": "triton"}.get(first.device.type)
        reason = self.refusal(native, args) if native else f"has no kernel for {first.device.type} tensors"
        if native and reason is None:
            self._settled[kind] = native
            return native
        declared = (native == "cpu" and self.cpu) or (native == "triton" and self.triton)
        _say_once(
            logging.WARNING if declared else logging.INFO,
            f"{self.name} runs its reference (plain torch, same result, slower) on {first.device.type}: it {reason}",
            about=f"{native} {reason}",
        )
        return "reference"

    def refusal(self, name: str, args: tuple[Any, ...]) -> str | None:
        """Return why backend ``name`` cannot run this op on these arguments, or None when it can."""
        if name == "reference":
            return None
        missing = self.missing(name)
        if missing:
            return missing
        first = _first_tensor(args)
        expected = "cpu" if name == "cpu" or interpreting() else "cuda"
        if first.device.type != expected:
            return f"needs a {expected.upper()} tensor, got {first.device}"
        supported = self.cpu_dtypes if name == "cpu" else self.triton_dtypes
        return None if first.dtype in supported else f"has no kernel for {first.dtype}"

    def missing(self, name: str) -> str | None:
        """Return why backend ``name`` has no kernel for this op at all, or None when it has."""
        if name == "cpu":
            if not self.cpu:
                return "has no C++ kernel: torch's own operators are the fast path"
            if not _extension.AVAILABLE:
                return f"cannot run in C++: the extension is {_extension.DETAIL}"
            if not _extension.implements(self.name):
                return f"is not in the loaded binary {_extension.DETAIL}: rebuild it with `make build`"
        if name == "triton":
            if self.triton is None:
                return "has no Triton kernel: torch's own operators are the fast path"
            return triton_missing()
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


OPERATORS: dict[str, Operator] = {}


class backend:  # noqa: N801  used as a function: with backend("cpu"): ...
    """Run every op inside the ``with`` block on one backend, or raise.

    ``name`` is ``"reference"`` (plain torch, any device), ``"cpu"`` (C++) or ``"triton"`` (CUDA). Without this context
    the fastest kernel that can take the arguments runs. The choice holds for the current thread or asyncio task, and
    for a backward pass started inside the block. Blocks nest.

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
        self._tokens: list[contextvars.Token[str | None]] = []

    def __enter__(self) -> backend:
        """Check that the backend exists here, then force it."""
        reason = None
        if self.name == "cpu" and not _extension.AVAILABLE:
            reason = f"the C++ extension is {_extension.DETAIL}"
        elif self.name == "triton":
            reason = triton_missing()
        if reason:
            raise BackendUnavailable(f"{self.name}: {reason}")
        self._tokens.append(_requested.set(self.name))
        _tell_backward_threads(self.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Go back to the choice that held before."""
        _requested.reset(self._tokens.pop())
        _tell_backward_threads(_requested.get())


def _stash_steals() -> bool:
    """Whether ``_stash_obj_in_tls`` later drops a reference that it never took, as torch 2.11 does."""
    probe = object()
    before = sys.getrefcount(probe)
    torch._C._stash_obj_in_tls(_BACKWARD_THREAD_KEY, probe)
    steals = sys.getrefcount(probe) == before
    if steals:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(probe))
    return steals


_STASH_STEALS = _stash_steals()


def _tell_backward_threads(name: str | None) -> None:
    if _STASH_STEALS:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(name))
    torch._C._stash_obj_in_tls(_BACKWARD_THREAD_KEY, name)


_tell_backward_threads(None)


def requested() -> str | None:
    """Return the backend that a surrounding ``backend(...)`` block forces, or None."""
    name = _requested.get()
    if name is None and torch._C._is_key_in_tls(_BACKWARD_THREAD_KEY):
        name = torch._C._get_obj_in_tls(_BACKWARD_THREAD_KEY)
    return name


def interpreting() -> bool:
    """Tell whether Triton kernels run in its interpreter, on CPU tensors (for tests; very slow)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_missing() -> str | None:
    """Return why no Triton kernel can run on this machine, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the triton package is not installed"
    if not interpreting() and not torch.cuda.is_available():
        return "no CUDA device is available"
    return None


def show_config() -> str:
    """Return a text that tells which kernel runs where on this machine, and why.

    >>> show_config().splitlines()[0].split()[0]
    'tta_restore'
    """
    package = importlib.import_module("tta_restore")
    importlib.import_module("tta_restore.ops")  # the ops register themselves; no lower floor depends on them
    compiled = (
        f"loaded, {_extension.instruction_set()}, {_extension.DETAIL}"
        if _extension.AVAILABLE
        else f"absent: {_extension.DETAIL}"
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


def _say_once(level: int, message: str, *, about: str) -> None:
    if about not in _said:
        _said.add(about)
        _logger.log(level, "tta_restore: %s (said once)", message)
