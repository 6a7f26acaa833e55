"""Networks that keep something from pass to pass, or reach their weights by another way than attributes."""

from __future__ import annotations

import threading
import types
import weakref
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from adapters.body import Body, changed
from torch import Tensor, nn


class Remembering(Body):
    """Keeps activations on itself, in attributes and in containers, as for a loss of features."""

    def __init__(self):
        super().__init__()
        self.kept, self.by_name = [], {}

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.a(x)
        self.kept.append(self.features)
        self.by_name["features"] = self.features
        return x + self.b(F.gelu(self.features))


class CachedWeights(Body):
    """Keeps what it computed from its weights, by the size of the frame."""

    def __init__(self):
        super().__init__()
        self.cache = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape not in self.cache:
            self.cache[x.shape] = 2 * self.a.weight.detach()
        return x + self.b(F.gelu(F.conv2d(x, self.cache[x.shape], self.a.bias, padding=1)))

    def forget(self) -> None:
        self.cache.clear()


class SwappedParameter(Body):
    """Assigns to a weight within a pass, which wants a Parameter."""

    def forward(self, x: Tensor) -> Tensor:
        kept = self.a.weight
        self.a.weight = kept
        return super().forward(x)


class Locked(Body):
    """Holds what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return super().forward(x)


class Stateful(Body):
    """Recurrent over calls."""

    def __init__(self):
        super().__init__()
        self.hidden = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.hidden is not None and self.hidden.shape == y.shape:
            y = y + 0.1 * self.hidden
        self.hidden = y.detach()
        return x + self.b(F.gelu(y))


def replaced_forward(net: nn.Module) -> None:
    """Set a forward from outside that holds the module in its closure, as loaders and offloaders do."""
    part = net.a
    part.forward = lambda x: F.conv2d(x, part.weight, part.bias, padding=1)


_found_by_name: list[nn.Module] = []


def forward_by_global_name(net: nn.Module) -> None:
    _found_by_name[:] = [net]
    net.a.forward = lambda x: F.conv2d(x, _found_by_name[0].a.weight, _found_by_name[0].a.bias, padding=1)


class Products(Body):
    """Computes something from a weight once, and keeps it until :meth:`forget`; subclasses say where."""

    def kept(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def forget(self) -> None:
        """Empty it after a step of a plain loop; no adapter calls this."""

    def forward(self, x: Tensor) -> Tensor:
        doubled = self.kept(self.a.weight.detach())
        return x + self.b(F.gelu(self.a(x) + F.conv2d(x, doubled, padding=1)))


class InObject(Products):
    def __init__(self):
        super().__init__()
        self.box = types.SimpleNamespace(product=None)

    def kept(self, weight: Tensor) -> Tensor:
        if self.box.product is None:
            self.box.product = 2 * weight
        return self.box.product

    def forget(self) -> None:
        self.box.product = None


class InBuffer(Products):
    def __init__(self):
        super().__init__()
        self.register_buffer("product", torch.zeros(6, 3, 3, 3))

    def kept(self, weight: Tensor) -> Tensor:
        if not self.product.any():
            self.product.copy_(2 * weight)
        return self.product

    def forget(self) -> None:
        self.product.zero_()


class InTensor(InBuffer):
    """In a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        del self.product
        self.product = torch.zeros(6, 3, 3, 3)


class InArray(InBuffer):
    def __init__(self):
        super().__init__()
        del self.product
        self.product = np.zeros((6, 3, 3, 3), np.float32)

    def kept(self, weight: Tensor) -> Tensor:
        if not self.product.any():
            self.product[...] = 2 * weight.numpy()
        return torch.from_numpy(self.product.copy())

    def forget(self) -> None:
        self.product.fill(0)


class InTable(Products):
    """In a global table, by the module."""

    table: ClassVar[weakref.WeakKeyDictionary[nn.Module, Tensor]] = weakref.WeakKeyDictionary()

    def kept(self, weight: Tensor) -> Tensor:
        return self.table.setdefault(self, 2 * weight)


class OwnMemory(Body):
    """Returns the same memory from call to call, as engines do."""

    def __init__(self):
        super().__init__()
        self.outputs: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if y.requires_grad:
            return y
        return self.outputs.setdefault(y.shape, torch.empty_like(y)).copy_(y)


class Child(nn.Module):
    def __init__(self, parent: nn.Module):
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.parent().a(x))


class WeakParent(Body):
    def __init__(self):
        super().__init__()
        self.child = Child(self)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.child(x))


class ListedWeights(Body):
    def __init__(self):
        super().__init__()
        self.listed = [self.a.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(F.conv2d(x, self.listed[0], self.a.bias, padding=1)))


class ViewedWeights(Body):
    def __init__(self):
        super().__init__()
        self.turned = self.a.weight.detach().mT

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(x) + F.conv2d(x, self.turned, padding=1)))


class Clamping(Body):
    """Bounds its weights in each pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


class OneMemory(Body):
    """Two parameters on one memory."""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 6, 3, padding=1)
        self.c.weight = nn.Parameter(self.a.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(x) + self.c(x)))


KEEPING: dict[str, Callable[[], nn.Module]] = {
    "keeps activations": Remembering,
    "keeps products of weights": CachedWeights,
    "keeps products in an object": InObject,
    "keeps products in a buffer": InBuffer,
    "keeps products in a tensor": InTensor,
    "keeps products in an array": InArray,
    "keeps products in a global table": InTable,
    "returns its own memory": OwnMemory,
    "refers to its parent weakly": WeakParent,
    "weights in a list": ListedWeights,
    "views of weights": ViewedWeights,
    "two weights on one memory": OneMemory,
    "writes into its weights": Clamping,
    "assigns to a weight": SwappedParameter,
    "holds a lock": Locked,
    "depends on earlier calls": Stateful,
    "forward set from outside": changed(replaced_forward),
    "finds itself by a global": changed(forward_by_global_name),
}
NOT_EXCHANGED = {
    "keeps products in a global table": "it keeps what it computed from its weights where a copy cannot undo it",
    "weights in a list": "it uses a weight by another reference",
    "views of weights": "it uses a weight by another reference",
    "two weights on one memory": "the weights a.weight and c.weight share memory and are two parameters",
    "writes into its weights": "a pass writes into its weights",
    "finds itself by a global": "something in it refers to the module by a global name",
}
"""Styles that methods refuse, by a part of the message."""
