"""Find normalization layers, torch's own and those that restorers bring along."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList


def normalization_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return the names and modules of layers that hold the scale or shift of a normalization.

    A layer counts by what it is called and what it owns: its class name contains "norm", and its own parameters are
    vectors over channels. Only 5 of 58 third-party restorers use BatchNorm, so a list of torch classes finds little.
    """
    for name, layer in module.named_modules():
        own = list(layer.parameters(recurse=False))
        named_so = "norm" in type(layer).__name__.lower() and not isinstance(layer, ParametrizationList)
        if named_so and own and all(max(parameter.shape, default=1) == parameter.numel() for parameter in own):
            yield name, layer
