"""Restorers on photographs through lenses that they were not trained on, with and without adaptation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tta_restore import adapters
from tta_restore.data.io.files import images_below
from tta_restore.data.synthetic import defocus, photos
from tta_restore.engine.evaluate.lenses import Comparison, Contender, compare
from tta_restore.engine.evaluate.results import StreamResult
from tta_restore.engine.evaluate.stream import identity
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import Restorer, as_restorer, create_model

__all__ = [
    "BASELINE",
    "LIMITS",
    "SHOWN",
    "TITLE",
    "comparison",
    "estimate_kernels",
    "evaluate_unseen_lenses",
]

TITLE = "Adapting a restorer to lenses it never saw"
BASELINE = "specialist + ensemble"
SHOWN = "specialist + ReblurPairs"

LIMITS = (
    "Lenses are simulated: measured light through real glass would be the better test. The simulation is physical in "
    "what it covers (linear light, depth-dependent radius, sensor noise, 8 bits) and silent about the rest "
    "(aberrations across the frame, occlusion at depth edges, color).",
    "Self-ensemble is a row of its own, and the baseline: methods that learn from the agreement of views also give the "
    "mean of views, and that mean needs no adaptation.",
    "The lens estimator behind ReblurPairs and the conditioned restorer was trained on random lenses: it knows what "
    "the specialist does not, lenses in general. The generalist and the conditioned restorer were trained on random "
    "lenses, too, and are the fair rivals.",
    "No model was trained on the lenses or photographs of this page. Two rules of ReblurPairs, to start over when the "
    "size of the blur jumps and to trust the student by its lead over the source, were added after a look at results "
    "on these lenses, so they are not independent of them.",
)


def comparison() -> Comparison:
    """Return the rows, on the shipped weights.

    Raises:
        ValueError: weights are missing.
    """
    specialist = as_restorer(create_model("lens_unet", checkpoint="specialist").eval())
    generalist = as_restorer(create_model("lens_unet", checkpoint="generalist").eval())
    conditioned = as_restorer(create_model("conditioned_lens_unet", checkpoint="conditioned").eval())
    estimator = create_model("lens_estimator", checkpoint="lens_estimator").eval()

    def pairs(restorer: Restorer) -> Callable[[int], adapters.Adapter]:
        return lambda seed: adapters.ReblurPairs(restorer, estimator, seed=seed)

    def ensemble(name: str, restorer: Restorer) -> Contender:
        return Contender(
            f"{name} + ensemble",
            lambda seed: adapters.SelfEnsemble(restorer),
            "The mean over four quarter turns of the frame.",
            "#8a93a0",
        )

    consistency = Contender(
        "specialist + ReblurConsistency",
        lambda seed: adapters.ReblurConsistency(specialist, estimator, seed=seed),
        "Adapts until its restoration, blurred again with the estimated lens, meets the frame; held near the source.",
        "#B8A44C",
    )
    return Comparison(
        title=TITLE,
        contenders=[
            Contender("input", lambda seed: identity, "The blurred frame as it came.", "#8a93a0"),
            Contender(
                "specialist",
                lambda seed: _plain(specialist),
                "A small restorer trained on one lens, the ideal one. It meets lenses it has never seen.",
                "#56B4E9",
            ),
            Contender(
                BASELINE,
                lambda seed: adapters.SelfEnsemble(specialist),
                "The specialist's mean over four quarter turns of the frame. Nothing is learned.",
                "#1c2430",
            ),
            Contender(
                "specialist + SiamCTTA",
                lambda seed: adapters.SiamCTTA(specialist, select="all", seed=seed),
                "Siamese consistency with a moving-average teacher, settings as published, all weights free to move.",
                "#CC79A7",
            ),
            Contender(
                SHOWN,
                pairs(specialist),
                "Estimates the lens from the frame, blurs sharp material with it, and trains the restorer on those "
                "pairs; starts anew, or from what it learned for another lens, when the lens changes.",
                "#0072B2",
            ),
            consistency,
            Contender(
                "generalist",
                lambda seed: _plain(generalist),
                "The same network trained on random lenses: what one would do instead of adapting.",
                "#E69F00",
            ),
            Contender(
                "generalist + ReblurPairs",
                pairs(generalist),
                "The same adaptation, starting from the generalist.",
                "#D55E00",
            ),
            ensemble("generalist", generalist),
            Contender(
                "conditioned",
                lambda seed: _plain(conditioned),
                "A restorer trained to be told the estimated lens: the same knowledge without learning at test time, "
                "and the strongest rival.",
                "#009E73",
            ),
            ensemble("conditioned", conditioned),
        ],
        baseline=BASELINE,
        contrasts=[(SHOWN, BASELINE), ("generalist + ReblurPairs", "generalist"), ("conditioned", BASELINE)],
        curves=[BASELINE, SHOWN, "generalist", "generalist + ReblurPairs", "conditioned", "specialist + SiamCTTA"],
        shown=SHOWN,
        before="input",
        estimate=lambda blurry, true: estimate_kernels(estimator, blurry, true),
        limits=LIMITS,
    )


def evaluate_unseen_lenses(
    out: str | Path,
    *,
    seeds: Sequence[int] = (1, 2, 3),
    frames_per_lens: int = 6,
    split: str = "test",
    folder: str | Path | None = None,
    methods: Sequence[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> StreamResult:
    """Run the comparison on several streams and merge the results.

    Args:
        out: folder for report, CSV and JSON.
        seeds: one stream each; methods start anew with each.
        frames_per_lens: frames before the next lens takes over.
        split: `"test"` or `"dev"`, of lenses and of photographs.
        folder: custom sharp photos instead of those of the split, in an order drawn with each seed.
        methods: rows to run besides the baseline; `None` runs all.
        progress: show a bar on stderr where it is a terminal.
        say: takes the text for the user.

    Raises:
        UsageError: a row that does not exist, or a folder without photographs, or one that cannot be used.
    """
    used, shown = {"test": (defocus.TEST, photos.TEST), "dev": (defocus.DEV, photos.DEV)}[split]
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"there is no folder {folder}")
    own = images_below(Path(folder)) if folder is not None else None
    if own == []:
        raise UsageError(f"{folder}: no PNG, JPEG or TIFF file in this folder")
    rows = comparison() if methods is None else comparison().only(methods)
    streams = {}
    for seed in dict.fromkeys(seeds):
        pictures = shown if own is None else _shuffled(own, seed)
        try:
            streams[seed] = defocus.defocus_stream(used, pictures, frames_per_lens=frames_per_lens, seed=seed)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return compare(rows, streams, out, progress=progress, say=say)


def _shuffled(paths: Sequence[Path], seed: int) -> list[Path]:
    return [paths[i] for i in torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed)).tolist()]


@torch.no_grad()
def estimate_kernels(estimator: Any, blurry: Tensor, true: Tensor) -> Tensor:
    """Return the kernels that the estimator finds in a frame, at the points where the true kernels are known.

    Shape: blurry (1, 3, H, W), true (G, G, K, K) -> (G, G, K, K).
    """
    grid, size = true.shape[0], true.shape[-1]
    estimate = estimator(blurry)
    height, width = estimate.radius.shape[-2:]
    rows, columns = ((torch.arange(grid) * 2 + 1) * side // (2 * grid) for side in (height, width))
    radius = estimate.radius[0][rows][:, columns].flatten()
    return estimator.kernels(estimate.statistics[0], radius, size=size).view(grid, grid, size, size)


def _plain(restorer: Restorer) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def run(frame: Tensor) -> Tensor:
        return restorer(frame)

    return run
