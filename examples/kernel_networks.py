"""Train networks with per-pixel kernels in bfloat16 autocast, under torch.compile, channels_last and in two processes.

`python kernel_networks.py --network kpn --seconds 60`, or with two processes on CPUs
`torchrun --nproc-per-node 2 kernel_networks.py --network ifan --seconds 60`. On GPUs the processes use NCCL.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tta_restore.data.synthetic import photos
from tta_restore.nn import AdaptiveConv2d, IterativeAdaptiveConv2d, KernelPredictor


def features(width: int, channels: int) -> nn.Sequential:
    """Two convolutions. Shape: (B, channels, H, W) -> (B, width, H, W)."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
    )


class KernelPredictionDenoiser(nn.Module):
    """Weights of the K x K neighbors of every pixel, predicted from the noisy image."""

    def __init__(self, width: int = 16, kernel_size: int = 5) -> None:
        super().__init__()
        self.features = features(width, 3)
        self.kernels = KernelPredictor(width, 1, kernel_size=kernel_size, normalize="softmax")
        self.filter = AdaptiveConv2d(kernel_size, groups=1, normalize="softmax")

    def forward(self, noisy: Tensor) -> Tensor:
        """Return the filtered image. Shape: (B, 3, H, W) -> the same."""
        return self.filter(noisy, self.kernels(self.features(noisy)))

    @staticmethod
    def pair(sharp: Tensor, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Return the inputs, the target, and what no network would make of the inputs."""
        noisy = sharp + 25 / 255 * torch.randn(sharp.shape, generator=generator).to(sharp.device)
        return (noisy,), sharp, noisy


class IterativeFilterDeblurrer(nn.Module):
    """IFAN's idea in small: filters for N steps come from the image, and filter its features."""

    def __init__(self, width: int = 16, num_steps: int = 6, kernel_size: int = 3) -> None:
        super().__init__()
        self.features = features(width, 3)
        self.encode, self.decode = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.filter = IterativeAdaptiveConv2d(width, num_steps=num_steps, kernel_size=kernel_size)
        self.filters = nn.Conv2d(width, self.filter.filter_channels, 1)
        # The network starts as the identity, with filters that have center taps of 1 and biases of 0.
        center = torch.zeros(kernel_size)
        center[kernel_size // 2] = 1
        with torch.no_grad():
            self.decode.weight.zero_()
            self.decode.bias.zero_()
            self.filters.weight.mul_(0.1)
            self.filters.bias.zero_()
            self.filters.bias[: num_steps * 2 * width * kernel_size] = center.repeat(num_steps * 2 * width)

    def forward(self, blurry: Tensor) -> Tensor:
        """Return the deblurred image. Shape: (B, 3, H, W) -> the same."""
        filtered = self.filter(self.encode(blurry), self.filters(self.features(blurry)))
        return blurry + self.decode(filtered)

    @staticmethod
    def pair(sharp: Tensor, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Blur by a Gaussian with a standard deviation of 1 pixel, and add noise."""
        steps = torch.arange(-4.0, 5, device=sharp.device)
        kernel = torch.softmax(-(steps**2) / 2, 0)
        planes = F.pad(sharp, (4,) * 4, mode="reflect").flatten(0, 1)[:, None]
        blurry = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view(sharp.shape)
        blurry = blurry + 15 / 255 * torch.randn(sharp.shape, generator=generator).to(sharp.device)
        return (blurry,), sharp, blurry


class JointUpsampler(nn.Module):
    """FeatUp's idea in small: enlarged features are filtered by kernels that a sharp guide predicts."""

    def __init__(self, width: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        self.features = features(width, 2)
        self.kernels = KernelPredictor(width, 1, kernel_size=kernel_size)
        self.filter = AdaptiveConv2d(kernel_size, groups=1)

    def forward(self, small: Tensor, guide: Tensor) -> Tensor:
        """Return the features at the size of the guide. Shape: (B, C, h, w), (B, 1, H, W) -> (B, C, H, W)."""
        enlarged = F.interpolate(small, guide.shape[2:], mode="bilinear")
        detail = guide - F.interpolate(F.avg_pool2d(guide, 4), guide.shape[2:], mode="bilinear")
        return self.filter(enlarged, self.kernels(self.features(torch.cat([guide, detail], 1))))

    @staticmethod
    def pair(sharp: Tensor, generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Take the colors of an image four times smaller, and its gray values as the guide."""
        small, guide = F.avg_pool2d(sharp, 4), sharp.mean(1, keepdim=True)
        return (small, guide), sharp, F.interpolate(small, sharp.shape[2:], mode="bilinear")


NETWORKS = {"kpn": KernelPredictionDenoiser, "ifan": IterativeFilterDeblurrer, "upsampler": JointUpsampler}


def main() -> tuple[float, float]:
    """Train, and return the L1 loss without a network and with the trained one, on photos that were not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="kpn")
    parser.add_argument("--seconds", type=float, default=60, help="how long to train after the first step")
    parser.add_argument("--steps", type=int, default=0, help="train so many steps instead")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile")
    options = parser.parse_args()
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else "cpu"
    if processes > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(rank)  # every process draws other patches
    sharp, unseen = (
        torch.cat([photos.load(name)[None, :, :256, :256] for name in names]).to(device)
        for names in (photos.TRAIN[:4], photos.TEST[:2])
    )
    plain = NETWORKS[options.network]().to(device, memory_format=torch.channels_last)
    network = torch.compile(plain, backend=options.compiler)
    if processes > 1:
        network = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(network.parameters(), options.lr)

    def pair_of(images: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        inputs, target, start = plain.pair(images, generator)
        return tuple(t.contiguous(memory_format=torch.channels_last) for t in inputs), target, start

    def patches() -> Tensor:
        top, left = (int(torch.randint(256 - options.size, (), generator=generator)) for _ in range(2))
        return sharp[..., top : top + options.size, left : left + options.size]

    def loss_of(inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        with torch.autocast(sharp.device.type, torch.bfloat16):
            restored = network(*inputs)
        return F.l1_loss(restored.float(), target)

    step, end = 0, float("inf")
    while True:
        loss = loss_of(*pair_of(patches())[:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            end = time.monotonic() + options.seconds
        step += 1
        stop = torch.tensor(float(step >= options.steps if options.steps else time.monotonic() >= end))
        if processes > 1:
            dist.all_reduce(stop := stop.to(device), dist.ReduceOp.MAX)  # all processes stop after the same step
        if stop:
            break
    inputs, target, start = pair_of(unseen)
    with torch.no_grad():
        before, after = F.l1_loss(start, target).item(), loss_of(inputs, target).item()
    if processes > 1:
        total = torch.stack([p.detach().double().sum() for p in network.parameters()]).sum()
        lowest, highest = total.clone(), total.clone()
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        if lowest != highest:
            raise RuntimeError(f"the processes have different weights: sums from {lowest} to {highest}")
        dist.destroy_process_group()
    if rank == 0:
        print(f"{options.network}: {step} steps of {processes} processes; L1 {before:.4f} before, {after:.4f} after")
    return before, after


if __name__ == "__main__":
    main()
