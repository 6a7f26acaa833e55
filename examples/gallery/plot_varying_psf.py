"""
A lens that blurs the corners
=============================

Real lenses are sharp in the center and soft in the corners. :func:`tta_restore.ops.product_conv2d` mixes a few point
spread functions (PSF) by weight maps: exact for a lens with measured PSFs between which one interpolates. Its
transpose is exact, too, so the blur can be undone by iterations.
"""

# %%
# A lens of three kernels
# -----------------------
import matplotlib.pyplot as plt
import skimage.data
import torch

from tta_restore.metrics import psnr
from tta_restore.ops import product_conv2d

RADII = (0.1, 2.5, 5.0)  # of discs, in pixels: center, halfway, corner
grid = torch.arange(-6.0, 7)
distance = torch.hypot(*torch.meshgrid(grid, grid, indexing="ij"))
discs = torch.stack([(radius + 0.5 - distance).clamp(0, 1) for radius in RADII])
kernels = (discs / discs.sum((1, 2), keepdim=True))[None, :, None]  # (1, R, 1, 13, 13)

photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None] / 255
sharp = photo[..., :320, 60:380]
rows, columns = (torch.linspace(-1, 1, side) for side in sharp.shape[2:])
eccentricity = torch.hypot(rows[:, None], columns[None]) / 2**0.5  # 0 in the center, 1 in the corners
weights = torch.stack([(1 - (2 * eccentricity - i).abs()).clamp(0, 1) for i in range(3)])[None]  # (1, R, H, W)


def lens(image: torch.Tensor) -> torch.Tensor:
    """Blur an image. Shape: (B, C, H, W) -> the same."""
    return product_conv2d(image, kernels, weights)


# %%
# Points of light show the PSF everywhere. Shown are fourth roots: in the corners a point spreads over 80 pixels.
points = torch.zeros_like(sharp)
points[..., 20::40, 20::40] = 1
blurry = lens(sharp) + 0.005 * torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))

# %%
# Undo the blur
# -------------
# Richardson-Lucy iterations need the lens and its transpose, nothing else.
total = product_conv2d(torch.ones_like(sharp), kernels, weights, adjoint=True)  # light that each pixel hands on
estimate = blurry.clamp(min=0.01)
for _ in range(20):
    ratio = blurry.clamp(min=0) / lens(estimate).clamp(min=1e-3)
    estimate = estimate * product_conv2d(ratio, kernels, weights, adjoint=True) / total
estimate = estimate.clamp(0, 1)

_, axes = plt.subplots(2, 2, figsize=(8, 8.5), layout="constrained")
images = {
    "points of light": lens(points).clamp(min=0) ** 0.25,
    f"blurry: {psnr(blurry.clamp(0, 1), sharp).item():.1f} dB": blurry,
    f"20 iterations: {psnr(estimate, sharp).item():.1f} dB": estimate,
    "sharp": sharp,
}
for axis, (title, image) in zip(axes.flat, images.items(), strict=True):
    axis.imshow((image / image.max()).clamp(0, 1)[0].permute(1, 2, 0).numpy())
    axis.set_title(title, fontsize=14)
    axis.axis("off")
