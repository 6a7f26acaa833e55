"""
Read noise, blur and JPEG quality from a frame
==============================================

:class:`tta_restore.degradations.Estimator` reads from a single frame how a camera degraded it. Each estimate comes
with its standard deviation, and parameters that fit the frame can be drawn from it.
"""

# %%
# Four frames of unknown cameras
# ------------------------------
import matplotlib.pyplot as plt
import skimage.data
import torch

from tta_restore.degradations import Blur, Clip, Compose, Estimator, Jpeg, Noise, Quantize

photo = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)[None] / 255
sharp = photo[..., 20:212, 90:282]
cameras = {
    "clean": Compose([Clip(), Quantize()]),
    "noise of 20/255": Compose([Noise(read_std=(20 / 255, 20 / 255)), Clip(), Quantize()]),
    "blur of radius 2.5 px": Compose([Blur(radius=(2.5, 2.5)), Noise(read_std=(1 / 255, 1 / 255)), Clip(), Quantize()]),
    "JPEG quality 20": Compose([Clip(), Quantize(), Jpeg(quality=(20, 20))]),
}
generator = torch.Generator().manual_seed(0)
frames = {name: camera.apply(sharp, camera.sample(generator, 1), generator) for name, camera in cameras.items()}

# %%
# Read them
# ---------
estimator = Estimator()
readings = {name: estimator.read(frame) for name, frame in frames.items()}
print("what is read:", {name: round(value, 3) for name, value in readings["clean"].mean.items()})

_, axes = plt.subplots(2, 2, figsize=(8, 9), layout="constrained")
for axis, (name, frame) in zip(axes.flat, frames.items(), strict=True):
    axis.imshow(frame[0].permute(1, 2, 0).numpy(), interpolation="nearest")
    mean = readings[name].mean
    read = (
        f"noise {255 * mean['noise_std']:.1f}/255, blur {mean['blur_radius']:.1f} px, JPEG {mean['jpeg_quality']:.0f}"
    )
    axis.set_title(f"{name}\nread: {read}", fontsize=11)
    axis.axis("off")

# %%
# How sure the readings are
# -------------------------
# Noise of several strengths, read blind. Bars are the standard deviation that the estimator states.
true, read, spread = [], [], []
for std in (5, 10, 20, 40):
    camera = Compose([Noise(read_std=(std / 255, std / 255)), Clip(), Quantize()])
    reading = estimator.read(camera.apply(sharp, camera.sample(generator, 1), generator))
    true.append(std)
    read.append(255 * reading.mean["noise_std"])
    spread.append(255 * reading.uncertainty["noise_std"])
_, axis = plt.subplots(figsize=(5.5, 4.2), layout="constrained")
axis.plot((0, 42), (0, 42), color="gray", linewidth=1)
axis.errorbar(true, read, yerr=spread, marker="o", linestyle="none", capsize=3)
axis.set_xlabel("true noise, standard deviation in 1/255")
axis.set_ylabel("noise that is read, in 1/255")
axis.grid(alpha=0.3)

# %%
# :doc:`/guides/simulate_and_read_degradations` draws training pairs that fit such a reading.
