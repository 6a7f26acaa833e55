"""Inner loop of Meta Transferring: steps on the weights of a restorer and a reblurring network, on mined patches.

All weights are arguments, so that meta-training can differentiate through the steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tta_restore import losses
from tta_restore._core import checks
from tta_restore.adapters.methods.discriminator import DiscriminatorTrainer
from tta_restore.adapters.state import ParameterSet, overall_norm
from tta_restore.data.datasets.mining import MinedPatch

_TOGETHER = 8  # patches that are reblurred at once

__all__ = ["InnerLoop", "InnerLoopSettings", "InnerSample", "InnerStep", "LoopOptimizer", "Variant"]

Variant = Literal["official", "ours"]


@dataclass(frozen=True)
class InnerSample:
    """A location of a clip at the time when it is sharpest.

    Shape:
        - clip: (T, C, h, w) in [0, 1], the middle frame pseudo-sharp
        - blurred: (C, h, w), the location at the time when it is most blurred; None where that is not needed
    """

    clip: Tensor
    blurred: Tensor | None = None

    @property
    def sharp(self) -> Tensor:
        """Return the middle frame, (1, C, h, w)."""
        return self.clip[None, len(self.clip) // 2]

    @classmethod
    def of(cls, patches: Iterable[MinedPatch]) -> list[InnerSample]:
        """Return a sample of each patch, and one of each of its extra times."""
        return [cls(clip, patch.blurred) for patch in patches for clip in (patch.clip, *patch.others)]


@dataclass(frozen=True)
class InnerStep:
    """One step: its stage, the index of its sample, the frame that is the real blur (None: the most blurred crop), and
    the seed of the noise.
    """

    stage: Literal["reblur", "deblur"]
    sample: int
    real: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class InnerLoopSettings:
    """Settings of the two stages.

    Attributes:
        lr: learning rate of the restorer.
        reblur_lr: learning rate of the reblurring network; 0 omits the reblur stage, if it does not train the restorer
            either.
        optimizer: "adam", as in the official code, or "sgd", as in the paper.
        adversarial_weight: weight of the adversarial loss in the reblur stage; the cycle loss has the rest.
        variant: "ours" trains the restorer in its own stage only, as in the paper; "official" lets the cycle loss of
            the reblur stage train it too, at full size under Adam, as in the official code.
        real_source: image that serves as real blur: "neighbor", a random other frame of the patch, as in the official
            code, or "blurriest", the most blurred crop of the location, as in the paper.
        num_epochs: passes over the samples, in each stage.
        noise_std: standard deviation of the noise added to reblurred images, in [0, 1] values: a restorer trained
            without the noise of the camera amplifies it. 0 as published.
        min_blur_rms: root mean square, in [0, 1] values, by which reblurring has to change a patch; from others the
            restorer would learn to do nothing. 0 for all, as published.
    """

    lr: float = 2.5e-6
    reblur_lr: float = 2.5e-6
    optimizer: Literal["adam", "sgd"] = "adam"
    adversarial_weight: float = 0.99
    variant: Variant = "ours"
    real_source: Literal["neighbor", "blurriest"] = "neighbor"
    num_epochs: int = 1
    noise_std: float = 0.0
    min_blur_rms: float = 0.0

    def __post_init__(self) -> None:
        name = "inner loop"
        checks.expect_choice(name, "optimizer", self.optimizer, ("adam", "sgd"))
        checks.expect_choice(name, "variant", self.variant, ("official", "ours"))
        checks.expect_choice(name, "real_source", self.real_source, ("neighbor", "blurriest"))
        checks.expect_int(name, "num_epochs", self.num_epochs, minimum=1)
        checks.expect_number(name, "adversarial_weight", self.adversarial_weight, minimum=0, maximum=1)
        for setting in ("lr", "reblur_lr", "noise_std", "min_blur_rms"):
            checks.expect_number(name, setting, getattr(self, setting), minimum=0)

    @property
    def has_reblur_stage(self) -> bool:
        """Return whether the reblur stage trains anything."""
        return self.reblur_lr > 0 or self.variant == "official"

    @torch.no_grad()
    def filter_samples(self, items: Sequence[InnerSample], reblur: Callable[[Tensor], Tensor]) -> list[InnerSample]:
        """Return the samples that reblurring, (B, T, C, h, w) to (B, C, h, w), changes enough."""
        if not self.min_blur_rms:
            return list(items)
        kept: list[InnerSample] = []
        for first in range(0, len(items), _TOGETHER):
            some = items[first : first + _TOGETHER]
            changes = reblur(torch.stack([item.clip for item in some])) - torch.cat([item.sharp for item in some])
            enough = changes.square().mean((1, 2, 3)).sqrt() >= self.min_blur_rms
            kept += [item for item, changed in zip(some, enough.tolist(), strict=True) if changed]
        return kept

    def steps(self, items: int, frames: int, generator: torch.Generator) -> list[InnerStep]:
        """Return the steps over a number of samples of T = ``frames`` frames, in random order."""

        def shuffled() -> Iterator[int]:
            for _ in range(self.num_epochs):
                yield from torch.randperm(items, generator=generator, device="cpu").tolist()

        others = [t for t in range(frames) if t != frames // 2] or [0]
        reblur = []
        for item in shuffled() if self.has_reblur_stage else ():
            drawn = others[int(torch.randint(len(others), (), generator=generator, device="cpu"))]
            reblur.append(InnerStep("reblur", item, drawn if self.real_source == "neighbor" else None))
        steps = reblur + [InnerStep("deblur", item) for item in shuffled()]
        if not self.noise_std:
            return steps
        seeds = torch.randint(2**62, (len(steps),), generator=generator, device="cpu").tolist()
        return [replace(step, seed=seed) for step, seed in zip(steps, seeds, strict=True)]


class InnerLoop:
    """The weights of restorer and reblurrer on their way through the steps.

    ``loss(step, item)`` and ``update(loss)`` in turn, or :meth:`run` for all. Every step makes new tensors; with
    ``create_graph`` they depend on the first ones, differentiably, the discriminator taken as given.

    Args:
        settings: how the stages go.
        restore: images that a restorer with these weights makes of an image, (1, C, h, w), which stands in the
            middle of a clip, (T, C, h, w); see
            :func:`tta_restore.adapters.methods.clip_model.restored_images`.
        reblur: the middle frame, (1, C, h, w), that a reblurrer with these weights makes of (1, T, C, h, w).
        restorer_weights: at the start, of any kind with ``create_graph``; else they are copied.
        reblur_weights: the same.
        critic: of reblurred images; None for the cycle loss alone.
        distance: of two images, a scalar.
        create_graph: keep the graph, for second derivatives.

    Source: Meta Transferring for Deblurring (Liu et al., BMVC 2022), equations 3 to 6.
    """

    def __init__(
        self,
        settings: InnerLoopSettings,
        *,
        restore: Callable[[ParameterSet, Tensor, Tensor], Sequence[Tensor]],
        reblur: Callable[[ParameterSet, Tensor], Tensor],
        restorer_weights: ParameterSet,
        reblur_weights: ParameterSet,
        critic: DiscriminatorTrainer | None = None,
        distance: Callable[[Tensor, Tensor], Tensor] = F.l1_loss,
        create_graph: bool = False,
    ) -> None:
        self.settings, self.restore, self.reblur, self.critic = settings, restore, reblur, critic
        self.distance, self.create_graph = distance, create_graph
        self.restorer_weights, self.reblur_weights = self._next(restorer_weights), self._next(reblur_weights)
        self.terms: dict[str, float] = {}
        """The parts of the latest loss, by name."""
        self.grad_norm: float | None = None
        self._step: InnerStep | None = None
        self._made: tuple[ParameterSet | None, dict[int, Tensor]] = (None, {})
        self._optimizers = {
            "restorer": _Optimizer(settings, settings.lr),
            "reblur": _Optimizer(settings, settings.reblur_lr),
        }

    def loss(self, step: InnerStep, item: InnerSample) -> Tensor:
        """Return the loss of a step; in the reblur stage the discriminator takes a step of its own."""
        self._step = step
        if self.create_graph:
            # The gradient of a step is the partial one: that earlier steps took the other network's weights from these
            # is no part of it, as without a graph.
            self.restorer_weights, self.reblur_weights = _aliases(self.restorer_weights), _aliases(self.reblur_weights)
        with torch.enable_grad(), self._twice_differentiable():
            if step.stage == "deblur":
                reblurred = self._reblurred_sample(step, item)
                loss = self._cycle(reblurred, item)
                self.terms = {"deblur_loss": loss.item()}
                return loss
            reblurred = self._noisy(self.reblur(self.reblur_weights, item.clip[None]), step)
            share = self.settings.adversarial_weight if self.critic is not None else 0.0
            self.terms, parts = {}, []
            if self.critic is not None and share > 0:
                real = item.blurred if step.real is None else item.clip[step.real]
                if real is None:
                    raise ValueError(
                        "InnerLoop: expected items with their most blurred crop for real_source='blurriest'"
                    )
                adversarial = self.critic.update(reblurred, real[None])
                self.terms["adversarial_loss"] = adversarial.item()
                parts.append(share * adversarial)
            if share < 1:
                cycle = self._cycle(reblurred, item)
                self.terms["cycle_loss"] = cycle.item()
                parts.append((1 - share) * cycle)
            return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def update(self, loss: Tensor) -> str | None:
        """InnerStep the weights that this loss is for; why not, or None."""
        step, variant = self._step, self.settings.variant
        if step is None:
            raise RuntimeError("InnerLoop.update: expected a loss of this loop first")
        sets = {"reblur": self.reblur_weights, "restorer": self.restorer_weights}
        trained = {"deblur": ["restorer"], "reblur": ["reblur"] + ["restorer"] * (variant == "official")}[step.stage]
        tensors = [tensor for name in trained for tensor in sets[name].values()]
        if not tensors:
            return None  # a reblurring network without weights
        with self._twice_differentiable():
            found = torch.autograd.grad(loss, tensors, create_graph=self.create_graph, allow_unused=True)
        reached = [gradient.detach() for gradient in found if gradient is not None]
        self.grad_norm = overall_norm(reached) if reached else 0.0
        if not reached or not torch.tensor(self.grad_norm).isfinite():
            return "gradient holds NaN or infinity" if reached else "the loss depends on none of the weights"
        gradients = iter(found)
        for name in trained:
            values: dict[str, Tensor | None] = {key: next(gradients) for key in sets[name]}
            sets[name] = self._stepped(name, sets[name], values)
        self.reblur_weights, self.restorer_weights = sets["reblur"], sets["restorer"]
        return None

    def run(self, items: Sequence[InnerSample], generator: torch.Generator) -> InnerLoop:
        """Run all steps over the samples and return this loop.

        Raises:
            RuntimeError: a gradient is not finite.
        """
        for step in self.settings.steps(len(items), len(items[0].clip) if items else 1, generator):
            problem = self.update(self.loss(step, items[step.sample]))
            if problem:
                raise RuntimeError(f"InnerLoop: {problem}, in the {step.stage} stage")
        return self

    def _reblurred_sample(self, step: InnerStep, item: InnerSample) -> Tensor:
        """Return the pseudo-blurred picture of a deblur step; further passes find it made, with noise of their own."""
        if self.create_graph:
            return self._noisy(self.reblur(self.reblur_weights, item.clip[None]), step)
        weights, made = self._made
        if weights is not self.reblur_weights:
            made = {}
            self._made = self.reblur_weights, made
        with torch.no_grad():
            if step.sample not in made:
                made[step.sample] = self.reblur(self.reblur_weights, item.clip[None])
            return self._noisy(made[step.sample], step)

    def _noisy(self, reblurred: Tensor, step: InnerStep) -> Tensor:
        if not self.settings.noise_std:
            return reblurred
        generator = torch.Generator("cpu").manual_seed(step.seed)
        grain = torch.randn(reblurred.shape, generator=generator, dtype=torch.float32, device="cpu")
        return reblurred + self.settings.noise_std * grain.to(reblurred)

    def _cycle(self, reblurred: Tensor, item: InnerSample) -> Tensor:
        weights, clip = self.restorer_weights, item.clip

        def distance(outputs: Any, target: Tensor) -> Tensor:
            return losses.multi_output_loss(outputs, target, distance=self.distance)

        def restore(picture: Tensor) -> Any:
            return self.restore(weights, picture, clip)

        return losses.cycle_loss(reblurred, item.sharp, restore=restore, distance=distance)

    def _stepped(self, name: str, tensors: ParameterSet, gradients: dict[str, Tensor | None]) -> ParameterSet:
        with contextlib.nullcontext() if self.create_graph else torch.no_grad():
            return self._next(self._optimizers[name](tensors, gradients, safe=self.create_graph))

    def _next(self, tensors: ParameterSet) -> ParameterSet:
        if self.create_graph:
            return dict(tensors)
        return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}

    def _twice_differentiable(self) -> contextlib.AbstractContextManager[Any]:
        # torch's fast attentions have no second derivative, and say so
        return sdpa_kernel(SDPBackend.MATH) if self.create_graph else contextlib.nullcontext()


def _aliases(tensors: ParameterSet) -> ParameterSet:
    """Return the same values, each a node of its own in the graph."""
    return {name: tensor.view_as(tensor) for name, tensor in tensors.items()}


class _Optimizer:
    """Adam or gradient descent as a function of the weights; Adam counts the steps of each tensor, as torch's does."""

    def __init__(self, settings: InnerLoopSettings, lr: float) -> None:
        self.plain, self.lr = settings.optimizer == "sgd", lr
        self.moments: dict[str, tuple[Tensor, Tensor, int]] = {}

    def __call__(self, tensors: ParameterSet, gradients: dict[str, Tensor | None], *, safe: bool) -> ParameterSet:
        found = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        if not found:
            return dict(tensors)
        directions = list(found.values()) if self.plain else self.directions(found, safe)
        own = [tensors[name] for name in found]
        stepped = torch._foreach_sub(own, torch._foreach_mul(directions, self.lr))
        return dict(tensors) | dict(zip(found, stepped, strict=True))

    def directions(self, gradients: ParameterSet, safe: bool) -> list[Tensor]:
        new, grads = {name: g for name, g in gradients.items() if name not in self.moments}, list(gradients.values())
        self.moments |= {name: (torch.zeros_like(g), torch.zeros_like(g), 0) for name, g in new.items()}
        firsts, seconds, counts = zip(*(self.moments[name] for name in gradients), strict=True)
        first = torch._foreach_lerp(list(firsts), grads, 0.1)
        squares = torch._foreach_mul(torch._foreach_mul(grads, grads), 0.001)
        second = torch._foreach_add(torch._foreach_mul(list(seconds), 0.999), squares)
        counts = [count + 1 for count in counts]
        self.moments |= dict(zip(gradients, zip(first, second, counts, strict=True), strict=True))
        if safe:  # a weight without gradient: the root has no derivative at zero
            roots = [torch.where(s > 0, s, 1).sqrt() * (s > 0) for s in second]
        else:
            roots = list(torch._foreach_sqrt(second))
        roots = torch._foreach_div(roots, [(1 - 0.999**count) ** 0.5 for count in counts])
        return list(
            torch._foreach_div(
                torch._foreach_div(first, [1 - 0.9**count for count in counts]), torch._foreach_add(roots, 1e-8)
            )
        )


class LoopOptimizer(torch.optim.Optimizer):
    """The inner loop's Adam or gradient descent, in place, with its moments in the optimizer's state."""

    def __init__(self, tensors: list[Tensor], *, lr: float, rule: Literal["adam", "sgd"]) -> None:
        super().__init__(tensors, {"lr": lr, "rule": rule})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Subtract the learning rate times the direction from each tensor with a gradient."""
        for group in self.param_groups:
            tensors = [tensor for tensor in group["params"] if tensor.grad is not None]
            if not tensors:
                continue
            found = {str(index): tensor.grad for index, tensor in enumerate(tensors)}
            directions = list(found.values())
            if group["rule"] == "adam":
                functional = _Optimizer(InnerLoopSettings(), group["lr"])
                kept = {str(index): self.state[tensor] for index, tensor in enumerate(tensors) if self.state[tensor]}
                functional.moments = {
                    key: (entry["first"], entry["second"], entry["count"]) for key, entry in kept.items()
                }
                directions = functional.directions(found, False)
                for index, tensor in enumerate(tensors):
                    first, second, count = functional.moments[str(index)]
                    self.state[tensor] = {"first": first, "second": second, "count": count}
            torch._foreach_sub_(tensors, torch._foreach_mul(directions, group["lr"]))
