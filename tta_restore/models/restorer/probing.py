"""Measure the properties of a third-party restorer before anything is adapted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore._core.ambient import GlobalRandom, global_random, with_usual_defaults
from tta_restore.models.competence import Competence
from tta_restore.models.competence import competence as measure_competence
from tta_restore.models.complexity import Operators
from tta_restore.models.restorer import outputs
from tta_restore.models.restorer.inference import CHANNELS, example_frame
from tta_restore.models.restorer.normalization import normalization_layers
from tta_restore.models.restorer.outputs import differentiate, infer_scale, third_party_functions
from tta_restore.models.restorer.preserve import preserve_state
from tta_restore.models.restorer.restorer import Restoration, Restorer, as_restorer
from tta_restore.models.restorer.spec import RestorerSpec

_SIDE_OF_HEAVY = 32  # of the noise for models of more than _MAX_MACS
_MAX_MACS = 5e8  # at 64 x 64 pixels; a probe makes about twenty passes


@dataclass(frozen=True)
class ProbeReport:
    """Measurements of :func:`probe`.

    Attributes:
        model: class name.
        parameters: number of weights.
        spec: how the model has to be run; ``scale``, ``size`` and ``in_channels`` are in it.
        output: type of what the model returns.
        image_at: where in it the image is.
        other_images: where else it holds tensors of the image's size.
        batch: whether two images at once give what each gives alone.
        writes_input: whether it writes into its input.
        repeatable: whether it gives the same twice in eval mode.
        random_in_train: whether train mode differs from call to call.
        backward_in_eval: None, or why gradients of the weights cannot be had in eval mode.
        backward_in_train: the same in train mode.
        without_gradient: weights that an image's gradient does not reach in eval mode.
        without_gradient_in_train: the same in train mode.
        normalization: how many normalization layers there are of each class.
        autograd_functions: Python autograd Functions in the graph but those of this package; their second derivative is
            often wrong.
        competence: what the model removes, where :func:`probe` was asked to measure it; None where it was not, or where
            the model is not an image-to-image restorer of single frames.
    """

    model: str
    parameters: int
    spec: RestorerSpec
    output: str
    image_at: outputs.Path
    other_images: tuple[outputs.Path, ...]
    batch: bool
    writes_input: bool
    repeatable: bool
    random_in_train: bool
    backward_in_eval: str | None
    backward_in_train: str | None
    without_gradient: tuple[str, ...]
    without_gradient_in_train: tuple[str, ...]
    normalization: dict[str, int]
    autograd_functions: tuple[str, ...]
    competence: Competence | None = None

    @property
    def advice(self) -> dict[str, Any]:
        """Return options for an adapter (the spec, the mode with more gradients, the weights that get one)."""
        train = self.backward_in_train is None and (
            self.backward_in_eval is not None or len(self.without_gradient_in_train) < len(self.without_gradient)
        )
        unreached = self.without_gradient_in_train if train else self.without_gradient
        return {
            "spec": self.spec,
            "mode": "train" if train else "eval",
            "select": ["all", *(f"!{name}" for name in unreached)] if unreached else "all",
        }

    @property
    def traps(self) -> tuple[str, ...]:
        """Properties of the model that break naive wrappers, in words."""
        found = {
            f"returns {self.output}": self.output != "tensor",
            f"takes {self.spec.in_channels} channels": self.spec.in_channels != CHANNELS[0],
            "writes into its input": self.writes_input,
            "one image at a time": not self.batch,
            "not repeatable": not self.repeatable,
            "random in train mode": self.random_in_train,
            "no backward in eval mode": self.backward_in_eval is not None,
            "no backward in train mode": self.backward_in_train is not None,
            f"{len(self.without_gradient)} tensors without gradient in eval mode": bool(self.without_gradient),
            "sizes must be padded": self.spec.size.multiple_of > 1
            or self.spec.size.square
            or isinstance(self.spec.size.minimum, tuple),
            f"own autograd functions ({', '.join(self.autograd_functions)})": bool(self.autograd_functions),
        }
        return tuple(words for words, holds in found.items() if holds)

    def __str__(self) -> str:
        rows = {
            entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in ("spec", "competence")
        }
        size = self.spec.size
        square = ", square" if size.square else ""
        by_channel = " (color frames are restored channel by channel)" if self.spec.in_channels == 1 else ""
        rows["image_at"] = self.image_at or "the output itself"
        rows["in_channels"] = f"{self.spec.in_channels}{by_channel}"
        rows["scale"] = self.spec.scale
        if self.spec.border:
            rows["border"] = f"{self.spec.border} pixels are cut off at each side; frames are extended by as many"
        most = "" if size.maximum is None else f", at most {_side(size.maximum)}: larger frames are restored in tiles"
        rows["size"] = f"multiple of {size.multiple_of}, at least {_side(size.minimum)}{square}{most}"
        width = max(map(len, rows))
        lines = [f"{name.replace('_', ' '):<{width}}  {_shown(value)}" for name, value in rows.items()]
        return "\n".join(lines if self.competence is None else [*lines, "", str(self.competence)])


@with_usual_defaults
def probe(model: Any, example: Tensor | None = None, *, competence: bool = False) -> ProbeReport:
    """Run ``model`` on small frames in every way that adaptation needs, and report what happened.

    Nothing stays changed in the model, and the global random state is put back. Models of many multiply-adds get
    noise of 32 pixels a side.

    Args:
        model: a module, a spandrel descriptor, or a :class:`Restorer`.
        example: (B, C, H, W) in [0, 1], or a clip (B, T, C, H, W), for models that 64-pixel noise with 3, 1, 2, 4 or 6
            channels does not suit.
        competence: measure what the model removes, too (:func:`tta_restore.models.competence`); about twenty more
            forward passes.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the model gives no image for any frame tried.
    """
    restorer = as_restorer(model)
    module = restorer.module
    if not isinstance(module, nn.Module):
        raise TypeError(f"probe: expected a module or a spandrel descriptor, got {type(model).__name__}")
    devices = [device for device in {p.device for p in module.parameters()} if device.type == "cuda"]
    measured = restorer.spec is None
    first = devices[0] if devices else torch.device("cpu")
    with torch.random.fork_rng(devices), global_random(first) as drawn, preserve_state(module):
        drawn.seed(0)
        frame = example[:1] if example is not None else _lighter(restorer, example_frame("probe", restorer))
        report = _report(restorer, module, frame, drawn, measured=measured)
        return replace(report, competence=_competence(restorer, report)) if competence else report


def _lighter(restorer: Restorer, frame: Tensor) -> Tensor:
    """Return a part of the noise for models that take long on all of it."""
    module: Any = restorer.module
    spec = restorer.known_spec(frame)
    side = max(_SIDE_OF_HEAVY - spec.border, 8)  # a border is added to it, and is part of the size
    height, width = (max(part - 2 * spec.border, 1) for part in spec.padded(side, side))
    part = frame[..., :height, :width]
    larger = math.prod(spec.padded(*frame.shape[-2:])) / math.prod(spec.padded(*part.shape[-2:]))
    with preserve_state(module, training=False), torch.no_grad(), Operators() as operators:
        restored = _holds(lambda: restorer(part).isfinite().all())
    return part if restored and operators.total * larger > _MAX_MACS else frame


def _competence(restorer: Restorer, report: ProbeReport) -> Competence | None:
    if report.spec.frames != 1 or report.spec.in_channels not in (1, 3) or not report.spec.dense:
        return None
    return measure_competence(restorer.module, report.spec)


def _report(
    restorer: Restorer, module: nn.Module, frame: Tensor, drawn: GlobalRandom, *, measured: bool
) -> ProbeReport:
    with preserve_state(module, training=False), torch.no_grad():
        trial = Restorer(module, restorer.known_spec(frame))
        spec = trial.known_spec(frame)
        restored = trial.restore(frame)
        writes_input, again = _writes_input(trial, frame)
        repeatable = torch.equal(again, restored.image)
        batch = spec.batched
        if batch and not measured:
            pair = torch.cat([frame, frame.flip(-1)])
            alone = torch.cat([restored.image, trial(frame.flip(-1))])
            batch = _holds(
                lambda: (both := trial(pair)).shape == alone.shape and (not repeatable or _close(both, alone))
            )
    with preserve_state(module, training=False):
        backward_in_eval, unreached, functions = _backward(trial, module, frame)
    with preserve_state(module, training=True):
        backward_in_train, unreached_in_train, _ = _backward(trial, module, frame)
    with preserve_state(module, training=True), torch.no_grad():
        random_in_train = _holds(lambda: _varies(trial, frame, drawn))
    return ProbeReport(
        model=type(getattr(module, "_orig_mod", module)).__name__,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        spec=replace(spec, in_channels=frame.shape[-3], batched=batch),
        output=_kind(restored.raw),
        image_at=restored.path,
        other_images=tuple(path for path, leaf in outputs.leaves(restored.raw) if _rivals(path, leaf, restored)),
        batch=batch,
        writes_input=writes_input,
        repeatable=repeatable,
        random_in_train=random_in_train,
        backward_in_eval=backward_in_eval,
        backward_in_train=backward_in_train,
        without_gradient=unreached,
        without_gradient_in_train=unreached_in_train,
        normalization=dict(Counter(type(layer).__name__ for _, layer in normalization_layers(module))),
        autograd_functions=functions,
    )


def _varies(restorer: Restorer, frame: Tensor, drawn: GlobalRandom) -> bool:
    """Return whether passes differ; a pass that drew random numbers may still be equal to the next one."""
    drawn.seed(0)
    first = restorer(frame)
    return any(not torch.equal(restorer(frame), first) for _ in range(3 if drawn.drawn() else 1))


def _writes_input(restorer: Restorer, frame: Tensor) -> tuple[bool, Tensor]:
    changed = []

    def watched(inputs: Tensor) -> Any:
        before = inputs.clone()
        raw = restorer.module(inputs)
        changed.append(not torch.equal(before, inputs))
        return raw

    image = restorer.restore(frame, call=watched).image
    return any(changed), image


def _backward(
    restorer: Restorer, module: nn.Module, frame: Tensor
) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """Return why there is no backward pass, the weights without gradient, and the Python Functions in the graph.

    The module's weights are exchanged and stay so until :func:`preserve_state` puts them back: activation checkpointing
    runs parts of the module again in the backward pass.
    """
    own = {name: parameter for name, parameter in module.named_parameters() if outputs.is_continuous(parameter)}
    functions: tuple[str, ...] = ()
    if not own:
        return "the model has no weights", (), functions
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        return "TorchScript hides weights", (), functions
    weights = {name: nn.Parameter(parameter.detach()) for name, parameter in own.items()}
    _exchange(module, {id(parameter): weights[name] for name, parameter in own.items()})
    try:
        with torch.enable_grad():
            image = restorer.restore(frame).image
            kinds = {type(node).__name__.removesuffix("Backward") for node in third_party_functions(image)}
            functions = tuple(sorted(kinds))
            loss = image.float().square().mean()
            gradients = differentiate(loss, list(weights.values()), accumulate=bool(functions))
    except Exception as error:  # whatever a third-party model raises
        return f"{type(error).__name__}: {str(error).splitlines()[0]}", (), functions
    return None, tuple(n for n, g in zip(weights, gradients, strict=True) if g is None), functions


def _exchange(module: nn.Module, others: dict[int, nn.Parameter]) -> None:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            part._parameters[name] = others.get(id(parameter), parameter)
        if isinstance(part, nn.RNNBase):  # keeps a second list of its weights
            part._flat_weights = [getattr(part, name, None) for name in part._flat_weights_names]


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except Exception:  # whatever a third-party model raises
        return False


def _rivals(path: outputs.Path, leaf: Tensor, restored: Restoration) -> bool:
    clips = restored.image.ndim == 5
    sides = (restored.image.shape[-2], restored.image.shape[-1])
    return path != restored.path and infer_scale(leaf, sides, clips=clips) == 1


def _kind(raw: Any) -> str:
    if isinstance(raw, Tensor):
        return "tensor"
    inner = ", ".join(f"{path[-1]}: {tuple(leaf.shape)}" for path, leaf in outputs.leaves(raw))
    return f"{type(raw).__name__}({inner})"


def _side(side: int | tuple[int, int]) -> str:
    return str(side) if isinstance(side, int) else "{}x{}".format(*side)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, dict)):
        if not value:
            return "none"
        if len(value) > 6:
            return f"{len(value)}, such as {', '.join(map(str, list(value)[:3]))}"
        return ", ".join(f"{k} x{v}" for k, v in value.items()) if isinstance(value, dict) else repr(list(value))
    return "works" if value is None else str(value)
