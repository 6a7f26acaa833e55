"""Inject adapter layers into a third-party model through forward hooks that are registered only during a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tta_restore._core import checks
from tta_restore._core.ambient import global_random, with_usual_defaults
from tta_restore.adapters.examination import expect_exchangeable
from tta_restore.adapters.settings import RecordedModule
from tta_restore.models import Restorer
from tta_restore.models.restorer.inference import example_frame
from tta_restore.models.restorer.preserve import preserve_state
from tta_restore.nn import SemanticCrossAttention

__all__ = [
    "CONTEXT",
    "Injection",
    "Semantic",
    "Site",
    "WithInjection",
    "expect_site",
    "find_site",
    "hooked",
    "is_injected",
]

_WIDE = 128  # channels from which on a site is wide enough


@dataclass(frozen=True)
class Site:
    """A module of a model and the layout of its output.

    Attributes:
        path: dotted name of the module.
        channels: number of feature channels.
        axis: axis of the output that holds the channels: 1 for (B, C, H, W), -1 for (B, L, C) and (B, H, W, C).
        pixels: locations per image that the features had on the frame tried.
        dtype: dtype of the features.
        device: device of the features.
        restored: the model's restoration of the frame tried, (B, C, H, W).
    """

    path: str
    channels: int
    axis: int
    pixels: int
    dtype: torch.dtype
    device: torch.device
    restored: Tensor


@contextmanager
def hooked(root: nn.Module, path: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change the output of the module at ``path`` for the time of the block; of several tensors the first."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return change(output)
        if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
            return type(output)([change(output[0]), *output[1:]])
        raise TypeError(f"expected {path} to put out a tensor or a list that starts with one")

    handle = root.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def find_site(
    restorer: Restorer, path: str, *, asker: str = "Semantic", frame: Tensor | None = None, **arguments: Any
) -> Site:
    """Return the site at ``path``, or for "auto" the deepest: fewest pixels, then widest, then last.

    "auto" takes the module that the model names in an attribute ``semantic_site``, if it has one; else one of those
    that are called once and have at least 128 channels (or as many as the model has). The model is run on ``frame``
    with ``arguments``, or on noise. Errors begin with ``asker``.

    Raises:
        ValueError: there is no such module, or its output holds no features.
        TypeError: the model is a function, or was compiled.
    """
    root, path, names = expect_site(restorer, path, asker=asker)
    if frame is None:
        try:
            frame = example_frame(asker, restorer)
        except ValueError as error:
            raise ValueError(
                f"{asker}: {type(root).__name__} takes no frame by itself, on which its features would be measured "
                f"({error.__cause__}); wrap it in a module that does"
            ) from error
        frame = frame if frame.ndim == 5 else torch.cat([frame, frame[..., : frame.shape[-1] // 2]], -1)  # not square
    found = _observe(restorer, root, names if path == "auto" else [path], frame, arguments)
    if not found:
        where = "any of its modules" if path == "auto" else repr(path)
        raise ValueError(
            f"{asker}: {where} of {type(root).__name__} puts out no features (B, C, H, W) or (B, L, C) exactly once"
            + (" in the proportions of the frame; pass at=<path of a module>" if path == "auto" else "")
        )
    enough = min(_WIDE, max(site.channels for site in found))
    return min(
        (site for site in reversed(found) if site.channels >= enough), key=lambda site: (site.pixels, -site.channels)
    )


def expect_site(restorer: Restorer, path: str, *, asker: str) -> tuple[nn.Module, str, list[str]]:
    """Return the module to hook into, the path that "auto" stands for, and the names of its modules.

    Raises:
        ValueError: there is no such module.
        TypeError: the model is a function, or was compiled or scripted.
    """
    root = restorer.module
    if not isinstance(root, nn.Module):
        raise TypeError(f"{asker}: expected a module to inject into, got a function")
    if hasattr(root, "_orig_mod"):
        raise TypeError(f"{asker}: hooks do not reach into a compiled module; wrap the module that was compiled")
    if isinstance(root, torch.jit.ScriptModule):
        raise TypeError(
            f"{asker}: TorchScript hides the modules of a model; pass the module that was scripted or traced"
        )
    expect_exchangeable(asker, root, None)
    path = getattr(root, "semantic_site", path) if path == "auto" else path
    names = [name for name, part in root.named_modules() if name and not isinstance(part, torch.jit.ScriptModule)]
    if path != "auto" and path not in names:
        near = ", ".join(get_close_matches(path, names, n=3, cutoff=0.4) or names[:6])
        hint = f"did you mean {near}?" if near else "it has no modules inside"
        raise ValueError(f"{asker}: {type(root).__name__} has no module {path!r}; {hint}")
    return root, path, names


def _observe(
    restorer: Restorer, root: nn.Module, paths: list[str], frame: Tensor, arguments: dict[str, Any]
) -> list[Site]:
    """Sites among the modules at ``paths``, in the order in which they finish."""
    outputs: dict[str, list[Any]] = {}
    handles = []
    drawn = global_random(frame.device)
    with drawn, torch.inference_mode(False), torch.no_grad(), preserve_state(root, training=False):
        spec = restorer.known_spec(frame, **arguments)

        def note(path: str, output: Any) -> None:
            outputs.setdefault(path, []).append(output)

        try:
            for path in paths:
                hook = partial(lambda path, _module, _inputs, output: note(path, output), path)
                handles.append(root.get_submodule(path).register_forward_hook(hook))
            restored = restorer(frame, **arguments)
        finally:
            for handle in handles:
                handle.remove()
    height, width = spec.padded(frame.shape[-2], frame.shape[-1])
    sites = []
    for path, seen in outputs.items():
        features: Any = seen[0][0] if isinstance(seen[0], (tuple, list)) and seen[0] else seen[0]
        strict = len(paths) > 1  # found, not chosen by the caller
        axis = _channel_axis(features, height, width, strict) if len(seen) == 1 or not strict else None
        if axis is not None:
            channels = features.shape[axis]
            sites.append(
                Site(
                    path, channels, axis, features[0].numel() // channels, features.dtype, features.device,
                    restored if restored.ndim == 4 else restored[:, 0],
                )
            )  # fmt: skip
    return sites


def _channel_axis(features: Any, height: int, width: int, strict: bool) -> int | None:
    """Return the channel axis inferred from the shape; None for tensors that are no features.

    ``strict`` wants the frame's proportions, which weights, windows and tables of attention do not have.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point() or features.ndim not in (3, 4, 5):
        return None
    if features.ndim == 3:
        batch, length, _ = features.shape
        return -1 if length > 1 and not (strict and (batch != 1 or height * width % length)) else None
    a, b, c = features.shape[-3:]
    if min(b, c) > 1 and b * width == c * height:
        return features.ndim - 3
    if features.ndim == 4 and a * width == b * height and a > 1:
        return -1
    return features.ndim - 3 if min(b, c) > 1 and not strict else None


