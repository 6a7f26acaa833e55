"""Walk what models return: tensors in nested lists, tuples, mappings and objects, and the graphs behind them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from tta_restore.models.restorer.spec import RestorerSpec

Path = tuple[int | str, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Paths and tensors in ``value``, in its own order."""
    if isinstance(value, Tensor):
        yield path, value
    for key, child in _children(value):
        yield from leaves(child, (*path, key))


def is_continuous(tensor: Tensor) -> bool:
    """Return whether a tensor can be stepped: a dense one of floats of at least 16 bits, or complex."""
    return tensor.layout == torch.strided and (
        tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize > 1)
    )


def at(value: Any, path: Path) -> Any:
    """Return the leaf of ``value`` at ``path``; raise LookupError if there is none."""
    for key in path:
        value = dict(_children(value))[_normal(value, key)]
    return value


def transform(value: Any, change: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Any:
    """Copy of ``value`` with ``change(path, tensor)`` in place of each tensor; everything else passes through."""
    if isinstance(value, Tensor):
        return change(path, value)
    changed = {key: transform(child, change, (*path, key)) for key, child in _children(value)}
    return _rebuild(value, changed) if changed else value


def concatenate(values: Sequence[Any]) -> Any:
    """Join the structures of single images: tensors with a batch axis of one are concatenated, others are the first."""
    if len(values) == 1:
        return values[0]

    def join(path: Path, first: Tensor) -> Tensor:
        if first.ndim == 0 or first.shape[0] != 1:
            return first
        return torch.cat([at(value, path) for value in values])

    return transform(values[0], join)


def _children(value: Any) -> list[tuple[int | str, Any]]:
    if isinstance(value, Mapping):  # before dataclasses: a transformers ModelOutput is both
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(entry.name, getattr(value, entry.name)) for entry in dataclasses.fields(value)]
    if isinstance(value, Tensor) or callable(value):
        return []
    if isinstance(getattr(value, "__dict__", None), dict):  # a plain object
        return [(k, v) for k, v in vars(value).items() if isinstance(v, (Tensor, Mapping, list, tuple))]
    return []


def _normal(value: Any, key: int | str) -> int | str:
    return key + len(value) if isinstance(value, (list, tuple)) and isinstance(key, int) and key < 0 else key


def _rebuild(value: Any, changed: dict[int | str, Any]) -> Any:
    if isinstance(value, tuple):
        items = list(changed.values())
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    rebuilt = copy.copy(value)
    for key, child in changed.items():
        if isinstance(value, (list, Mapping)):
            rebuilt[key] = child
        else:
            object.__setattr__(rebuilt, str(key), child)  # frozen dataclasses too
    return rebuilt


def find_image(raw: Any, spec: RestorerSpec, size: tuple[int, int], *, clips: bool = False) -> Path:
    """Return the path of the restored image in what the model returned for an input with sides ``size``.

    Raises:
        ValueError: there is none of that size; what is there is listed.
    """
    found = list(leaves(raw))
    if not spec.dense:
        vectors = [p for p, leaf in found if is_vector(leaf)]
        if len(vectors) == 1:
            return vectors[0]
    path = _declared_path(raw, spec)
    if path is None:
        images = [(p, leaf) for p, leaf in _images(found, spec.out_channels, clips) if _fits(leaf, spec, size)]
        if images:
            return images[0][0]
    elif _fits(at(raw, path), spec, size):
        return path
    expected = [spec.scale * (side - 2 * spec.border) for side in size]
    wanted = "the largest image-like tensor" if path is None else f"the tensor at {list(path)}"
    raise ValueError(
        f"restorer: expected {wanted} of the output to be (..., {expected[0]}, {expected[1]}) for an input of "
        f"{size[0]}x{size[1]} at scale {spec.scale}, got {describe_output(raw)}; "
        "declare scale, size, border and output in a RestorerSpec"
    )


def _declared_path(raw: Any, spec: RestorerSpec) -> Path | None:
    if spec.output is None:
        return None
    if callable(spec.output):
        picked = spec.output(raw)
        paths = [path for path, leaf in leaves(raw) if leaf is picked]
        if not paths:
            raise ValueError("restorer: RestorerSpec.output must return one of the tensors in the model's output")
        return paths[0]
    declared = spec.output if isinstance(spec.output, tuple) else (spec.output,)
    try:
        picked = at(raw, declared)
    except LookupError:
        picked = None
    paths = [path for path, leaf in leaves(raw) if leaf is picked]
    if not paths:
        there = ", ".join(str(list(path)) for path, _ in leaves(raw)) or type(raw).__name__
        raise ValueError(f"restorer: the model's output has no tensor at {list(declared)}; there are: {there}")
    return paths[0]


