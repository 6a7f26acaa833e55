"""SRTTA: consistency of the features of a frame and of its second-order degradation."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from tta_restore._core import checks
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.baselines.entropy import view_variance
from tta_restore.adapters.frame import FrameContext
from tta_restore.adapters.injection import expect_site, find_site, hooked
from tta_restore.adapters.select import Select
from tta_restore.adapters.views import Views
from tta_restore.data.datasets.mining import random_patches
from tta_restore.data.datasets.pairs import degrade_each
from tta_restore.degradations import Blur, Clip, Compose, Degradation, Estimator, Jpeg, Noise
from tta_restore.losses import charbonnier_loss

_SIDES = 32  # multiple of the sides of a frame on which the features are looked for
_MIN_RADIUS, _MIN_NOISE, _MAX_QUALITY = 0.8, 2 / 255, 95.0  # from which a degradation counts as present


class SRTTA(Adapter, method="srtta"):
    """Adapter that makes features invariant to one more degradation, and preserves the most important weights.

    In each step patches of the frame get more of the degradations that were found in it, of random strength; the loss
    is the distance of the student's features of them from the source's and from its own features of the original
    patches. The weights on which the agreement of views depends most are restored to the source's after every step.
    Returns the student's average over views.

    Losses and preserved weights are those of the published method, which was made for super-resolution. Its classifier
    is replaced by :class:`tta_restore.degradations.Estimator`: blur, noise and JPEG compression count as present from
    a radius of 0.8 pixels, a noise of 2/255, and below a quality of 95.

    Args:
        model: a restorer of single frames; see :class:`Adapter`, as for ``options``.
        at: path of the module whose output is compared; "auto" for the deepest wide one.
        select: which weights to adapt.
        lr: learning rate of Adam.
        steps: updates per frame.
        num_patches: patches per step.
        patch_size: side of a patch in pixels, rounded up to what the model takes.
        max_blur_std: largest standard deviation of the added Gaussian blur, in pixels.
        max_noise_std: largest standard deviation of the added noise, in [0, 1] values.
        min_quality: smallest quality of the added JPEG compression, 1 to 95.
        degradations: ``"estimated"`` for those found in the frame, all where none is found; ``"blur_noise"`` for blur
            and noise on every frame; or a known degradation.
        restore_fraction: fraction of the adapted scalars, the most important ones on the first frame, that are restored
            to the source's values.
        views: test-time augmentations, for the importance and for the output.

    Raises:
        ValueError: a setting is out of range, or there is no module ``at``.

    Source: Deng et al., Efficient test-time adaptation for super-resolution with second-order degradation and
    reconstruction, NeurIPS 2023; see above for what differs.
    """

    roles = ("student",)

    def __init__(
        self,
        model: Any,
        *,
        at: str = "auto",
        select: Select = "all",
        lr: float = 5e-5,
        steps: int = 10,
        num_patches: int = 4,
        patch_size: int = 48,
        max_blur_std: float = 2.0,
        max_noise_std: float = 10 / 255,
        min_quality: float = 50.0,
        degradations: Literal["estimated", "blur_noise"] | Degradation = "estimated",
        restore_fraction: float = 0.5,
        views: Views = "d4",
        **options: Any,
    ) -> None:
        for name, value in (("num_patches", num_patches), ("patch_size", patch_size)):
            checks.expect_int("SRTTA", name, value, minimum=1)
        for name, value in (("lr", lr), ("max_blur_std", max_blur_std)):
            checks.expect_number("SRTTA", name, value, above=0)
        checks.expect_number("SRTTA", "max_noise_std", max_noise_std, minimum=0)
        checks.expect_number("SRTTA", "restore_fraction", restore_fraction, minimum=0, maximum=1)
        checks.expect_number("SRTTA", "min_quality", min_quality, minimum=1, maximum=95)
        if not isinstance(degradations, Degradation):
            checks.expect_choice("SRTTA", "degradations", degradations, ("estimated", "blur_noise"))
        super().__init__(model, select=select, steps=steps, views=views, **options)
        self.at = expect_site(self.restorer, at, asker="SRTTA")[1]
        self.lr, self.num_patches, self.patch_size = lr, num_patches, patch_size
        self.max_blur_std, self.max_noise_std, self.restore_fraction = max_blur_std, max_noise_std, restore_fraction
        # a Gaussian of standard deviation s has the root mean square radius s * sqrt(2)
        lens = Blur(radius=(0.0, max_blur_std * math.sqrt(2)), lens="gaussian", linear=False, log_uniform=False)
        noise = Noise(read_std=(0.0, max_noise_std), log_uniform=False)
        self.min_quality, self.degradations = min_quality, degradations
        self.estimator: Any = Estimator() if degradations == "estimated" else None
        self._parts: dict[str, Degradation] = {"blur": lens, "noise": noise, "jpeg": Jpeg((min_quality, 95))}

    def initial_memory(self) -> dict[str, Any]:
        """Return which scalars are restored, found on the first frame."""
        return {"important": None}

    def begin_frame(self, frame: FrameContext) -> None:
        """Find the site of the features, and the scalars that the agreement of views depends on most."""
        if self.at == "auto":
            image = frame.region
            if not frame.arguments:  # a model that pads inside keeps the proportions of sides like these only
                height, width = (side // _SIDES * _SIDES or side for side in image.shape[-2:])
                image = image[..., :height, :width]
            self.at = find_site(self.restorer, "auto", asker="SRTTA", frame=image, **frame.arguments).path
        frame.scratch["present"] = self._present(frame.region)
        if self.memory["important"] is not None:
            return
        with torch.enable_grad():
            runs = [self.run_view("student", frame.region, view).image.float() for view in self.views]
            gradients = self.gradients(view_variance(torch.stack(runs)).mean())
        importance = [
            torch.zeros_like(tensor).abs() if gradient is None else gradient.detach().abs().square()
            for gradient, tensor in zip(gradients, self.student.values(), strict=True)
        ]
        ranked = torch.cat([values.flatten() for values in importance]).sort(descending=True).values
        count = round(self.restore_fraction * len(ranked))
        least = ranked[count - 1] if count else torch.inf
        self.memory["important"] = {
            name: values >= least for name, values in zip(self.student, importance, strict=True)
        }

    def objective(self, frame: FrameContext) -> Tensor:
        """Return the distance of features of degraded patches from the source's and the student's of the patches."""
        multiple = self.restorer.known_spec(frame.region).size.multiple_of
        side = min(-(-self.patch_size // multiple) * multiple, *frame.region.shape[-2:])
        clean = random_patches(frame.region.float().cpu(), self.num_patches, side, self.generator).to(frame.region)
        with torch.no_grad():
            targets = [self._features(role, clean) for role in ("source", "student")]
        found = self._features("student", self._degraded(clean, frame.scratch["present"]))
        return charbonnier_loss(found, targets[0]) + charbonnier_loss(found, targets[1])

    def after_step(self, frame: FrameContext) -> None:
        """Restore the most important scalars."""
        source = self.source
        with torch.no_grad():
            for name, tensor in self.student.items():
                important = self.memory["important"][name].to(tensor.device)
                tensor.copy_(torch.where(important, source[name].to(tensor), tensor))

    def cost(self) -> str:
        """Return the passes through the model for each frame, in words."""
        return (
            f"per frame {self.steps} x (3 forward and 1 backward on {self.num_patches} patches of {self.patch_size} "
            f"x {self.patch_size}), {len(self.views)} forward for the output; "
            f"once {len(self.views)} forward and backward"
        )

    def _features(self, role: str, image: Tensor) -> Tensor:
        """Return the output of the module for an image, in at least float32."""
        seen: list[Tensor] = []
        with hooked(
            self._backbone.module(self._tensors(role)), self.at, lambda features: seen.append(features) or features
        ):
            self.run(role, image)
        features = torch.cat(seen)  # several where the model takes one image at a time
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def _present(self, image: Tensor) -> tuple[str, ...]:
        """Return which degradations the frame has, in the order of the camera."""
        if self.estimator is None or image.shape[1] not in (1, 3):
            return ("blur", "noise")
        mean = self.estimator.read(image.float()).mean
        found = {
            "blur": mean["blur_radius"] >= _MIN_RADIUS,
            "noise": mean["noise_std"] >= _MIN_NOISE,
            "jpeg": mean["jpeg_quality"] < _MAX_QUALITY,
        }
        return tuple(name for name, present in found.items() if present) or tuple(found)

    def _degraded(self, clean: Tensor, present: tuple[str, ...]) -> Tensor:
        """Degrade each patch with random strengths of the named degradations, within [0, 1]."""
        if isinstance(self.degradations, Degradation):
            return degrade_each(clean, [self.degradations], self.generator)
        camera = Compose([*(self._parts[name] for name in present if name != "jpeg"), Clip()])
        if "jpeg" in present:
            camera = Compose([*camera.degradations, self._parts["jpeg"]])
        return camera.apply(clean, camera.sample(self.generator, len(clean)), self.generator)
