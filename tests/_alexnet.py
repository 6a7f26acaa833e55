"""A file of weights like torchvision's of AlexNet, random and without the large layers that LPIPS does not use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn


def save_alexnet(path: Path) -> nn.Sequential:
    """Write random weights of AlexNet to a file; return its layers of features."""
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):  # the other layers have 58 million weights
        features = torchvision.models.alexnet(weights=None).features
    features.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
    state = {f"features.{name}": weight for name, weight in features.state_dict().items()}
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, path)
    return features.eval()
