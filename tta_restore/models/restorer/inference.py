"""Infer the scale and the size requirements of a model from trial runs."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore._core.ambient import global_random, uncompiled, with_usual_defaults
from tta_restore.models.restorer.outputs import describe_output, infer_border, infer_scale, is_vector, leaves
from tta_restore.models.restorer.preserve import preserve_state
from tta_restore.models.restorer.restorer import Restorer, layout_hint
from tta_restore.models.restorer.spec import RestorerSpec, SizeRequirements

CHANNELS = (3, 1, 2, 4, 6)  # of frames that are tried where none are declared
_MULTIPLES = ((1, 2, 4, 8, 16, 32, 64, 128), (3, 5, 6, 7, 9, 10, 12, 14, 18, 20, 24, 28, 40, 48, 56, 80, 96, 112))
_SIDES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
_ONLY = (256, 512, 224, 384, 32, 16)  # square sizes of models that take no other


@with_usual_defaults
def infer_spec(
    module: nn.Module | Callable[..., Any], like: Tensor, arguments: Mapping[str, Any] | None = None
) -> RestorerSpec:
    """Infer the specification of a model from runs on small noise with the channels, dtype and device of ``like``.

    The multiple is the smallest power of two of which odd multiples near 64 pixels run and give an image of the right
    size, else, for a model that refuses sizes, the smallest other number up to 112; a few larger sides are not tried,
    so a declared spec is to be preferred. A model that takes a single square size gets it as its maximum. A model whose
    image depends on the others of its batch is run image by image. Nothing stays changed in the module.

    Shape: like (B, C, H, W) or (B, T, C, H, W), RGB in [0, 1].

    Raises:
        ValueError: no small size gives an image, and ``like`` itself gives none either or is refused by the model.
    """
    generator, clips = torch.Generator().manual_seed(0), like.ndim == 5

    def run(height: int, width: int, channels: int = like.shape[-3]) -> Any:
        shape = (1, *like.shape[1:-3], channels, height, width)
        noise = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
        try:
            raw = module(noise.to(like), **_resized(arguments or {}, like, height, width, 1))
        except Exception:  # whatever a third-party model raises for a size it cannot take
            return None
        return raw if all(leaf.isfinite().all() for _, leaf in leaves(raw)) else None

    def fit(multiple: int, square: bool, length: int) -> tuple[tuple[int, int] | None, bool]:
        """Scale and border with sides near a length that are odd multiples, and whether the model refused them."""
        # two of them where smaller divisors are possible: their only common divisors divide the multiple
        side = multiple * (length // multiple | 1)
        sides = (side, side if square else side + 2 * multiple)
        raw = run(*sides)
        scale = infer_scale(raw, sides, clips=clips)
        if scale is not None and square and side > multiple:
            larger = (side + 2 * multiple,) * 2
            scale = scale if infer_scale(run(*larger), larger, clips=clips) == scale else None
        if scale is not None:
            return (scale, 0), False
        found = None if square else infer_border(raw, sides, clips=clips)
        if found is not None:  # a model that drops what exceeds its multiple lacks something else there
            larger = (sides[0] + multiple, sides[1] + multiple)
            found = found if infer_border(run(*larger), larger, clips=clips) == found else None
        return found, raw is None

    def requirement() -> tuple[int, SizeRequirements, int] | None:
        refused = False
        for square, multiples in ((square, multiples) for multiples in _MULTIPLES for square in (False, True)):
            if multiples is _MULTIPLES[1] and not refused:
                break  # what it returns is no image
            for multiple in multiples:
                found, without_output = fit(multiple, square, 64)
                if found is not None:
                    # smaller multiples may have been refused because their sides were a little shorter
                    finer = (part for part in multiples if refused and part < multiple and multiple % part == 0)
                    length = multiple * (64 // multiple | 1)
                    multiple = next((part for part in finer if fit(part, square, length)[0] == found), multiple)
                    only = multiple if square and multiple > 32 and run(*(2 * multiple,) * 2) is None else None
                    size = SizeRequirements(only or smallest(multiple, *found), multiple, square, only)
                    return found[0], size, found[1]
                refused |= without_output
        for side in _ONLY if refused else ():
            scale = infer_scale(run(side, side), (side, side), clips=clips)
            if scale is not None:
                return scale, SizeRequirements(side, side, True, side), 0
        return None

    def smallest(multiple: int, scale: int, border: int = 0) -> int:
        spec = RestorerSpec(scale=scale, border=border)
        sides = sorted({-(-(side + 2 * border) // multiple) * multiple for side in _SIDES})
        return next((side for side in sides if _gives(run(side, side), spec, side, clips)), sides[-1])

    def takes_batches(height: int, width: int) -> bool:
        pair = torch.rand((2, *like.shape[1:-2], height, width), generator=generator, dtype=torch.float32, device="cpu")
        one, two = (_resized(arguments or {}, like, height, width, batch) for batch in (1, 2))
        pair = pair.to(like)
        try:
            both = dict(leaves(module(pair.clone(), **two)))
        except Exception:  # whatever a third-party model raises for two images at once
            return False
        first, second = (dict(leaves(module(pair[i : i + 1].clone(), **one))) for i in (0, 1))
        tolerance = 1e-4 if like.dtype in (torch.float32, torch.float64) else 3e-2
        images = [path for path, leaf in first.items() if leaf.ndim >= 4 and leaf.is_floating_point()]
        if all(_near(torch.cat([first[path], second[path]]), both.get(path), tolerance) for path in images):
            return True
        again = dict(leaves(module(pair[:1].clone(), **one)))
        return not all(_near(first[path], again.get(path), tolerance) for path in first)  # a random one says nothing

    kept = preserve_state(module, training=False) if isinstance(module, nn.Module) else contextlib.nullcontext()
    with kept, global_random(like.device), torch.no_grad(), uncompiled():
        found = requirement()
        if found is None:  # a model of one fixed size, perhaps this one
            size = (like.shape[-2], like.shape[-1])
            try:
                raw = module(like.clone(), **(arguments or {}))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                letters = "(B, C, H, W)" if like.ndim == 4 else "(B, T, C, H, W)"
                problem = " ".join(str(error).split()) or "no reason given"
                missing = [name for name in further_inputs(module) if name not in (arguments or {})]
                remedy = "sizes that it takes can be declared in a RestorerSpec"
                if missing:
                    remedy = f"pass {' and '.join(missing)} with each frame, by keyword"
                raise ValueError(
                    f"restorer: expected x of a shape that the model takes, got {letters} = {tuple(like.shape)}"
                    f"{layout_hint(like.shape)}; the model raised {type(error).__name__}: {problem}; {remedy}"
                ) from error
            if [leaf.shape[0] for _, leaf in leaves(raw) if is_vector(leaf)] == [like.shape[0]]:
                return RestorerSpec(frames=None if like.ndim == 5 else 1, dense=False)
            scale = infer_scale(raw, size, clips=clips)
            if scale is None:
                raise ValueError(
                    "restorer: found no image in the model's output for any small frame, nor for "
                    f"{size[0]}x{size[1]}, where it gave {describe_output(raw)}; declare scale, size and output in a "
                    "RestorerSpec"
                )
            only = SizeRequirements(size[0], size[0], True, size[0])
            found = scale, only if size[0] == size[1] else SizeRequirements(size, maximum=size), 0
        scale, size, border = found
        sides = size.largest or size.fit(*(max(32 - border, 8) + 2 * border,) * 2)
        batched = takes_batches(*(sides if run(*sides) is not None else like.shape[-2:]))
        one = not clips and like.shape[1] == 1 and run(*sides) is not None and run(*sides, channels=3) is None
    spec = RestorerSpec(scale=scale, size=size, frames=None if clips else 1, border=border, batched=batched)
    return replace(spec, in_channels=1) if one else spec


@with_usual_defaults
def example_frame(name: str, restorer: Restorer) -> Tensor:
    """Noise of 64x64 pixels that a restorer takes: an image (1, C, 64, 64) with C 3, 1, 2, 4 or 6, or a clip.

    The spec is measured on it where none was declared, and names the channels if they are others than three.

    Raises:
        ValueError: it takes none of them; ``name`` begins the message.
    """
    module: Any = restorer.module
    weight = next(module.parameters(), torch.zeros(())) if isinstance(module, nn.Module) else torch.zeros(())
    declared = restorer.spec.in_channels if restorer.spec else None
    clip = (restorer.spec.frames or 5,) if restorer.spec and restorer.spec.frames != 1 else ()
    problem: Exception | None = None
    for channels in (declared,) if declared else CHANNELS:
        frame = torch.rand(1, *clip, channels, 64, 64, generator=torch.Generator().manual_seed(0)).to(weight.device)
        trial = Restorer(getattr(module, "_orig_mod", module), restorer.spec)  # small sizes would compile it anew
        kept = preserve_state(module, training=False) if isinstance(module, nn.Module) else contextlib.nullcontext()
        try:
            with global_random(frame.device), torch.no_grad(), kept:
                spec = trial.known_spec(frame)
                if restorer.spec is not None:  # declared, and not known to be right
                    trial(frame)
        except Exception as error:  # whatever a third-party model raises
            problem = problem or error
            continue
        restorer.spec = spec if channels == CHANNELS[0] else replace(spec, in_channels=channels)
        return frame[..., : spec.in_channels or channels, :, :]
    remedy = (
        "declare channels and sizes in a RestorerSpec; for a model of a single size, such as 96x160, that is "
        "size=SizeRequirements(minimum=(96, 160), maximum=(96, 160))"
    )
    if further := further_inputs(module):
        passed = "them" if further[1:] else "it"
        remedy = f"it also takes {' and '.join(further)}; wrap it in a module that passes {passed} on"
    raise ValueError(f"{name}: no frame suits {type(module).__name__}; {remedy}") from problem


def further_inputs(model: Any) -> list[str]:
    """Return the names of the inputs that a model needs besides the frame; none where its signature is unknown."""
    try:
        parameters = inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters.values()
    except (TypeError, ValueError):
        return []
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [p.name for p in parameters if p.kind in by_name and p.default is inspect.Parameter.empty]
    return needed[1:]


def _resized(arguments: Mapping[str, Any], like: Tensor, height: int, width: int, batch: int) -> dict[str, Any]:
    """Keywords for noise of these sides: maps and rows of the frame's size are continued by their first value."""
    fitted = dict(arguments)
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        if value.ndim >= 3 and value.shape[-2:] == like.shape[-2:]:
            value = value[..., :1, :1].expand(*value.shape[:-2], height, width)
        if value.ndim and len(value) == len(like) > 1:  # one for each image
            value = value[:1].expand(batch, *value.shape[1:])
        fitted[name] = value
    return fitted


def _near(a: Tensor, b: Tensor | None, tolerance: float) -> bool:
    """Return whether two tensors differ by rounding only, relative to the largest value."""
    if b is None or a.shape != b.shape:
        return False
    a, b = a.float(), b.float()
    return bool(((a - b).abs().max() <= tolerance * max(1.0, float(a.abs().max()))).item())


def _gives(raw: Any, spec: RestorerSpec, side: int, clips: bool) -> bool:
    """Return whether an output holds an image that fits the specification for an input with these sides."""
    if not spec.border:
        return infer_scale(raw, (side, side), clips=clips) == spec.scale
    shapes = [leaf.shape[-2:] for _, leaf in leaves(raw) if leaf.ndim >= 4]
    return any(min(shape) > 0 and spec.missing((side, side), shape) is not None for shape in shapes)
