"""Train a reblurrer on clips whose sharp originals are known: sharp frames in, the blurred one in their middle out.

Source: Meta Transferring for Deblurring (BMVC 2022), its pre-training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore import losses
from tta_restore._core.processes import Processes
from tta_restore.data.datasets.clips import Clip
from tta_restore.engine.report.images import contact_sheet
from tta_restore.engine.train.build import (
    build_clip_networks,
    clips_from,
    configured,
    distance_of,
    tell_of_bundled_photos,
)
from tta_restore.engine.train.config import ReblurConfig, ReblurSettings, TrainingRun
from tta_restore.engine.train.loop import Objective, Optimizers, StepOutput, train
from tta_restore.engine.train.windows import (
    Distance,
    Outputs,
    draw_clips,
    query_windows,
    restore_windows,
    window_loss,
)
from tta_restore.models import as_restorer

__all__ = ["ReblurBatch", "ReblurObjective", "WindowSource", "pretrain_reblur", "pretrain_reblur_from_config"]


@dataclass(frozen=True)
class ReblurBatch:
    """Windows of true pairs. Shape: blurry, sharp (B, T, 3, S, S)."""

    blurry: Tensor
    sharp: Tensor


class WindowSource:
    """Batches of windows at random places of random clips, turned by quarter turns and flipped at random.

    Args:
        clips: with originals.
        size: side of the windows in pixels.
        num_frames: T.
    """

    def __init__(self, clips: Sequence[Clip], *, size: int = 256, num_frames: int = 5) -> None:
        if len(clips) == 0:
            raise ValueError("WindowSource: expected at least one clip")
        self.clips, self.size, self.num_frames = clips, size, num_frames

    def __call__(self, count: int, generator: torch.Generator) -> ReblurBatch:
        """Return the next batch."""
        pairs = []
        for clip in draw_clips(self.clips, count, generator):
            both = query_windows(clip, self.size, generator, count=1, num_frames=self.num_frames)
            turns, flip = (int(torch.randint(0, n, (), generator=generator)) for n in (4, 2))
            turned = [windows.rot90(turns, (-2, -1)) for windows in both]
            pairs.append([windows.flip(-1) for windows in turned] if flip else turned)
        return ReblurBatch(*(torch.cat(side) for side in zip(*pairs, strict=True)))


class ReblurObjective(Objective):
    """A reblurrer, what it reblurs compared with true blur, restored again, and judged by a discriminator.

    Args:
        reblur: from windows of sharp frames (B, T, 3, H, W) to the blurred center frame.
        restorer: any module for frames or clips; None for no cycle.
        discriminator: from patches to scores, higher for real blur; None for none.
        settings: weights and rates.
        steps: of the whole run, for the cosine.
        distance: of two images, a scalar: the restorer's own loss.
        outputs: "main" for the restored image, "all" for all stages and scales that the restorer returns.
    """

    def __init__(
        self,
        reblur: nn.Module,
        restorer: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        *,
        settings: ReblurSettings = ReblurSettings(),
        steps: int = 1,
        distance: Distance = F.l1_loss,
        outputs: Outputs = "main",
    ) -> None:
        super().__init__()
        self.reblur, self.restorer, self.discriminator = reblur, restorer, discriminator
        self.settings, self.steps, self.distance, self.outputs = settings, steps, distance, outputs
        self._run = None if restorer is None else as_restorer(restorer)

    def forward(self, batch: ReblurBatch, step: int) -> StepOutput:
        """Loss of a batch."""
        return self._losses(batch, self.reblur(batch.sharp))

    def update(self, batch: ReblurBatch, step: int, optimizers: Optimizers, processes: Processes) -> StepOutput:
        """Critic first, then the others, as released."""
        fake = self.reblur(batch.sharp)
        if self.discriminator is not None:
            self._update_discriminator(
                self.discriminator, fake.detach(), self._real(batch), optimizers["discriminator"], processes
            )
        found = self._losses(batch, fake)
        optimizer = optimizers["networks"]
        optimizer.zero_grad(set_to_none=True)
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        found.loss.backward(inputs=weights)
        processes.average([p.grad for p in weights if p.grad is not None])
        optimizer.step()
        return found

    def groups(self) -> list[dict[str, Any]]:
        """Return the reblurrer's and, where it learns, the restorer's weights."""
        trained = [self.reblur]
        if self.restorer is not None and self.settings.train_restorer:
            trained.append(self.restorer)
        return [{"params": [p for module in trained for p in module.parameters() if p.requires_grad]}]

    def optimizers(self) -> Optimizers:
        """Adam, and RMSprop for the discriminator."""
        found: Optimizers = {"networks": torch.optim.Adam(self.groups(), lr=self.settings.lr)}
        if self.discriminator is not None:
            found["discriminator"] = torch.optim.RMSprop(
                self.discriminator.parameters(), lr=self.settings.discriminator_lr
            )
        return found

    def rate(self, step: int) -> float:
        """From 1 to 1e-4, along a cosine."""
        if not self.settings.cosine:
            return 1.0
        return 1e-4 + (1 - 1e-4) * 0.5 * (1 + cos(pi * step / self.steps))

    def identity(self) -> dict[str, Any]:
        """Return the settings, how images are compared, and the length of the run where rates depend on it."""
        found = asdict(self.settings) | {"distance": self.distance, "outputs": self.outputs}
        return found | ({"steps": self.steps} if self.settings.cosine else {})

    def exports(self) -> dict[str, nn.Module]:
        """Return the networks."""
        found = {"reblur": self.reblur, "restorer": self.restorer, "discriminator": self.discriminator}
        return {name: module for name, module in found.items() if module is not None}

    def picture(self, found: StepOutput) -> Tensor:
        """Return a sharp frame, reblurred, the true blur, and what the restorer makes of both."""
        return contact_sheet([picture[0] for picture in found.tensors.values()], columns=len(found.tensors))

    def _losses(self, batch: ReblurBatch, fake: Tensor) -> StepOutput:
        settings, center = self.settings, batch.sharp.shape[1] // 2
        sharp, blurry = batch.sharp[:, center], batch.blurry[:, center]
        seen = {"sharp": sharp, "reblurred": fake, "blurry": blurry}
        parts = {"reblur": settings.reblur_weight * losses.charbonnier_edge_loss(fake, blurry)}
        if self._run is not None:
            restored = restore_windows(
                self._run, self._run.restore, batch.sharp, fake.clamp(0, 1), outputs=self.outputs
            )
            parts["cycle"] = settings.cycle_weight * window_loss(restored, sharp, self.distance)
            seen["restored"] = restored[0][0]
        if self.discriminator is not None:
            parts["adversarial"] = settings.adversarial_weight * losses.adversarial_loss(self.discriminator(fake))
        return StepOutput.sum_of(parts, seen)

    def _real(self, batch: ReblurBatch) -> Tensor:
        """Return a neighbor of the blurred center frame, drawn at random, as released: as blurred, and not the same."""
        others = [t for t in range(batch.blurry.shape[1]) if t != batch.blurry.shape[1] // 2]
        return batch.blurry[:, others[int(torch.randint(0, len(others), ()))]]

    def _update_discriminator(
        self,
        discriminator: nn.Module,
        fake: Tensor,
        real: Tensor,
        optimizer: torch.optim.Optimizer,
        processes: Processes,
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        losses.discriminator_loss(discriminator(fake), discriminator(real)).backward()
        processes.average([p.grad for p in discriminator.parameters() if p.grad is not None])
        optimizer.step()
        with torch.no_grad():
            for parameter in discriminator.parameters():
                parameter.clamp_(-self.settings.discriminator_clip, self.settings.discriminator_clip)


def pretrain_reblur(
    reblur: nn.Module,
    clips: Sequence[Clip],
    run: TrainingRun,
    *,
    restorer: nn.Module | None = None,
    discriminator: nn.Module | None = None,
    settings: ReblurSettings = ReblurSettings(),
    size: int = 256,
    num_frames: int = 5,
    distance: Distance = F.l1_loss,
    outputs: Outputs = "main",
    built: dict[str, tuple[str, dict[str, Any]]] | None = None,
    on_step: Callable[[int, StepOutput], None] | None = None,
) -> ReblurObjective:
    """Train a reblurrer on clips with originals and return the objective that holds it, in eval mode.

    Runs as :func:`tta_restore.engine.train.loop.train` says, and writes ``reblur.safetensors`` and, where they take
    part, ``restorer.safetensors`` and ``discriminator.safetensors``.

    Args:
        reblur: from windows (B, T, 3, H, W) to the blurred center frame.
        clips: with originals.
        run: how long and where to; a batch is that many windows.
        restorer: see :class:`ReblurObjective`.
        discriminator: see :class:`ReblurObjective`.
        settings: weights and rates.
        size: side of the windows in pixels.
        num_frames: T.
        distance: see :class:`ReblurObjective`.
        outputs: see :class:`ReblurObjective`.
        built: see :attr:`Objective.built`.
        on_step: called after every step.

    Raises:
        UsageError: ``run.out`` holds the state of a run with other settings.
        ValueError: there are no clips, or they have no originals.
    """
    options: dict[str, Any] = {"settings": settings, "distance": distance, "outputs": outputs}
    objective = ReblurObjective(reblur, restorer, discriminator, steps=run.steps, **options)
    objective.built = built or {}
    return train(objective, WindowSource(clips, size=size, num_frames=num_frames), run, on_step=on_step)


def pretrain_reblur_from_config(
    config: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    steps: int | None = None,
    device: str | None = None,
) -> ReblurObjective:
    """Train a reblurring network on clips, from a configuration.

    Args:
        config: TOML, YAML or JSON file, or sections by name; see
            :class:`tta_restore.engine.train.config.ReblurConfig`.
        out: folder for results, overrides ``run.out``.
        steps: number of steps in total, overrides ``run.steps``.
        device: such as cpu or cuda (default: cuda where there is one)

    Raises:
        UsageError: the configuration, or the data it names, cannot be used.
    """
    with configured(config, ReblurConfig, out=out, steps=steps, device=device) as chosen:
        restorer, reblur, discriminator, built = build_clip_networks(chosen)
        clips, distance = clips_from(chosen.data), distance_of(chosen.windows)
        tell_of_bundled_photos(chosen)
        return pretrain_reblur(
            reblur,
            clips,
            chosen.run,
            restorer=restorer,
            discriminator=discriminator,
            settings=chosen.settings,
            size=chosen.windows.patch_size,
            distance=distance,
            outputs=chosen.windows.outputs,
            built=built,
        )
