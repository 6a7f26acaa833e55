"""Run any restorer by its specification: pad, map values, call, pick the image, crop; differentiable all the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tta_restore._core import checks
from tta_restore._core.ambient import global_random, uncompiled
from tta_restore._core.library import autocast_dtype
from tta_restore.models.restorer import outputs
from tta_restore.models.restorer.preserve import preserve_state
from tta_restore.models.restorer.spec import RestorerSpec, SizeRequirements, pad

__all__ = ["Restoration", "Restorer", "as_restorer"]


@dataclass(frozen=True)
class Restoration:
    """Output of a restorer for a frame: the image in [0, 1] inside the pytree that the model returns."""

    image: Tensor
    raw: Any
    path: outputs.Path

    def with_image(self, image: Tensor) -> Restoration:
        """Return the same, with another image."""
        return replace(self, image=image)

    def output(self) -> Any:
        """Return the model's output with the image replaced; everything else is unchanged."""
        if not self.path:
            return self.image  # of a model that returns nothing else
        return outputs.transform(self.raw, lambda path, leaf: self.image if path == self.path else leaf)


class Restorer(nn.Module):
    """A restorer run by its :class:`RestorerSpec`; the wrapped module itself stays as it is.

    Frames are padded to sides that the model takes, or cut into tiles where it takes no larger ones, mapped from [0, 1]
    to its value range, given to it as a fresh tensor (a model may write into its input), and the image found in its
    output is mapped back and cropped. Nothing is clamped. Without a spec, scale and sizes are measured on the first
    frame by trying small ones.

    Attributes:
        module: the wrapped module or function, untouched.
        spec: declared or measured; None until it is known.
    """

    module: nn.Module | Callable[..., Any]

    def __init__(self, module: nn.Module | Callable[..., Any], spec: RestorerSpec | None = None) -> None:
        super().__init__()
        self.module = module
        self.spec = spec

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        """Return the restored image of a frame; ``arguments`` go to the model unchanged.

        Shape:
            - x: (B, C, H, W), or (B, T, C, H, W) for a model of clips, RGB in [0, 1]
            - output: (B, C, scale * H, scale * W), about [0, 1], not clamped

        Raises:
            TypeError: ``x`` is no floating-point tensor.
            ValueError: ``x`` does not fit the spec, or the model returns no image of the expected size.
        """
        return self.restore(x, **arguments).image

    def restore(
        self,
        x: Tensor,
        *,
        call: Callable[..., Any] | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        **arguments: Any,
    ) -> Restoration:
        """Restore a frame and return the image together with everything else that the model returns.

        ``call`` runs instead of the module, on the tensor that the module would have got, in ``memory_format``;
        adapters run the model with other weights that way. Keywords with a value for each pixel of the frame, such as
        a map of noise levels, are padded as the frame is.
        """
        call = self.module if call is None else call
        spec = self.known_spec(x, **arguments)
        if spec.in_channels == 1 and x.ndim == 4 and x.shape[1] == 3:
            return self._by_channels(x, call=call, memory_format=memory_format, arguments=arguments)
        self._check(x, spec)
        if not spec.batched and x.shape[0] > 1:
            parts = [
                self._restore(
                    image, spec, call, memory_format, {name: _row(v, i, len(x)) for name, v in arguments.items()}
                )
                for i, image in enumerate(x.split(1))
            ]
            image = torch.cat([part.image for part in parts])
            return Restoration(image, outputs.concatenate([part.raw for part in parts]), parts[0].path)
        return self._restore(x, spec, call, memory_format, arguments)

    def images(self, restoration: Restoration) -> list[Tensor]:
        """Every image of the restored one's shape in what the model returned, the restored one first, about [0, 1].

        Models of several stages return one per stage, which their training compares with the target, too.
        """
        low, high = (0.0, 1.0) if self.spec is None else self.spec.value_range
        found = [restoration.image]
        for path, leaf in outputs.leaves(restoration.raw):
            if path != restoration.path and leaf.shape == restoration.image.shape and leaf.is_floating_point():
                found.append(((leaf - low) / (high - low)).to(restoration.image.dtype))
        return found

    def known_spec(self, x: Tensor, *, on: nn.Module | None = None, **arguments: Any) -> RestorerSpec:
        """Return the specification; measured on small frames like ``x`` and kept where none was declared.

        ``on`` is a copy of the module to measure on.
        """
        if self.spec is None:
            from tta_restore.models.restorer.inference import infer_spec  # which builds on specifications

            _expect_frames(x)
            module = on or getattr(self.module, "_orig_mod", self.module)  # small sizes would recompile it every time
            like = self._cast(x.detach())
            try:
                self.spec = infer_spec(module, like, arguments)
            except ValueError as error:
                if like.ndim != 4 or like.shape[1] != 3:
                    raise
                try:  # a model of one channel
                    self.spec = replace(infer_spec(module, like[:, :1], arguments), in_channels=1)
                except ValueError:
                    raise error from error.__cause__
        return self.spec

    def _by_channels(self, x: Tensor, *, arguments: dict[str, Any], **options: Any) -> Restoration:
        """Restore the channels of color frames as frames of their own."""
        count = len(x)
        rows: dict[str, Any] = {
            name: v.repeat_interleave(3, 0) if count > 1 and isinstance(v, Tensor) and v.ndim and len(v) == count else v
            for name, v in arguments.items()
        }
        part = self.restore(x.reshape(3 * count, 1, *x.shape[2:]), **options, **rows)

        def together(_: outputs.Path, leaf: Tensor) -> Tensor:
            is_image = leaf.ndim == 4 and leaf.shape[:2] == (3 * count, 1)
            return leaf.reshape(count, 3, *leaf.shape[2:]) if is_image else leaf

        return Restoration(together((), part.image), outputs.transform(part.raw, together), part.path)

    def _restore(
        self,
        x: Tensor,
        spec: RestorerSpec,
        call: Callable[..., Any],
        memory_format: torch.memory_format,
        arguments: dict[str, Any],
    ) -> Restoration:
        height, width = x.shape[-2:]
        largest = spec.size.largest
        sides = zip(spec.padded(height, width), largest or (), strict=False)
        if largest is not None and any(side > most for side, most in sides) and spec.dense:
            from tta_restore.models.restorer.tiles import Tiles  # which builds on restorations

            tile = largest[0] - 2 * spec.border, largest[1] - 2 * spec.border
            return Tiles(tile, min(tile) // 4).run(
                lambda tile, _, cut: self._restore(tile, spec, call, memory_format, cut),
                x,
                arguments=arguments,
                scale=spec.scale,
            )
        low, high = spec.value_range
        inputs = self._cast(pad(x, spec.size, border=spec.border))
        if (low, high) != (0, 1):
            inputs = inputs * (high - low) + low
        if inputs is x:
            inputs = x.clone()  # the model may write into it
        padded = inputs.shape[-2], inputs.shape[-1]
        if inputs.ndim == 4 and memory_format != torch.contiguous_format:  # clips have no channels_last
            inputs = inputs.contiguous(memory_format=memory_format)
        if padded != (height, width) and arguments:
            arguments = {
                name: pad(value, spec.size, border=spec.border) if _is_map(value, x) else value
                for name, value in arguments.items()
            }
        try:
            raw = call(inputs, **arguments)
        except Exception as error:  # as the model raised it: a user may wait for this kind
            taken = None if spec.in_channels else self._taken_channels(x, spec, call, arguments)
            if taken is not None:
                raise ValueError(
                    f"restorer: expected x with {taken} channels, which the model takes, got {x.shape[-3]} in "
                    f"{tuple(x.shape)}{layout_hint(x.shape)}"
                ) from error
            name = type(self.module).__name__ if isinstance(self.module, nn.Module) else "the function"
            error.add_note(f"restorer: raised by {name} for an input of shape {tuple(inputs.shape)}")
            raise
        path = outputs.find_image(raw, spec, padded, clips=x.ndim == 5)
        size = outputs.at(raw, path).shape[-2:]
        if padded != (height, width) and spec.dense:
            # rows and columns of the frame begin behind the part of the border that the model did return
            start = spec.border * spec.scale - (spec.missing(padded, size) or 0)
            rows, columns = (slice(start, start + side * spec.scale) for side in (height, width))
            raw = outputs.transform(raw, lambda _, leaf: leaf[..., rows, columns] if leaf.shape[-2:] == size else leaf)
        image = outputs.at(raw, path)
        if (low, high) != (0, 1) and spec.dense:
            image = (image - low) / (high - low)
        if inputs.dtype != x.dtype:
            image = image.to(x.dtype)
        return Restoration(image, raw, path)

    def _taken_channels(
        self, x: Tensor, spec: RestorerSpec, call: Callable[..., Any], arguments: dict[str, Any]
    ) -> int | None:
        """Return how many channels a model takes that refuses as many as ``x`` has; None where that is not why."""
        from tta_restore.models.restorer.inference import CHANNELS  # which builds on specifications

        sides = spec.padded(*(min(side, 32) for side in x.shape[-2:]))

        def takes(channels: int) -> bool:
            try:
                call(self._cast(x.new_full((1, *x.shape[1:-3], channels, *sides), 0.5)), **arguments)
            except Exception:  # whatever a third-party model raises
                return False
            return True

        own = call is self.module and isinstance(self.module, nn.Module)
        kept = preserve_state(self.module) if own else contextlib.nullcontext()  # type: ignore[arg-type]
        with kept, global_random(x.device), torch.no_grad(), uncompiled():
            if takes(x.shape[-3]):
                return None
            return next((channels for channels in CHANNELS if takes(channels)), None)

    def _check(self, x: Tensor, spec: RestorerSpec) -> None:
        _expect_frames(x)
        if spec.frames == 1:
            letters, sizes = "(B, C, H, W)", [None, spec.in_channels, None, None]
        else:
            letters, sizes = "(B, T, C, H, W)", [None, spec.frames, spec.in_channels, None, None]
        checks.expect_shape("restorer", "x", x, letters, sizes)
        weight = self._weight()
        if weight is not None and weight.device != x.device:
            raise ValueError(f"restorer: expected x on the model's device {weight.device}, got {x.device}")

    def _weight(self) -> Tensor | None:
        if not isinstance(self.module, nn.Module):
            return None
        first = None
        for parameter in self.module.parameters():
            if parameter.is_floating_point() and parameter.itemsize > 1:  # floats of 8 bits only store values
                if parameter.ndim > 1:  # a kernel: single factors may be more precise
                    return parameter
                first = parameter if first is None else first
        return first

    def _cast(self, x: Tensor) -> Tensor:
        weight = self._weight()
        if weight is None or weight.dtype == x.dtype or autocast_dtype(x.device.type) is not None:
            return x
        return x.to(weight.dtype)


