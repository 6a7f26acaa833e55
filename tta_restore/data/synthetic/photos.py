"""Photographs inside scikit-image, scikit-learn and matplotlib, split by what they may be used for, or from files."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore.data.io.image import read_image

#: Restorers and estimators learn from these.
TRAIN = ("rocket", "motorcycle_left", "motorcycle_right", "immunohistochemistry", "retina", "flower", "brick", "grass")
#: Recipes and their settings are chosen on these.
DEV = ("grace_hopper", "gravel", "moon", "hubble")
#: Numbers are reported on these; nothing is trained or chosen on them.
TEST = ("astronaut", "coffee", "chelsea", "china", "camera", "coins")

_SKIMAGE = {
    "rocket": "rocket", "immunohistochemistry": "immunohistochemistry", "retina": "retina", "brick": "brick",
    "grass": "grass", "gravel": "gravel", "coins": "coins", "hubble": "hubble_deep_field", "astronaut": "astronaut",
    "coffee": "coffee", "chelsea": "chelsea", "camera": "camera", "moon": "moon",
}  # fmt: skip
_SHORT_SIDE = 512  # of an image from a file, so that a crop shows as much of it as of the bundled ones


@cache
def load(name: str | Path) -> Tensor:
    """Load one bundled photograph, or an image from a file, shrunk to a short side of 512; nothing is downloaded.

    Shape:
        - output: (3, H, W), RGB in [0, 1]; gray photographs repeat their channel. Do not write into it: it is cached.

    Raises:
        ValueError: the name is not one of ``TRAIN + DEV + TEST``, or the file holds no image.
        ImportError: the package that carries the photograph is missing (``pip install "tta_restore[demo]"``).
    """
    if isinstance(name, Path):
        pixels = read_image(name).pixels
        scale = _SHORT_SIDE / min(pixels.shape[1:])
        if scale < 1:
            size = [max(round(side * scale), _SHORT_SIDE) for side in pixels.shape[1:]]
            pixels = F.interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)
        return pixels.expand(3, -1, -1).contiguous()
    if name in _SKIMAGE:
        import skimage.data

        array = getattr(skimage.data, _SKIMAGE[name])()
    elif name in ("motorcycle_left", "motorcycle_right"):
        import skimage.data

        array = skimage.data.stereo_motorcycle()[name == "motorcycle_right"]
    elif name in ("china", "flower"):
        array = _picture_in("sklearn", f"datasets/images/{name}.jpg")
    elif name == "grace_hopper":
        array = _picture_in("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")
    else:
        raise ValueError(f"photos.load: expected one of {TRAIN + DEV + TEST}, got {name!r}")
    tensor = torch.from_numpy(array.copy()).float() / 255
    return tensor.expand(3, -1, -1).contiguous() if tensor.ndim == 2 else tensor.permute(2, 0, 1)[:3].contiguous()


def _picture_in(package: str, path: str) -> np.ndarray:
    """Return a picture that lies in a package, which is not imported: that of scikit-learn takes seconds."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    with PIL.Image.open(Path(spec.origin).parent / path) as image:
        return np.array(image.convert("RGB"))
