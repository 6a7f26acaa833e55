"""Train IFAN by Lightning with the losses of its paper: `python lightning_ifan.py --steps 1000`.

Needs `pip install lightning`. Network, losses and data are those of the package; Lightning carries the loop.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

try:
    from lightning import pytorch as lightning
except ImportError:
    import pytorch_lightning as lightning

from tta_restore.data.datasets.pairs import LensPairs
from tta_restore.engine.train.build import bundled_images
from tta_restore.losses import reblur_loss
from tta_restore.models import create_model


class DeblurIFAN(lightning.LightningModule):
    """IFAN and its reblurring network: image, disparity and reblurring loss, each a mean square."""

    def __init__(self, lr: float = 1e-4, **config: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = create_model("ifan", **config)
        self.reblur = create_model("ifan_reblur", **self.network.reblur_config)

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored image."""
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
        """Return the sum of the three losses."""
        blurry, sharp, right, left = batch
        made = self.network.forward_train(blurry, right, left)
        small = F.interpolate(blurry, scale_factor=1 / 8, mode="area")
        loss = F.mse_loss(made.result, sharp)
        loss = loss + F.mse_loss(made.warped_right, made.left_small)
        loss = loss + reblur_loss(self.reblur(sharp, made.filters), small)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return RAdam with decoupled decay, as published."""
        return torch.optim.RAdam(self.parameters(), lr=self.hparams.lr, weight_decay=0.01, decoupled_weight_decay=True)


class Rendered(IterableDataset):
    """Dual-pixel pairs rendered from the bundled photos."""

    def __init__(self, size: int, batch_size: int) -> None:
        self.pairs = LensPairs(bundled_images(size + 64), size=size, views=True)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            pair = self.pairs(self.batch_size, generator)
            yield pair.blurry, pair.sharp, pair.right, pair.left


def main() -> DeblurIFAN:
    """Train and return the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--base-channels", type=int, default=8)
    options = parser.parse_args()
    lightning.seed_everything(0)
    module = DeblurIFAN(base_channels=options.base_channels, num_steps=5, num_res_blocks=1)
    trainer = lightning.Trainer(
        max_steps=options.steps, accelerator="cpu", devices=1, gradient_clip_val=0.5, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Rendered(options.size, batch_size=2), batch_size=None))
    print(f"loss after {options.steps} steps: {trainer.callback_metrics['loss'].item():.4f}")
    return module


if __name__ == "__main__":
    main()
