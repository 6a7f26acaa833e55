"""MetaTransfer: fine-tune a deblurrer on one clip, with reblurred pseudo-sharp patches of the clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tta_restore._core import checks as _checks
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.frame import FrameContext
from tta_restore.adapters.methods.clip_model import restored_images
from tta_restore.adapters.methods.discriminator import DiscriminatorTrainer
from tta_restore.adapters.methods.inner_loop import InnerLoop, InnerLoopSettings, InnerSample, LoopOptimizer, Variant
from tta_restore.adapters.select import Select
from tta_restore.adapters.state import Guards, ParameterSet
from tta_restore.data.datasets.clips import window
from tta_restore.data.datasets.mining import MinedPatch, Places, mine_patches
from tta_restore.losses.adversarial import Kind
from tta_restore.models import Restoration

_FLAT = 4 * 60.0  # dB: neighboring pixels differ by a quarter of a gray level, there is no detail to be blurred
_CLEARLY = 0.5  # fraction of the other error that the error of a sharp frame stays below
_STILL = 4.0  # mean squares of the change by restoring, up to which frames that follow each other count as still
_MIN_REBLUR = 0.5  # of the largest change by restoring, that reblurring has to make to decide on sharp frames


class MetaTransfer(Adapter, method="meta_transfer"):
    """Adapter of clips that fine-tunes a deblurrer on a clip before restoring all of it, and resets at each clip.

    Blur changes within a clip. At some locations of the clip the sharpest frame is searched for: *pseudo-sharp*
    patches. The *reblur stage* adapts a reblurring network, which blurs the middle of a few frames, until a
    discriminator takes the reblurred patches for real blur of this clip, and the deblurrer can invert it. The *deblur
    stage* fine-tunes the deblurrer on pairs of a reblurred patch and the patch. Then the whole clip is restored, frame
    by frame.

    Both networks should come from meta-training, ``engine.train``; then a few steps suffice. A *frame* of
    :class:`Adapter` is a clip here, (T, C, H, W) or (1, T, C, H, W): ``adapter(clip)`` adapts on it and restores it,
    ``predict`` restores further frames of it. Reblurring network and discriminator run in eval mode and are adapted as
    copies, which start from the modules' weights at each clip.

    A clip without detail, or none of whose frames is sharper than another, is restored by the source. The report has a
    message on that, and on clips with fewer frames than the reblurring network takes, whose ends are repeated.

    Args:
        model: restorer at scale 1 of frames or of clips; a model of clips declares ``frames`` in its spec, and gets the
            frames around each. See :class:`Adapter`, as for ``options``.
        reblur: network that returns the middle frame, (B, 3, H, W), of a clip, (B, T, 3, H, W), reblurred; such as the
            model "video_reblur".
        discriminator: network that scores images, such as "vgg19_critic" or "patch_critic"; None: the cycle loss alone.
        num_patches: locations to mine.
        patch_size: side of a patch in pixels; where the frame is smaller, its side.
        patch_sampling: "random" locations, or "tile" row by row.
        num_frames: T of the reblurring network; None: its attribute of that name, else 5.
        num_extra_times: time steps per location, drawn at random, at whose neighbors the reblurring network gets the
            pseudo-sharp patch too, so that it blurs as the clip does then; 0 as published, where it gets those of the
            sharpest time step only.
        min_sharpness_gain: dB of the self-shift score between the sharpest and the most blurred frame of a location,
            below which it is left out; 0 as published.
        select: which weights to adapt.
        lr: learning rate of the deblurrer.
        reblur_lr: learning rate of the reblurring network.
        optimizer: "adam", as in the official code, or "sgd", as in the paper.
        adversarial_kind: kind of the adversarial loss; a Wasserstein discriminator has its weights clipped.
        adversarial_weight: weight of the adversarial loss in the reblur stage; the cycle loss has the rest.
        discriminator_lr: learning rate of the discriminator.
        discriminator_clip: bound of a Wasserstein discriminator's weights.
        discriminator_interval: steps of the reblurring network between two of the discriminator.
        variant: "ours" trains the deblurrer in its own stage only, as in the paper; "official" lets the cycle loss of
            the reblur stage train it too, as in the official code.
        real_source: image that the discriminator takes for real: "neighbor", another frame of the patch, as in the
            official code, or "blurriest", the most blurred frame of the location, as in the paper.
        num_epochs: passes over the patches, in each stage.
        noise_std: standard deviation of the noise added to reblurred patches, as the camera's, in [0, 1] values; 0 as
            published.
        min_blur_rms: root mean square, in [0, 1] values, by which reblurring has to change a patch: from others the
            deblurrer would learn to do nothing; 0 for all, as published.
        skip_sharp_frames: return frames that were sharp before unchanged, see ``keep_sharp_frames``; a deblurrer
            trained on the blur of a clip degrades them. For clips of ``num_frames`` at least.
        distance: distance of a restored image from its target.
        outputs: "main", the restored image, or "all" images of a model with stages or scales, whose losses are summed.
        guards: by default without a limit on loss spikes: an adversarial loss has no usual size.
        seed: source of locations, order and real patches.

    Raises:
        ValueError: a setting is out of range; a clip is not (T, 3, H, W); the model enlarges.

    Source: Meta Transferring for Deblurring (Liu et al., BMVC 2022), meta-testing.
    """

    roles: ClassVar[tuple[str, ...]] = ("student",)
    keeps_size: ClassVar[bool] = True
    keeps_channels: ClassVar[bool] = True
    takes_clips: ClassVar[bool] = True

    def __init__(
        self,
        model: Any,
        reblur: nn.Module,
        discriminator: nn.Module | None = None,
        *,
        num_patches: int = 20,
        patch_size: int = 256,
        patch_sampling: Places = "random",
        num_frames: int | None = None,
        num_extra_times: int = 0,
        min_sharpness_gain: float = 0.5,
        select: Select = "all",
        lr: float = 2.5e-6,
        reblur_lr: float = 2.5e-6,
        optimizer: Literal["adam", "sgd"] = "adam",
        adversarial_kind: Kind = "wasserstein",
        adversarial_weight: float = 0.99,
        discriminator_lr: float = 1e-6,
        discriminator_clip: float | None = 0.01,
        discriminator_interval: int = 1,
        variant: Variant = "ours",
        real_source: Literal["neighbor", "blurriest"] = "neighbor",
        num_epochs: int = 1,
        noise_std: float = 0.0,
        min_blur_rms: float = 0.0,
        skip_sharp_frames: bool = False,
        distance: Callable[[Tensor, Tensor], Tensor] = F.l1_loss,
        outputs: Literal["main", "all"] = "main",
        guards: Guards | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        name = "MetaTransfer"
        for role, module in (("reblur", reblur), ("discriminator", discriminator)):
            if not isinstance(module, nn.Module) and not (role == "discriminator" and module is None):
                raise TypeError(f"{name}: expected {role} to be a module, got {type(module).__name__}")
        num_frames = int(getattr(reblur, "num_frames", 5)) if num_frames is None else num_frames
        _checks.expect_int(name, "num_patches", num_patches, minimum=1)
        _checks.expect_int(name, "patch_size", patch_size, minimum=2)
        _checks.expect_int(name, "num_frames", num_frames, minimum=1, odd=True)
        _checks.expect_int(name, "num_extra_times", num_extra_times, minimum=0)
        _checks.expect_int(name, "discriminator_interval", discriminator_interval, minimum=1)
        _checks.expect_choice(name, "patch_sampling", patch_sampling, ("random", "tile"))
        _checks.expect_choice(name, "outputs", outputs, ("main", "all"))
        _checks.expect_choice(name, "adversarial_kind", adversarial_kind, ("wasserstein", "least_squares"))
        _checks.expect_number(name, "min_sharpness_gain", min_sharpness_gain, minimum=0)
        _checks.expect_number(name, "discriminator_lr", discriminator_lr, minimum=0)
        _checks.expect_number(name, "discriminator_clip", discriminator_clip, above=0, optional=True)
        if options.get("semantic") is not None or options.get("steps") is not None:
            raise ValueError(f"{name}: takes no semantic prior, and its steps follow from num_patches and num_epochs")
        super().__init__(model, select=select, guards=guards or Guards(max_loss_ratio=None), seed=seed, **options)
        self.reblur, self.discriminator = reblur, discriminator
        self.inner = InnerLoopSettings(
            lr, reblur_lr, optimizer, adversarial_weight, variant, real_source, num_epochs, noise_std, min_blur_rms
        )
        self.num_patches, self.patch_size, self.patch_sampling = num_patches, patch_size, patch_sampling
        self.num_frames, self.num_extra_times = num_frames, num_extra_times
        self.min_sharpness_gain, self.skip_sharp_frames = min_sharpness_gain, skip_sharp_frames
        self.distance, self.outputs = distance, outputs
        self.discriminator_settings: dict[str, Any] = {
            "kind": adversarial_kind,
            "lr": discriminator_lr,
            "clip": discriminator_clip,
            "update_interval": discriminator_interval,
        }

    def initial_sets(self) -> dict[str, ParameterSet]:
        """Return the weights of the reblurring network, which the reblur stage trains."""
        return {"reblur": dict(self.reblur.named_parameters())}

    def make_optimizer(self, tensors: list[Tensor], role: str = "student") -> torch.optim.Optimizer:
        """Return the inner loop's optimizer, which starts anew with each clip."""
        return LoopOptimizer(
            tensors, lr=self.inner.lr if role == "student" else self.inner.reblur_lr, rule=self.inner.optimizer
        )

    def begin_frame(self, frame: FrameContext) -> None:
        """Reset, and mine the patches of a clip."""
        clip = frame.region
        _checks.expect_shape("MetaTransfer", "clip", clip, "(T, 3, H, W)", (None, 3, None, None))
        self.restart()
        mined = mine_patches(
            clip,
            self.num_patches,
            self.patch_size,
            generator=self.generator,
            places=self.patch_sampling,
            num_frames=self.num_frames,
            other_moments=self.num_extra_times,
        )
        kept = [patch for patch in mined if self._is_useful(patch, len(clip))]
        self._add_messages(frame, mined, kept)
        frame.metrics.update(
            patches=float(len(kept)),
            gain=sum(patch.blurred_score - patch.sharp_score for patch in kept) / max(len(kept), 1),
        )
        if not kept:
            frame.skip = "no location of the clip is sharp in one frame and blurred in another"
            return
        samples = self.inner.filter_samples(InnerSample.of(kept), self._blur)
        if not samples:
            frame.skip = f"reblurring changes no patch by {self.inner.min_blur_rms:g}"
            return
        steps = self.inner.steps(len(samples), self.num_frames, self.generator)
        own: ParameterSet = dict(self.reblur.named_parameters())
        if not own and self.inner.variant == "ours":
            steps = [step for step in steps if step.stage == "deblur"]  # there is nothing to train
        frame.steps = len(steps)
        tied = len(list(self.reblur.named_parameters(remove_duplicate=False))) > len(own)
        trainer = (
            DiscriminatorTrainer(self.discriminator, **self.discriminator_settings) if self.discriminator else None
        )
        loop = InnerLoop(
            self.inner,
            restore=self._images,
            reblur=lambda weights, clip: self._reblurred(own, weights, clip, tied=tied),
            restorer_weights={},
            reblur_weights={},
            critic=trainer,
            distance=self.distance,
        )
        loop.reblur_weights, loop.restorer_weights = self.state.sets["reblur"], self.student
        frame.scratch.update(loop=loop, steps=iter(steps), samples=samples)

    def objective(self, frame: FrameContext) -> Tensor:
        """Return the loss of the next step on one patch."""
        loop: InnerLoop = frame.scratch["loop"]
        step = next(frame.scratch["steps"])
        both = ("student", "reblur") if self.state.sets["reblur"] else ("student",)
        reblurs = both if self.inner.variant == "official" else ("reblur",)
        frame.trained = ("student",) if step.stage == "deblur" else reblurs
        loss = loop.loss(step, frame.scratch["samples"][step.sample])
        frame.metrics.update(loop.terms)
        return loss

    def emit(self, frame: FrameContext) -> Restoration:
        """Return the restored clip, with its sharp frames unchanged if ``skip_sharp_frames``."""
        restoration = super().emit(frame)
        if not self.skip_sharp_frames or len(frame.image) < self.num_frames:
            return restoration
        kept = keep_sharp_frames(frame.image, restoration.image, self._blur, self.num_frames)
        frame.metrics["frames_kept"] = float(kept.sum())
        if kept.any():
            frame.messages.append(
                f"{int(kept.sum())} of {len(kept)} frames were sharp and are returned as they were (skip_sharp_frames)"
            )
        image = torch.where(kept[:, None, None, None], frame.image.to(restoration.image), restoration.image)
        return restoration.with_image(image)

    def cost(self) -> str:
        """Return the passes for each clip, in words."""
        count = self.num_patches * (1 + self.num_extra_times) * self.inner.num_epochs
        parts = [f"{count} steps of the restorer"]
        if self.inner.has_reblur_stage:
            critic = [f"{count} steps of the critic"] if self.discriminator is not None else []
            parts = [f"{count} steps of the reblurrer through the restorer", *critic, *parts]
        checks = ", 2 of the reblurrer" if self.skip_sharp_frames else ""
        return (
            f"per clip {', '.join(parts)}, on patches of {self.patch_size} x {self.patch_size}; "
            f"{len(self.views)} forward per frame{checks}"
        )

    def _is_useful(self, patch: MinedPatch, length: int) -> bool:
        """Return whether a location has detail, and a frame that is sharper than another."""
        gain = patch.blurred_score - patch.sharp_score
        return patch.sharp_score < _FLAT and (length == 1 or (gain >= self.min_sharpness_gain and gain > 0))

    def _add_messages(self, frame: FrameContext, mined: list[MinedPatch], kept: list[MinedPatch]) -> None:
        length, (height, width) = len(frame.region), mined[0].clip.shape[-2:]
        if length == 1:
            frame.messages.append("one frame: there is no sharper one, it is repeated as its neighbors")
        elif length < self.num_frames:
            frame.messages.append(f"{length} frames, fewer than {self.num_frames}: those at the ends are repeated")
        if (height, width) != (self.patch_size, self.patch_size):
            frame.messages.append(f"patches of {height} x {width}: the frames are smaller than {self.patch_size}")
        if len(kept) < len(mined):
            frame.messages.append(
                f"{len(mined) - len(kept)} of {len(mined)} locations left out: flat, or no frame is sharper by "
                f"{self.min_sharpness_gain:g} dB"
            )

    def _images(self, weights: ParameterSet, image: Tensor, clip: Tensor) -> list[Tensor]:
        return restored_images(  # the weights of the loop are the student's
            self.restorer, lambda x: self.run("student", x), image, clip, outputs=self.outputs
        )

    def _reblurred(self, own: ParameterSet, weights: ParameterSet, clip: Tensor, *, tied: bool) -> Tensor:
        used = {name: tensor.to(own[name].dtype) for name, tensor in weights.items()}
        kind = next(iter(own.values()), clip)
        return functional_call(self.reblur, used, (clip.to(kind),), tie_weights=tied).to(clip.dtype)

    def _blur(self, clip: Tensor) -> Tensor:
        kind = next(self.reblur.parameters(), clip)
        return self.reblur(clip.to(kind)).to(clip)


