"""Layers of an adapter inside somebody else's model, through hooks that exist only while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from tta_restore.adapters.sites import Site, hooked

CONTEXT = "injected_context"
"""Keyword of ``run`` and ``ensemble`` that goes to what was injected, not to the model."""
_PREFIX = "injected."


class Injection(nn.Module):
    """Layers ``(features, context) -> features`` behind modules of a model; without a context they do nothing.

    Their weights are called ``injected.<path of the module>.<name in the layer>``.
    """

    def __init__(self, sites: Sequence[Site], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.layers = nn.ModuleList(layers).eval().requires_grad_(False)

    def weights(self) -> dict[str, nn.Parameter]:
        """The layers' weights by their full names."""
        return {
            f"{_PREFIX}{site.path}.{name}": parameter
            for site, layer in zip(self.sites, self.layers, strict=True)
            for name, parameter in layer.named_parameters()
        }

    @contextmanager
    def active(self, root: nn.Module, tensors: Mapping[str, Tensor], context: Tensor) -> Iterator[None]:
        """For the time of the block, the layers act with ``tensors`` in place of those weights that it names."""
        with ExitStack() as stack:
            for site, layer in zip(self.sites, self.layers, strict=True):
                start = f"{_PREFIX}{site.path}."
                used = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
                stack.enter_context(hooked(root, site.path, partial(_changed, site, layer, used, context)))
            yield


class WithInjection(nn.Module):
    """A model with injected layers as one module: ``module(x, context)``; without context the plain model."""

    def __init__(self, module: nn.Module, injection: Injection) -> None:
        super().__init__()
        self.module, self.injection = module, injection

    def forward(self, x: Tensor, context: Tensor | None = None, **arguments: Any) -> Any:
        """What the model makes of ``x``, told ``context`` (B, D) or (B, S, D)."""
        if context is None:
            return self.module(x, **arguments)
        with self.injection.active(self.module, {}, context):
            return self.module(x, **arguments)


def is_injected(name: str) -> bool:
    """Whether a weight of that name belongs to an injected layer."""
    return name.startswith(_PREFIX)


def _changed(site: Site, layer: nn.Module, used: dict[str, Tensor], context: Tensor, features: Tensor) -> Tensor:
    shape = features.shape
    if site.axis != -1:
        flat = features.reshape(-1, *shape[-3:])  # frames of a clip
    elif len(shape) == 4:
        flat = features.flatten(1, 2)
    else:
        flat = features
    if flat.shape[0] != context.shape[0]:
        context = context.repeat_interleave(flat.shape[0] // context.shape[0], 0)
    return functional_call(layer, used, (flat, context)).reshape(shape)