def as_restorer(model: Any, spec: RestorerSpec | None = None) -> Restorer:
    """Restorer around a module, a function, or a spandrel descriptor, none of which is edited or copied.

    A descriptor is unwrapped to its module and keeps its scale, channels and size requirement. DataParallel and
    DistributedDataParallel are unwrapped. A module may carry its own spec as attribute ``spec``.

    Raises:
        TypeError: ``model`` cannot be called, or ``spec`` is no specification.
    """
    if spec is not None and not isinstance(spec, RestorerSpec):
        raise TypeError(f"as_restorer: expected spec to be a RestorerSpec, got {type(spec).__name__} {spec!r}")
    if isinstance(model, Restorer):
        return model if spec is None else Restorer(model.module, spec)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return as_restorer(model.module, spec)
    if isinstance(model, nn.Module):
        if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
            raise ValueError(
                f"as_restorer: {type(model).__name__} has lazy weights without a shape; run the model on a frame first"
            )
        own = getattr(model, "spec", None)
        return Restorer(model, spec or (own if isinstance(own, RestorerSpec) else None))
    if isinstance(getattr(model, "model", None), nn.Module) and hasattr(model, "size_requirements"):
        return Restorer(model.model, spec or _spec_of_descriptor(model))
    if isinstance(model, type):
        raise TypeError(f"as_restorer: expected a module, got the class {model.__name__}; pass an instance of it")
    if callable(model):
        return Restorer(model, spec)
    raise TypeError(f"as_restorer: expected a module, a function or a spandrel descriptor, got {type(model).__name__}")