@torch.no_grad()
def keep_sharp_frames(
    frames: Tensor, restored: Tensor, reblur: Callable[[Tensor], Tensor], num_frames: int = 5
) -> Tensor:
    """Return which frames of a clip were sharp before, and better stay as they were.

    Each frame and its restoration are reblurred with the clip's motion around it; at the ends, with that around the
    neighbor, which has two neighbors. A frame is sharp if its own reblurred version is clearly nearer to it than that
    of its restoration: it is sharp already, and does not move. Differences are averaged over 3x3 pixels first, since
    only the frame itself holds its noise. A reblurring network that hardly blurs a clip that moves finds every frame
    nearest to itself: its largest change of a restoration has to reach half of the largest change that restoring made.

    Shape: frames, restored (T, 3, H, W) in [0, 1] -> (T,); reblur takes (1, num_frames, 3, H, W).
    """
    length = len(frames)
    kept = torch.zeros(length, dtype=torch.bool, device=frames.device)
    blurs = torch.zeros(length, dtype=torch.float32, device=frames.device)
    for time, frame in enumerate(frames):
        inner = min(max(time, 1), max(length - 2, 0))  # an end that stands in for its neighbor halves the motion
        around = frames[torch.as_tensor(window(inner, length, num_frames))]
        errors = []
        for middle in (frame, restored[time]):
            around[num_frames // 2] = middle
            reblurred = reblur(around[None].clamp(0, 1))[0]
            errors.append(_smooth_error(reblurred, frame))
            blurs[time] = (reblurred - middle).square().mean()
        kept[time] = errors[0] < _CLEARLY * errors[1]
    changes = (restored - frames).float().square().mean((1, 2, 3)).max()
    motion = frames.diff(dim=0).float().square().mean((1, 2, 3)).amax() if length > 1 else changes
    if motion > _STILL * changes and blurs.max().sqrt() < _MIN_REBLUR * changes.sqrt():
        kept[:] = False
    return kept


def _smooth_error(image: Tensor, frame: Tensor) -> Tensor:
    return F.avg_pool2d((image - frame)[None].float(), 3, stride=1).square().mean()
