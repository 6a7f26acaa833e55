"""Find the network that a user names: shipped weights, a registered model, a checkpoint file, or their own code."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tta_restore.data.io.files import suggest_path
from tta_restore.engine.run.memory import expect_memory, within_memory
from tta_restore.engine.run.names import SHIPPED_MODELS
from tta_restore.engine.run.settings import Named, typed_keywords
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.run.user_code import guarded, import_named, is_named
from tta_restore.models import Restorer, as_restorer, create_model, list_models, load_checkpoint
from tta_restore.models.checkpoint import read, read_metadata, resolve
from tta_restore.models.jdrl import BlurConditioned
from tta_restore.models.registry import is_plugin

__all__ = [
    "build_module",
    "describe_network",
    "expect_restorer",
    "load_named",
    "load_restorer",
    "module_from_code",
    "origin_of",
    "read_origin",
]

#: Keys of the state that :func:`tta_restore.engine.train.files.save_state` writes.
_TRAINING_STATE = {"step", "identity", "weights", "optimizers"}
#: Kind of network -> its name among the exports of a training.
_EXPORTS = {"restorer": "restorer", "reblurrer": "reblur", "discriminator": "discriminator"}


def load_restorer(
    source: str | Named,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> Restorer:
    """Return the restorer that ``source`` names, in eval mode on ``device``.

    Args:
        source: shipped weights ("specialist", "generalist", "conditioned", "denoiser", "jpeg_cleaner", "upscaler"); a
            registered model such as "ifan", with a checkpoint; a checkpoint file, written by a training of this package
            or of an architecture that spandrel recognizes; or ``module.path:callable``, a function or class that
            returns a module.
        device: where the restorer runs.
        checkpoint: weights of a registered model or of the module that user code returns; the ``state.pt`` of an
            unfinished training is one, too.
        config: keywords of the builder.

    Raises:
        ValueError: there is no such model, it cannot be read, or it is not a restorer.
        ImportError: spandrel is needed and not installed.
    """
    named = Named.of(source)
    name, config = named.name, {**named.settings, **(config or {})}
    if name in SHIPPED_MODELS and checkpoint is None and not config:
        model: Any = create_model(SHIPPED_MODELS[name], checkpoint=name)
    elif _is_registered(name, "restorer") and name not in SHIPPED_MODELS:
        if checkpoint is None and not is_plugin(name):  # which may bring its weights
            raise ValueError(f"model {name!r} needs weights: name its checkpoint")
        model = build_module(name, checkpoint=checkpoint, config=config)
    elif is_named(name):
        model = build_module(name, checkpoint=checkpoint, config=config)
    elif checkpoint is not None or config:
        raise ValueError(
            f"a checkpoint or keywords belong to a registered model or to module.path:callable, and {name!r} is neither"
        )
    elif name and os.path.isfile(name):
        model = _from_file(Path(name))
    else:
        raise ValueError(_unknown(name))
    try:
        restorer = as_restorer(model)
    except TypeError as error:
        raise ValueError(f"{name} returns no restorer: {error}") from error
    if isinstance(restorer.module, nn.Module):
        _expect_finite(restorer.module, str(name if checkpoint is None else checkpoint))
        restorer.module.eval().requires_grad_(False)
    return restorer.to(device)


def _is_registered(name: str, kind: str) -> bool:
    """Return whether a model is registered, or announced by a plug-in, which may fail when it is built."""
    return name in list_models(kind) or (kind == "restorer" and is_plugin(name))


def _expect_finite(module: nn.Module, source: str) -> None:
    """Refuse weights with which nothing but NaN can come out.

    Raises:
        ValueError: a parameter holds NaN.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_meta or not (parameter.is_floating_point() or parameter.is_complex()):
            continue
        if bool(parameter.isnan().any()):
            raise ValueError(f"{source}: the weights of {name} hold NaN: the training of this model has failed")


def build_module(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    kind: str = "restorer",
) -> nn.Module:
    """Return a network by name, with the weights of a checkpoint where one is given.

    Args:
        name: of a registered network, of shipped weights, or ``module.path:callable``.
        checkpoint: see :func:`load_restorer`.
        config: keywords of the builder; ``blur_map=True`` conditions the restorer on its estimated blur map (JDRL), and
            the checkpoint holds the weights of both or of the restorer alone.
        kind: of registered networks: "restorer", "reblurrer", "discriminator" or "estimator".

    Raises:
        ValueError: there is no such network or checkpoint, or the builder does not take one of the keywords.
    """
    options = dict(config or {})
    if name in SHIPPED_MODELS and checkpoint is None:
        name, checkpoint = SHIPPED_MODELS[name], name
    if options.pop("blur_map", False):
        if name != "jdrl_unet":
            return _conditioned(name, checkpoint, options, kind)
        name = "jdrl_journal"
    state = _training_state(checkpoint, kind)
    if is_named(name):
        with within_memory(name):
            module = module_from_code(name, **options)
        if checkpoint is not None:
            load_checkpoint(module, checkpoint if state is None else state[1])
        return module
    if not _is_registered(name, kind):
        raise ValueError(f"no {kind} {name!r}; there are: {', '.join(list_models(kind))}")
    try:
        if checkpoint is None and options and not is_plugin(name):
            expect_memory(name, options)
        if state is None:
            with within_memory(name):
                return create_model(name, checkpoint=checkpoint, **options)
        return load_checkpoint(create_model(name, **{**state[0].get("config", {}), **options}), state[1])
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from error


