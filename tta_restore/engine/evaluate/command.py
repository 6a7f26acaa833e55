"""`tta-restore evaluate`: choose the protocol by what was given, and refuse options that it would ignore."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tta_restore.engine.run.outputs import expect_folder, locks_output
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError

__all__ = ["evaluate", "named_folders", "named_values"]


@locks_output
def evaluate(
    *,
    data: Mapping[str, str | Path] | Sequence[str] | None = None,
    degradations: Sequence[str] | None = None,
    photos: str | Path | None = None,
    model: str | Named = "generalist",
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    frames: int = 6,
    split: Literal["test", "dev"] = "test",
    rounds: int = 1,
    limit: int | None = None,
    bits: Literal[8, 16] = 8,
    save_pictures: bool = False,
    lpips_weights: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    device: str | None = None,
    out: str | Path = "runs/evaluate",
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Compare methods side by side and write a report, tables, CSV and JSON.

    With --degradations, methods around your model on degraded photos: the model alone, its self-ensemble, and
    --methods (default: recommended). Without --data and --degradations, methods around the shipped models on simulated
    lenses. With --data, the restorer alone as published
    for defocus deblurring; with --data and --methods, methods around the restorer on data sets one after another,
    nothing reset in between. An interrupted run on data sets continues when it is started again with the same --out.

    Args:
        data: data sets in order; DPDD, RealDOF, CUHK and PixelDP are read in their own layouts.
        degradations: what degrades the photos, such as noise:30, jpeg:20, lens:ring, lens:disk,3, motion:9,
            noise:15+jpeg:40, or your own as module.path:Class.
        photos: folder of your own sharp photos, in place of the bundled ones.
        model: shipped weights, a checkpoint file, module.path:callable, or a registered model such as ifan.
        checkpoint: weights of a registered model, or of the module that module.path:callable returns.
        config: keywords of the model's builder.
        methods: rows to run, by name, module.path:Class, or NAME[KEY=VALUE,...]; with --data also "all".
        seeds: one simulated stream each.
        frames: frames per lens.
        split: lenses and photos of the simulated streams.
        rounds: passes over all data sets, with --methods.
        limit: first images of each data set only.
        bits: 8 drops the lower bits of 16-bit files, as in the published protocol; 16 keeps them.
        save_pictures: write all restored images, and what IFAN and JDRL estimate: disparity, filters, blur map.
        lpips_weights: file of AlexNet's weights as torchvision publishes them; without it LPIPS is left out.
        metrics: further metrics, by the name of a plug-in or by module.path:function of restored and sharp image.
        device: such as cpu or cuda (default: cuda where there is one)
        out: folder for report, tables and the state of the run.
        progress: show progress on stderr.
        say: receives the text for the user.

    Raises:
        UsageError: the command cannot be carried out as given; nothing was run.
    """
    given = {name: value for name, value in locals().items() if name not in ("progress", "say", "out")}
    expect_folder(out)
    common: dict[str, Any] = {"progress": progress, "say": say}
    if degradations:
        _only("--data", given, "limit", "lpips_weights", "bits", "save_pictures", "rounds", "data")
        from tta_restore.engine.evaluate.degradations import evaluate_degradations

        evaluate_degradations(
            out, degradations, model=model, checkpoint=checkpoint, config=config, methods=methods,
            photos_folder=photos, seeds=seeds, frames=frames, device=device, metrics=metrics, **common,
        )  # fmt: skip
        return
    if not data:
        _only("--data", given, "model", "checkpoint", "config", "limit", "lpips_weights", "metrics", "device", "bits",
              "save_pictures", "rounds")  # fmt: skip
        from tta_restore.engine.evaluate.unseen_lenses import evaluate_unseen_lenses

        streams: dict[str, Any] = {"seeds": seeds, "frames_per_lens": frames, "split": split, "methods": methods}
        evaluate_unseen_lenses(out, folder=photos, **streams, **common)
        return
    _only("simulated lenses, without --data", given, "seeds", "frames", "split", "photos")
    domains = named_folders(data)
    from tta_restore.engine.run.extensions import use_layout

    try:
        for name in domains:
            use_layout(name)
    except ValueError as error:
        raise UsageError(f"--data: {error}") from error
    common |= {"model": model, "checkpoint": checkpoint, "config": config}
    common |= {"limit": limit, "lpips_weights": lpips_weights, "device": device, "more_metrics": metrics}
    if methods is None:
        _only("--methods", given, "rounds")
        from tta_restore.engine.evaluate.dpdd import run_published

        run_published(domains, out, bits=bits, save_pictures=save_pictures, **common)
        return
    _only("the published protocol, without --methods", given, "bits", "save_pictures")
    from tta_restore.engine.evaluate.continual import run_continual

    rows = None if list(methods) == ["all"] else methods
    run_continual(domains, out, methods=rows, rounds=rounds, **common)


def named_folders(data: Mapping[str, str | Path] | Sequence[str]) -> dict[str, Path]:
    """Return folders by name, from a mapping or from ``NAME=FOLDER`` texts.

    Raises:
        UsageError: a text has another form, or a name occurs twice.
    """
    return {name: Path(folder) for name, folder in named_values(data, "--data", "FOLDER").items()}


def named_values(given: Mapping[str, str | Path] | Sequence[str], flag: str, what: str) -> dict[str, str]:
    """Return values by name, from a mapping or from ``NAME=VALUE`` texts.

    Args:
        given: mapping or texts.
        flag: for messages.
        what: what the value is, for messages.

    Raises:
        UsageError: a text has another form, or a name occurs twice.
    """
    pairs = list(given.items()) if isinstance(given, Mapping) else [tuple(text.partition("=")[::2]) for text in given]
    found: dict[str, str] = {}
    for name, value in pairs:
        if not (name and str(value)):
            raise UsageError(f"{flag}: expected NAME={what}, got {name if not str(value) else f'={value}'!r}")
        if name in found:
            raise UsageError(f"{flag}: the name {name!r} is given twice")
        found[str(name)] = str(value)
    return found


def _only(condition: str, given: Mapping[str, Any], *names: str) -> None:
    """Refuse options that differ from their defaults where they have no effect."""
    parameters = inspect.signature(evaluate).parameters
    for name in names:
        value, default = given[name], parameters[name].default
        if isinstance(value, (list, tuple)):
            value, default = tuple(value), tuple(default or ())
        if value != default:
            flag = {"config": "set"}.get(name, name).replace("_", "-")
            raise UsageError(f"--{flag} is for {condition}")
