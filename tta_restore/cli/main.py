"""`tta-restore`: parses arguments and calls `engine`; what a command does is decided there."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tta_restore
from tta_restore.engine.run.usage import UsageError

OK, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 all fine, 1 some inputs failed, 2 wrong usage, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except UsageError as error:
        print(f"tta-restore {options.command}: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print(f"tta-restore {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser with all its commands."""
    parser = argparse.ArgumentParser(prog="tta-restore", description="Test-time adaptation, any restorer.")
    parser.add_argument("--version", action="version", version=f"tta-restore {tta_restore.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="what runs where on this machine, and what is known of a model")
    info.add_argument("model", nargs="?", help="shipped weights, a checkpoint file, or module.path:callable")
    info.set_defaults(run=_info)

    demo = commands.add_parser("demo", help="adapt to lenses never seen, on photographs, and write a report")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: %(default)s)")
    demo.add_argument("--quick", action="store_true", help="a few frames only, to see that it runs")
    demo.add_argument(
        "--seed", type=_seed, default=0, help="of crops, depths, noise and adapters (default: %(default)s)"
    )
    demo.add_argument("--frames", type=_positive, help="frames per lens")
    demo.set_defaults(run=_demo)

    evaluate = commands.add_parser(
        "evaluate",
        help="methods side by side on simulated lenses; a restorer, or methods, on your data sets",
        description="On simulated lenses (the default); with --data on data sets: the restorer alone as published "
        "for defocus deblurring, or, with --methods, methods around it, nothing reset in between.",
    )
    evaluate.add_argument("--seeds", type=_seed, nargs="+", default=[1, 2, 3], help="one stream each (default: 1 2 3)")
    evaluate.add_argument("--frames", type=_positive, default=6, help="frames per lens (default: %(default)s)")
    evaluate.add_argument(
        "--split", choices=("test", "dev"), default="test", help="lenses and photographs (default: %(default)s)"
    )
    evaluate.add_argument(
        "--photos", type=Path, metavar="FOLDER",
        help="your own sharp photographs, seen through the lenses of the split: does it help on what you photograph?",
    )  # fmt: skip
    evaluate.add_argument("--methods", nargs="+", metavar="NAME", help="only these rows; with --data also: all")
    evaluate.add_argument("--out", type=Path, default=Path("runs/evaluate"), help="folder (default: %(default)s)")
    on_data = evaluate.add_argument_group("with --data")
    on_data.add_argument(
        "--data", nargs="+", type=_named_folder, metavar="NAME=FOLDER",
        help="data sets in order; DPDD, RealDOF, CUHK and PixelDP are looked for in their own layouts",
    )  # fmt: skip
    _add_model(on_data, default="generalist")
    on_data.add_argument("--limit", type=_positive, help="first pictures of each data set only")
    on_data.add_argument("--lpips-weights", type=Path, metavar="FILE", help="AlexNet's, as torchvision publishes them")
    on_data.add_argument("--device", default=None, help="such as cpu or cuda (default: cuda where there is one)")
    on_data.add_argument("--bits", type=int, choices=(8, 16), default=8, help="without --methods (default: 8)")
    on_data.add_argument("--save-pictures", action="store_true", help="without --methods: write all results")
    on_data.add_argument("--rounds", type=_positive, default=1, help="with --methods: passes (default: %(default)s)")
    evaluate.set_defaults(run=partial(_evaluate, evaluate))

    restore = commands.add_parser("restore", help="restore your own images, folders and videos")
    restore.add_argument("inputs", nargs="+", metavar="INPUT", help="image files, videos, or folders of them")
    restore.add_argument("-o", "--out", required=True, help="folder, or a file for a single input")
    restore.add_argument("--method", default="recommended", help="how to adapt (default: %(default)s)")
    _add_model(restore, default="generalist")
    restore.add_argument(
        "--clips", action="store_true", help="every folder of pictures is a clip, which a method starts afresh with"
    )
    _add_networks(restore)
    restore.add_argument("--state", type=Path, help="file that keeps what was learned; the run continues from it")
    restore.add_argument("--overwrite", action="store_true", help="restore again what is there already")
    restore.add_argument("--format", help="png, jpeg, tiff, webp, avif, jxl or exr (default: that of each input)")
    restore.add_argument("--quality", type=_positive, help="of lossy images, 1 to 100 (default: 95)")
    restore.add_argument("--bit-depth", type=_positive, help="bits per sample of the results (default: as the input)")
    restore.add_argument("--strip", action="store_true", help="leave out metadata")
    restore.add_argument("--codec", default="h264", help="of videos: h264, hevc, av1, vp9, ffv1 (default: %(default)s)")
    restore.add_argument("--crf", type=_seed, help="constant rate factor of videos, lower is better")
    restore.add_argument("--deinterlace", action="store_true", help="turn interlaced video into progressive frames")
    restore.add_argument("--keep-going", action="store_true", help="restore what can be read of damaged files")
    restore.add_argument("--max-pixels", type=_positive, help="largest number of pixels of an image or frame")
    restore.add_argument("--dry-run", action="store_true", help="print what would be done, and how long it takes")
    restore.add_argument("--device", default=None, help="such as cpu or cuda (default: cuda where there is one)")
    restore.add_argument("--seed", type=_seed, default=0, help="of the adapter (default: %(default)s)")
    restore.add_argument("--quiet", action="store_true", help="no progress bar, no summary; errors are still told")
    restore.set_defaults(run=_restore)

    train = commands.add_parser("train-demo", help="train the small models that the demo ships")
    train.add_argument("models", nargs="*", metavar="MODEL", help="which of them (default: all)")
    train.add_argument("--steps", type=_positive, help="fewer or more steps than the shipped weights had")
    train.add_argument("--seed", type=_seed, default=0, help="of weights, crops and lenses (default: %(default)s)")
    train.add_argument("--device", default="cpu", help="such as cpu or cuda (default: %(default)s)")
    train.add_argument("--out", type=Path, default=Path("runs/train-demo"), help="folder (default: %(default)s)")
    train.set_defaults(run=_train)

    pairs = commands.add_parser("evaluate-pairs", help="measure a restorer on a data set of pairs, aligned or not")
    pairs.add_argument("root", type=Path, help="folder of the data set")
    pairs.add_argument("--layout", required=True, help="sdd, dpdd, realdof, ded, or folders for blurry/ and sharp/")
    pairs.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    _add_model(pairs, required=True)
    pairs.add_argument("--flow", default="auto", help="raft, lucas_kanade or auto (default: %(default)s)")
    pairs.add_argument("--device", default="cpu", help="such as cpu or cuda (default: %(default)s)")
    pairs.add_argument("--out", type=Path, help="CSV file, a row per pair")
    pairs.set_defaults(run=_evaluate_pairs)

    clips = commands.add_parser("evaluate-clips", help="measure a method on a data set of videos")
    clips.add_argument("root", type=Path, help="folder of the data set")
    clips.add_argument("--layout", required=True, help="gopro, dvd, reds or realblur, each by its own protocol")
    clips.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    _add_model(clips, required=True)
    clips.add_argument("--method", default="source", help="how to adapt (default: %(default)s)")
    _add_networks(clips)
    clips.add_argument("--limit", type=_positive, help="frames of each video, from its beginning")
    clips.add_argument("--device", default="cpu", help="such as cpu or cuda (default: %(default)s)")
    clips.add_argument("--seed", type=_seed, default=0, help="of the method (default: %(default)s)")
    clips.add_argument("--out", type=Path, help="CSV file, a row per frame")
    clips.set_defaults(run=_evaluate_clips)

    learn = commands.add_parser("train", help="train your own restorer")
    kinds = learn.add_subparsers(help="what to learn from", dest="kind", required=True, metavar="KIND")
    for kind, text in (
        ("supervised", "on aligned pairs; IFAN as it was published"),
        ("misaligned", "on pairs that are not aligned, guided by reblurring"),
        ("reblur", "a reblurrer, on clips with sharp originals"),
        ("meta", "restorer and reblurrer on clips with originals, so that a few steps on a new clip help most"),
    ):
        training = kinds.add_parser(kind, help=text)
        training.add_argument("--config", type=Path, required=True, help="TOML or JSON file")
        training.add_argument("--out", type=Path, help="folder, instead of the file's; a run in it is continued")
        training.add_argument("--steps", type=_positive, help="in all, instead of the file's")
        training.add_argument("--device", help="such as cpu or cuda, instead of the file's")
        training.set_defaults(run=_train_from_config)
    return parser


