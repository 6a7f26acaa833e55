"""Run a third-party module and leave it exactly as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tta_restore.models.restorer.contents import Contents


@contextmanager
def preserve_state(module: nn.Module, *, training: bool | None = None) -> Iterator[None]:
    """Run a block with ``module`` in eval (or train) mode, and undo whatever the block does to it.

    Undone are: the mode of every submodule, attributes that a forward sets (caches, the weight of an old-style
    weight_norm), what it puts into containers, objects and tensors there (:class:`Contents`), buffers it replaces or
    writes into, gradients, parameters it swaps or points elsewhere through ``.data``. Tensors that an earlier
    ``inference_mode`` call left behind are replaced by plain ones for the block, because autograd refuses them. Values
    written in place into a parameter are not undone: nothing in this package does that.
    """
    parts = list(module.modules())
    # TorchScript has no attributes to change from Python: its mode and its buffers are all there is
    modules = [m for m in parts if not isinstance(m, torch.jit.ScriptModule)]
    modes = [(m, m.training) for m in parts]
    attributes = [dict(m.__dict__) for m in modules]
    tables = [(dict(m._parameters), dict(m._buffers)) for m in modules]
    data = [(parameter, parameter.detach()) for m in modules for parameter in m.parameters(recurse=False)]
    gradients = [(parameter, parameter.grad) for parameter, _ in data if parameter.is_leaf]
    contents = Contents(modules, exact=True)
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    mode = module.training
    try:
        for parameter, gradient in gradients:
            if gradient is not None:
                parameter.grad = None  # a pass may add to it
        if training is not None and any(m.training != training for m in parts):
            set_mode(module, training)
        for m in modules:
            _replace_inference_tensors(m)
        yield
    finally:
        if module.training != mode:
            set_mode(module, mode)  # a module may do more than set flags here; the flags themselves follow below
        for m, old, (parameters, own_buffers) in zip(modules, attributes, tables, strict=True):
            put_back([(m.__dict__, old), (m._parameters, parameters), (m._buffers, own_buffers)])
        contents.restore()
        for m, old_mode in modes:
            if m.training != old_mode:
                m.training = old_mode
        for parameter, old in data:
            if parameter.data_ptr() != old.data_ptr():
                parameter.data = old
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient
        for buffer, old in buffers:
            if not torch.equal(buffer, old):  # batch_norm writes without raising the version counter
                with torch.no_grad(), torch.inference_mode(buffer.is_inference()):
                    buffer.copy_(old)


def set_mode(module: nn.Module, training: bool) -> None:
    """Switch a module to train or eval mode; an exported program keeps the mode that it was exported in."""
    try:
        module.train(training)
    except NotImplementedError:
        if not isinstance(module, GraphModule):
            raise


def put_back(tables: Iterable[tuple[dict, dict]]) -> None:
    """Give each table the entries of its old copy, in place."""
    for table, old in tables:
        for key in [key for key in table if key not in old]:
            del table[key]
        for key, value in old.items():
            if key not in table or table[key] is not value:
                table[key] = value


def _replace_inference_tensors(module: nn.Module) -> None:
    for table in (module.__dict__, module._buffers):
        for name, value in table.items():
            if isinstance(value, Tensor) and value.is_inference():
                with torch.inference_mode(False):
                    table[name] = value.clone()
