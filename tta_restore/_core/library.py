"""Registration of ops with ``torch.library``, vmap rules, and the entry points that public functions call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import _functorch
from torch._decomp import register_decomposition
from torch._ops import OpOverload
from torch.autograd import forward_ad

from tta_restore._core.dispatch import HALF_TYPES, OPERATORS, Operator

# Registrations live as long as these objects. `tta_restore` holds the ops that the library calls and that graphs show;
# `tta_restore_cpu` holds the C++ kernels beneath them, which only the choice in `dispatch` calls.
LIBRARY = torch.library.Library("tta_restore", "FRAGMENT")
_CPU_KERNELS = torch.library.Library("tta_restore_cpu", "FRAGMENT")
_CPU_KERNELS.define("isa_level() -> int")


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    cpu: bool = True,
    cpu_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, *HALF_TYPES),
    triton: str | None = None,
    triton_dtypes: tuple[torch.dtype, ...] = (torch.float32, *HALF_TYPES),
) -> OpOverload:
    """Register ``torch.ops.tta_restore.<name>`` and return it.

    Args:
        schema: for example ``"self_shift_products(Tensor a, Tensor b) -> Tensor"``. The first tensor sets the device.
        reference: definition of the op in plain torch, run where no kernel exists. Returns new, contiguous tensors.
        fake: function that returns empty results with the right shapes, dtypes and strides.
        cpu: whether the C++ sources have a kernel of this name (``TTA_CPU_KERNELS`` in csrc/library.h).
        cpu_dtypes: dtypes of the first tensor that the C++ kernel supports.
        triton: Triton launcher as ``"package.module"`` or ``"package.module:function"``, imported at first use.
        triton_dtypes: dtypes of the first tensor that the Triton kernel supports.

    The op has no gradient: call it from an ``autograd.Function`` whose backward is itself differentiable
    (``register_autograd`` would silently drop second-order gradients).
    """
    name = schema.partition("(")[0]
    if name in OPERATORS:
        raise ValueError(f"define: an op called {name!r} exists already")
    operator = Operator(name, reference, cpu, cpu_dtypes, triton, triton_dtypes)
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, operator, "CompositeExplicitAutograd")
    if cpu:
        _CPU_KERNELS.define(schema)
    torch.library.register_fake(f"tta_restore::{name}", fake, lib=LIBRARY)

    def bare_call(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(
            f"torch.ops.tta_restore.{name} has no gradient; call the function in tta_restore.ops instead"
        )

    torch.library.register_autograd(f"tta_restore::{name}", bare_call, lib=LIBRARY)
    OPERATORS[name] = operator
    op = getattr(torch.ops.tta_restore, name).default
    # torch.onnx.export replaces ops by what this table holds; torch.export, torch.compile and AOTInductor keep them.
    register_decomposition(op)(reference)
    # Of an op in that table, fake tensors with symbolic sizes would run the decomposition instead of the fake kernel.
    register_decomposition(op, type="meta")(fake)
    return op


_PLAIN = (Tensor, torch.nn.Parameter)


def apply(function: type[torch.autograd.Function], name: str, *args: Any) -> Any:
    """Call ``function.apply``, whose forward is the op ``name`` of the same arguments.

    On tiny tensors, autograd and the dispatcher take several times as long as the op. If nothing differentiates,
    transforms or records the call, the kernel is called directly.
    """
    if torch.compiler.is_compiling() or _is_watched(args):
        return differentiate(function, name, *args)
    return OPERATORS[name](*args)


def differentiate(function: type[torch.autograd.Function], name: str, *args: Any) -> Any:
    """Call ``function.apply`` and raise a readable error for forward-mode differentiation of ``name``.

    A ``jvp`` method of the Functions could raise it too, but ``torch.compile`` does not trace Functions with one.

    Raises:
        NotImplementedError: an argument carries a tangent.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return function.apply(*args)
    try:
        return function.apply(*args)
    except NotImplementedError as error:
        if "jvp" not in str(error):  # something else that is missing, such as a kernel for the device
            raise
        raise NotImplementedError(
            f"{name}: has no forward-mode derivative (torch.func.jvp, jacfwd, hessian); use reverse mode "
            "(torch.func.vjp, jacrev, torch.autograd.grad), to second order, too"
        ) from error


def _is_watched(args: tuple[Any, ...]) -> bool:
    tensors = [value for value in args if isinstance(value, Tensor)]
    return (
        (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        or not all(type(tensor) in _PLAIN for tensor in tensors)  # fake tensors and other subclasses
        or _functorch.peek_interpreter_stack() is not None  # grad, vmap, jvp
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
    )


def fold_into_batch(op: Any, tensors: int, *, shared: bool = False) -> None:
    """Register the vmap rule of an op whose first ``tensors`` arguments have a leading batch axis (or are None).

    Results that were not requested, tensors of one axis, are passed on. With ``shared``, tensors without a batch axis
    follow, such as weights; if those are vmapped too, the op runs once per entry.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size = info.batch_size
        if shared and any(dim is not None for dim in in_dims[tensors:]):
            return _loop(op, size, in_dims, args)

        def folded(value: Tensor | None, dim: int | None) -> Tensor | None:
            if value is None:
                return None
            stacked = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            return stacked.flatten(0, 1)

        batched = [folded(value, dim) for value, dim in zip(args[:tensors], in_dims[:tensors], strict=True)]
        # the batch may be empty, so that -1 would not do
        count = next(value.shape[0] for value in batched if value is not None) // size

        def unfolded(result: Tensor) -> tuple[Tensor, int | None]:
            return (result.unflatten(0, (size, count)), 0) if result.ndim > 1 else (result, None)

        results = op(*batched, *args[tensors:])
        if isinstance(results, Tensor):
            return unfolded(results)
        return tuple(zip(*map(unfolded, results), strict=True))

    torch.library.register_vmap(op, rule, lib=LIBRARY)


def one_by_one(op: Any) -> None:
    """Register the vmap rule of an op with a result that sums over the batch: the op runs once per entry."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return _loop(op, info.batch_size, in_dims, args)

    torch.library.register_vmap(op, rule, lib=LIBRARY)


def _loop(op: Any, size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    def at(value: Any, dim: int | None, i: int) -> Any:
        return value if dim is None else value.select(dim, i)

    rows = [op(*(at(value, dim, i) for value, dim in zip(args, in_dims, strict=True))) for i in range(size)]
    if isinstance(rows[0], Tensor):
        return torch.stack(rows), 0
    return tuple(map(torch.stack, zip(*rows, strict=True))), (0,) * len(rows[0])


# A constant, since not every version of torch.compile traces the question.
_AUTOCAST_DEVICES = frozenset(
    kind for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla") if torch.amp.is_autocast_available(kind)
)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of the surrounding autocast region, None outside of one or on devices without autocast."""
    if device_type not in _AUTOCAST_DEVICES or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)
