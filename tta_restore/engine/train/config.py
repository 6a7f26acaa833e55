"""Configuration of every training recipe: typed sections, read from TOML, YAML or JSON.

Importing this module does not import torch, so that ``tta-restore train KIND --help`` is quick.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from tta_restore.engine.run.outputs import expect_folder
from tta_restore.engine.run.settings import merge, nested, read_settings, typed_value
from tta_restore.engine.run.usage import UsageError

__all__ = [
    "MetaConfig",
    "MetaSettings",
    "MisalignedConfig",
    "MisalignedSettings",
    "ReblurConfig",
    "ReblurSettings",
    "SupervisedConfig",
    "SupervisedSettings",
    "TrainingRun",
    "WindowSettings",
    "read_config",
    "section_of",
]

T = TypeVar("T")


def _inner_loop_settings() -> Any:
    """Return the default inner loop; its module needs torch."""
    from tta_restore.adapters.methods.inner_loop import InnerLoopSettings

    return InnerLoopSettings()


def _checks() -> Any:
    """Return the argument checks, which need torch: imported when the first configuration is made."""
    from tta_restore._core import checks

    return checks


_MOST_WORKERS = 1000


@dataclass(frozen=True)
class TrainingRun:
    """Length of a training, intervals, and the folder for its results.

    Attributes:
        out: folder for results; a run whose ``state.pt`` is in it is continued.
        steps: number of steps in total.
        batch_size: samples per step and process.
        save_every: steps between states.
        log_every: steps between lines of the log.
        draw_every: steps between sample images; 0 for none.
        validate_every: steps between validations, if there is validation data; 0 for none.
        num_workers: threads that prepare batches ahead, at most 1000; results do not depend on them.
        seed: of samples, dropout and, from a configuration, initial weights.
        device: of the networks, such as "cpu" or "cuda:0".
        progress: show progress on stderr.
        logger: besides ``log.jsonl``: ``"tensorboard"``, ``"wandb"`` (Weights & Biases), ``"none"``, or ``"auto"`` for
            TensorBoard where it is installed.
        accumulate: batches per step and process, whose gradients are averaged.
        engine: ``"own"``, the loop of this package, which resumes bit for bit; ``"fabric"``, Lightning Fabric.
        fabric: for that engine: ``strategy`` ("ddp", "fsdp", "fsdp2"), ``devices``, ``num_nodes``, ``precision``,
            ``accelerator``.
    """

    out: Path = Path("runs/train")
    steps: int = 2000
    batch_size: int = 4
    save_every: int = 200
    log_every: int = 50
    draw_every: int = 500
    validate_every: int = 500
    num_workers: int = 0
    seed: int = 0
    device: str = "cpu"
    progress: bool = True
    logger: Literal["auto", "none", "tensorboard", "wandb"] = "auto"
    accumulate: int = 1
    engine: Literal["own", "fabric"] = "own"
    fabric: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checks().expect_choice("TrainingRun", "logger", self.logger, ("auto", "none", "tensorboard", "wandb"))
        _checks().expect_choice("TrainingRun", "engine", self.engine, ("own", "fabric"))
        if self.fabric and self.engine != "fabric":
            raise ValueError("TrainingRun: fabric is for engine 'fabric'")
        if self.accumulate != 1 and self.engine != "fabric":
            raise ValueError("TrainingRun: accumulate is for engine 'fabric'; a larger batch_size does the same")
        for name in ("steps", "batch_size", "save_every", "log_every", "accumulate"):
            _checks().expect_int("TrainingRun", name, getattr(self, name), minimum=1)
        for name in ("draw_every", "validate_every", "num_workers", "seed"):
            _checks().expect_int("TrainingRun", name, getattr(self, name), minimum=0)
        if self.num_workers > _MOST_WORKERS:
            raise ValueError(f"TrainingRun: expected num_workers <= {_MOST_WORKERS}, got {self.num_workers}")


@dataclass(frozen=True)
class SupervisedSettings:
    """Losses, optimizer and schedule. The defaults are those IFAN was published with, for 600 000 steps of batch 8.

    Attributes:
        loss: between the restored image and the sharp one: ``"mse"``, ``"mae"`` or ``"charbonnier"``.
        disparity_weight: of the right view, moved by the disparity map, against the left one, at an eighth of the size.
        reblur_weight: of the sharp image, blurred again by filters made of the deblurring ones, against the blurry one,
            at an eighth of the size; 0 trains without a reblurring network.
        lpips_weight: weight of the mean squared LPIPS of the restored image, 0.1 in IFAN's LPIPS configuration; 0
            leaves it out.
        lpips_weights: file with AlexNet's weights, see :class:`tta_restore.metrics.Lpips`.
        optimizer: ``"radam"`` with decoupled weight decay, ``"adamw"``, or ``"adam"``, whose decay is not decoupled.
        lr: learning rate.
        weight_decay: of the optimizer.
        decay_after: steps after which the learning rate is multiplied by ``decay``.
        decay: factor.
        cosine_steps: instead, steps in which the rate falls to 0 along a cosine; 0 for none.
        warm_up: steps in which the rate rises to its start.
        clip: largest L2 norm of the gradient over all networks together; 0 for any.
        precision: ``"bf16"`` runs the networks in bfloat16 autocast, which is slower on CPUs without AMX; losses are in
            float32.
    """

    loss: Literal["mse", "mae", "charbonnier"] = "mse"
    disparity_weight: float = 1.0
    reblur_weight: float = 1.0
    lpips_weight: float = 0.0
    lpips_weights: str | None = None
    optimizer: Literal["radam", "adamw", "adam"] = "radam"
    lr: float = 1e-4
    weight_decay: float = 0.01
    decay_after: tuple[int, ...] = (500_000, 550_000)
    decay: float = 0.5
    cosine_steps: int = 0
    warm_up: int = 0
    clip: float = 0.5
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "decay_after", tuple(self.decay_after))
        choices = {
            "loss": ("mse", "mae", "charbonnier"),
            "optimizer": ("radam", "adamw", "adam"),
            "precision": ("fp32", "bf16"),
        }
        for name, allowed in choices.items():
            _checks().expect_choice("SupervisedSettings", name, getattr(self, name), allowed)
        for name in (
            "disparity_weight",
            "reblur_weight",
            "lpips_weight",
            "weight_decay",
            "cosine_steps",
            "warm_up",
            "clip",
        ):
            _checks().expect_number("SupervisedSettings", name, getattr(self, name), minimum=0)
        for name in ("lr", "decay"):
            _checks().expect_number("SupervisedSettings", name, getattr(self, name), above=0)

    def rate(self, step: int) -> float:
        """Factor on the learning rate at a step, from 0; a decay after n steps is first felt at step n + 1."""
        factor = min(1.0, (step + 1) / (self.warm_up + 1))
        if self.cosine_steps:
            return factor * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.cosine_steps)))
        return factor * self.decay ** sum(step > after for after in self.decay_after)


@dataclass(frozen=True)
class MisalignedSettings:
    """Stages, weights and schedules. The defaults are ours where the comment says so; :meth:`released` has theirs.

    Attributes:
        reblur_first: steps in which the reblurring module alone learns, for a restorer that is trained already.
        warm_up: steps whose target is the sharp image, warped by the flow from the blurry one, without a mask.
        reblur_weight: of the reblurring loss.
        map_weight: of the blur map's loss, for a :class:`BlurConditioned` restorer.
        edge_weight: of the edge loss against the warped sharp image, see :func:`tta_restore.losses.edge_loss`.
        outputs: ``"main"``, the restored image; ``"all"`` compares every image that a restorer of several stages
            returns, and reblurs each. Flow is that of the restored image, which alone is warped.
        mask_tolerance: of the calibration masks, in pixels; None (in TOML: false) for no masks.
        align_corners: warp exactly; the released code is half a pixel off at the borders.
        border: pixels that the reblurring loss leaves out at each side; the release leaves out none.
        map_compare: how maps are compared, see :func:`tta_restore.losses.blur_map_loss`.
        map_detach: whether the reblurring module is kept from moving towards the map.
        flow: where flow comes from: ``"estimate"``; ``"given"``, that of the pair, in all stages; or ``"pixel"``: no
            flow, no mask, no reblurring, the plain loss that this is to be compared with.
        lr: Adam's learning rate of the restorer.
        reblur_lr: of the reblurring module; None for the same.
        halve_every: steps after which the learning rates halve; 0 for never.
        precision: ``"bf16"`` runs the networks in bfloat16 autocast.
        preset: in a configuration, values of entries that are not given: ``"ours"``; ``"conference"`` or ``"journal"``,
            those of the released trainers; ``"released"``, of the one that the model belongs to; ``"multi_stage"``, of
            the recipe for MPRNet.
        steps_per_epoch: steps that the epochs of a preset have; 0 for one pass over the pairs of the data set.
    """

    reblur_first: int = 0
    warm_up: int = 300
    reblur_weight: float = 0.5
    map_weight: float = 0.5
    edge_weight: float = 0.0
    outputs: Literal["main", "all"] = "main"
    mask_tolerance: float | None = 0.35
    align_corners: bool = True
    border: int = 7
    map_compare: Literal["signed", "absolute"] = "absolute"
    map_detach: bool = True
    flow: Literal["estimate", "given", "pixel"] = "estimate"
    lr: float = 5e-4
    reblur_lr: float | None = None
    halve_every: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    preset: Literal["ours", "conference", "journal", "released", "multi_stage"] = "ours"
    steps_per_epoch: int = 0

    def __post_init__(self) -> None:
        for name in ("reblur_first", "warm_up", "reblur_weight", "map_weight", "edge_weight", "border", "halve_every"):
            _checks().expect_number("MisalignedSettings", name, getattr(self, name), minimum=0)
        choices_of = {"flow": ("estimate", "given", "pixel"), "precision": ("fp32", "bf16"), "outputs": ("main", "all")}
        for name, choices in choices_of.items():
            _checks().expect_choice("MisalignedSettings", name, getattr(self, name), choices)
        _checks().expect_number("MisalignedSettings", "lr", self.lr, above=0)

    @staticmethod
    def released(*, steps_per_epoch: int, journal: bool = False) -> MisalignedSettings:
        """Stages, weights and schedules of the released trainers, with their warp and without our corrections."""
        own: dict[str, Any] = {"lr": 1e-5, "halve_every": 70} if journal else {"lr": 2e-5, "halve_every": 60}
        own["halve_every"] *= steps_per_epoch
        kept: dict[str, Any] = {"align_corners": False, "border": 0, "map_compare": "signed", "map_detach": False}
        return MisalignedSettings(warm_up=15 * steps_per_epoch, **own, **kept)

    @staticmethod
    def of_preset(name: str, *, steps_per_epoch: int, journal: bool = False) -> MisalignedSettings:
        """Return the settings of a preset; ``journal`` decides what "released" is.

        Raises:
            ValueError: the preset counts epochs, and ``steps_per_epoch`` is not positive.
        """
        if name in ("conference", "journal", "released"):
            if steps_per_epoch < 1:
                raise ValueError(f"[settings] preset {name!r} counts epochs: give steps_per_epoch")
            journal = name == "journal" or (name == "released" and journal)
            return MisalignedSettings.released(steps_per_epoch=steps_per_epoch, journal=journal)
        return MisalignedSettings.multi_stage() if name == "multi_stage" else MisalignedSettings()

    @staticmethod
    def multi_stage(**changes: Any) -> MisalignedSettings:
        """Terms of the recipe for MPRNet, a restorer of several stages, as ported; learning rates are not among them.

        Source: the MindSpore port of JDRL's MPRNet recipe; the release holds no training code for it.
        """
        ported: dict[str, Any] = {
            "outputs": "all",
            "edge_weight": 0.05,
            "mask_tolerance": 0.4,
            "align_corners": False,
            "border": 0,
        }
        return MisalignedSettings(**ported | changes)

    def stage(self, step: int) -> Literal["reblur", "warm_up", "joint"]:
        """Return the stage of training at a step."""
        if step < self.reblur_first:
            return "reblur"
        return "warm_up" if step < self.reblur_first + self.warm_up else "joint"

    def ramp(self, step: int) -> float:
        """Strength of the blur map: from almost none to all of it during the warm-up, in 15 stages as published."""
        done = step - self.reblur_first
        if not 0 <= done < self.warm_up:
            return 1.0
        return 0.001 + 0.999 * (done * 15 // self.warm_up + 1) / 15

    def rate(self, step: int) -> float:
        """Return the factor on the learning rates."""
        return 0.5 ** (step // self.halve_every) if self.halve_every else 1.0


@dataclass(frozen=True)
class ReblurSettings:
    """Weights of the losses, and rates. The defaults are those of the release, but for the constant rate.

    Attributes:
        reblur_weight: of the distance of the reblurred frame from the blurred one.
        cycle_weight: of the restoration of the reblurred frame, where there is a restorer.
        adversarial_weight: of the critic's opinion, where there is a critic.
        lr: Adam's.
        discriminator_lr: of the critic, by RMSprop.
        discriminator_clip: largest absolute value of the critic's weights.
        train_restorer: whether the restorer learns, too, as released; else it only judges.
        cosine: whether rates fall to almost nothing, along a cosine, until the last step.
    """

    reblur_weight: float = 0.5
    cycle_weight: float = 0.5
    adversarial_weight: float = 0.5
    lr: float = 1e-4
    discriminator_lr: float = 2e-6
    discriminator_clip: float = 0.01
    train_restorer: bool = True
    cosine: bool = True

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, bool):
                _checks().expect_number("ReblurSettings", name, value, minimum=0)


@dataclass(frozen=True)
class MetaSettings:
    """The inner loop, which is what runs on a new clip, and the outer loop, which is run in training alone.

    Attributes:
        inner: the inner loop, as for :class:`tta_restore.adapters.MetaTransfer`.
        discriminator_lr: of the critic in the inner loop, by RMSprop.
        adversarial_kind: loss of the discriminator, as for MetaTransfer.
        discriminator_clip: bound of the weights of a Wasserstein critic; None (in TOML: false) for none.
        discriminator_interval: inner steps between two updates of the discriminator.
        second_order: False takes the gradient at the adapted weights for that of the initial ones, as published; True
            follows it back through every inner step.
        reblur_lr: of the reblurrer in the outer loop, by Adam.
        lr: likewise, of the restorer.
        outer_steps: ``"clip"``: one step with the gradient of all frames, as in the paper; ``"frame"``: one for every
            frame, all gradients from the same adapted weights, as released.
        outer_start: ``"initial"``: outer steps go from the weights that adaptation started from; ``"adapted"``: from
            where it arrived, which is what the release does from its second clip on. That is no meta-learning any
            more, and is here to be compared with.
        reblur_weight: of the reblurrer's part in the outer loss; the restorer has the rest.
        query_batch_size: frames whose outer gradient is computed at once.
        initial_loss_weight: weight of the outer loss at the initial weights; the loss at the adapted weights has the
            rest. 0 as published. A first-order gradient at the end of many or large inner steps is independent of the
            initial weights and can let them drift until they restore nothing.
    """

    inner: Any = field(default_factory=_inner_loop_settings)
    discriminator_lr: float = 1e-6
    adversarial_kind: Literal["wasserstein", "least_squares"] = "wasserstein"
    discriminator_clip: float | None = 0.01
    discriminator_interval: int = 1
    second_order: bool = False
    reblur_lr: float = 2.5e-6
    lr: float = 2.5e-6
    outer_steps: Literal["clip", "frame"] = "clip"
    outer_start: Literal["initial", "adapted"] = "initial"
    reblur_weight: float = 0.5
    query_batch_size: int = 4
    initial_loss_weight: float = 0.0

    def __post_init__(self) -> None:
        _checks().expect_choice("MetaSettings", "outer_steps", self.outer_steps, ("clip", "frame"))
        _checks().expect_choice("MetaSettings", "outer_start", self.outer_start, ("initial", "adapted"))
        for name in ("query_batch_size", "discriminator_interval"):
            _checks().expect_int("MetaSettings", name, getattr(self, name), minimum=1)
        kinds = ("wasserstein", "least_squares")
        _checks().expect_choice("MetaSettings", "adversarial_kind", self.adversarial_kind, kinds)
        _checks().expect_number("MetaSettings", "discriminator_clip", self.discriminator_clip, above=0, optional=True)
        for name in ("discriminator_lr", "reblur_lr", "lr"):
            _checks().expect_number("MetaSettings", name, getattr(self, name), minimum=0)
        for name in ("reblur_weight", "initial_loss_weight"):
            _checks().expect_number("MetaSettings", name, getattr(self, name), minimum=0, maximum=1)
        if self.initial_loss_weight and self.as_released:
            raise ValueError("MetaSettings: initial_loss_weight is for outer_steps 'clip' and outer_start 'initial'")
        if self.second_order and self.outer_start == "adapted":
            raise ValueError("MetaSettings: outer steps from the adapted weights have no second order")

    @property
    def as_released(self) -> bool:
        """Return whether the outer loop is that of the release, which takes one clip at a time."""
        return self.outer_steps == "frame" or self.outer_start == "adapted"


@dataclass(frozen=True)
class WindowSettings:
    """Windows that are cut out of clips.

    Attributes:
        patch_size: side of patches, in pixels.
        num_patches: patches to adapt on per clip.
        query_frames: pairs per clip in the outer loop; 0 for one of every frame.
        num_extra_times: further time steps of each patch, whose blur is a target, too.
        outputs: "main", or "all" for a restorer that is trained on all stages or scales that it returns.
        distance: the restorer's own loss of two images: module.path:function, or a table of its ``name`` and keywords,
            such as tta_restore.losses:charbonnier_edge_loss for MPRNet; None for the mean absolute difference.
    """

    patch_size: int = 256
    num_patches: int = 20
    query_frames: int = 0
    num_extra_times: int = 0
    outputs: Literal["main", "all"] = "main"
    distance: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("patch_size", "num_patches"):
            _checks().expect_int("WindowSettings", name, getattr(self, name), minimum=1)
        for name in ("query_frames", "num_extra_times"):
            _checks().expect_int("WindowSettings", name, getattr(self, name), minimum=0)


@dataclass(frozen=True)
class SupervisedConfig:
    """Training on aligned pairs.

    Attributes:
        model: restorer: name (default: ifan), checkpoint, and keywords of its builder.
        reblur: checkpoint of IFAN's reblurring network.
        data: layout, root and split of a data set, or pictures: a folder or "bundled", and degradations that pairs are
            made by (default: lenses); size of crops in pixels.
        augmentation: see tta_restore.data.datasets.Augmentation.
        validation: layout and root, or pictures = "bundled"; further metrics by name; none for no validation.
        settings: losses, optimizer and schedule.
        run: length and folder.
    """

    model: dict[str, Any] = field(default_factory=dict)
    reblur: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    settings: SupervisedSettings = field(default_factory=SupervisedSettings)
    run: TrainingRun = field(default_factory=TrainingRun)

    DEFAULT_OUT: ClassVar[str] = "runs/supervised"


@dataclass(frozen=True)
class MisalignedConfig:
    """Training on misaligned pairs.

    Attributes:
        model: restorer: name (default: jdrl_unet), checkpoint, blur_map = true for the journal version, and keywords.
        data: layout, root and split of a data set, or pictures: a folder or "bundled", and degradations that pairs are
            made by (default: lenses); size of crops in pixels.
        flow: optical flow estimator: name (raft, lucas_kanade, pwc, auto) and checkpoint.
        reblur: keywords of the reblurring network.
        validation: layout and root of a data set, split and limit, or pictures = "bundled"; metrics by name, measured,
            too; none for no validation. The weights with the highest PSNR, against the aligned sharp image, are kept in
            best/.
        settings: stages, loss weights and schedule.
        run: length and folder.
    """

    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    flow: dict[str, Any] = field(default_factory=dict)
    reblur: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    settings: MisalignedSettings = field(default_factory=MisalignedSettings)
    run: TrainingRun = field(default_factory=TrainingRun)

    DEFAULT_OUT: ClassVar[str] = "runs/misaligned"


@dataclass(frozen=True)
class ReblurConfig:
    """Training of a reblurring network on clips.

    Attributes:
        model: restorer for the cycle loss; none for no cycle loss.
        reblur: reblurring network: name (default: video_reblur), checkpoint, and keywords.
        discriminator: name (default: patch_critic), checkpoint, and keywords; none for no adversarial loss.
        data: layout, root and split of a data set of videos, or pictures: a folder or "bundled"; degradations that
            blurred frames carry, too.
        windows: patches that are cut out of clips.
        settings: loss weights and learning rates.
        run: length and folder.
    """

    model: dict[str, Any] | None = None
    reblur: dict[str, Any] = field(default_factory=dict)
    discriminator: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    windows: WindowSettings = field(default_factory=WindowSettings)
    settings: ReblurSettings = field(default_factory=ReblurSettings)
    run: TrainingRun = field(default_factory=TrainingRun)

    DEFAULT_OUT: ClassVar[str] = "runs/reblur"


@dataclass(frozen=True)
class MetaConfig:
    """Meta-training of a restorer and a reblurring network on clips.

    Attributes:
        model: restorer: name (default: lens_unet), checkpoint, and keywords of its builder.
        reblur: reblurring network: name (default: video_reblur), checkpoint, and keywords.
        discriminator: name (default: patch_critic), checkpoint, and keywords; none for no adversarial loss.
        data: layout, root and split of a data set of videos, or pictures: a folder or "bundled"; degradations that
            blurred frames carry, too.
        windows: patches that are cut out of clips.
        inner: inner loop, see tta_restore.adapters.methods.inner_loop.InnerLoopSettings.
        settings: outer loop; its entry ``inner`` is the section of that name.
        run: length and folder.
    """

    model: dict[str, Any] | None = None
    reblur: dict[str, Any] = field(default_factory=dict)
    discriminator: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    windows: WindowSettings = field(default_factory=WindowSettings)
    inner: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    run: TrainingRun = field(default_factory=TrainingRun)

    DEFAULT_OUT: ClassVar[str] = "runs/meta"


def read_config(
    source: str | Path | Mapping[str, Any],
    kind: type[T],
    *,
    out: str | Path | None = None,
    steps: int | None = None,
    device: str | None = None,
) -> T:
    """Return the configuration in a file or mapping; the other arguments override its section ``run``.

    Args:
        source: TOML, YAML or JSON file, or sections by name.
        kind: dataclass of the sections, such as :class:`SupervisedConfig`.
        out: folder for results.
        steps: number of steps in total.
        device: of the networks.

    Raises:
        UsageError: the file cannot be read, a section or entry is unknown, or a value has another type or range.
    """
    where = "" if isinstance(source, Mapping) else f"{source}: "
    content = dict(source) if isinstance(source, Mapping) else read_settings(source)
    content = nested(content, where)
    names = [entry.name for entry in fields(kind)]  # type: ignore[bad-argument-type]
    if strange := [
        name if name not in names else f"{name} as {type(section).__name__}"
        for name, section in content.items()
        if name not in names or not isinstance(section, (Mapping, type(None)))
    ]:
        raise UsageError(f"{where}expected the sections {', '.join(names)}, got {', '.join(strange)}")
    overrides = {"out": out, "steps": steps, "device": device}
    content["run"] = merge(content.get("run", {}), {k: v for k, v in overrides.items() if v is not None})
    content["run"] = {"out": kind.DEFAULT_OUT} | content["run"]  # type: ignore[missing-attribute]
    from tta_restore.engine.run.device import resolve_device

    content["run"]["device"] = resolve_device(content["run"].get("device"))
    try:
        sections: dict[str, Any] = {}
        for entry in fields(kind):  # type: ignore[bad-argument-type]
            own = content.get(entry.name)
            if entry.default is None:
                sections[entry.name] = None if own is None else dict(own)
            elif entry.default_factory is dict:
                sections[entry.name] = dict(own or {})
            else:
                sections[entry.name] = section_of(entry.name, entry.default_factory, own or {})  # type: ignore[bad-argument-type]
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where}{error}") from error
    expect_folder(sections["run"].out)
    return kind(**sections)


def section_of(name: str, kind: type[T], values: Mapping[str, Any]) -> T:
    """Return a dataclass from the values of the section of that name; ``false`` stands for None where None is allowed.

    Raises:
        ValueError: an entry is unknown, or its value has another type or range.
    """
    hints = typing.get_type_hints(kind)
    if strange := [entry for entry in values if entry not in hints]:
        raise ValueError(f"[{name}] has no {', '.join(strange)}; there are: {', '.join(hints)}")
    parsed = {}
    for entry, value in values.items():
        kinds = typing.get_args(hints[entry])
        if value is False and type(None) in kinds and bool not in kinds:
            value = None  # TOML has no null
        parsed[entry] = typed_value(f"[{name}] {entry}", hints[entry], value)
    try:
        return kind(**parsed)
    except TypeError as error:
        raise ValueError(f"[{name}] {error}") from error
