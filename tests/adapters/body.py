"""The network that the others of the table of styles are made from."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

#: Networks that the tables built, with a name each. Those of one name are the same.
BUILT: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1} | options)


class Body(nn.Module):
    """A residual network; the styles change how it is run."""

    def __init__(self, channels: int = 3, **options: Any):
        super().__init__()
        self.a, self.b = conv(channels, 6, **options), conv(6, channels, **options)

    def forward(self, x: Tensor) -> Any:
        return x + self.b(F.gelu(self.a(x)))


def changed(change: Callable[[nn.Module], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Body()
        return change(net) or net

    return make
