"""Load weights from safetensors and torch files, never running code that a file brings along."""

import json
import os
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tta_restore.data.io.files import suggest_path

WEIGHTS = Path(__file__).parent / "weights"
# Where training code puts the weights inside a larger dictionary, the averaged ones first.
_WRAPPERS = ("params_ema", "state_dict_ema", "model_ema", "params", "state_dict", "model_state_dict", "model", "net")
_AVERAGED = frozenset(["ema", "swa", "avg", "average", "averaged", "shadow", "polyak"])
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of names such as state_dict_ema, modelEma, EMAModel
_DEPTH = 4  # of nested dictionaries that are searched
_PREFIXES = ("module.", "_orig_mod.")
_HEAD = 64  # bytes by which files are told apart
_BARE_WORD = re.compile(r"[A-Za-z0-9_-]+")

M = TypeVar("M", bound=nn.Module)


def load_checkpoint(module: M, path_or_state_dict: str | Path | Mapping[str, Any]) -> M:
    """Copy the weights of a checkpoint into ``module`` and return it.

    Takes a path (safetensors, or a torch file read with ``weights_only=True``), a bare word that names a file shipped
    in ``tta_restore/models/weights``, or a state dict. The wrappers of training code (``params_ema``, ``params``,
    ``state_dict``, ...) and prefixes that all names of the weights share (``module.``, ``generator_ema.``, ...) are
    taken off: the one set of weights that fits is loaded, averaged weights before raw ones. A module whose
    weights lie beside others' in one file names its own wrappers in ``checkpoint_wrappers``: a tuple, or a dict from
    prefixes of its names to wrappers where its weights lie in several. A module that knows
    checkpoints with other keys has a method ``convert_state_dict(state_dict) -> state_dict``, which is called next.
    Everything is checked before the first weight is written.

    Raises:
        ValueError: if the file is missing, unreadable, holds anything but tensors or NaN in parameters, or does not
            fit ``module``.
    """
    if isinstance(path_or_state_dict, Mapping):
        return load(module, path_or_state_dict, "the given state dict")
    path = resolve(path_or_state_dict)
    return load(module, read(path), str(path))


