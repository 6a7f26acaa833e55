"""Train any restorer on misaligned pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tta_restore.data.misaligned import MisalignedPair
from tta_restore.engine.misaligned import MisalignedObjective, MisalignedSettings
from tta_restore.engine.training import Step, TrainingRun, train
from tta_restore.models.jdrl import JdrlReblur
from tta_restore.models.optical_flow import LucasKanade

PairSource = Callable[[int, torch.Generator], MisalignedPair]


def train_misaligned(
    restorer: nn.Module,
    source: PairSource,
    run: TrainingRun,
    *,
    reblur: JdrlReblur | None = None,
    flow: Callable[[Tensor, Tensor], Tensor] | None = None,
    settings: MisalignedSettings = MisalignedSettings(),  # noqa: B008 (frozen)
    on_step: Callable[[int, Step], None] | None = None,
) -> MisalignedObjective:
    """Train a restorer on misaligned pairs and return the objective that holds it, in eval mode.

    Runs as :func:`tta_restore.engine.training.train` says, and writes ``restorer.safetensors`` and
    ``reblur.safetensors``.

    Raises:
        UsageError: ``run.out`` holds the state of a run with other settings.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        objective = MisalignedObjective(restorer, reblur, flow=flow or LucasKanade(), settings=settings)
    return train(objective, source, run, on_step=on_step)
