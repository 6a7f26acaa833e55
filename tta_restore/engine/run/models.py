"""Find the restorer that a user names: shipped weights, a checkpoint file, or a function in their own code."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tta_restore.models import Restorer, as_restorer, create_model, list_models

#: Shipped weights and the models they belong to.
SHIPPED = {"specialist": "lens_unet", "generalist": "lens_unet", "conditioned": "conditioned_lens_unet"}

_CALLABLE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)")


def load_restorer(
    source: str,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> Restorer:
    """The restorer that `source` names, in eval mode on `device`.

    A name of shipped weights (`specialist`, `generalist`, `conditioned`); a registered model such as `ifan`, with the
    weights of `checkpoint` and the keywords of `config`; a checkpoint file of one of the architectures that spandrel
    knows, read without running code; or `module.path:callable`, a function or class that gives a module, imported from
    the current folder or the Python path.

    Raises:
        ValueError: there is no such thing, it cannot be read, or it does not give a restorer.
        ImportError: spandrel is needed and not installed.
    """
    registered = source in list_models("restorer") and source not in SHIPPED
    if (checkpoint is not None or config) and not registered:
        raise ValueError(f"a checkpoint or keywords belong to a registered model, and {source!r} is none")
    if registered:
        if checkpoint is None:
            raise ValueError(f"model {source!r} needs weights: name its checkpoint")
        try:
            model: Any = create_model(source, checkpoint=checkpoint, **(config or {}))
        except TypeError as error:
            raise ValueError(f"model {source!r}: {error}") from error
    elif source in SHIPPED:
        model = create_model(SHIPPED[source], checkpoint=source)
    elif Path(source).is_file():
        model = _from_file(Path(source))
    elif _CALLABLE.fullmatch(source):
        model = model_from_code(source)
    else:
        hint = ""
        if ".py:" in source:
            module = source.split(".py:")[0].rsplit("/", 1)[-1]
            hint = f" (a module is named, not its file: {module}:{source.split(':', 1)[1]}, from within its folder)"
        elif Path(source).suffix or "/" in source:
            hint = " (there is no such file)"
        raise ValueError(
            f"no model {source!r}{hint}: expected one of {', '.join(SHIPPED)}, a checkpoint file, or "
            "module.path:callable; "
            f"with a checkpoint, one of {', '.join(list_models('restorer'))}"
        )
    try:
        restorer = as_restorer(model)
    except TypeError as error:
        raise ValueError(f"{source} gives no restorer: {error}") from error
    if isinstance(restorer.module, nn.Module):
        restorer.module.eval().requires_grad_(False)
    return restorer.to(device)


def _from_file(path: Path) -> Any:
    try:
        import spandrel
    except ImportError:
        raise ImportError(
            f"{path}: recognizing a checkpoint needs spandrel: pip install 'tta-restore[restorers]'", name="spandrel"
        ) from None
    try:
        # Read here and not by spandrel, which goes by the suffix: only tensors are taken, whatever the file is called.
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        registry = _architectures(spandrel)
        return spandrel.ModelLoader(registry=registry).load_from_state_dict(spandrel.canonicalize_state_dict(weights))
    except spandrel.UnsupportedModelError:
        raise ValueError(
            f"{path}: of no architecture that spandrel {spandrel.__version__} knows (spandrel_extra_arches adds "
            "some); build the model in a function of your own and name that: module.path:callable"
        ) from None
    except pickle.UnpicklingError:
        raise ValueError(f"{path}: damaged, or holds Python objects besides tensors, which could run code") from None
    except Exception as error:  # torch, safetensors and spandrel each have their own for a damaged file
        first = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {first})") from error


def _architectures(spandrel: Any) -> Any:
    """Those of spandrel, and those of spandrel_extra_arches where a user installed it (Restormer, MPRNet, ...).

    Some of the latter's licences allow research alone, so it is never a dependency; spandrel's own list stays as it is.
    """
    registry = spandrel.MAIN_REGISTRY.copy()
    if importlib.util.find_spec("spandrel_extra_arches") is not None:
        known = {entry.architecture.id for entry in registry}
        extra = importlib.import_module("spandrel_extra_arches").EXTRA_REGISTRY
        registry.add(*(entry for entry in extra if entry.architecture.id not in known))
    return registry


def model_from_code(source: str, **keywords: Any) -> Any:
    """What `module.path:callable` gives for the keywords, or the module of that name; from the current folder, too.

    Raises:
        ValueError: there is no such thing, or it cannot be called, or is a module already and takes no keywords.
    """
    module, _, name = source.partition(":")
    with _current_folder_importable():
        try:
            found: Any = importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"{source}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{source}: {module} has no {name}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        if keywords:
            raise ValueError(f"{source}: is a module already and takes no keywords, got {', '.join(keywords)}")
        return found
    if not callable(found):
        raise ValueError(f"{source}: expected a module or a function that gives one, got {type(found).__name__}")
    return found(**keywords)


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
