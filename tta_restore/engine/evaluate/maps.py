"""Files of the maps that a network estimates besides the image: disparity, filters, blur map, flow and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tta_restore import losses
from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.report.reblurring import blur_radius, draw_step
from tta_restore.models import Restorer
from tta_restore.models.jdrl import BlurConditioned, JDRLReblur
from tta_restore.models.restorer.spec import pad

__all__ = ["pair_maps", "restorer_maps", "write_maps"]


@torch.no_grad()
def restorer_maps(restorer: Restorer, x: Tensor, *views: Tensor) -> dict[str, Tensor]:
    """Return what a network of this package estimates on the way to its restoration; empty for any other network.

    IFAN gives "disparity", in pixels of an eighth of the size, and "filter_strength", the root mean square of the
    filters of a pixel; the filters themselves are returned by its ``forward_train``. A restorer with a blur map gives
    "blur_map".

    Shape: x and views (1, 3, H, W) -> (1, C, h, w) each.
    """
    module = restorer.module
    padded, *others = (pad(image, restorer.known_spec(x).size) for image in (x, *views))
    if isinstance(module, BlurConditioned):
        return {"blur_map": module.estimator(x)}
    training = getattr(module, "forward_train", None)
    if training is None:
        return {}
    made = training(padded, *others)
    found = {} if made.disparity is None else {"disparity": made.disparity}
    if made.filters is not None:
        found["filter_strength"] = made.filters.square().mean(1, keepdim=True).sqrt()
    return found


@torch.no_grad()
def pair_maps(
    restorer: Restorer | None,
    blurry: Tensor,
    sharp: Tensor,
    restored: Tensor,
    *,
    flow: Callable[[Tensor, Tensor], Tensor] | None = None,
    warped: Tensor | None = None,
    reblur: JDRLReblur | None = None,
    mask_tolerance: float = 0.35,
) -> dict[str, Tensor]:
    """Return all maps of a misaligned pair: those of the restorer, flow, calibration mask, kernels and reblurred image.

    Args:
        restorer: the network; None for the blurry images themselves.
        blurry: observation.
        sharp: misaligned sharp image.
        restored: restoration.
        flow: optical flow estimator, for "flow" and "mask".
        warped: sharp image, warped onto the restoration.
        reblur: reblurring network, for "seeds" (radial kernel logits), "weights" of the kernels and "reblurred".
        mask_tolerance: of the calibration mask.

    Shape: images (1, 3, H, W).
    """
    found = {"blurry": blurry, "sharp": sharp, "restored": restored}
    if restorer is not None:
        found |= restorer_maps(restorer, blurry)
    if warped is not None:
        found["warped"] = warped
    if flow is not None:
        found["flow"] = flow(restored, sharp)
        found["mask"] = losses.calibration_mask(found["flow"], tolerance=mask_tolerance)
    if reblur is not None:
        seeds, weights = reblur.predict(restored, blurry)
        found |= {"seeds": seeds, "weights": weights, "reblurred": reblur.reblur(restored, seeds, weights)}
        if not reblur.one_branch:
            found["blur_radius"] = blur_radius(seeds, weights)
    return {name: tensor.detach().float() for name, tensor in found.items()}


def write_maps(stem: Path, maps: Mapping[str, Tensor]) -> None:
    """Write maps: the tensors to ``<stem>.safetensors``, one of a channel to ``<stem>.<name>.png``, a pair's sheet too.

    A map with one channel is stretched from its least to its greatest value, but for masks and the blur radius, which
    is drawn from 0 to 6 pixels; of a blur map, which has a channel for each kernel value, the root mean square over
    channels is drawn. The images of a pair are on the sheet ``<stem>.png`` and not among the tensors.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    pictures = ("blurry", "sharp", "restored", "warped", "reblurred")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in maps.items() if name not in pictures}
    if tensors:
        with atomic_file(stem.with_name(f"{stem.name}.safetensors")) as partial:
            save_file(tensors, partial)
    for name, tensor in tensors.items():
        if name == "blur_map":
            tensor = tensor.square().mean(1, keepdim=True).sqrt()
        if tensor.shape[1] == 1:
            write_image(stem.with_name(f"{stem.name}.{name}.png"), Image(_shown(name, tensor[0]).expand(3, -1, -1)))
    if "blurry" in maps and "sharp" in maps:
        write_image(stem.with_name(f"{stem.name}.png"), Image(draw_step(dict(maps)).clamp(0, 1)))


def _shown(name: str, values: Tensor) -> Tensor:
    if name == "mask":
        return values
    if name == "blur_radius":
        return (values / 6).clamp(0, 1)
    low, high = values.amin(), values.amax()
    return (values - low) / (high - low).clamp(min=1e-6)