def _info(options: argparse.Namespace) -> int:
    from tta_restore.engine.run.info import describe

    print(describe(options.model))
    return OK


def _demo(options: argparse.Namespace) -> int:
    from tta_restore.engine.demo.demo import run_demo

    run_demo(options.out, seed=options.seed, frames_per_lens=options.frames, quick=options.quick)
    return OK


def _evaluate(command: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    def only(condition: str, *names: str) -> None:
        for name in names:
            if getattr(options, name) != command.get_default(name):
                raise UsageError(f"--{name.replace('_', '-')} is for {condition}")

    shared = _named(options, "limit", "lpips_weights", "device")
    if not options.data:
        only("--data", "model", "checkpoint", "set", *shared, "bits", "save_pictures", "rounds")
        from tta_restore.engine.demo.demo import run_evaluation

        streams = {"frames_per_lens": options.frames, **_named(options, "seeds", "split", "methods")}
        run_evaluation(options.out, folder=options.photos, **streams)
        return OK
    only("simulated lenses, without --data", "seeds", "frames", "split", "photos")
    shared |= _model(options)
    if options.methods is None:
        only("--methods", "rounds")
        from tta_restore.engine.evaluate.dpdd import run_published

        run_published(dict(options.data), options.out, **_named(options, "bits", "save_pictures"), **shared)
        return OK
    only("the published protocol, without --methods", "bits", "save_pictures")
    from tta_restore.engine.evaluate.continual import run_continual

    methods = None if options.methods == ["all"] else options.methods
    run_continual(dict(options.data), options.out, methods=methods, rounds=options.rounds, **shared)
    return OK


def _restore(options: argparse.Namespace) -> int:
    from tta_restore.engine.run.restore import restore_files

    chosen = _named(
        options, "method", "clips", "reblur", "critic", "format", "quality", "bit_depth", "strip", "codec", "crf",
        "deinterlace", "keep_going", "state", "overwrite", "dry_run", "device", "seed",
    )  # fmt: skip
    if options.max_pixels is not None:
        chosen["max_pixels"] = options.max_pixels
    method_options = {k: v for k, v in _named(options, "num_patches", "patch_size").items() if v is not None}
    chosen |= {**_model(options), "method_options": method_options, "progress": not options.quiet}
    summary = restore_files(options.inputs, options.out, **chosen)
    if not options.quiet:
        print(f"{summary}; written to {options.out}", file=sys.stderr)
    return summary.exit_code


def _evaluate_clips(options: argparse.Namespace) -> int:
    from tta_restore.engine.evaluate import clips as engine

    chosen = _named(options, "method", "limit", "device", "seed", "out") | _model(options) | _networks(options)
    print(engine.run(options.root, options.layout, options.split, **chosen))
    return OK


def _train(options: argparse.Namespace) -> int:
    from tta_restore.engine.demo.train import STEPS, train

    if unknown := set(options.models) - set(STEPS):
        raise UsageError(f"no model {min(unknown)!r}; there are: {', '.join(STEPS)}")
    for name in options.models or STEPS:
        train(name, steps=options.steps, seed=options.seed, device=options.device, out=options.out)
    return OK


def _evaluate_pairs(options: argparse.Namespace) -> int:
    from tta_restore.engine.evaluate import pairs as engine

    chosen = _named(options, "flow", "device", "out") | _model(options)
    print(engine.run(options.root, options.layout, options.split, **chosen))
    return OK


def _train_from_config(options: argparse.Namespace) -> int:
    from tta_restore.engine.train import meta_config
    from tta_restore.engine.train import misaligned as misaligned_config
    from tta_restore.engine.train import supervised as supervised_config

    kinds = {
        "supervised": supervised_config.train_from_config,
        "misaligned": misaligned_config.train_from_config,
        "reblur": meta_config.pretrain_reblur_from_config,
        "meta": meta_config.meta_train_from_config,
    }
    kinds[options.kind](options.config, out=options.out, steps=options.steps, device=options.device)
    return OK


def _add_model(command: argparse._ActionsContainer, **model: Any) -> None:
    kinds = "shipped weights, a checkpoint file, module.path:callable, or a registered model such as ifan"
    command.add_argument("--model", help=kinds, **model)
    command.add_argument("--checkpoint", type=Path, help="weights of a registered model, official ones too")
    told = "a keyword of a registered model; once more for another"
    command.add_argument("--set", action="append", type=_setting, default=[], metavar="KEY=VALUE", help=told)


def _model(options: argparse.Namespace) -> dict[str, Any]:
    return {**_named(options, "model", "checkpoint"), "config": dict(options.set)}


def _add_networks(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--reblur", type=Path, help="for meta-transfer: file of the reblurrer (default: one that needs no training)"
    )
    command.add_argument("--critic", type=Path, help="for meta-transfer: file of the critic, if there is one")
    command.add_argument("--patches", type=_positive, dest="num_patches", help="for meta-transfer: patches to adapt on")
    command.add_argument("--patch-size", type=_positive, help="for meta-transfer: their side in pixels")


def _networks(options: argparse.Namespace) -> dict[str, Any]:
    chosen = _named(options, "reblur", "critic", "num_patches", "patch_size")
    return {name: value for name, value in chosen.items() if value is not None}


def _named(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _named_folder(text: str) -> tuple[str, Path]:
    name, found, folder = text.partition("=")
    if not (name and found and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {text}")
    return name, Path(folder)


def _setting(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not (name and found):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _number(text: str, minimum: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise argparse.ArgumentTypeError(f"expected a whole number >= {minimum}, got {text}")
    return value


_positive, _seed = partial(_number, minimum=1), partial(_number, minimum=0)
