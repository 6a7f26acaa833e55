"""
Enlarge colors with a sharp guide
=================================

Colors, features and depth maps are often stored smaller than the photograph they belong to. Interpolation lets them
bleed across edges. A kernel per pixel, computed from the sharp gray photograph, averages only the neighbors that look
alike: :func:`tta_restore.ops.adaptive_conv2d` with one kernel for all channels.
"""

# %%
# Gray at full size, colors eight times smaller
# ---------------------------------------------
import matplotlib.pyplot as plt
import skimage.data
import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore.metrics import psnr
from tta_restore.ops import adaptive_conv2d

photo = torch.from_numpy(skimage.data.coffee()).permute(2, 0, 1)[None] / 255
sharp = photo[..., :288, 100:484]  # (1, 3, 288, 384), RGB in [0, 1]
guide = sharp.mean(1, keepdim=True)
small = F.avg_pool2d(sharp - guide, 8)

# %%
# Kernels from the guide
# ----------------------
# The logit of a tap is minus the squared distance between the gray values of the pixel and its neighbor.


def joint_upsample(features: Tensor, guide: Tensor, kernel_size: int = 17, sigma: float = 0.03) -> Tensor:
    """Enlarge features to the size of the guide. Shape: (B, C, h, w), (B, G, H, W) -> (B, C, H, W)."""
    enlarged = F.interpolate(features, guide.shape[2:], mode="bilinear")
    reach, (height, width) = kernel_size // 2, guide.shape[2:]
    padded = F.pad(guide, (reach,) * 4, mode="replicate")
    distances = [
        (padded[:, :, i : i + height, j : j + width] - guide).square().sum(1)
        for i in range(kernel_size)
        for j in range(kernel_size)
    ]
    logits = -torch.stack(distances, 1) / (2 * sigma**2)  # (B, K * K, H, W)
    return adaptive_conv2d(enlarged, logits, kernel_size=kernel_size, groups=1, normalize="softmax")


bilinear = (guide + F.interpolate(small, guide.shape[2:], mode="bilinear")).clamp(0, 1)
guided = (guide + joint_upsample(small, guide)).clamp(0, 1)

# %%
# Colors stay within their edges
# ------------------------------
# A part of the photograph, with the small colors in a corner.
images = {
    "given: gray, and small colors": guide.expand_as(sharp),
    f"bilinear: {psnr(bilinear, sharp).item():.1f} dB": bilinear,
    f"guided: {psnr(guided, sharp).item():.1f} dB": guided,
    "sharp": sharp,
}
_, axes = plt.subplots(2, 2, figsize=(8, 6.6), layout="constrained")
for axis, (title, image) in zip(axes.flat, images.items(), strict=True):
    axis.imshow(image[0, :, 24:168, 56:248].permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_title(title, fontsize=14)
    axis.axis("off")
inset = axes[0, 0].inset_axes((0.02, 0.03, 0.4, 0.4))
inset.imshow((small + 0.5)[0, :, 3:21, 7:31].permute(1, 2, 0).numpy(), interpolation="nearest")
_ = inset.axis("off")  # a name, so that the page does not print it

# %%
# :doc:`/guides/per_pixel_kernels` lists the forms of per-pixel kernels and which function filters with them.