def _image_like(leaf: Tensor, channels: int | None, clips: bool) -> bool:
    if not leaf.is_floating_point() or leaf.ndim not in ((4, 5) if clips else (4,)):
        return False
    return leaf.shape[-3] == channels if channels else 1 <= leaf.shape[-3] <= 4


def _images(found: list[tuple[Path, Tensor]], channels: int | None, clips: bool) -> list[tuple[Path, Tensor]]:
    """Image-like tensors; where there are none, the only one with rows and columns, whatever its channels."""
    images = [(path, leaf) for path, leaf in found if _image_like(leaf, channels, clips)]
    if images or channels:
        return images
    only = [(path, leaf) for path, leaf in found if leaf.is_floating_point() and leaf.ndim == 4]
    return only if len(only) == 1 else []


def describe_output(raw: Any) -> str:
    """Paths and shapes of the tensors that a model gave, or the kind of what it gave instead."""
    shapes = [f"{list(path)}: {tuple(leaf.shape)}" for path, leaf in leaves(raw)]
    return ", ".join(shapes) or type(raw).__name__


def is_vector(leaf: Tensor) -> bool:
    """Return whether a tensor holds one vector per frame: (B, K)."""
    return leaf.is_floating_point() and leaf.ndim == 2


def _fits(leaf: Any, spec: RestorerSpec, size: tuple[int, int]) -> bool:
    if not isinstance(leaf, Tensor) or leaf.ndim < 3:
        return False
    if not spec.border:
        return leaf.shape[-2:] == (spec.scale * size[0], spec.scale * size[1])
    return spec.missing(size, leaf.shape[-2:]) is not None


def infer_scale(raw: Any, size: tuple[int, int], *, clips: bool = False) -> int | None:
    """Return the scale of the largest image-like tensor for an input with sides ``size``; None without any."""
    scales = []
    for _, leaf in _images(list(leaves(raw)), None, clips):
        height, width = leaf.shape[-2:]
        scale = height // size[0]
        if scale >= 1 and (height, width) == (size[0] * scale, size[1] * scale):
            scales.append(scale)
    return max(scales, default=None)


def infer_border(raw: Any, size: tuple[int, int], *, clips: bool = False) -> tuple[int, int] | None:
    """Scale and border in input pixels of an image that lacks as much at every side; None without one.

    ``size`` has to be of two different sides: the scale follows from their difference.
    """
    for _, leaf in _images(list(leaves(raw)), None, clips):
        height, width = leaf.shape[-2:]
        scale, rest = divmod(height - width, size[0] - size[1])
        if scale < 1 or rest:
            continue
        lacking, odd = divmod(scale * size[0] - height, 2)
        if lacking > 0 and not odd:
            return scale, -(-lacking // scale)
    return None


def nodes(output: Tensor) -> Iterator[Any]:
    """Nodes of the graph of a tensor."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(child for child, _ in node.next_functions)


def own_functions(output: Tensor) -> Iterator[BackwardCFunction]:
    """Nodes of Python autograd Functions in the graph of a tensor."""
    return (node for node in nodes(output) if isinstance(node, BackwardCFunction))


def third_party_functions(output: Tensor) -> Iterator[BackwardCFunction]:
    """Nodes of Python autograd Functions in the graph of a tensor, without those of this package."""
    kinds: Iterator[Any] = own_functions(output)
    return (node for node in kinds if not type(node)._forward_cls.__module__.startswith("tta_restore."))


def _dense(gradient: Tensor | None) -> Tensor | None:
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def differentiate(loss: Tensor, tensors: Sequence[Tensor], *, accumulate: bool) -> list[Tensor | None]:
    """Return the gradient of a loss for each of some leaves, None for those that it does not depend on.

    With ``accumulate``, gradients are collected in ``.grad`` as ``loss.backward()`` does. Python autograd Functions
    that run backward inside backward, as reentrant activation checkpointing and reversible blocks do, add their part
    there only. The ``.grad`` of other leaves is put back. Sparse gradients, as of embeddings, are returned dense.
    """
    if not accumulate:
        return [_dense(gradient) for gradient in torch.autograd.grad(loss, tensors, allow_unused=True)]
    own = {id(tensor) for tensor in tensors}
    found = [node.variable for node in nodes(loss) if hasattr(node, "variable")]
    others = [(leaf, leaf.grad) for leaf in found if id(leaf) not in own]
    for leaf, _ in others:
        leaf.grad = None  # a gradient that is there would be added to
    loss.backward()
    gradients = [_dense(tensor.grad) for tensor in tensors]
    for leaf, kept in [*((tensor, None) for tensor in tensors), *others]:
        leaf.grad = kept
    return gradients
