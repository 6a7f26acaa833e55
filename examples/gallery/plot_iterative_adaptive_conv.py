"""
Iterative adaptive convolution
==============================

A large filter for every pixel is expensive. Iterative adaptive convolution (IAC, Lee et al., CVPR 2021) applies small
separable filters again and again: N steps with K taps reach N * (K - 1) / 2 pixels. :func:`tta_restore.ops.iac` runs
the steps in one kernel; :class:`tta_restore.nn.IterativeFilterAdaptiveBlock` predicts the filters from features, as
IFAN does.
"""

# %%
# How far a few steps reach
# -------------------------
# One bright point, filtered with three taps of 1/3 in both directions, N times.
import matplotlib.pyplot as plt
import skimage.data
import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore.metrics import psnr
from tta_restore.ops import iac

SIDE = 41
point = torch.zeros(1, 1, SIDE, SIDE)
point[..., SIDE // 2, SIDE // 2] = 1
_, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
for axis, steps in zip(axes, (1, 4, 8, 17), strict=True):
    taps = torch.full((steps * 2 * 3, SIDE, SIDE), 1 / 3)  # vertical and horizontal taps of every step
    filters = torch.cat((taps, torch.zeros(steps, SIDE, SIDE)))[None]  # then the biases
    axis.imshow(iac(point, filters, num_steps=steps, kernel_size=3)[0, 0].sqrt().numpy(), cmap="magma")
    axis.set_title(f"N = {steps}", fontsize=13)
    axis.axis("off")

# %%
# Filters that stop at edges
# --------------------------
# The filters differ from pixel to pixel. Here they are made by hand from the noisy photograph: a neighbor counts less
# the more it differs. Light spreads within areas and not across their edges, which is Perona-Malik diffusion.


def taps_along(guide: Tensor, axis: int, sigma: float) -> Tensor:
    """Return three taps per pixel that weigh both neighbors along an axis. Shape: (1, C, H, W) -> (3, H, W)."""
    step = guide.diff(dim=axis).square().mean(1)  # differences between neighbors
    weight = torch.exp(-step / (2 * sigma**2)) / 3
    before, after = ((1, 0), (0, 1)) if axis == 3 else ((0, 0, 1, 0), (0, 0, 0, 1))
    left, right = F.pad(weight, before)[0], F.pad(weight, after)[0]
    return torch.stack((left, 1 - left - right, right))


def smooth(noisy: Tensor, steps: int, sigma: float = 0.06) -> Tensor:
    """Smooth an image within its edges. Shape: (1, C, H, W) -> the same."""
    channels, height, width = noisy.shape[1:]
    guide = F.avg_pool2d(F.pad(noisy, (1,) * 4, mode="replicate"), 3, stride=1)
    vertical, horizontal = taps_along(guide, 2, sigma), taps_along(guide, 3, sigma)
    # vertical[n, c, t], then horizontal[n, c, t], for every step n; all biases at the end
    taps = torch.cat((vertical.repeat(channels, 1, 1), horizontal.repeat(channels, 1, 1))).repeat(steps, 1, 1)
    filters = torch.cat((taps, torch.zeros(steps * channels, height, width)))[None]
    return iac(noisy, filters, num_steps=steps, kernel_size=3, negative_slope=1)


torch.manual_seed(0)
photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None] / 255
sharp = photo[..., 20:212, 130:322]
noisy = sharp + 20 / 255 * torch.randn_like(sharp)
images = {"noisy": noisy, **{f"N = {n}": smooth(noisy, n) for n in (1, 4, 16)}}
_, axes = plt.subplots(2, 2, figsize=(8, 8.5), layout="constrained")
for axis, (title, image) in zip(axes.flat, images.items(), strict=True):
    axis.imshow(image[0].clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_title(f"{title}: {psnr(image.clamp(0, 1), sharp).item():.1f} dB", fontsize=14)
    axis.axis("off")

# %%
# Too many steps remove texture as well, since these filters were made by a rule. IFAN trains a network that predicts
# them: :doc:`/guides/ifan`.

# sphinx_gallery_thumbnail_number = 2
