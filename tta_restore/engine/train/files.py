"""Files of a training run: states to resume from, weights, best weights, and the log."""

from __future__ import annotations

import importlib
import json
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tta_restore.data.io.atomic import atomic_file
from tta_restore.data.io.tensors import save_tensors
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.identity import differences

__all__ = [
    "Board",
    "Log",
    "NoLog",
    "expect_same_run",
    "keep_best",
    "open_board",
    "open_log",
    "resume_state",
    "save_state",
    "write_weights",
]


def save_state(
    out: Path,
    identity: Mapping[str, Any],
    networks: nn.Module,
    optimizers: Mapping[str, Any],
    step: int,
    *,
    built: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
) -> None:
    """Write ``state.pt``, completely or not at all; with ``built`` its restorer can be loaded as a model."""
    state = {
        "step": step,
        "identity": dict(identity),
        "weights": networks.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "built": {name: {"model": model, "config": dict(config)} for name, (model, config) in (built or {}).items()},
    }
    with atomic_file(out / "state.pt") as partial:
        torch.save(state, partial)


def expect_same_run(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to continue a run with settings, data or networks of another one.

    Raises:
        UsageError: the identities differ.
    """
    if differing := differences(there, here):
        raise UsageError(f"{path} is of another run ({'; '.join(differing)}); continue that one or move it away")


def resume_state(
    out: Path, identity: Mapping[str, Any], networks: nn.Module, optimizers: Mapping[str, Any], device: str
) -> int:
    """Load ``state.pt`` where there is one and return the step to go on with.

    Raises:
        UsageError: it is damaged, or of a run with another identity.
    """
    path = out / "state.pt"
    if not path.is_file():
        if (out / "fabric" / "state.json").is_file():
            raise UsageError(f"{out} holds a run of the engine fabric; continue it with that engine or move it away")
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        expect_same_run(path, state["identity"], identity)
        networks.load_state_dict(state["weights"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        return int(state["step"])
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, UsageError):
            raise
        is_other = isinstance(error, (pickle.UnpicklingError, EOFError))  # whose text advises to run any code in it
        reason = "not a file of torch.save" if is_other else str(error).splitlines()[0]
        raise UsageError(f"{path} is damaged or of other networks: {reason}") from error


def write_weights(
    folder: Path, networks: Mapping[str, nn.Module], built: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> None:
    """Write every network to ``<name>.safetensors``, with what ``create_model`` builds it from where that is known."""
    for name, module in networks.items():
        weights = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in module.state_dict().items()}
        metadata = None
        if name in built:
            model, config = built[name]
            metadata = {"model": model, "config": json.dumps(dict(config))}
        with atomic_file(folder / f"{name}.safetensors") as partial:
            save_tensors(partial, weights, metadata)


def keep_best(out: Path, step: int, scores: Mapping[str, float], write: Callable[[Path], None]) -> None:
    """Have weights written to ``best/``, with ``score.json``, if the first of the scores is the highest one yet."""
    if not scores:
        return
    name, score = next(iter(scores.items()))
    path = out / "best" / "score.json"
    if path.is_file() and not score > json.loads(path.read_text(encoding="utf-8"))[name]:
        return
    write(path.parent)
    with atomic_file(path) as partial:
        partial.write_text(json.dumps({"step": step, **scores}), encoding="utf-8")


class Board(Protocol):
    """Place that shows numbers and images, with the methods of TensorBoard's writer."""

    def add_scalar(self, name: str, value: float, step: int, /) -> None: ...  # noqa: D102
    def add_image(self, name: str, image: Tensor, step: int, /) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class _WandbBoard:
    """Run of Weights & Biases, continued under its number where the folder has one."""

    def __init__(self, out: Path) -> None:
        wandb: Any = importlib.import_module("wandb")
        path = out / "wandb.txt"
        known = path.read_text(encoding="utf-8").strip() if path.is_file() else None
        self._run = wandb.init(dir=str(out), name=out.name, id=known, resume="allow")
        path.write_text(self._run.id, encoding="utf-8")
        self._image = wandb.Image

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Log a number."""
        self._run.log({name: value}, step=step)

    def add_image(self, name: str, image: Tensor, step: int) -> None:
        """Log an image (3, H, W) in [0, 1]."""
        self._run.log({name: self._image(image.detach().float().cpu().permute(1, 2, 0).numpy())}, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def open_board(out: Path, logger: str, first: int) -> Board | None:
    """Return the board of a logger; None for none.

    Args:
        out: folder of the training.
        logger: "auto", "none", "tensorboard" or "wandb".
        first: step that the run goes on with.

    Raises:
        UsageError: the logger was asked for by name, and its package is missing.
    """
    if logger == "none":
        return None
    try:
        if logger == "wandb":
            return _WandbBoard(out)
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(out / "tensorboard"), purge_step=first)
    except ImportError as error:
        if logger == "auto":
            return None
        raise UsageError(f"[run] logger: {logger} is not installed: pip install {logger}") from error


class Log:
    """Numbers in ``log.jsonl`` and, where there is one, numbers and images on a board."""

    def __init__(self, out: Path, first: int, logger: str = "auto") -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._board = open_board(out, logger, first)
        path = out / "log.jsonl"
        if path.is_file():  # what a killed run wrote beyond its last state comes again
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join(line for line in lines if _step(line) < first), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._started = time.perf_counter()

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line; nothing for no values."""
        if not values:
            return
        line = {"step": step, **values, "seconds": round(time.perf_counter() - self._started, 2)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name if "/" in name else f"loss/{name}", value, step)

    def picture(self, step: int, picture: Tensor) -> None:
        """Show a picture (3, H, W) in [0, 1]."""
        if self._board is not None:
            self._board.add_image("step", picture, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class NoLog:
    """The log of a process that writes nothing."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def picture(self, step: int, picture: Tensor) -> None:
        """Nothing."""


@contextmanager
def open_log(out: Path, first: int, *, silent: bool, logger: str = "auto") -> Iterator[Log | NoLog]:
    """Return the log of a run in ``out`` that goes on at step ``first``; see :func:`open_board` for ``logger``."""
    if silent:
        yield NoLog()
        return
    log = Log(out, first, logger)
    try:
        yield log
    finally:
        log.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # a line that was being written when the process died
        return float("inf")
