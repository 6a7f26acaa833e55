"""Meta-train a restorer and a reblurrer on clips, so that a few steps on a new clip are worth the most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import nn

from tta_restore.data.datasets.clips import Clip
from tta_restore.engine.train.loop import Step, TrainingRun, train
from tta_restore.engine.train.meta import MetaObjective
from tta_restore.engine.train.meta_settings import MetaSettings
from tta_restore.engine.train.meta_tasks import TaskSource
from tta_restore.engine.train.windows import Distance, Outputs


def meta_train(
    restorer: nn.Module,
    reblur: nn.Module,
    clips: Sequence[Clip],
    run: TrainingRun,
    *,
    critic: nn.Module | None = None,
    settings: MetaSettings = MetaSettings(),  # noqa: B008 (frozen)
    num_patches: int = 20,
    patch_size: int = 256,
    query_frames: int | None = None,
    num_frames: int = 5,
    other_moments: int = 0,
    distance: Distance = F.l1_loss,
    outputs: Outputs = "main",
    on_step: Callable[[int, Step], None] | None = None,
) -> MetaObjective:
    """Meta-train on clips with originals and return the objective that holds the networks, in eval mode.

    Runs as :func:`tta_restore.engine.train.loop.train` says: a step is ``run.batch`` clips per process, each adapted to
    on its own; gradients for the initial weights are averaged over all of them. Writes ``restorer.safetensors`` and
    ``reblur.safetensors``, which :class:`tta_restore.adapters.MetaTransfer` starts from.

    Args:
        restorer: any module for frames (B, 3, H, W) or, with a spec that says so, for clips.
        reblur: from windows (B, T, 3, H, W) to the reblurred center frame.
        clips: with originals.
        run: how long and where to.
        critic: from patches to scores, higher for real ones; None for no adversarial loss.
        settings: of the inner and the outer loop.
        num_patches: patches to adapt on per clip.
        patch_size: their side, and that of the pairs of the outer loop, in pixels.
        query_frames: pairs per clip in the outer loop; None for one of every frame.
        num_frames: T.
        other_moments: of each place, as for :class:`tta_restore.adapters.MetaTransfer`.
        distance: of two pictures, a scalar: the restorer's own loss.
        outputs: "main" for the restored image, "all" for all stages and scales that the restorer returns.
        on_step: called after every step.

    Raises:
        UsageError: ``run.out`` holds the state of a run with other settings.
        ValueError: there are no clips, they have no originals, or second order was asked for and the second derivative
            of a network is wrong.

    Source: Meta Transferring for Deblurring (BMVC 2022).
    """
    size: dict[str, Any] = {"num_patches": num_patches, "patch_size": patch_size, "query_frames": query_frames}
    size |= {"num_frames": num_frames, "other_moments": other_moments}
    objective = MetaObjective(restorer, reblur, critic, settings=settings, distance=distance, outputs=outputs)
    return train(objective, TaskSource(clips, **size), run, on_step=on_step)