def load(module: M, content: Any, source: str) -> M:
    """Copy weights into ``module``: what :func:`load_checkpoint` does with the content of ``source``."""
    target = getattr(module, "_orig_mod", module)
    if isinstance(target, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        target = target.module
    expected, own = target.state_dict(), getattr(target, "checkpoint_wrappers", ())
    convert = getattr(target, "convert_state_dict", dict)
    weights = None if own else _fitting(content, expected, source)
    if weights is None:
        weights = _unwrap(content, source, own)
        stripped = {_strip(name, expected): value for name, value in weights.items()}
        weights = convert(stripped)
        if expected.keys().isdisjoint(weights):
            groups = [convert(group) for group in _below_prefixes(stripped, len(expected))]
            fitting = [made for made in groups if made.keys() == expected.keys()]
            if fitting and all(_are_equal(made, fitting[0]) for made in fitting):
                weights = fitting[0]
    _check_fit(target, expected, weights, source)
    target.load_state_dict({name: value.to_dense() if value.is_sparse else value for name, value in weights.items()})
    return module


def resolve(checkpoint: str | Path) -> Path:
    """Return the path of a checkpoint: a bare word names a shipped file, anything else is a path.

    Raises:
        ValueError: if there is no such file.
    """
    if isinstance(checkpoint, str) and _BARE_WORD.fullmatch(checkpoint):
        path = WEIGHTS / f"{checkpoint}.safetensors"
        if not os.path.isfile(path):
            shipped = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))) or "none"
            raise ValueError(
                f"load_checkpoint: no weights called {checkpoint!r} are shipped (there are: {shipped}); "
                f"a file is given by its path, such as './{checkpoint}'"
            )
        return path
    path = Path(checkpoint)
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        raise ValueError(f"load_checkpoint: there is no file {path}{suggest_path(path)}")
    return path


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a safetensors file, ``config`` parsed from JSON; empty for any other file."""
    try:
        if not _is_safetensors(path):
            return {}
    except ValueError:  # raised again where the weights are read
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return {key: json.loads(value) if key == "config" else value for key, value in metadata.items()}
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"load_checkpoint: {path} is not a readable safetensors file: {error}") from error


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is read as safetensors: by its content, or by its suffix where that is unknown.

    Raises:
        ValueError: it is no regular file, or something that downloads leave in place of a checkpoint.
    """
    try:
        if not path.is_file():
            raise ValueError(f"load_checkpoint: {path} is not a regular file")
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        length, size = int.from_bytes(head[:8], "little"), path.stat().st_size
    except OSError as error:
        raise ValueError(f"load_checkpoint: {path}: {(error.strerror or str(error)).lower()}") from None
    if not head:
        raise ValueError(f"load_checkpoint: {path} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"load_checkpoint: {path} is a pointer of Git LFS and not the file itself: run git lfs pull")
    if head.lstrip()[:1] == b"<" and b"html" in head.lower():
        raise ValueError(f"load_checkpoint: {path} is a web page and no checkpoint: download the file itself")
    if head[8:9] == b"{" and 8 + length <= size:
        return True  # its length may begin like a pickle
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return False
    return path.suffix == ".safetensors"


def infer_config(kind: Any, content: Any, source: str) -> dict[str, Any]:
    """Return the configuration that follows from names and shapes of weights, where the class ``kind`` infers one."""
    tell = getattr(kind, "config_of_state_dict", None)
    if not callable(tell):
        return {}
    weights = _unwrap(content, source, getattr(kind, "checkpoint_wrappers", ()))
    stripped = {_strip(name, {}): tensor for name, tensor in weights.items()}
    found = tell(stripped)
    return found or next(filter(None, map(tell, _below_prefixes(stripped, len(stripped) // 2))), {})


def read(path: Path) -> Any:
    """Content of a safetensors or torch file, of which nothing but tensors and plain containers is ever unpickled.

    Raises:
        ValueError: it is unreadable, or holds anything else.
    """
    try:
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        with warnings.catch_warnings(), open(path, "rb") as file:  # given a path, torch goes by its suffix
            warnings.simplefilter("ignore")  # torch's, on sparse tensors
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"load_checkpoint: {path} is a TorchScript program: load it by torch.jit.load in a function of your own"
            ) from error
        if isinstance(error, RuntimeError):
            raise _damaged(path, error) from error
        raise ValueError(
            f"load_checkpoint: {path} is damaged, or holds pickled Python objects besides tensors, which could run "
            "code; save only its state dict where you trust it"
        ) from error
    except (SafetensorError, EOFError, OSError, KeyError, IndexError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    first = next(iter(str(error).splitlines()), "") or "it ends early"
    is_text = isinstance(error, (LookupError, AttributeError))  # the byte at which a reader of pickles gave up
    return ValueError(f"load_checkpoint: {path} is damaged or no checkpoint" + (f" ({first})" if not is_text else ""))


def _fitting(content: Any, expected: Mapping[str, Tensor], source: str) -> dict[str, Tensor] | None:
    """Return the weights in a checkpoint that fit, wherever they lie and whatever prefix their names share.

    Averaged weights go before raw ones, which a warning reports unless their wrapper is a known one. None if none fit.

    Raises:
        ValueError: several different sets of weights fit, and none or several of them are averaged, or the averaged one
            is there in part or under other names, such as without its buffers.
    """
    if not expected or not isinstance(content, Mapping):
        return None
    found = dict(_groups(content, expected, "", 0))
    averaged = [place for place in found if _is_averaged(place)]
    places = averaged or list(found)
    if not places:
        return None
    known = [name for name in _WRAPPERS if name in places]
    place = (known or places)[0]
    others = [other for other in places if not _are_equal(found[other], found[place])]
    if others and not (averaged and known):
        raise ValueError(
            f"load_checkpoint: {source} holds several sets of weights that fit, at {', '.join(places)}; "
            "pass the one that is meant as a state dict"
        )
    chosen = {id(tensor) for tensor in found[place].values()}
    partly = None if averaged else next(_parts_of_averaged(content, expected, chosen, "", 0), None)
    if partly is not None:
        raise ValueError(
            f"load_checkpoint: {source} holds raw weights at {place or 'the top'}, and averaged ones at {partly} that "
            "lack names or buffers; pass the weights that are meant as a state dict"
        )
    if averaged and len(averaged) < len(found) and place not in _WRAPPERS:
        raw = ", ".join(name or "the top" for name in found if name not in averaged)
        warnings.warn(f"load_checkpoint: takes the averaged weights {place} of {source}, not {raw}", stacklevel=4)
    return found[place]


def _is_averaged(place: str) -> bool:
    return not _AVERAGED.isdisjoint(word.lower() for word in _WORD.findall(place))


def _are_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a is b or all(torch.equal(a[name], b[name]) for name in a)


def _parts_of_averaged(
    content: Mapping[Any, Any], expected: Mapping[str, Tensor], chosen: set[int], place: str, depth: int
) -> Iterator[str]:
    """Places, by name of averaged weights, that hold some of the expected ones.

    In mappings they are found by name, in lists by shape, and under a prefix by the shapes of half of them.
    """
    shapes = {tensor.shape for tensor in expected.values()}
    under: dict[str, int] = {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor) and value.shape in shapes and id(value) not in chosen:
            parts = name.split(".")
            ends = (end for end in range(1, len(parts)) if _is_averaged(".".join(parts[:end])))
            prefix = ".".join(parts[: next(ends, 0)])
            under[prefix] = under.get(prefix, 0) + 1
    for prefix, count in under.items():
        if prefix and 2 * count >= len(expected):
            yield f"{place}.{prefix}" if place else prefix
    for key, value in content.items():
        here = f"{place}.{key}" if place else str(key)
        if isinstance(value, Mapping):
            tensors = {name: entry for name, entry in value.items() if isinstance(entry, Tensor)}
            if _is_averaged(here) and tensors and all(
                name in expected and entry.shape == expected[name].shape for name, entry in tensors.items()
            ):  # fmt: skip
                yield here
            elif depth < _DEPTH:
                yield from _parts_of_averaged(value, expected, chosen, here, depth + 1)
        elif isinstance(value, (list, tuple)) and value and _is_averaged(here):
            fits = all(isinstance(entry, Tensor) and entry.shape in shapes for entry in value)
            yield from [here] * fits


def _groups(
    content: Mapping[Any, Any], expected: Mapping[str, Tensor], place: str, depth: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Places in nested mappings, as dotted keys and prefixes, and the weights there whose names and shapes fit."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    anchor = max(expected, key=len)
    prefixes = {name[: -len(anchor)] for name in tensors if name.endswith(anchor)}
    for prefix in sorted(prefixes, key=len):
        group = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if _is_averaged(prefix):  # counters and the decay lie next to the averages
            group = {name: value for name, value in group.items() if name in expected or value.ndim}
        fits = group.keys() == expected.keys() and all(group[name].shape == expected[name].shape for name in expected)
        if fits and (not prefix or prefix.endswith(".")):
            yield place + (f".{prefix[:-1]}" if place and prefix else prefix[:-1]), group
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and depth < _DEPTH:
            yield from _groups(value, expected, f"{place}.{key}" if place else key, depth + 1)


def _unwrap(content: Any, source: str, own: Collection[str] | Mapping[str, str] = ()) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"load_checkpoint: expected a mapping of names to tensors in {source}, got {type(content)}")
    if isinstance(own, Mapping):
        if all(isinstance(content.get(wrapper), Mapping) for wrapper in own.values()):
            parts = ((prefix, _unwrap(content[wrapper], source)) for prefix, wrapper in own.items())
            return {prefix + _strip(name, {}): tensor for prefix, part in parts for name, tensor in part.items()}
        own = own.values()
    while (key := next((k for k in (*own, *_WRAPPERS) if isinstance(content.get(k), Mapping)), None)) is not None:
        averaged = [str(other) for other in content if _is_averaged(str(other)) and _holds_tensors(content[other])]
        if averaged and not _is_averaged(key):
            raise ValueError(
                f"load_checkpoint: {source} holds raw weights at {key}, and averaged ones at {averaged[0]}; "
                "pass the weights that are meant as a state dict"
            )
        content = content[key]
    unexpected = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if unexpected:
        kinds = ", ".join(f"{name!r} ({type(content[name]).__name__})" for name in unexpected[:5])
        raise ValueError(f"load_checkpoint: {source} holds entries that are no tensors: {kinds}")
    if not content:
        raise ValueError(f"load_checkpoint: {source} holds no tensors")
    return dict(content)


def _holds_tensors(value: Any, depth: int = _DEPTH) -> bool:
    """Return whether nested mappings hold a tensor with an axis, such as a weight."""
    if isinstance(value, Mapping):
        return depth > 0 and any(_holds_tensors(entry, depth - 1) for entry in value.values())
    return isinstance(value, Tensor) and value.ndim > 0


def _strip(name: str, expected: Mapping[str, Tensor]) -> str:
    while name not in expected and name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _below_prefixes(weights: Mapping[str, Tensor], count: int) -> Iterator[dict[str, Tensor]]:
    """Weights below each prefix that at least ``count`` of them share, without it; short prefixes first."""
    shared = Counter(name[: end + 1] for name in weights for end in range(len(name)) if name[end] == ".")
    for prefix in sorted((prefix for prefix, number in shared.items() if number >= count), key=len):
        yield {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _check_fit(module: nn.Module, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    kind = type(module).__name__
    missing = [name for name in expected if name not in weights]
    surplus = [name for name in weights if name not in expected]
    if missing or surplus:
        lines = [f"load_checkpoint: {source} does not fit {kind}: {len(missing)} missing, {len(surplus)} unknown"]
        for name in missing[:5]:
            near = get_close_matches(name, surplus, n=1)
            lines.append(f"  missing {name}" + (f" (the file has {near[0]})" if near else ""))
        lines += [f"  unknown {name}" for name in surplus[:5]]
        raise ValueError("\n".join(lines))
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise ValueError(
                f"load_checkpoint: {name} of {kind} has shape {tuple(tensor.shape)}, "
                f"{source} brings {tuple(weights[name].shape)}"
            )
        given = weights[name]
        is_quantized = tensor.is_floating_point() and not (given.is_floating_point() or given.is_complex())
        if is_quantized or (given.is_complex() and not tensor.is_complex()):
            raise ValueError(
                f"load_checkpoint: {name} of {kind} is of type {tensor.dtype}, {source} brings {given.dtype}"
            )
    learned = [name for name, _ in module.named_parameters(remove_duplicate=False) if name in weights]
    undefined = [name for name in learned if _holds_nan(weights[name])]  # buffers may, such as ranges
    if undefined:
        raise ValueError(
            f"load_checkpoint: {source} holds NaN in {len(undefined)} of {len(learned)} parameters of {kind}, first in "
            f"{undefined[0]}: its training diverged, take an earlier checkpoint"
        )


def _holds_nan(tensor: Tensor) -> bool:
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.is_floating_point() and tensor.itemsize == 1:  # float8 has no comparison
        tensor = tensor.float()
    return bool(tensor.isnan().any())
