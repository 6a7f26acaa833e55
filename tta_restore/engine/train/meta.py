"""Meta-learning of a restorer and a reblurrer that are about to adapt to a clip: inner loop, outer gradient.

Source: Meta Transferring for Deblurring (BMVC 2022), equations 3 to 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from tta_restore import losses
from tta_restore._core.processes import Processes
from tta_restore.adapters.methods.clip_model import restored_images
from tta_restore.adapters.methods.discriminator import DiscriminatorTrainer
from tta_restore.adapters.methods.inner_loop import InnerLoop, InnerLoopSettings
from tta_restore.adapters.state import ParameterSet
from tta_restore.data.datasets.clips import Clip
from tta_restore.engine.report.images import contact_sheet
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.build import (
    build_clip_networks,
    clips_from,
    configured,
    distance_of,
    tell_of_bundled_photos,
)
from tta_restore.engine.train.config import MetaConfig, MetaSettings, TrainingRun, section_of
from tta_restore.engine.train.loop import Objective, Optimizers, StepOutput, train
from tta_restore.engine.train.windows import (
    Distance,
    MetaTask,
    Outputs,
    TaskSource,
    restore_windows,
    window_loss,
)
from tta_restore.models import Restoration, Restorer, RestorerSpec, as_restorer
from tta_restore.models.restorer.second_order import examine_second_order, plain_layer_norms

__all__ = ["MetaObjective", "meta_train", "meta_train_from_config"]


class MetaObjective(Objective):
    """A restorer and a reblurrer, and how a batch of clips changes their initial weights.

    Args:
        restorer: any module for frames (B, 3, H, W), or, with a spec that says so, for clips (B, T, 3, H, W).
        reblur: from windows of T frames (B, T, 3, H, W) to the reblurred middle frame.
        discriminator: from patches to scores, higher for real ones; None for no adversarial loss. It starts
            every clip as it is given, and is not trained.
        settings: of both loops.
        distance: of two images, a scalar: the restorer's own loss.
        outputs: "main" for the restored image, "all" for all stages and scales that the restorer returns.
        example: windows (1, T, 3, H, W) on which second derivatives are examined; None for 5 small frames of noise.

    Raises:
        ValueError: second order was asked for, and the second derivative of a network is wrong.
    """

    def __init__(
        self,
        restorer: nn.Module,
        reblur: nn.Module,
        discriminator: nn.Module | None = None,
        *,
        settings: MetaSettings = MetaSettings(),
        distance: Distance = F.l1_loss,
        outputs: Outputs = "main",
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.restorer, self.reblur, self.discriminator = restorer, reblur, discriminator
        self.settings, self.distance, self.outputs = settings, distance, outputs
        self._run = as_restorer(restorer)
        if settings.second_order:
            if example is None:
                example = torch.rand(1, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
            self._expect_second_order(example.to(next(restorer.parameters()).device))

    def weights(self) -> dict[str, nn.Parameter]:
        """Return the meta-learned weights by name."""
        return {
            f"{part}.{name}": parameter
            for part, module in (("reblur", self.reblur), ("restorer", self.restorer))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def reblurred(self, values: ParameterSet, windows: Tensor) -> Tensor:
        """Middle frames of windows, reblurred with these weights. Shape: (B, T, 3, H, W) -> (B, 3, H, W)."""
        return functional_call(self.reblur, _part(values, "reblur"), (windows,))

    def restored(self, values: ParameterSet, windows: Tensor, middle: Tensor | None = None) -> list[Sequence[Tensor]]:
        """Pictures of middle frames of windows, made with these weights; see :func:`restore_windows`."""
        own = _part(values, "restorer")
        return restore_windows(self._run, lambda x: self._restore(own, x), windows, middle, outputs=self.outputs)

    def adapt(
        self, values: ParameterSet, task: MetaTask, generator: torch.Generator
    ) -> tuple[ParameterSet, dict[str, Tensor]]:
        """Return weights after the inner loop on a clip, and the means of the losses on the way.

        In second order the weights depend on ``values`` in the graph; the discriminator counts as given.

        Raises:
            RuntimeError: a gradient is not finite.
        """
        inner = self.settings.inner
        loop = InnerLoop(
            inner,
            restore=lambda weights, picture, clip: restored_images(
                self._run, lambda x: self._restore(weights, x), picture, clip, outputs=self.outputs
            ),
            reblur=lambda weights, windows: functional_call(self.reblur, weights, (windows,)),
            restorer_weights=_part(values, "restorer"),
            reblur_weights=_part(values, "reblur"),
            critic=self._trainer(),
            distance=self.distance,
            create_graph=self.settings.second_order,
        )
        terms: dict[str, list[float]] = {}
        items = inner.filter_samples(task.items, lambda windows: self.reblurred(values, windows))
        for step in inner.steps(len(items), task.num_frames, generator):
            problem = loop.update(loop.loss(step, items[step.sample]))
            if problem is not None:
                raise RuntimeError(f"meta-training: {problem}, in the {step.stage} stage on {task.name}")
            for name, value in loop.terms.items():
                terms.setdefault(f"inner_{name}", []).append(value)
        found = {f"restorer.{name}": value for name, value in loop.restorer_weights.items()}
        found |= {f"reblur.{name}": value for name, value in loop.reblur_weights.items()}
        return found, {name: torch.tensor(sum(all_) / len(all_)) for name, all_ in terms.items()}

    def query_loss(self, values: ParameterSet, blurry: Tensor, sharp: Tensor) -> dict[str, Tensor]:
        """Return the outer loss of true pairs, by parts. Shape: windows (B, T, 3, S, S) each."""
        weight, middle = self.settings.reblur_weight, blurry.shape[1] // 2
        reblurred = self.reblurred(values, sharp)
        restored = self.restored(values, blurry)
        return {
            "reblur": weight * losses.charbonnier_edge_loss(reblurred, blurry[:, middle]),
            "deblur": (1 - weight) * window_loss(restored, sharp[:, middle], self.distance),
        }

    def outer_gradients(
        self, task: MetaTask, adapted: Mapping[str, Tensor]
    ) -> Iterator[tuple[ParameterSet, dict[str, Tensor]]]:
        """Gradients at the adapted weights, or any, and the loss by parts, of one share of the frames after the other.

        Shares add up to the mean over all frames.
        """
        count = len(task.query_blurry)
        share = 1 if self.settings.outer_steps == "frame" else self.settings.query_batch_size
        for first in range(0, count, share):
            leaves = {name: value.detach().requires_grad_() for name, value in adapted.items()}
            blurry, sharp = task.query_blurry[first : first + share], task.query_sharp[first : first + share]
            parts = {n: part * (len(blurry) / count) for n, part in self.query_loss(leaves, blurry, sharp).items()}
            loss = torch.stack(list(parts.values())).sum()
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            gradients = {n: g for n, g in zip(leaves, found, strict=True) if g is not None}
            yield gradients, {name: part.detach() for name, part in parts.items()}

    def update(self, batch: list[MetaTask], step: int, optimizers: Optimizers, processes: Processes) -> StepOutput:
        """Learn from a batch of clips; the loss is that of the adapted weights, parts "_before" are of the initial."""
        settings, (optimizer,) = self.settings, optimizers.values()
        if settings.as_released and (len(batch) > 1 or processes.count > 1):
            raise UsageError("outer_steps='frame' and outer_start='adapted' go through one clip at a time, one process")
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ()).item()))
        weights = self.weights()
        sums: dict[str, Tensor] = {}
        values: ParameterSet = {}
        optimizer.zero_grad(set_to_none=True)
        with ExitStack() as stack:
            if settings.second_order:
                stack.enter_context(plain_layer_norms(self.restorer))
            for task in batch:
                adapted, terms = self.adapt(dict(weights), task, generator)
                if settings.outer_start == "adapted":
                    with torch.no_grad():
                        for name, value in adapted.items():
                            weights[name].copy_(value)
                _add(sums, terms, len(batch))
                total: ParameterSet = {}
                for gradients, parts in self.outer_gradients(task, adapted):
                    _add(sums, parts, len(batch))
                    if settings.outer_steps == "frame":
                        self._step(gradients, optimizer, processes)
                    else:
                        _add(total, gradients)
                if settings.second_order:
                    total = _pulled_back(adapted, weights, total)
                if settings.initial_loss_weight:
                    total = {name: (1 - settings.initial_loss_weight) * gradient for name, gradient in total.items()}
                    for gradients, parts in self.outer_gradients(task, weights):
                        _add(sums, {f"{name}_before": part for name, part in parts.items()}, len(batch))
                        _add(
                            total,
                            {name: settings.initial_loss_weight * gradient for name, gradient in gradients.items()},
                        )
                for name, gradient in total.items():
                    own = weights[name]
                    own.grad = gradient / len(batch) if own.grad is None else own.grad + gradient / len(batch)
                values = {name: value.detach() for name, value in adapted.items()}
        if settings.outer_steps == "clip":
            self._step(None, optimizer, processes)
        return StepOutput(sums["reblur"] + sums["deblur"], sums, self._drawn(batch[-1], values))

    def groups(self) -> list[dict[str, Any]]:
        """Outer learning rates."""
        rates = {"reblur": self.settings.reblur_lr, "restorer": self.settings.lr}
        weights = self.weights()
        return [
            {"params": [p for n, p in weights.items() if n.startswith(f"{part}.")], "lr": rate}
            for part, rate in rates.items()
        ]

    def identity(self) -> dict[str, Any]:
        """Return the settings of both loops, and how images are compared."""
        return asdict(self.settings) | {"distance": self.distance, "outputs": self.outputs}

    def exports(self) -> dict[str, nn.Module]:
        """Restorer and reblurrer."""
        return {"restorer": self.restorer, "reblur": self.reblur}

    def picture(self, found: StepOutput) -> Tensor:
        """A pseudo-sharp patch and its pseudo-blur; a blurred patch, restored by adapted weights, and its original."""
        return contact_sheet([picture[0] for picture in found.tensors.values()], columns=3)

    def _restore(self, weights: ParameterSet, x: Tensor) -> Restoration:
        return self._run.restore(x, call=lambda inputs: functional_call(self.restorer, weights, (inputs,)))

    def _trainer(self) -> DiscriminatorTrainer | None:
        """Return a copy of the discriminator for one clip."""
        if self.discriminator is None:
            return None
        settings = self.settings
        return DiscriminatorTrainer(
            self.discriminator,
            kind=settings.adversarial_kind,
            lr=settings.discriminator_lr,
            clip=settings.discriminator_clip,
            update_interval=settings.discriminator_interval,
        )

    def _step(self, gradients: ParameterSet | None, optimizer: torch.optim.Optimizer, processes: Processes) -> None:
        """Take one outer step with the given gradients, or with those of the weights."""
        if gradients is not None:
            optimizer.zero_grad(set_to_none=True)
            for name, weight in self.weights().items():
                weight.grad = gradients.get(name)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        processes.average([p.grad for p in parameters if p.grad is not None])
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip)
        optimizer.step()

    def _drawn(self, task: MetaTask, values: ParameterSet) -> dict[str, Tensor]:
        with torch.no_grad():
            item, blurry = task.items[0], task.query_blurry[:1]
            middle = blurry.shape[1] // 2
            seen = {
                "pseudo_sharp": item.sharp,
                "pseudo_blurred": self.reblurred(values, item.clip[None]),
                "neighbor": item.clip[None, middle - 1],
                "blurry": blurry[:, middle],
                "restored": self.restored(values, blurry)[0][0],
                "sharp": task.query_sharp[:1, middle],
            }
        return {name: picture.detach() for name, picture in seen.items()}

    def _expect_second_order(self, example: Tensor) -> None:
        with plain_layer_norms(self.restorer), sdpa_kernel(SDPBackend.MATH):  # as the inner loop runs them
            middle = example[:, example.shape[1] // 2]
            spec = self._run.spec or self._run.known_spec(middle)
            frames = middle if spec.frames == 1 else example[:, : spec.frames]
            of_clips = Restorer(self.reblur, RestorerSpec(frames=example.shape[1]))
            for name, module, inputs in (("restorer", self._run, frames), ("reblurrer", of_clips, example)):
                report = examine_second_order(module, inputs)
                if not report.right:
                    raise ValueError(f"MetaObjective: second_order is refused for the {name}: {report}")


def meta_train(
    restorer: nn.Module,
    reblur: nn.Module,
    clips: Sequence[Clip],
    run: TrainingRun,
    *,
    discriminator: nn.Module | None = None,
    settings: MetaSettings = MetaSettings(),
    num_patches: int = 20,
    patch_size: int = 256,
    query_frames: int | None = None,
    num_frames: int = 5,
    num_extra_times: int = 0,
    distance: Distance = F.l1_loss,
    outputs: Outputs = "main",
    built: dict[str, tuple[str, dict[str, Any]]] | None = None,
    on_step: Callable[[int, StepOutput], None] | None = None,
) -> MetaObjective:
    """Meta-train on clips with originals and return the objective that holds the networks, in eval mode.

    Runs as :func:`tta_restore.engine.train.loop.train` says: a step is ``run.batch_size`` clips per process, each
    adapted to on its own; gradients for the initial weights are averaged over all of them. Writes
    ``restorer.safetensors`` and ``reblur.safetensors``, which :class:`tta_restore.adapters.MetaTransfer` starts from.

    Args:
        restorer: any module for frames (B, 3, H, W) or, with a spec that says so, for clips.
        reblur: from windows (B, T, 3, H, W) to the reblurred center frame.
        clips: with originals.
        run: how long and where to.
        discriminator: from patches to scores, higher for real ones; None for no adversarial loss.
        settings: of the inner and the outer loop.
        num_patches: patches to adapt on per clip.
        patch_size: their side, and that of the pairs of the outer loop, in pixels.
        query_frames: pairs per clip in the outer loop; None for one of every frame.
        num_frames: T.
        num_extra_times: further time steps of each patch, as for :class:`tta_restore.adapters.MetaTransfer`.
        distance: of two images, a scalar: the restorer's own loss.
        outputs: "main" for the restored image, "all" for all stages and scales that the restorer returns.
        built: see :attr:`Objective.built`.
        on_step: called after every step.

    Raises:
        UsageError: ``run.out`` holds the state of a run with other settings.
        ValueError: there are no clips, they have no originals, or second order was asked for and the second derivative
            of a network is wrong.

    Source: Meta Transferring for Deblurring (BMVC 2022).
    """
    size: dict[str, Any] = {"num_patches": num_patches, "patch_size": patch_size, "query_frames": query_frames}
    size |= {"num_frames": num_frames, "num_extra_times": num_extra_times}
    objective = MetaObjective(restorer, reblur, discriminator, settings=settings, distance=distance, outputs=outputs)
    objective.built = built or {}
    return train(objective, TaskSource(clips, **size), run, on_step=on_step)


def meta_train_from_config(
    config: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    steps: int | None = None,
    device: str | None = None,
) -> MetaObjective:
    """Meta-train a restorer and a reblurring network, from a configuration.

    Args:
        config: TOML, YAML or JSON file, or sections by name; see :class:`tta_restore.engine.train.config.MetaConfig`.
        out: folder for results, overrides ``run.out``.
        steps: number of steps in total, overrides ``run.steps``.
        device: such as cpu or cuda (default: cuda where there is one)

    Raises:
        UsageError: the configuration, or the data it names, cannot be used.
    """
    with configured(config, MetaConfig, out=out, steps=steps, device=device) as chosen:
        if chosen.model is None:
            raise UsageError("meta-training needs a section [model], the restorer")
        windows = chosen.windows
        inner = section_of("inner", InnerLoopSettings, chosen.inner)
        settings = section_of("settings", MetaSettings, {**chosen.settings, "inner": inner})
        restorer, reblur, discriminator, built = build_clip_networks(chosen)
        built.pop("discriminator", None)  # it is not exported
        clips, distance = clips_from(chosen.data), distance_of(windows)
        tell_of_bundled_photos(chosen)
        return meta_train(
            restorer,  # type: ignore[bad-argument-type]
            reblur,
            clips,
            chosen.run,
            discriminator=discriminator,
            settings=settings,
            num_patches=windows.num_patches,
            patch_size=windows.patch_size,
            query_frames=windows.query_frames or None,
            num_extra_times=windows.num_extra_times,
            distance=distance,
            outputs=windows.outputs,
            built=built,
        )


def _part(values: ParameterSet, part: str) -> ParameterSet:
    return {name.split(".", 1)[1]: value for name, value in values.items() if name.startswith(f"{part}.")}


def _add(sums: ParameterSet, found: Mapping[str, Tensor], share: int = 1) -> None:
    for name, value in found.items():
        sums[name] = sums[name] + value / share if name in sums else value / share


def _pulled_back(adapted: ParameterSet, weights: Mapping[str, Tensor], gradients: ParameterSet) -> ParameterSet:
    """Return the gradients for the weights that adaptation started from, from those for the ones where it arrived."""
    names = [name for name in gradients if adapted[name].requires_grad]
    ends, given = [adapted[name] for name in names], [gradients[name] for name in names]
    found = torch.autograd.grad(ends, list(weights.values()), given, allow_unused=True)
    return {name: g for name, g in zip(weights, found, strict=True) if g is not None}
