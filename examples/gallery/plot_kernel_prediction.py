"""
Denoise with predicted kernels
==============================

A kernel prediction network does not return pixels. It returns a small kernel for every pixel, and the frame is
filtered with them. :class:`tta_restore.nn.KernelPredictor` is the head, :class:`tta_restore.nn.AdaptiveConv2d`
applies the kernels. The network below learns on two photographs for a few seconds, and is used on another one.
"""

# %%
# The network
# -----------
import matplotlib.pyplot as plt
import skimage.data
import torch
from torch import Tensor

from tta_restore.metrics import psnr
from tta_restore.nn import AdaptiveConv2d, KernelPredictor

SIZE = 7  # side of the kernels in pixels


class KernelPredictionDenoiser(torch.nn.Module):
    """Three convolutions, a kernel of SIZE x SIZE taps per pixel, and the filter."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        for channels in (3, width, width):
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
        self.features = torch.nn.Sequential(*layers)
        self.predict = KernelPredictor(width, 1, kernel_size=SIZE, normalize="softmax")
        self.filter = AdaptiveConv2d(SIZE, groups=1, normalize="softmax", padding_mode="reflect")

    def forward(self, noisy: Tensor) -> Tensor:
        """Filter every pixel with its own kernel. Shape: (B, 3, H, W) -> the same."""
        return self.filter(noisy, self.predict(self.features(noisy)))


def photo(name: str) -> Tensor:
    """Load a bundled photograph. Shape: (1, 3, H, W), RGB in [0, 1]."""
    return torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None] / 255


def add_noise(image: Tensor) -> Tensor:
    """Add Gaussian noise with a standard deviation of 30/255."""
    return image + 30 / 255 * torch.randn_like(image)


# %%
# Train it for a few seconds
# --------------------------
torch.manual_seed(0)
network, photos = KernelPredictionDenoiser(), [photo("coffee"), photo("chelsea")]
optimizer = torch.optim.Adam(network.parameters(), 5e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=1000)
losses = []
for _ in range(1000):
    places = torch.randint(0, 268, (2, 2, 2)).tolist()
    patches = [
        image[..., top : top + 32, left : left + 32]
        for image, row in zip(photos, places, strict=True)
        for top, left in row
    ]
    sharp = torch.cat(patches)
    loss = (network(add_noise(sharp)) - sharp).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
print(f"loss {sum(losses[:50]) / 50:.4f} -> {sum(losses[-50:]) / 50:.4f}")

# %%
# Look at the kernels
# -------------------
# In flat areas the kernels average widely, in the hair the nearest pixels count most, and at its edge most weight stays
# on the pixel itself. Shown are square roots, each in its own range.
sharp = photo("astronaut")[..., 20:180, 130:290]
noisy = add_noise(sharp)
with torch.no_grad():
    kernels = network.predict(network.features(noisy)).softmax(1)  # (1, SIZE * SIZE, H, W)
    denoised = network(noisy)

places = {"flat": (20, 20), "edge": (75, 27), "hair": (30, 78)}
figure = plt.figure(figsize=(12, 6.4), layout="constrained")
pictures, row = figure.subfigures(2, 1, height_ratios=(2.1, 1))
axes = pictures.subplots(1, 3)
for axis, (title, image) in zip(axes, {"noisy": noisy, "denoised": denoised, "sharp": sharp}.items(), strict=True):
    axis.imshow(image[0].clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_title(title if image is sharp else f"{title}: {psnr(image.clamp(0, 1), sharp).item():.1f} dB", fontsize=14)
    axis.axis("off")
for (label, (y, x)), axis in zip(places.items(), row.subplots(1, 3), strict=True):
    axes[1].plot(x, y, "s", markersize=9, markerfacecolor="none", markeredgecolor="white", markeredgewidth=2)
    axes[1].annotate(label, (x + 5, y - 4), fontsize=12, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
    weights = kernels[0, :, y, x]
    axis.imshow(weights.sqrt().reshape(SIZE, SIZE).numpy(), cmap="viridis")
    axis.set_title(f"{label}: weights {weights.min().item():.3f} to {weights.max().item():.2f}", fontsize=13)
    axis.axis("off")

# %%
# :doc:`/guides/per_pixel_kernels` lists the forms of per-pixel kernels and which function filters with them.
