"""Write a restorer, as it is or adapted, as an ordinary checkpoint or as an ONNX file."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore.data.io.atomic import atomic_file
from tta_restore.engine.run.calibrate import write_checkpoint
from tta_restore.engine.run.device import resolve_device
from tta_restore.engine.run.methods import create_method
from tta_restore.engine.run.models import expect_restorer, origin_of
from tta_restore.engine.run.outputs import expect_file
from tta_restore.engine.run.settings import Named
from tta_restore.engine.run.usage import UsageError
from tta_restore.models import Restorer
from tta_restore.models.restorer import outputs

__all__ = ["export_model", "write_onnx"]

_SIDE = 64  # of the frame that is traced, at least; the check uses a larger one
_LARGEST_SIDE = 1 << 15
_TOLERANCE = 1e-3  # of a value in [0, 1]: rounding of another runtime, and no wrong operator


def export_model(
    *,
    model: str | Named = "generalist",
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    state: str | Path | None = None,
    method: str = "recommended",
    method_options: Mapping[str, Any] | None = None,
    role: str | None = None,
    out: str | Path | None = None,
    onnx: str | Path | None = None,
    size: str | None = None,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write a model, or the adapted model that a state of ``restore --state`` holds, for use without this library.

    A checkpoint has the model's own keys. An ONNX file takes frames (B, C, H, W), RGB in [0, 1], and returns the
    restored image; kernels of this library are replaced by standard operators. It is compared with the model in
    onnxruntime, if that is installed.

    Args:
        model: restorer, the one of the state where there is one.
        checkpoint: weights of the model.
        config: keywords of the model's builder.
        state: file that ``restore --state`` wrote (default: the model is written as it is).
        method: method of the state.
        method_options: settings of the method.
        role: source, student or teacher of the state (default: the one whose restorations were written)
        out: checkpoint, a .safetensors file.
        onnx: ONNX file.
        size: fixed size of the frames of the ONNX file, such as 720x1280 (H x W; default: any size that the model
            takes).
        device: where the model is loaded.
        say: receives the text for the user.

    Raises:
        UsageError: nothing to write is named, the state belongs to another method or model, the method or the model
            cannot be exported, or the ONNX file does not compute what the model does.
    """
    if out is None and onnx is None:
        raise UsageError("expected a file to write: --out checkpoint.safetensors or --onnx model.onnx")
    if size is not None and onnx is None:
        raise UsageError("--size: goes with --onnx")
    if onnx is not None and Path(onnx).suffix != ".onnx":
        raise UsageError(f"--onnx {onnx}: expected a file that ends in .onnx")
    expect_file(out)
    expect_file(onnx, flag="--onnx")
    sides = None if size is None else _parse_size(size)
    if onnx is not None:
        _expect_onnx()
    if out is not None and Path(out).suffix != ".safetensors":
        raise UsageError(f"--out {out}: expected a file that ends in .safetensors")
    restorer = expect_restorer(model, device=resolve_device(device), checkpoint=checkpoint, config=config)
    exported = restorer.module
    if state is not None:
        made = create_method(method, restorer, **(method_options or {}))
        try:
            made.load(state)
            exported = made.adapter.export(role)
        except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
            raise UsageError(f"--state {state}: {error}") from error
    elif role is not None:
        raise UsageError("--role: goes with --state")
    if not isinstance(exported, nn.Module):
        raise UsageError("expected a model that is a torch.nn.Module")
    if onnx is not None:  # first, because it may fail
        try:
            difference = write_onnx(Restorer(exported, restorer.spec), onnx, size=sides)
        except ValueError as error:
            raise UsageError(f"--onnx {onnx}: {error}") from error
        checked = (
            "not compared with the model, because onnxruntime is not installed"
            if difference is None
            else f"differs from the model by at most {difference:.1g}"
        )
        say(f"ONNX: {onnx}   {checked}")
    if out is not None:
        facts = {"source": str(model), **({} if state is None else {"state": str(state)})}
        loaded = restorer.module
        if isinstance(loaded, nn.Module) and exported.state_dict().keys() == loaded.state_dict().keys():
            facts |= origin_of(model, checkpoint, config)
        write_checkpoint(exported, out, facts)
        say(f"Checkpoint: {out}")


