"""LPIPS by torchmetrics with weights from a file; nothing is downloaded."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from tta_restore._core.ambient import with_usual_defaults
from tta_restore.metrics.image import Protocol

__all__ = ["WEIGHTS", "Lpips"]

#: File name of AlexNet's weights in torchvision; torchmetrics includes the linear weights of LPIPS.
WEIGHTS = "alexnet-owt-7be5be79.pth"


class _LpipsUnavailable(ValueError):
    """LPIPS is not available; the message names what is missing."""


class Lpips(nn.Module):
    """Learned perceptual distance of two images, version 0.1 with AlexNet; 0 for identical images.

    Args:
        weights: torchvision's file of AlexNet's ImageNet weights; None looks in torch's download folder.

    Shape:
        - restored, target: (B, 3, H, W), RGB in [0, 1], H and W >= 32
        - output: (B,)

    Raises:
        ValueError: A package or the file is missing, or the file holds something else.

    Source: Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric, CVPR 2018.
    """

    @with_usual_defaults
    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS if weights is None else Path(weights)
        if not path.is_file():
            raise _LpipsUnavailable(
                f"Lpips: expected AlexNet's weights at {path}, found no file; pass torchvision's {WEIGHTS}"
            )
        try:
            import torchvision  # noqa: F401 (torchmetrics needs it)
            from torchmetrics.functional.image import lpips
        except ImportError as error:
            raise _LpipsUnavailable(f"Lpips: needs {error.name}: pip install 'tta-restore[metrics]'") from None
        with torch.random.fork_rng(devices=[]):  # layers draw random weights before the file is loaded
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
            reason = str(error).splitlines()[0]
            raise _LpipsUnavailable(f"Lpips: expected weights of AlexNet in {path}, got: {reason}") from error
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return the LPIPS of each image, clamped to [0, 1] first, without gradient."""
        plain = Protocol()
        return self.distance(plain.prepare(restored), plain.prepare(target))

    @with_usual_defaults
    def distance(self, restored: Tensor, target: Tensor) -> Tensor:
        """Return the LPIPS of each image as a training loss: not clamped, with gradient to both images.

        Shape: restored, target (B, 3, H, W), RGB in [0, 1] -> (B,).
        """
        return self.network(restored.float(), target.float(), normalize=True).flatten(1).mean(1)

    def train(self, mode: bool = True) -> Lpips:
        """Keep eval mode: the dropout serves the training of LPIPS itself."""
        return super().train(False)