CONTEXT = "injected_context"
"""Keyword of ``run`` and ``ensemble`` that goes to what was injected, not to the model."""
_PREFIX = "injected."


class Injection(nn.Module):
    """Layers ``(features, context) -> features`` behind modules of a model; without a context they do nothing.

    Their weights are called ``injected.<path of the module>.<name in the layer>``.
    """

    def __init__(self, sites: Sequence[Site], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.layers = nn.ModuleList(layers).eval().requires_grad_(False)

    def weights(self) -> dict[str, nn.Parameter]:
        """Return the layers' weights by their full names."""
        return {
            f"{_PREFIX}{site.path}.{name}": parameter
            for site, layer in zip(self.sites, self.layers, strict=True)
            for name, parameter in layer.named_parameters()
        }

    @contextmanager
    def active(self, root: nn.Module, tensors: Mapping[str, Tensor], context: Tensor) -> Iterator[None]:
        """Use ``tensors`` in place of the weights that they name, for the duration of the block."""
        with ExitStack() as stack:
            for site, layer in zip(self.sites, self.layers, strict=True):
                start = f"{_PREFIX}{site.path}."
                used = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
                stack.enter_context(hooked(root, site.path, partial(_changed, site, layer, used, context)))
            yield


class WithInjection(nn.Module):
    """A model with injected layers as one module: ``module(x, context)``; without context the plain model."""

    def __init__(self, module: nn.Module, injection: Injection) -> None:
        super().__init__()
        self.module, self.injection = module, injection

    def forward(self, x: Tensor, context: Tensor | None = None, **arguments: Any) -> Any:
        """Run the model on ``x`` with a context (B, D) or (B, S, D)."""
        if context is None:
            return self.module(x, **arguments)
        with self.injection.active(self.module, {}, context):
            return self.module(x, **arguments)


def is_injected(name: str) -> bool:
    """Return whether a weight of that name belongs to an injected layer."""
    return name.startswith(_PREFIX)


def _changed(site: Site, layer: nn.Module, used: dict[str, Tensor], context: Tensor, features: Tensor) -> Tensor:
    shape = features.shape
    if site.axis != -1:
        flat = features.reshape(-1, *shape[-3:])  # frames of a clip
    elif len(shape) == 4:
        flat = features.flatten(1, 2)
    else:
        flat = features
    if flat.shape[0] != context.shape[0]:
        context = context.repeat_interleave(flat.shape[0] // context.shape[0], 0)
    return functional_call(layer, used, (flat, context)).reshape(shape)


class Semantic(RecordedModule):
    """A semantic context for a model, encoded from the source's restoration.

    The context enters by cross-attention behind modules of the model, ``Semantic(encoder, at="decoder.0")``, or, where
    the model takes a context, by keyword, ``Semantic(encoder, argument="context")``. Injected layers start as the
    identity, in hooks that exist only while the adapter runs the model.

    Args:
        encoder: from images (B, 3, H, W) in [0, 1] to a context (B, D) or (B, S, D), such as
            :class:`tta_restore.nn.OpenClipEncoder`. A module is run in eval mode and never trained.
        at: path of the module behind which to inject, or several; "auto" for the deepest wide one, which ``plan()``
            shows.
        argument: keyword by which the model takes the context.
        every: number of frames that share one context.
        num_heads: heads of the cross-attention.
        res_scale: factor of the residual that the cross-attention adds.
        zero_init: whether it starts as the identity; False for random weights.
        seed: seed of its random weights.

    Raises:
        ValueError: neither or both of ``at`` and ``argument`` are given, or ``argument`` cannot be a keyword.
        TypeError: ``encoder`` cannot be called.

    Source: CauSiam (arXiv 2501.09052), semantic prior by cross-attention.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor],
        at: str | Sequence[str] | None = None,
        *,
        argument: str | None = None,
        every: int = 1,
        num_heads: int = 8,
        res_scale: float = 0.05,
        zero_init: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(encoder):
            raise TypeError(f"Semantic: expected encoder to be callable, got {type(encoder).__name__}")
        if (at is None) == (argument is None):
            raise ValueError("Semantic: expected either at=<module path> or argument=<keyword of the model>")
        if argument is not None and not argument.isidentifier():
            raise ValueError(f"Semantic: expected argument to be the name of a keyword, got {argument!r}")
        checks.expect_int("Semantic", "every", every, minimum=1)
        self.encoder, self.argument, self.every = encoder, argument, every
        self.at = None if at is None else (at,) if isinstance(at, str) else tuple(at)
        self.num_heads, self.res_scale, self.zero_init, self.seed = num_heads, res_scale, zero_init, seed

    def forward(self, restored: Tensor) -> Tensor:
        """Return the context of a source restoration (B, C, H, W), or of a clip's (B, T, C, H, W) middle frame."""
        if restored.ndim == 5:
            restored = restored[:, restored.shape[1] // 2]
        return self.encoder(restored.clamp(0, 1)).detach()

    def keywords(self, context: Tensor) -> dict[str, Any]:
        """Return keywords for ``run`` and ``ensemble``."""
        return {self.argument or CONTEXT: context}

    @with_usual_defaults
    def injection(self, restorer: Restorer) -> Injection | None:
        """Return the layers to inject, after a run of the restorer and the encoder; None for ``argument=``."""
        if self.at is None:
            return None
        sites = [find_site(restorer, path) for path in self.at]
        with torch.inference_mode(False), torch.no_grad():
            width = self(sites[0].restored).shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layers = [
                SemanticCrossAttention(
                    site.channels, width, num_heads=self.num_heads, res_scale=self.res_scale, zero_init=self.zero_init
                ).to(site.device, site.dtype)
                for site in sites
            ]
        return Injection(sites, layers)

    def extra_repr(self) -> str:
        """Show where the context goes."""
        where = f"argument={self.argument!r}" if self.at is None else f"at={self.at!r}"
        return f"{where}, every={self.every}"
