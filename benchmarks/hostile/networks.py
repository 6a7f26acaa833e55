"""States, checkpoints and configurations that are damaged, of something else, or mean harm."""

from __future__ import annotations

import json
import os
import pickle
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hostile.files import Made, put

__all__ = ["NETWORK", "make_checkpoints", "make_configurations", "make_states", "restorer"]

#: Sizes of the registered network that the checkpoints called ``unet_...`` are for.
NETWORK = {"widths": [4, 4, 4], "blocks": 1}
RAN = "/tmp/hostile_inputs_ran_code"  # made by code that must not run


def restorer() -> object:
    """Return a network that a method can adapt."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 3, 1, bias=False)


def make_states(folder: Path) -> Iterator[Made]:
    """Write all files that `--state` is given."""
    import torch
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from tta_restore.engine.run.methods import create_method
    from tta_restore.models import as_restorer

    rng = np.random.default_rng(2)
    save_file({"a": np.zeros(3, np.float32)}, folder / "other.safetensors")
    yield Made(folder / "other.safetensors")
    content = (folder / "other.safetensors").read_bytes()
    save_file({"a": np.zeros(3, np.float32)}, folder / "list.safetensors", {"restored_inputs": "not json"})
    yield Made(folder / "list.safetensors")
    yield put(folder / "cut.safetensors", content[:20])
    yield put(folder / "length.safetensors", struct.pack("<Q", 2**62) + content[8:])
    yield put(folder / "text", b"hello")
    yield put(folder / "empty", b"")
    yield put(folder / "noise", rng.bytes(3000))
    yield put(folder / "header.safetensors", _header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}))
    yield put(folder / "overlap.safetensors", _header({n: _entry(0) for n in "ab"}) + bytes(4))
    yield put(folder / "pickle.safetensors", pickle.dumps(_RunsCode()))
    (folder / "folder").mkdir()
    yield Made(folder / "folder")
    os.mkfifo(folder / "pipe")
    yield Made(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    yield Made(folder / "loop")
    for name, method, model in (
        ("good", "siam-ctta", restorer()), ("method", "cotta", restorer()),
        ("model", "siam-ctta", torch.nn.Conv2d(3, 3, 3, padding=1)),
    ):  # fmt: skip
        create_method(method, as_restorer(model)).save(folder / f"{name}.safetensors")
        yield Made(folder / f"{name}.safetensors", is_whole=name == "good")
    whole = (folder / "good.safetensors").read_bytes()
    yield put(folder / "good_cut.safetensors", whole[: len(whole) * 9 // 10])
    with safe_open(folder / "good.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata() or {}
    for key in sorted(metadata):
        for how, value in (("gone", None), ("other", "99"), ("deep", "[" * 100_000)):
            changed = {name: text for name, text in metadata.items() if name != key or value is not None}
            path = folder / f"{key}_{how}.safetensors"
            save_file(tensors, path, changed | ({} if value is None else {key: value}))
            yield Made(path)
    for how, change in (
        ("gone", lambda name, value: None if name == max(tensors) else value),
        ("shape", lambda name, value: np.zeros(7, value.dtype)),
        ("type", lambda name, value: value.astype(np.int8)),
        ("nan", lambda name, value: np.full_like(value, np.nan) if value.dtype.kind == "f" else value),
    ):
        made = {name: change(name, value) for name, value in tensors.items()}
        path = folder / f"tensors_{how}.safetensors"
        save_file({name: value for name, value in made.items() if value is not None}, path, metadata)
        yield Made(path)


def _entry(start: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [start, start + 4]}


def _header(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


class _RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {RAN}",)


def make_checkpoints(folder: Path) -> Iterator[Made]:
    """Write all files that `--model` and `--checkpoint` are given."""
    import torch
    from safetensors.torch import save_file

    rng = np.random.default_rng(3)

    def saved(name: str, content: Any, *, is_whole: bool = False, **options: Any) -> Made:
        torch.save(content, folder / name, **options)
        return Made(folder / name, is_whole)

    yield saved("other.pth", {"state_dict": {"layer.weight": torch.zeros(3)}})
    content = (folder / "other.pth").read_bytes()
    yield put(folder / "cut.pth", content[: len(content) // 2])
    yield put(folder / "pickle.pth", pickle.dumps(_RunsCode()))
    yield saved("code.pth", {"state_dict": {"weight": torch.zeros(3)}, "callback": _RunsCode()})
    yield saved("code_old.pth", {"w": torch.zeros(3), "c": _RunsCode()}, _use_new_zipfile_serialization=False)
    yield saved("module.pth", torch.nn.Conv2d(3, 3, 1))
    yield saved("list.pth", [1, 2, 3])
    yield saved("number.pth", 3)
    yield saved("nothing.pth", {})
    yield saved("deep.pth", _nested(200))
    save_file({"w": torch.full((3,), float("nan"))}, folder / "nan.safetensors")
    yield Made(folder / "nan.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripts are deprecated, and there are files of them
        torch.jit.script(torch.nn.Conv2d(3, 3, 1)).save(str(folder / "script.pt"))
    yield Made(folder / "script.pt")
    for name, data in (
        ("empty.pth", b""),
        ("text.pth", b"hello"),
        ("noise.pth", rng.bytes(3000)),
        ("noise.safetensors", rng.bytes(3000)),
        ("zip.pth", b"PK\x05\x06" + bytes(18)),
        ("page.pth", b"<!DOCTYPE html><html>Not found</html>"),
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    ):
        yield put(folder / name, data)
    (folder / "a_folder.pth").mkdir()
    yield Made(folder / "a_folder.pth")
    os.mkfifo(folder / "pipe.pth")
    yield Made(folder / "pipe.pth")
    yield from _wrapped(folder, saved)


def _wrapped(folder: Path, saved: Any) -> Iterator[Made]:
    """Write weights of one registered network as training frameworks do, and such that do not fit it."""
    import torch
    from safetensors.torch import save_file

    from tta_restore.models import create_model

    torch.manual_seed(0)
    weights = create_model("lens_unet", **NETWORK).state_dict()
    other = create_model("lens_unet", widths=(4, 4, 8), blocks=1).state_dict()

    def named(prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}{name}": value for name, value in weights.items()}

    noise = {name: torch.rand_like(value) for name, value in weights.items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    lightning = {
        "epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.0", "state_dict": named("model."),
        "optimizer_states": [optimizer], "hyper_parameters": {"lr": 0.1},
    }  # fmt: skip
    yield saved("unet_plain.pth", weights, is_whole=True)
    yield saved("unet_old.pth", weights, is_whole=True, _use_new_zipfile_serialization=False)
    yield saved("unet_ddp.pth", {"model": named("module."), "optimizer": optimizer}, is_whole=True)
    yield saved("unet_compiled.pth", named("_orig_mod."), is_whole=True)
    yield saved("unet_lightning.ckpt", lightning, is_whole=True)
    yield saved("unet_ema.pth", {"params": noise, "params_ema": weights}, is_whole=True)
    yield saved("unet_half.pth", {name: value.half() for name, value in weights.items()}, is_whole=True)
    yield saved("unet_bfloat.pth", {name: value.bfloat16() for name, value in weights.items()}, is_whole=True)
    yield saved("unet_double.pth", {name: value.double() for name, value in weights.items()}, is_whole=True)
    yield saved("unet_shapes.pth", other)
    yield saved("unet_less.pth", dict(list(weights.items())[:-2]))
    yield saved("unet_more.pth", weights | {"extra.weight": torch.zeros(3)})
    yield saved("unet_integers.pth", {name: value.to(torch.int32) for name, value in weights.items()})
    yield saved("unet_complex.pth", {name: value.to(torch.complex64) for name, value in weights.items()})
    yield saved("unet_nan.pth", {name: torch.full_like(value, float("nan")) for name, value in weights.items()})
    yield saved("unet_numbers.pth", {name: value.tolist() for name, value in weights.items()})
    yield saved("unet_sparse.pth", {name: value.to_sparse() for name, value in weights.items()}, is_whole=True)
    save_file(weights, folder / "unet_whole.safetensors")
    yield Made(folder / "unet_whole.safetensors", is_whole=True)
    content = (folder / "unet_whole.safetensors").read_bytes()
    yield put(folder / "unet_cut.safetensors", content[: len(content) * 3 // 4])
    yield put(folder / "unet_tail.safetensors", content + b"tail")
    yield put(folder / "unet_renamed.pth", content, is_whole=True)  # safetensors under the other name
    plain = (folder / "unet_plain.pth").read_bytes()
    yield put(folder / "unet_cut.pth", plain[: len(plain) * 3 // 4])
    yield put(folder / "unet_renamed.safetensors", plain, is_whole=True)


def _nested(depth: int) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for _ in range(depth):
        content = {"state_dict": content}
    return content


def make_configurations(folder: Path) -> Iterator[Made]:
    """Write all files that `--config` is given."""
    texts = {
        "empty.toml": "", "text.toml": "hello", "list.json": "[1]", "number.json": "3",
        "unknown.toml": "[nonsense]\na = 1\n",
        "model.toml": "[model]\nname = 'nothing'\n", "cut.json": '{"model": ', "deep.json": "[" * 5000,
        "kinds.toml": "model = 3\ndata = 'x'\n", "steps.toml": "[run]\nsteps = -5\n", "null.json": "null",
        "huge.toml": "[run]\nsteps = 1e400\n", "nan.toml": "[run]\nsteps = nan\n", "true.toml": "[run]\nsteps = true\n",
        "twice.toml": "[run]\nsteps = 1\nsteps = 2\n", "key.toml": "[run]\nstep = 3\n",
        "word.yaml": "run: {steps: many}\n", "tab.yaml": "run:\n\tsteps: 3\n", "code.yaml":
        f"run: !!python/object/apply:os.system ['touch {RAN}']\n", "alias.yaml": _aliases(),
        "deep.toml": "a = " + "[" * 5000, "deep.yaml": "[" * 5000, "other.ini": "[run]\nsteps = 3\n",
        "sections.json": '{"run": [1, 2]}', "nul.toml": "[model]\nname = \"a\\u0000b\"\n",
        "tables.toml": "[[run]]\nsteps = 1\n",
        "twice.yaml": "run: {steps: 1}\nrun: {steps: 2}\n", "twice.json": '{"run": {"steps": 1, "steps": 2}}',
        "dotted.toml": '"run.steps" = 1\n[run]\nsteps = 2\n', "number.yaml": "1: 2\n",
        "path.toml": "[model]\nname = ''\n", "dates.toml": "[run]\nsteps = 2020-01-01\n",
    }  # fmt: skip
    for name, text in texts.items():
        yield put(folder / name, text.encode())
    yield put(folder / "bytes.toml", bytes(range(128, 256)))
    yield put(folder / "mark.toml", b"\xef\xbb\xbf[nonsense]\na = 1\n")
    yield put(folder / "wide.toml", "[run]\nsteps = 1\n".encode("utf-16"))
    (folder / "a_folder.toml").mkdir()
    yield Made(folder / "a_folder.toml")
    os.mkfifo(folder / "pipe.toml")
    yield Made(folder / "pipe.toml")


def _aliases() -> str:
    """Return a file of YAML that grows to 10 ** 9 entries."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines)