def layout_hint(shape: Sequence[int]) -> str:
    """Return what a caller may have meant whose frames have the channels last."""
    last = shape[-1] in (1, 3, 4) and shape[-3] not in (1, 3, 4)
    return " (channels come before rows and columns: move the last axis)" if last else ""


def _expect_frames(x: Tensor) -> None:
    """Raise where nothing that any restorer takes came, with what the caller may have meant."""
    checks.expect_floating("restorer", x=x)
    shape = tuple(x.shape)
    hint = ""
    if x.ndim == 3:
        last = shape[-1] in (1, 3, 4) and shape[0] not in (1, 3, 4)
        hint = f"; x{'.permute(2, 0, 1)' if last else ''}[None] has a batch axis{' and channels first' if last else ''}"
    if x.ndim not in (4, 5):
        raise ValueError(f"restorer: expected x of shape (B, C, H, W), or (B, T, C, H, W) for clips, got {shape}{hint}")
    if min(shape[1:]) < 1:
        raise ValueError(f"restorer: expected x (B, C, H, W) with C, H and W of at least 1, got {shape}")


def _is_map(value: Any, x: Tensor) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 3 and value.shape[-2:] == x.shape[-2:]


def _row(value: Any, index: int, batch: int) -> Any:
    """Return the part of one image of a batch: a row of tensors that have one per image, anything else unchanged."""
    one_each = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch
    return value[index : index + 1] if one_each else value


def _spec_of_descriptor(descriptor: Any) -> RestorerSpec:
    size = descriptor.size_requirements
    return RestorerSpec(
        scale=descriptor.scale,
        in_channels=descriptor.input_channels,
        out_channels=descriptor.output_channels,
        size=SizeRequirements(max(1, size.minimum), max(1, size.multiple_of), bool(size.square)),
    )