def _conditioned(name: str, checkpoint: str | Path | None, options: Mapping[str, Any], kind: str) -> BlurConditioned:
    """Return a network that is conditioned on its blur map, with the weights of both or of the network alone."""
    state = _training_state(checkpoint, kind)
    weights = checkpoint if state is None else state[1]
    content = read(resolve(weights)) if isinstance(weights, (str, Path)) else weights
    if content is not None and not _holds_estimator(content):
        return BlurConditioned(build_module(name, checkpoint=checkpoint, config=options, kind=kind))
    known = {} if checkpoint is None else read_origin(resolve(checkpoint), kind).get("config") or {}
    if known.get("restorer", name) == name:  # as describe_network wrote it
        own = {key: value for key, value in known.get("config", known).items() if key != "blur_map"}
        options = own | dict(options)
    conditioned = BlurConditioned(build_module(name, config=options, kind=kind))
    return conditioned if weights is None else load_checkpoint(conditioned, weights)


def _holds_estimator(content: Any) -> bool:
    """Return whether a checkpoint has weights of an estimator of blur maps, next to others or in a wrapper."""
    return isinstance(content, Mapping) and any(
        "estimator" in str(name).lower() or _holds_estimator(entry) for name, entry in content.items()
    )


def describe_network(
    name: str, checkpoint: str | Path | None, options: Mapping[str, Any], kind: str = "restorer"
) -> tuple[str, dict[str, Any]]:
    """Return the registered name, or ``module.path:callable``, and the keywords that :func:`build_module` builds from.

    Raises:
        ValueError: there is no such checkpoint.
    """
    own, known = dict(options), {}
    if checkpoint is None and name in SHIPPED_MODELS:
        checkpoint = name
    if checkpoint is not None:
        known = dict(read_origin(resolve(checkpoint), kind).get("config") or {})
    name = SHIPPED_MODELS.get(name, name)
    conditioned = own.pop("blur_map", False)
    if conditioned and name == "jdrl_unet":
        return "jdrl_journal", known | own
    if conditioned and name in list_models():
        return "blur_conditioned", {"restorer": name, "config": known.get("config", known) | own}
    return name, known | own | ({"blur_map": True} if conditioned else {})


