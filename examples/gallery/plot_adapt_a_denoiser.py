"""
Adapt a denoiser to one photograph
==================================

The shipped denoiser was trained on noise of a standard deviation of 15/255. This photograph has more than twice as
much. :func:`tta_restore.adapters.recommended` estimates the noise, fine-tunes the denoiser on pairs that carry the
same noise, and restores the photograph. Nothing but the noisy photograph is given.
"""

# %%
# A noisy photograph
# ------------------
import matplotlib.pyplot as plt
import skimage.data
import torch

from tta_restore import adapters
from tta_restore.metrics import psnr
from tta_restore.models import create_model

torch.manual_seed(0)
photo = torch.from_numpy(skimage.data.coffee()).permute(2, 0, 1)[None] / 255  # (1, 3, H, W), RGB in [0, 1]
sharp = photo[..., 90:282, 130:322]
noisy = (sharp + 40 / 255 * torch.randn_like(sharp)).clamp(0, 1)

# %%
# Restore it without and with adaptation
# --------------------------------------
# The model stays as it is; the adapter keeps the adapted tensors.
model = create_model("small_unet", checkpoint="denoiser").eval()
adapter = adapters.recommended(model)
with torch.no_grad():
    restored = model(noisy)
adapted = adapter(noisy)
print(f"trust {adapter.report.trust:.2f}, {adapter.report.steps} optimizer steps")

# %%
# What changed
# ------------
# The trained denoiser leaves grain, because it takes the rest of the noise for texture.


def show(**images: torch.Tensor) -> None:
    """Draw four images, each with its PSNR against the sharp photograph."""
    _, axes = plt.subplots(2, 2, figsize=(8, 8.5), layout="constrained")
    for axis, (title, image) in zip(axes.flat, images.items(), strict=True):
        axis.imshow(image[0].clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(title if image is sharp else f"{title}: {psnr(image, sharp).item():.1f} dB", fontsize=14)
        axis.axis("off")


show(noisy=noisy, restored=restored, adapted=adapted, sharp=sharp)

# %%
# The gain in decibels is measured here because the sharp photograph is known. For your photographs
# ``adapter.report.trust`` and ``adapter.report.messages`` state what was gained on held-out pairs;
# :doc:`/guides/calibrate_a_camera` does the same once for a whole camera.
