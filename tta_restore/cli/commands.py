"""Table of commands: which function of `engine` runs, and what its arguments are called on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tta_restore.engine.run.names import CLIP_METHODS, METHODS, SHIPPED_MODELS

__all__ = ["COMMANDS", "HELP", "Command"]

#: Help of options that mean the same in every command.
HELP = {
    "method": f"{', '.join((*METHODS, *CLIP_METHODS))}, or your own as module.path:Class",
    "model": f"{', '.join(SHIPPED_MODELS)}; a checkpoint file; module.path:callable of yours; or, with --checkpoint, a "
    "registered model such as ifan",
    "checkpoint": "weights of a registered model, or of what module.path:callable returns",
    "device": "such as cpu or cuda (default: cuda where there is one)",
    "seed": "of everything random",
}


@dataclass(frozen=True)
class Command:
    """A command, or one kind of a command that has several (``train supervised``).

    Attributes:
        function: ``module:function`` that runs; its keywords are the options, its docstring is the help.
        summary: one line for the list of commands.
        examples: command lines, without the program's name.
        positional: parameters that are given without a flag; a sequence takes any number.
        flags: parameter -> its flags, where they are not ``--name-of-the-parameter``.
        hidden: parameters that are not options, such as callables.
        needs: positional or other parameters that must be given.
        config: parameter that takes the options of a configuration file as sections, see ``train``.
        folder: parameter that is the folder of results, which the configuration is written to.
        continues: whether a run that was interrupted continues when the command is given again.
    """

    function: str
    summary: str
    examples: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    config: str = ""
    folder: str = ""
    continues: bool = False


_RESTORE = Command(
    "tta_restore.engine.run.restore:restore_files",
    "restore your own images, folders and videos",
    examples=(
        "restore photos/ -o restored/",
        "restore - -o - < noisy.png > clean.png",
        "restore scan.tif -o clean.tif --model denoiser.pth --method siam-ctta --method.steps 2",
        "restore clip.mp4 -o clean.mp4 --method meta-transfer --model ifan --checkpoint IFAN.pytorch",
    ),
    positional=("inputs",),
    flags={"out": ("-o", "--out")},
    needs=("inputs", "out"),
    folder="out",
    continues=True,
)

_TRAIN = {
    "supervised": "on aligned pairs; IFAN as published",
    "misaligned": "on misaligned pairs, guided by reblurring (JDRL)",
    "reblur": "a reblurring network, on clips with sharp originals",
    "meta": "restorer and reblurring network on clips, for adaptation in a few steps (Meta Transferring)",
}

COMMANDS: Mapping[str, Command | Mapping[str, Command]] = {
    "info": Command(
        "tta_restore.engine.run.info:describe",
        "kernels of this machine, known models and methods; or a probe of one model",
        examples=("info", "info generalist", "info network:build --checkpoint weights.pth"),
        positional=("model",),
    ),
    "restore": _RESTORE,
    "calibrate": Command(
        "tta_restore.engine.run.calibrate:calibrate_model",
        "adapt a restorer once to your camera, and write an ordinary checkpoint",
        examples=(
            "calibrate photos/ --model net.pth -o net-my-camera.safetensors",
            "calibrate photos/ --model network:build --budget 60s -o mine.safetensors",
        ),
        positional=("inputs",),
        flags={"out": ("-o", "--out")},
        needs=("inputs", "out"),
        continues=True,
    ),
    "serve": Command(
        "tta_restore.engine.serve.command:serve",
        "restore photos on a page in the browser, on this computer",
        examples=("serve", "serve --open", "serve --model net.pth --budget 20s --port 8000"),
        flags={"open_browser": ("--open",)},
    ),
    "export": Command(
        "tta_restore.engine.run.export:export_model",
        "write a model, or the adapted model of a state, as an ordinary checkpoint or as ONNX",
        examples=(
            "export --state camera.safetensors --model net.pth -o adapted.safetensors",
            "export --model ifan --checkpoint IFAN.pytorch --onnx ifan.onnx",
        ),
        flags={"out": ("-o", "--out")},
    ),
    "evaluate": Command(
        "tta_restore.engine.evaluate.command:evaluate",
        "compare methods: on simulated lenses, on data sets, or on your own restorer",
        examples=(
            "evaluate --model network:build --degradations noise:30 jpeg:20 lens:ring",
            "evaluate --seeds 1 2 3 --frames 6",
            "evaluate --data DPDD=data/DPDD RealDOF=data/RealDOF --model ifan --checkpoint IFAN.pytorch",
            "evaluate --data DPDD=data/DPDD CUHK=data/CUHK --model network:build --methods all",
        ),
        folder="out",
    ),
    "evaluate-pairs": Command(
        "tta_restore.engine.evaluate.pairs:evaluate_pairs_dataset",
        "measure a restorer on a data set of pairs that may be misaligned",
        examples=("evaluate-pairs data/SDD --layout sdd --model restorer.safetensors --out sdd.csv",),
        positional=("root",),
        needs=("root", "layout", "model"),
    ),
    "evaluate-clips": Command(
        "tta_restore.engine.evaluate.clips:evaluate_clips_dataset",
        "measure a method on a data set of videos",
        examples=("evaluate-clips data/GoPro --layout gopro --model network:build --method meta-transfer",),
        positional=("root",),
        needs=("root", "layout", "model"),
    ),
    "reproduce": Command(
        "tta_restore.engine.evaluate.reproduce:reproduce",
        "measure a published table, beside the published values",
        examples=(
            "reproduce --list",
            "reproduce ifan-dpdd --data DPDD=data/DPDD --weights IFAN=IFAN.pytorch",
            "reproduce causiam-five --data DPDD=data/DPDD RTF=data/RTF --weights DPDNet-S=dpdnet.pth CLIP=openai",
        ),
        positional=("table",),
        flags={"list_tables": ("--list",)},
        folder="out",
        continues=True,
    ),
    "train": {
        kind: Command(
            f"tta_restore.engine.train.{module}:{function}",
            summary,
            examples=(f"train {kind} --config {kind}.toml", f"train {kind} --run.steps 100 --run.out runs/try"),
            config=schema,
            folder="run.out",
            continues=True,
        )
        for (kind, summary), (module, function, schema) in zip(
            _TRAIN.items(),
            (
                ("supervised", "train_supervised_from_config", "SupervisedConfig"),
                ("misaligned", "train_misaligned_from_config", "MisalignedConfig"),
                ("reblur", "pretrain_reblur_from_config", "ReblurConfig"),
                ("meta", "meta_train_from_config", "MetaConfig"),
            ),
            strict=True,
        )
    },
    "demo": Command(
        "tta_restore.engine.demo.demo:run_demo",
        "adapt a deblurrer, a denoiser and an upscaler, and write a report",
        examples=("demo", "demo --quick --out runs/quick"),
        folder="out",
    ),
    "train-demo": Command(
        "tta_restore.engine.demo.train:train_demo",
        "train the small models that the package ships",
        examples=("train-demo specialist --steps 100 --out runs/try",),
        positional=("models",),
        folder="out",
    ),
}