class _Image(nn.Module):
    """From a frame in [0, 1] to the restored image in [0, 1], without the padding of a Restorer."""

    def __init__(self, module: nn.Module, path: outputs.Path, value_range: tuple[float, float]) -> None:
        super().__init__()
        self.module = module
        self.path = path
        self.low, self.high = value_range

    def forward(self, frame: Tensor) -> Tensor:
        mapped = (self.low, self.high) != (0, 1)
        image = outputs.at(self.module(frame * (self.high - self.low) + self.low if mapped else frame), self.path)
        return (image - self.low) / (self.high - self.low) if mapped else image


def write_onnx(restorer: Restorer, path: str | Path, *, size: tuple[int, int] | None = None) -> float | None:
    """Write a restorer of images as an ONNX file with input ``frame`` and output ``image``.

    Args:
        restorer: its spec is measured where none was declared.
        path: file, written completely or not at all.
        size: fixed H and W; None leaves both free, in steps of the sizes that the model takes, or takes the largest of
            a model that has one.

    Returns:
        The largest difference between file and model in onnxruntime, or None if that is not installed.

    Raises:
        ValueError: the model cannot be exported, or the file computes something else.
    """
    module = restorer.module
    assert isinstance(module, nn.Module)  # noqa: S101  by the caller
    weight = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)

    def draw(height: int, width: int) -> Tensor:
        channels = 3 if restorer.spec is None else restorer.spec.in_channels or 3
        return torch.rand(1, channels, height, width, generator=generator).to(weight)

    was_training = module.training
    module.eval()
    try:
        spec = restorer.known_spec(draw(_SIDE, _SIDE))
        if spec.frames not in (1, None):
            raise ValueError("expected a model of single images, not of clips")
        largest = spec.size.largest
        if largest is not None:
            size = size or largest
            if size[0] > largest[0] or size[1] > largest[1]:
                most = " x ".join(map(str, dict.fromkeys(largest)))
                raise ValueError(f"the model takes sides of at most {most} pixels, got {size[0]} x {size[1]}")
        if size is not None and spec.padded(*size) != size:
            raise ValueError(
                f"the model does not take frames of {size[0]} x {size[1]}; the next size is {spec.padded(*size)}"
            )
        frame = draw(*(size or spec.padded(_SIDE, _SIDE)))
        with torch.no_grad():
            found = outputs.find_image(module(frame.clone()), spec, (frame.shape[2], frame.shape[3]))
            model = _Image(module, found, spec.value_range).eval()
            program = _program(model, frame, None if size else (spec.size.multiple_of, max(spec.size.smallest)))
            with atomic_file(path) as partial:
                program.save(partial)
                other = frame if size else draw(*spec.padded(_SIDE + 40, _SIDE + 8))
                return _difference(partial, other, model(other.clone()))
    finally:
        module.train(was_training)


def _program(model: nn.Module, frame: Tensor, steps: tuple[int, int] | None) -> torch.onnx.ONNXProgram:
    dynamic = None
    if steps is not None:
        step, least = steps
        sides = (
            torch.export.Dim(name, min=max(2, -(-least // step)), max=_LARGEST_SIDE // step) for name in ("h", "w")
        )
        height, width = (side if step == 1 else step * side for side in sides)
        dynamic = {"frame": {2: height, 3: width}}
    level = logging.root.manager.disable
    try:
        # torch.export explains failures in dozens of lines, as warnings, in the log and on stderr
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            program = torch.onnx.export(
                model, (frame,), dynamo=True, dynamic_shapes=dynamic, input_names=["frame"], output_names=["image"],
                verbose=False,
            )  # fmt: skip
    except Exception as error:
        words = next((line for line in str(error.__cause__ or error).splitlines() if line.strip()), "no message")
        hint = "" if steps is None else "; a fixed size may work (--size HxW)"
        raise ValueError(f"torch.onnx.export cannot write the model: {words.strip()}{hint}") from error
    finally:
        logging.disable(level)
    assert program is not None  # noqa: S101  dynamo=True
    return program


def _difference(path: Path, frame: Tensor, expected: Tensor) -> float | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = torch.from_numpy(session.run(None, {"frame": frame.cpu().numpy()})[0])
    difference = (image - expected.cpu()).abs().max().item() if image.shape == expected.shape else float("inf")
    if not difference <= _TOLERANCE:
        raise ValueError(f"onnxruntime computes something else than the model: they differ by {difference:.2g}")
    return difference


def _parse_size(size: str) -> tuple[int, int]:
    sides = size.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UsageError(f"--size {size}: expected HxW, such as 720x1280")
    return int(sides[0]), int(sides[1])


def _expect_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"--onnx needs {' and '.join(missing)}: pip install 'tta-restore[onnx]'")
