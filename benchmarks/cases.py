"""What is measured: ops, shapes and dtypes, the contenders for each, and the bytes and operations none can avoid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import tta_restore
from tta_restore import ops

from . import original


class Case(ABC):
    """One op at one size; ``shape`` is that of its frames, (B, C, H, W)."""

    op: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Op, shape, settings and dtype."""
        shape, dtype = "x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")
        return " ".join((self.op, shape, *self.settings(), dtype))

    def settings(self) -> tuple[str, ...]:
        """What the name says besides op, shape and dtype."""
        return ()

    @abstractmethod
    def tensors(self, device: str) -> tuple[Tensor, ...]:
        """Make what the op takes, the frames first."""

    @abstractmethod
    def least_bytes(self, direction: str) -> int:
        """Bytes that any implementation must move: for the backward pass, inputs again, and gradients."""

    @abstractmethod
    def operations(self, direction: str) -> int:
        """Multiplications and additions that none can avoid."""

    @abstractmethod
    def contenders(self, device: str) -> dict[str, Callable[..., Tensor]]:
        """Name to function of the case's tensors. ``ours`` is the kernel of this device."""


@dataclass(frozen=True)
class AdaptiveConv(Case):
    """``sac``, ``iac`` or ``iac_from_features``. ``features`` is D, 0 where filters are given."""

    op: str
    shape: tuple[int, int, int, int]
    num_steps: int
    kernel_size: int
    dtype: torch.dtype = torch.float32
    features: int = 0
    layout: str = "contiguous"  # of x and the filters or features: or "channels_last", or "cropped" from wider ones

    def settings(self) -> tuple[str, ...]:
        layout = () if self.layout == "contiguous" else (self.layout,)
        return f"N{self.num_steps}", f"K{self.kernel_size}", *layout

    @property
    def filter_channels(self) -> int:
        per_step = self.shape[1] * (2 * self.kernel_size + (self.op != "sac"))
        return self.num_steps * per_step

    def tensors(self, device: str) -> tuple[Tensor, ...]:
        """Frames and filters near the identity, so that nothing overflows, dies out or becomes subnormal."""
        b, c, h, w = self.shape
        generator = torch.Generator().manual_seed(0)

        def rand(*size: int) -> Tensor:
            return torch.rand(size, generator=generator)

        center = torch.zeros(self.kernel_size)
        center[self.kernel_size // 2] = 1
        identity = torch.zeros(self.filter_channels)
        taps = self.num_steps * 2 * c * self.kernel_size
        identity[:taps] = center.repeat(taps // self.kernel_size)
        x = rand(b, c, h, w)
        if self.features:
            d = self.features
            made = (x, rand(b, d, h, w), (rand(self.filter_channels, d) - 0.5) * 0.1 / d, identity)
        else:
            filters = (rand(b, self.filter_channels, h, w).sub_(0.5)).mul_(0.05).add_(identity[:, None, None])
            made = (x, filters)
        made = tuple(_laid_out(t.to(device, self.dtype), self.layout) for t in made)
        return (made[0], *made[1].chunk(2, 1)) if self.op == "sac" else made

    def least_bytes(self, direction: str) -> int:
        b, c, h, w = self.shape
        size = _bytes(self.dtype)
        plane = b * c * h * w * size
        filters = 0 if self.features else b * self.filter_channels * h * w * size
        weights = b * self.features * h * w * size + self.filter_channels * (self.features + 1) * size
        inputs = filters + (weights if self.features else 0)
        forward = inputs + 2 * plane
        if direction == "forward":
            return forward
        return forward + inputs + inputs + 3 * plane

    def operations(self, direction: str) -> int:
        b, c, h, w = self.shape
        use = b * c * h * w * self.num_steps * 4 * self.kernel_size
        predictor = 2 * b * h * w * self.filter_channels * self.features
        return use + predictor if direction == "forward" else 3 * (use + predictor)

    def contenders(self, device: str) -> dict[str, Callable[..., Tensor]]:
        options: dict[str, Any] = {"num_steps": self.num_steps, "kernel_size": self.kernel_size}
        if self.op == "sac":
            return {
                **_ours_and_reference(ops.sac, device),
                "original": original.sac,
                "compiled": _compiled(original.sac),
            }
        old = partial(original.iac, **options)
        if self.op == "iac":
            ours = partial(ops.iac, **options)
            return {**_ours_and_reference(ours, device), "original": old, "compiled": _compiled(old)}
        fused = partial(ops.iac_from_features, **options)

        def composed(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return ops.iac(x, original.predict(features, weight, bias), **options)

        def first(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return old(x, original.predict(features, weight, bias))

        kernel = _kernel(device)
        return {
            "ours": _with_backend(kernel, fused),
            "composed": _with_backend(kernel, composed),
            "original": first,
        }


@dataclass(frozen=True)
class IsotropicReblur(Case):
    """``isotropic_reblur`` with kernels of all published sizes."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    kernel_sizes: tuple[int, ...] = (3, 5, 7, 9, 11, 13, 15)

    op = "isotropic_reblur"

    @property
    def channels(self) -> tuple[int, int, int]:
        """Of the image, the seeds and the weights."""
        return self.shape[1], sum((size + 1) // 2 for size in self.kernel_sizes), 1 + len(self.kernel_sizes)

    def tensors(self, device: str) -> tuple[Tensor, ...]:
        b, _, h, w = self.shape
        generator = torch.Generator().manual_seed(0)
        image, seeds, weights = self.channels
        made = (
            torch.rand(b, image, h, w, generator=generator),
            torch.randn(b, seeds, h, w, generator=generator),
            torch.rand(b, weights, h, w, generator=generator).softmax(1),
        )
        return tuple(t.to(device, self.dtype) for t in made)

    def least_bytes(self, direction: str) -> int:
        b, image, h, w = self.shape
        inputs = sum(self.channels)
        planes = inputs + image if direction == "forward" else 3 * inputs + 2 * image
        return planes * b * h * w * _bytes(self.dtype)

    def operations(self, direction: str) -> int:
        b, image, h, w = self.shape
        use = b * h * w * image * 2 * sum(size * size for size in self.kernel_sizes)
        return use if direction == "forward" else 3 * use

    def contenders(self, device: str) -> dict[str, Callable[..., Tensor]]:
        # torch.compile takes minutes for the original's hundreds of taps.
        ours = partial(ops.isotropic_reblur, kernel_sizes=self.kernel_sizes)
        return {
            **_ours_and_reference(ours, device),
            "original": partial(original.isotropic_reblur, kernel_sizes=self.kernel_sizes),
        }


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    if tensor.ndim != 4 or layout == "contiguous":
        return tensor
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    wide = tensor.new_zeros(*tensor.shape[:3], tensor.shape[3] + 15)
    wide[..., 5:-10] = tensor
    return wide[..., 5:-10]


def _bytes(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8


def _kernel(device: str) -> str:
    return "triton" if device == "cuda" else "cpu"


def _ours_and_reference(function: Callable[..., Tensor], device: str) -> dict[str, Callable[..., Tensor]]:
    return {"ours": _with_backend(_kernel(device), function), "reference": _with_backend("reference", function)}


def _with_backend(backend: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*tensors: Tensor) -> Tensor:
        with tta_restore.backend(backend):
            return function(*tensors)

    run.backend = backend  # for the backward pass
    return run


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)


DIRECTIONS = ("forward", "forward+backward")
CONTENDERS = ("ours", "reference", "composed", "original", "compiled", "fft")

FRAME, PATCH, TINY = (1, 128, 70, 105), (2, 128, 32, 32), (1, 2, 4, 4)
PHOTO = (1, 3, 256, 256)
GPU_FRAME = (1, 128, 140, 210)


def cases(device: str) -> list[Case]:
    from . import per_pixel  # which imports Case

    if device == "cuda":
        steps = [
            (op, GPU_FRAME, 17, 3, dtype, d)
            for op, d in (("iac", 0), ("iac_from_features", 128))
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        ]
        return [
            *(AdaptiveConv(*step) for step in steps),
            AdaptiveConv("iac", GPU_FRAME, 17, 5, torch.bfloat16),
            AdaptiveConv("iac", PATCH, 17, 3, torch.bfloat16),
            AdaptiveConv("sac", GPU_FRAME, 1, 3),
            *(IsotropicReblur((1, 3, 1120, 1680), dtype) for dtype in (torch.float32, torch.bfloat16)),
            IsotropicReblur(PHOTO),
            *per_pixel.cases(device),
        ]
    return [
        AdaptiveConv("iac", FRAME, 17, 3),
        *(AdaptiveConv("iac", FRAME, 17, 3, dtype) for dtype in (torch.bfloat16, torch.float16)),
        *(
            AdaptiveConv("iac", FRAME, 17, 3, dtype, layout="channels_last")
            for dtype in (torch.float32, torch.bfloat16)
        ),
        AdaptiveConv("iac", FRAME, 17, 5),
        AdaptiveConv("iac", PATCH, 17, 3),
        AdaptiveConv("sac", FRAME, 1, 3),
        *(AdaptiveConv("iac_from_features", FRAME, 17, 3, d, 128) for d in (torch.float32, torch.bfloat16)),
        AdaptiveConv("iac_from_features", PATCH, 17, 3, torch.float32, 128),
        IsotropicReblur(PHOTO),
        *per_pixel.cases(device),
    ]


def runner(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], direction: str) -> Callable[[], Any]:
    """Return a call without arguments that runs forward, or forward and backward, and keeps nothing."""
    if direction == "forward":

        def forward() -> None:
            with torch.no_grad():
                function(*tensors)

        return forward
    leaves = [t.detach().requires_grad_() for t in tensors]
    weights = torch.ones_like(tensors[0])

    def both() -> None:
        name = getattr(function, "backend", None)
        with tta_restore.backend(name) if name else nullcontext():  # the backward pass, too
            torch.autograd.grad(function(*leaves), leaves, weights)

    return both
