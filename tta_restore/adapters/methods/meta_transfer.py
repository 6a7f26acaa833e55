"""MetaTransfer: fine-tune a deblurrer on one clip, with the clip's own sharp moments, reblurred as the clip is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tta_restore._core import checks as _checks
from tta_restore.adapters import state as parameter_sets
from tta_restore.adapters.adapter import Adapter
from tta_restore.adapters.frame import Frame
from tta_restore.adapters.guards import Guards
from tta_restore.adapters.methods.clip_model import pictures
from tta_restore.adapters.methods.discriminator import Critic
from tta_restore.adapters.methods.inner_loop import InnerLoop, InnerLoopSettings, Item, Order
from tta_restore.adapters.select import Select
from tta_restore.adapters.state import ParameterSet
from tta_restore.data.datasets.clips import window
from tta_restore.data.datasets.mining import MinedPatch, Places, mine_patches
from tta_restore.losses.adversarial import Kind
from tta_restore.models import Restoration
from tta_restore.models.restorer import outputs as structure

_FLAT = 4 * 60.0  # dB: neighboring pixels differ by a quarter of a gray level, there is no detail to be blurred


class MetaTransfer(Adapter, method="meta_transfer"):
    """Fine-tunes a deblurrer on a clip before restoring all of it; each clip starts afresh.

    Blur changes within a clip. At some places of the clip the sharpest moment is looked for: *pseudo-sharp* patches.
    The *reblur stage* adapts a reblurrer, which blurs the middle of a few frames, until a critic takes what it makes
    of the patches for real blur of this clip, and the deblurrer can undo it. The *deblur stage* fine-tunes the
    deblurrer on pairs of a reblurred patch and the patch. Then the whole clip is restored, frame by frame.

    Reblurrer and deblurrer should come from meta-training, ``engine.train``; then a few steps suffice. A *frame*
    of :class:`Adapter` is a clip here: ``adapter(clip)`` adapts on it and restores it, ``predict`` restores further
    frames of it. Reblurrer and critic run in eval mode, are adapted as copies, and are what they were at each clip.

    A clip without detail, or none of whose moments is sharper than another, is restored as the source does it. The
    report says so, and whether the clip has fewer frames than the reblurrer wants, whose ends are then repeated.

    Args:
        model: restorer at scale 1 of frames or of clips; a model of clips declares ``frames`` in its spec, and is given
            the frames around each. See :class:`Adapter`, as for ``options``.
        reblur: gives the middle frame, (B, 3, H, W), of a clip, (B, T, 3, H, W), reblurred; such as the model
            "video_reblur".
        discriminator: gives scores of pictures, such as "vgg19_critic" or "patch_critic"; None: the cycle loss alone.
        num_patches: places to look at.
        patch_size: their sides in pixels; where the frame is shorter, its side.
        places: "random", or "tile" row by row.
        num_frames: T of the reblurrer; None: its attribute of that name, else 5.
        other_moments: of each place, drawn at random: the reblurrer is given the pseudo-sharp patch among the
            neighbors of each, too, so that it blurs as the clip does then; 0 as published, where it is given those of
            the sharpest moment only.
        least_gain: dB of the self-shift score between the sharpest and the most blurred moment of a place, below which
            it is left out; 0 as published.
        select: which weights to adapt.
        lr: rate of the deblurrer.
        reblur_lr: rate of the reblurrer.
        optimizer: "adam", as released, or "sgd", as the paper writes it.
        adversarial: kind of the adversarial loss; the critic of a Wasserstein loss has its weights clipped.
        adversarial_weight: of it in the reblur stage; the cycle loss has the rest.
        critic_lr: rate of the critic.
        critic_clip: bound of a Wasserstein critic's weights.
        critic_every: steps between two of the critic's.
        order: "repaired", as the paper has it: the deblurrer waits for its stage; "published": the cycle loss steps it
            already in the reblur stage; "published_torch1": as before and the reblurrer goes on by its momentum in the
            deblur stage, which is what the release did on PyTorch before 2.0.
        real: what the critic takes for real: "neighbor", another frame of the patch, as released, or "blurriest", the
            place when it is most blurred, as in the paper.
        passes: over the patches, in each stage.
        noise: standard deviation of what is added to reblurred patches, as the camera's; 0 as published.
        least_blur: root mean square, in values of [0, 1], by which reblurring has to change a patch: of the others the
            deblurrer would learn to do nothing; 0 for all, as published.
        leave_sharp: leave frames as they are that were sharp before, see :func:`left_sharp`; a deblurrer that learned
            the blur of a clip spoils them. For clips of num_frames at least.
        distance: of a restored picture from its target.
        outputs: "main", the restored image, or "all" images of a model with stages or scales, which add up.
        guards: by default without a limit on spikes: an adversarial loss has no usual size.
        seed: source of places, order and real patches.

    Raises:
        ValueError: a setting is out of range; a clip is not (T, 3, H, W); the model enlarges.

    Source: Meta Transferring for Deblurring (Liu et al., BMVC 2022), meta-testing.
    """

    roles: ClassVar[tuple[str, ...]] = ("student",)

    def __init__(
        self,
        model: Any,
        reblur: nn.Module,
        discriminator: nn.Module | None = None,
        *,
        num_patches: int = 20,
        patch_size: int = 256,
        places: Places = "random",
        num_frames: int | None = None,
        other_moments: int = 0,
        least_gain: float = 0.5,
        select: Select = "all",
        lr: float = 2.5e-6,
        reblur_lr: float = 2.5e-6,
        optimizer: Literal["adam", "sgd"] = "adam",
        adversarial: Kind = "wasserstein",
        adversarial_weight: float = 0.99,
        critic_lr: float = 1e-6,
        critic_clip: float | None = 0.01,
        critic_every: int = 1,
        order: Order = "repaired",
        real: Literal["neighbor", "blurriest"] = "neighbor",
        passes: int = 1,
        noise: float = 0.0,
        least_blur: float = 0.0,
        leave_sharp: bool = False,
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
        _checks.expect_int(name, "other_moments", other_moments, minimum=0)
        _checks.expect_int(name, "critic_every", critic_every, minimum=1)
        _checks.expect_choice(name, "places", places, ("random", "tile"))
        _checks.expect_choice(name, "outputs", outputs, ("main", "all"))
        _checks.expect_choice(name, "adversarial", adversarial, ("wasserstein", "least_squares"))
        _checks.expect_number(name, "least_gain", least_gain, minimum=0)
        _checks.expect_number(name, "critic_lr", critic_lr, minimum=0)
        _checks.expect_number(name, "critic_clip", critic_clip, above=0, optional=True)
        if options.get("semantic") is not None or options.get("steps") is not None:
            raise ValueError(f"{name}: takes no semantic prior, and its steps follow from num_patches and passes")
        super().__init__(model, select=select, guards=guards or Guards(spike=None), seed=seed, **options)
        self.reblur, self.discriminator = reblur, discriminator
        self.settings = InnerLoopSettings(
            lr, reblur_lr, optimizer, adversarial_weight, order, real, passes, noise, least_blur
        )
        self.num_patches, self.patch_size, self.places, self.num_frames = num_patches, patch_size, places, num_frames
        self.other_moments, self.least_gain, self.leave_sharp = other_moments, least_gain, leave_sharp
        self.distance, self.outputs = distance, outputs
        self.critic_settings: dict[str, Any] = {
            "kind": adversarial,
            "lr": critic_lr,
            "clip": critic_clip,
            "every": critic_every,
        }

    def make_optimizer(self, parameters: list[Tensor]) -> None:
        """None: the inner loop brings its own, which starts anew with each clip."""
        return

    def begin_frame(self, frame: Frame) -> None:
        """Start afresh and look for the patches of a clip."""
        clip = frame.region
        _checks.expect_shape("MetaTransfer", "clip", clip, "(T, 3, H, W)", (None, 3, None, None))
        if (scale := self.restorer.known_spec(clip).scale) != 1:
            raise ValueError(f"MetaTransfer: expected a model of scale 1, got scale {scale}")
        self.restart()
        mined = mine_patches(
            clip,
            self.num_patches,
            self.patch_size,
            generator=self.generator,
            places=self.places,
            num_frames=self.num_frames,
            other_moments=self.other_moments,
        )
        kept = [patch for patch in mined if self._tells(patch, len(clip))]
        self._remark(frame, mined, kept)
        frame.extra.update(
            patches=float(len(kept)),
            gain=sum(patch.blurred_score - patch.sharp_score for patch in kept) / max(len(kept), 1),
        )
        if not kept:
            frame.skip = "no place of the clip is sharp at one moment and blurred at another"
            return
        items = self.settings.worth(Item.of(kept), self._blur)
        if not items:
            frame.skip = f"reblurring changes no patch by {self.settings.least_blur:g}"
            return
        steps = self.settings.steps(len(items), self.num_frames, self.generator)
        frame.steps = len(steps)
        critic = None if self.discriminator is None else Critic(self.discriminator, **self.critic_settings)
        own: ParameterSet = dict(self.reblur.named_parameters())
        tied = len(list(self.reblur.named_parameters(remove_duplicate=False))) > len(own)
        loop = InnerLoop(
            self.settings,
            restore=self._pictures,
            reblur=lambda weights, clip: self._reblurred(own, weights, clip, tied=tied),
            restorer_weights={},
            reblur_weights=parameter_sets.copied(own),
            critic=critic,
            distance=self.distance,
        )
        frame.notes.update(loop=loop, steps=iter(steps), items=items)

    def objective(self, frame: Frame) -> Tensor:
        """Loss of the next step on one patch."""
        loop: InnerLoop = frame.notes["loop"]
        step = next(frame.notes["steps"])
        loop.restorer_weights = self.student  # which guards may have pulled back
        frame.notes["stage"] = step.stage
        loss = loop.loss(step, frame.notes["items"][step.item])
        frame.extra.update(loop.terms)
        return loss

    def optimize(self, frame: Frame, loss: Tensor) -> str | None:
        """Step reblurrer or deblurrer, or both where the order says so."""
        loop: InnerLoop = frame.notes["loop"]
        problem = loop.update(loss)
        if problem:
            return problem
        deblurs = frame.notes["stage"] == "deblur"
        frame.grad_norm, frame.learning_rate = loop.grad_norm, self.settings.lr if deblurs else self.settings.reblur_lr
        self.state.updates += 1
        if loop.restorer_weights is not self.student:
            student = list(self.student.values())
            before = None if self._moved else [tensor.detach().clone() for tensor in student]
            parameter_sets.assign(self.student, loop.restorer_weights)
            self._watch(before, student)
        return None

    def run(self, role: str, image: Tensor, **arguments: Any) -> Restoration:
        """As of every adapter; the frames of a clip, (T, C, H, W), one by one where no gradient is asked for."""
        return self._by_frames(lambda part: super(MetaTransfer, self).run(role, part, **arguments), image)

    def ensemble(self, role: str, image: Tensor, **arguments: Any) -> Restoration:
        """As of every adapter; the frames of a clip, (T, C, H, W), one by one."""
        return self._by_frames(lambda part: super(MetaTransfer, self).ensemble(role, part, **arguments), image)

    def emit(self, frame: Frame) -> Restoration:
        """The restored clip, its sharp frames as they came where that is asked for."""
        restoration = super().emit(frame)
        if not self.leave_sharp or len(frame.image) < self.num_frames:
            return restoration
        return restoration.with_image(left_sharp(frame.image, restoration.image, self._blur, self.num_frames))

    def config(self) -> dict[str, Any]:
        """Settings that a saved state depends on."""
        own = (
            "num_patches",
            "patch_size",
            "places",
            "num_frames",
            "other_moments",
            "least_gain",
            "leave_sharp",
            "outputs",
        )
        values = {name: getattr(self, name) for name in own}
        critic = None if self.discriminator is None else self.critic_settings
        return super().config() | values | vars(self.settings) | {"critic": critic}

    def cost(self) -> str:
        """Passes for each clip."""
        count = self.num_patches * (1 + self.other_moments) * self.settings.passes
        parts = [f"{count} steps of the restorer"]
        if self.settings.has_reblur_stage:
            critic = [f"{count} steps of the critic"] if self.discriminator is not None else []
            parts = [f"{count} steps of the reblurrer through the restorer", *critic, *parts]
        checks = ", 2 of the reblurrer" if self.leave_sharp else ""
        return (
            f"per clip {', '.join(parts)}, on patches of {self.patch_size} x {self.patch_size}; "
            f"{len(self.views)} forward per frame{checks}"
        )

    def _tells(self, patch: MinedPatch, length: int) -> bool:
        """Whether a place has detail, and a moment that is sharper than another."""
        gain = patch.blurred_score - patch.sharp_score
        return patch.sharp_score < _FLAT and (length == 1 or (gain >= self.least_gain and gain > 0))

    def _remark(self, frame: Frame, mined: list[MinedPatch], kept: list[MinedPatch]) -> None:
        length, (height, width) = len(frame.region), mined[0].clip.shape[-2:]
        if length == 1:
            frame.remarks.append("one frame: there is no sharper moment, it stands in for its neighbors")
        elif length < self.num_frames:
            frame.remarks.append(f"{length} frames, fewer than {self.num_frames}: those at the ends are repeated")
        if (height, width) != (self.patch_size, self.patch_size):
            frame.remarks.append(f"patches of {height} x {width}: the frames are smaller than {self.patch_size}")
        if len(kept) < len(mined):
            frame.remarks.append(
                f"{len(mined) - len(kept)} of {len(mined)} places left out: flat, or no moment is sharper by "
                f"{self.least_gain:g} dB"
            )

    def _pictures(self, weights: ParameterSet, picture: Tensor, clip: Tensor) -> list[Tensor]:
        def restore(x: Tensor) -> Restoration:
            return super(MetaTransfer, self).run("student", x)  # the weights of the loop are the student's

        return pictures(self.restorer, restore, picture, clip, outputs=self.outputs)

    def _reblurred(self, own: ParameterSet, weights: ParameterSet, clip: Tensor, *, tied: bool) -> Tensor:
        used = {name: tensor.to(own[name].dtype) for name, tensor in weights.items()}
        kind = next(iter(own.values()), clip)
        return functional_call(self.reblur, used, (clip.to(kind),), tie_weights=tied).to(clip.dtype)

    def _blur(self, clip: Tensor) -> Tensor:
        kind = next(self.reblur.parameters(), clip)
        return self.reblur(clip.to(kind)).to(clip)

    def _by_frames(self, restore: Callable[[Tensor], Restoration], image: Tensor) -> Restoration:
        if image.ndim != 4 or torch.is_grad_enabled():
            return restore(image)
        frames = self.restorer.known_spec(image).frames
        if frames is None:
            return restore(image[None])
        if frames == 1:
            parts = [restore(frame) for frame in image.split(1)]
        else:
            length = len(image)
            parts = [restore(image[torch.as_tensor(window(t, length, frames))][None]) for t in range(length)]
        together, path = structure.concatenate([part.raw for part in parts]), parts[0].path
        if all(structure.at(part.raw, path) is part.image for part in parts):  # no second copy of the clip
            return Restoration(structure.at(together, path), together, path)
        return Restoration(torch.cat([part.image for part in parts]), together, path)


@torch.no_grad()
def left_sharp(frames: Tensor, restored: Tensor, reblur: Callable[[Tensor], Tensor], num_frames: int = 5) -> Tensor:
    """The restored frames of a clip; those that were sharp before are left as they were.

    Both versions of a frame are reblurred as the clip moves around it, at its ends as around the frame next to them,
    which has two neighbors. What comes closer to the frame explains it: a frame that is sharp already, and does not
    move, is its own best explanation.

    Shape: frames, restored (T, 3, H, W) in [0, 1] -> (T, 3, H, W); reblur takes (1, num_frames, 3, H, W).
    """
    kept, length = restored.clone(), len(frames)
    for time, frame in enumerate(frames):
        inner = min(max(time, 1), max(length - 2, 0))  # an end that stands in for its neighbor halves the motion
        around = frames[torch.as_tensor(window(inner, length, num_frames))]
        errors = []
        for middle in (frame, restored[time]):
            around[num_frames // 2] = middle
            errors.append((reblur(around[None].clamp(0, 1))[0] - frame).square().mean())
        if errors[0] < errors[1]:
            kept[time] = frame
    return kept
