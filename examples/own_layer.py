"""Put per-pixel kernels into your own network and train it on bundled photos: `python own_layer.py --steps 200`."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore.data.synthetic import photos
from tta_restore.degradations import Noise
from tta_restore.nn import AdaptiveConv2d, KernelPredictor


class Denoiser(nn.Module):
    """Features predict weights of the K x K neighbors of every pixel; it starts as the identity."""

    def __init__(self, width: int = 16, kernel_size: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        )
        self.kernels = KernelPredictor(width, 1, kernel_size=kernel_size, normalize="softmax")
        self.filter = AdaptiveConv2d(kernel_size, groups=1, normalize="softmax")

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered image. Shape: (B, 3, H, W) -> the same."""
        return self.filter(x, self.kernels(self.features(x)))


def main() -> tuple[float, float]:
    """Train, and return the loss of the identity and of the trained network on a patch that was not seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-2)
    options = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    sharp = torch.cat([photos.load(name)[None, :, :256, :256] for name in photos.TRAIN[:4]])
    degradation = Noise(read_std=25 / 255)
    network = Denoiser()
    optimizer = torch.optim.Adam(network.parameters(), options.lr)

    def batch() -> tuple[Tensor, Tensor]:
        top, left = (int(torch.randint(256 - options.size, (), generator=generator)) for _ in range(2))
        target = sharp[..., top : top + options.size, left : left + options.size]
        return degradation.apply(target, degradation.sample(generator, len(target)), generator), target

    for step in range(options.steps):
        noisy, target = batch()
        loss = F.l1_loss(network(noisy), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: {loss.item():.4f}")
    noisy, target = batch()
    with torch.no_grad():
        before, after = F.l1_loss(noisy, target).item(), F.l1_loss(network(noisy), target).item()
    print(f"L1 of the noisy patches {before:.4f}, of the restored ones {after:.4f}")
    return before, after


if __name__ == "__main__":
    main()
