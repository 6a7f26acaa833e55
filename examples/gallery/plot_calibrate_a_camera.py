"""
Calibrate a deblurrer for one camera
====================================

The shipped deblurrer was trained on one lens and little noise. The photographs of this camera have another lens and
more noise. :func:`tta_restore.adapters.calibrate` adapts the deblurrer once, on a few blurry photographs without
sharp originals, and returns a plain network with the same parameter names.
"""

# %%
# Photographs of one camera
# -------------------------
# A camera is a chain of degradations. Four crops are taken with it; a fifth one, of another photograph, is for the
# test.
import matplotlib.pyplot as plt
import skimage.data
import torch

from tta_restore import adapters
from tta_restore.degradations import Blur, Clip, Compose, Noise, Quantize
from tta_restore.metrics import psnr
from tta_restore.models import create_model

generator = torch.Generator().manual_seed(0)
camera = Compose([Blur(radius=(2.2, 2.2), lens="gaussian"), Noise(read_std=(10 / 255, 10 / 255)), Clip(), Quantize()])


def photograph(name: str, top: int, left: int, size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a sharp crop of a bundled photograph, and what the camera makes of it. Shape: both (1, 3, size, size)."""
    pixels = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None] / 255
    crop = pixels[..., top : top + size, left : left + size]
    return crop, camera.apply(crop, camera.sample(generator, 1), generator)


frames = [photograph("coffee", 90 + 30 * i, 100 + 60 * i)[1] for i in range(4)]
sharp, blurry = photograph("astronaut", 40, 130, 160)

# %%
# Calibrate
# ---------
# ``steps`` bounds the optimizer steps per photograph so that this page is built quickly; leave it out to train until
# the gain ends.
model = create_model("lens_unet", checkpoint="specialist").eval()
report = adapters.calibrate(model, frames, steps=24)
print(report)

# %%
# The gain after each photograph, measured on held-out pairs with the estimated degradation:
_, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.plot(range(1, len(report.gains) + 1), report.gains, marker="o")
axis.set_xlabel("photographs used")
axis.set_ylabel("gain in dB, held-out pairs")
axis.set_xticks(range(1, len(report.gains) + 1))
axis.grid(alpha=0.3)

# %%
# A photograph that was not used
# ------------------------------
with torch.no_grad():
    images = {"blurry": blurry, "as trained": model(blurry), "calibrated": report.model(blurry), "sharp": sharp}
_, axes = plt.subplots(2, 2, figsize=(8, 8.5), layout="constrained")
for axis, (title, image) in zip(axes.flat, images.items(), strict=True):
    axis.imshow(image[0].clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_title(title if title == "sharp" else f"{title}: {psnr(image, sharp).item():.1f} dB", fontsize=14)
    axis.axis("off")

# %%
# ``report.model.state_dict()`` is an ordinary checkpoint. For files, ``tta-restore calibrate`` writes it:
# :doc:`/guides/calibrate_a_camera`.

# sphinx_gallery_thumbnail_number = 2
