"""LPIPS, measured by torchmetrics with weights from a file: nothing is ever downloaded."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from tta_restore.metrics.image import Protocol

#: What torchvision calls the file; torchmetrics brings the weights of LPIPS itself, the rest is AlexNet's.
WEIGHTS = "alexnet-owt-7be5be79.pth"


class _LpipsUnavailable(ValueError):
    """LPIPS cannot be measured here; the message says what is missing."""


class Lpips(nn.Module):
    """Learned perceptual distance of two images, 0 for equal ones: version 0.1 on AlexNet.

    Args:
        weights: AlexNet's weights for ImageNet as torchvision publishes them; None looks where torch keeps downloads.

    Shape:
        - restored, target: (B, 3, H, W), RGB in [0, 1], H and W >= 32
        - output: (B,)

    Raises:
        ValueError: A package or the file is missing, or the file holds something else.

    Source: The unreasonable effectiveness of deep features as a perceptual metric (Zhang et al., CVPR 2018).
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS if weights is None else Path(weights)
        if not path.is_file():
            raise _LpipsUnavailable(
                f"AlexNet's weights are not there ({path}); give torchvision's file {WEIGHTS} by --lpips-weights"
            )
        try:
            import torchvision  # noqa: F401 (torchmetrics needs it)
            from torchmetrics.functional.image import lpips
        except ImportError as error:
            raise _LpipsUnavailable(
                f"{error.name} is missing: pip install 'tta-restore[metrics]' torchvision"
            ) from None
        with torch.random.fork_rng(devices=[]):  # the layers draw weights first
            self.network = lpips._LPIPS(pretrained=True, net="alex", pnet_rand=True)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            for part in self.network.net.children():
                for index, layer in part.named_children():
                    prefix = f"features.{index}."
                    layer.load_state_dict(
                        {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}
                    )
        except (RuntimeError, AttributeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise _LpipsUnavailable(f"{path} holds no weights of AlexNet: {str(error).splitlines()[0]}") from error
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """LPIPS of each image."""
        plain = Protocol()
        values = self.network(plain.prepare(restored), plain.prepare(target), normalize=True)
        return values.flatten(1).mean(1)

    def train(self, mode: bool = True) -> Lpips:
        """Stays in eval mode: its dropout is for training it."""
        return super().train(False)