def origin_of(
    source: str | Named, checkpoint: str | Path | None = None, config: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Return metadata by which weights of the restorer of :func:`load_restorer` load without its name; else empty."""
    named = Named.of(source)
    name, options = named.name, {**named.settings, **(config or {})}
    if name in list_models("restorer") or name in SHIPPED_MODELS or is_named(name):
        model, known = describe_network(name, checkpoint, options)
    else:
        origin = read_origin(name)
        model, known = origin.get("model"), origin.get("config") or {}
    return {} if model is None else {"model": str(model), "config": json.dumps(known, default=str)}


def module_from_code(source: str, **keywords: Any) -> Any:
    """Return the module that ``module.path:callable`` returns for the keywords, or the module of that name.

    Raises:
        ValueError: there is no such thing, it cannot be called, it raises, or it is a module and takes no keywords.
    """
    found = import_named(source)
    if isinstance(found, nn.Module):
        if keywords:
            raise ValueError(f"{source}: is a module already and takes no keywords, got {', '.join(keywords)}")
        return found
    if not callable(found):
        raise ValueError(f"{source}: expected a module or a function that returns one, got {type(found).__name__}")
    try:
        typed = typed_keywords(found, keywords)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    with guarded(source):
        return found(**typed)


def _unknown(name: str) -> str:
    hint = ""
    if ".py:" in name:
        module = name.split(".py:")[0].rsplit("/", 1)[-1]
        hint = f" (name the module, not its file: {module}:{name.split(':', 1)[1]}, from within its folder)"
    elif os.path.isdir(name):
        hint = " (this is a folder)"
    elif Path(name).suffix or "/" in name:
        hint = f" (there is no such file{suggest_path(Path(name))})"
    return (
        f"no model {name!r}{hint}: expected one of {', '.join(SHIPPED_MODELS)}, a checkpoint file, or "
        f"module.path:callable; with a checkpoint, one of {', '.join(list_models('restorer'))}"
    )


def read_origin(path: str | Path, kind: str | None = None, *, run: bool = False) -> dict[str, Any]:
    """Return "model" and "config" that a checkpoint or the state of a training was built from; empty if unknown.

    Args:
        path: file of weights, or ``state.pt``.
        kind: network of a state that has several, see :func:`build_module`; None for the first one.
        run: whether the model is to be built by what the file names, which code of a user may not be.

    Raises:
        ValueError: the state has no network of this kind, or the file names code of a user that is to be run.
    """
    state = _training_state(path, kind)
    origin = read_metadata(Path(path)) if state is None else state[0]
    name = origin.get("model")
    if run and name is not None and is_named(name):
        raise ValueError(
            f"{path}: holds weights of {name}; code is not run because a file names it: give --model {name}"
        )
    return origin


def _training_state(path: str | Path | None, kind: str | None = None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return origin and weights of a network in the state of an unfinished training; None for any other file."""
    if path is None or Path(path).suffix != ".pt" or not os.path.isfile(path):
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the reader of checkpoints says what is wrong with it
        return None
    if not (isinstance(content, Mapping) and set(content) >= _TRAINING_STATE):
        return None
    held = {name.partition(".")[0] for name in content["weights"]}
    wanted = [export for own, export in _EXPORTS.items() if kind in (None, own) and export in held]
    if not wanted:
        raise ValueError(f"{path}: the state of a training without a {kind or 'network'}")
    prefix = f"{wanted[0]}."
    weights = {key.removeprefix(prefix): value for key, value in content["weights"].items() if key.startswith(prefix)}
    return dict(content.get("built", {}).get(wanted[0], {})), weights


def load_named(path: str | Path, kind: str | None = None) -> nn.Module | None:
    """Return the network of a checkpoint, or of the state of a training, that names a registered model; else None.

    Args:
        path: file.
        kind: "restorer", "reblurrer", "discriminator" or "estimator"; None for any.

    Raises:
        ValueError: the file is damaged, or names code of a user, which is not run for that.
    """
    origin = read_origin(path, kind, run=True)
    name = origin.get("model", "")
    known = [own for own in ("restorer", "reblurrer", "discriminator", "estimator") if kind in (None, own)]
    found = next((own for own in known if name in list_models(own)), None)
    return None if found is None else build_module(name, checkpoint=path, config=origin.get("config"), kind=found)


def _from_file(path: Path) -> Any:
    """Return the model of a checkpoint file that names it, or that spandrel recognizes."""
    found = load_named(path)
    if found is not None:
        return found
    if _training_state(path) is not None:
        raise ValueError(f"{path}: the state of a training of an unregistered network; name it by --model")
    return _recognize(path)


def _recognize(path: Path) -> Any:
    try:
        import spandrel
    except ImportError:
        raise ImportError(
            f"{path}: recognizing a checkpoint needs spandrel: pip install 'tta-restore[restorers]'", name="spandrel"
        ) from None
    weights = read(path)  # here and not by spandrel, which goes by the suffix: only tensors are taken
    if not isinstance(weights, dict):
        raise ValueError(f"{path}: expected weights by name, got {type(weights).__name__}")
    try:
        registry = _architectures(spandrel)
        return spandrel.ModelLoader(registry=registry).load_from_state_dict(spandrel.canonicalize_state_dict(weights))
    except spandrel.UnsupportedModelError:
        raise ValueError(
            f"{path}: not an architecture that spandrel {spandrel.__version__} recognizes (spandrel_extra_arches adds "
            "some); build the model in a function of your own and name that: module.path:callable"
        ) from None
    except Exception as error:  # whatever spandrel stumbles over in weights that it does not know
        first = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {first})") from error


def _architectures(spandrel: Any) -> Any:
    """Return the architectures of spandrel, and of spandrel_extra_arches where it is installed (Restormer, ...).

    Some licenses of the latter allow research only, so it is never a dependency; spandrel's registry is not changed.
    """
    registry = spandrel.MAIN_REGISTRY.copy()
    if importlib.util.find_spec("spandrel_extra_arches") is not None:
        known = {entry.architecture.id for entry in registry}
        extra = importlib.import_module("spandrel_extra_arches").EXTRA_REGISTRY
        registry.add(*(entry for entry in extra if entry.architecture.id not in known))
    return registry


def expect_restorer(
    source: str | Named,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> Restorer:
    """Return :func:`load_restorer`'s result, its errors as :class:`UsageError`.

    Raises:
        UsageError: the restorer cannot be loaded.
    """
    try:
        return load_restorer(source, device=device, checkpoint=checkpoint, config=config)
    except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:
        raise UsageError(str(error)) from error
