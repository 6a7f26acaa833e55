"""Cases of per-pixel and product convolution and of the oriented Gaussian, next to what they replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tta_restore import ops

from .cases import Case, _bytes, _compiled, _ours_and_reference


def unfold_multiply_sum(x: Tensor, kernels: Tensor, *, kernel_size: int, groups: int) -> Tensor:
    """Per-pixel convolution as it is usually written, borders replicated."""
    b, c, h, w = x.shape
    columns = F.unfold(F.pad(x, (kernel_size // 2,) * 4, mode="replicate"), kernel_size)
    columns = columns.view(b, groups, c // groups, kernel_size**2, h, w)
    return (columns * kernels.view(b, groups, 1, kernel_size**2, h, w)).sum(3).view(b, c, h, w)


@dataclass(frozen=True)
class PixelConv(Case):
    """``adaptive_conv2d`` with G kernels per pixel."""

    shape: tuple[int, int, int, int]
    kernel_size: int
    groups: int
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format  # of the kernels

    op = "adaptive_conv2d"

    def settings(self) -> tuple[str, ...]:
        layout = () if self.memory_format == torch.contiguous_format else ("channels_last",)
        return f"K{self.kernel_size}", f"G{self.groups}", *layout

    def tensors(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        b, _, h, w = self.shape
        x = torch.rand(self.shape, generator=generator)
        kernels = torch.rand(b, self.groups * self.kernel_size**2, h, w, generator=generator)
        return x.to(device, self.dtype), kernels.to(device, self.dtype, memory_format=self.memory_format)

    def least_bytes(self, direction: str) -> int:
        b, c, h, w = self.shape
        kernels = self.groups * self.kernel_size**2
        planes = kernels + 2 * c if direction == "forward" else 3 * kernels + 5 * c
        return planes * b * h * w * _bytes(self.dtype)

    def operations(self, direction: str) -> int:
        b, c, h, w = self.shape
        use = 2 * b * c * h * w * self.kernel_size**2
        return use if direction == "forward" else 3 * use

    def contenders(self, device: str) -> dict[str, Callable[..., Tensor]]:
        options = {"kernel_size": self.kernel_size, "groups": self.groups}
        original = partial(unfold_multiply_sum, **options)
        ours = partial(ops.adaptive_conv2d, **options)
        return {**_ours_and_reference(ours, device), "original": original, "compiled": _compiled(original)}


@dataclass(frozen=True)
class ProductConv(Case):
    """``product_conv2d`` with R kernels for all channels."""

    shape: tuple[int, int, int, int]
    kernel_size: int
    count: int
    dtype: torch.dtype = torch.float32

    op = "product_conv2d"

    def settings(self) -> tuple[str, ...]:
        return f"K{self.kernel_size}", f"R{self.count}"

    def tensors(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        b, _, h, w = self.shape
        made = (
            torch.rand(self.shape, generator=generator),
            torch.rand(b, self.count, 1, self.kernel_size, self.kernel_size, generator=generator),
            torch.rand(b, self.count, h, w, generator=generator).softmax(1),
        )
        return tuple(t.to(device, self.dtype) for t in made)

    def least_bytes(self, direction: str) -> int:
        b, c, h, w = self.shape
        planes = self.count + 2 * c if direction == "forward" else 3 * self.count + 5 * c
        return planes * b * h * w * _bytes(self.dtype)

    def operations(self, direction: str) -> int:
        b, c, h, w = self.shape
        use = 2 * b * c * h * w * self.count * (self.kernel_size**2 + 1)
        return use if direction == "forward" else 3 * use

    def contenders(self, device: str) -> dict[str, Callable[..., Tensor]]:
        margin = self.kernel_size // 2

        def convolved(x: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
            b, c, h, w = x.shape
            padded = F.pad(x, (margin,) * 4, mode="reflect").flatten(0, 1)[None]
            each = (
                kernels.flip(-2, -1)
                .expand(-1, -1, c, -1, -1)
                .transpose(1, 2)
                .reshape(b * c * self.count, 1, *kernels.shape[3:])
            )
            blurred = F.conv2d(padded, each, groups=b * c).view(b, c, self.count, h, w)
            return (blurred * weights[:, None]).sum(2)

        def transformed(x: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
            h, w = x.shape[2:]
            padded = F.pad(x, (margin,) * 4, mode="reflect")
            size = padded.shape[2:]
            spectrum = torch.fft.rfft2(padded)[:, None] * torch.fft.rfft2(kernels, s=size)
            blurred = torch.fft.irfft2(spectrum, s=size)[..., 2 * margin :, 2 * margin :]
            return (blurred[..., :h, :w] * weights[:, :, None]).sum(1)

        both = _ours_and_reference(ops.product_conv2d, device)
        ours = both if device == "cuda" else {"ours": both["reference"]}  # torch's own operators serve the CPU
        return {**ours, "original": convolved, "fft": transformed}


@dataclass(frozen=True)
class AnisotropicReblur(Case):
    """``anisotropic_reblur`` next to its reference, which holds no kernels either."""

    shape: tuple[int, int, int, int]
    kernel_size: int
    dtype: torch.dtype = torch.float32

    op = "anisotropic_reblur"

    def settings(self) -> tuple[str, ...]:
        return (f"K{self.kernel_size}",)

    def tensors(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        b, _, h, w = self.shape
        made = (
            torch.rand(self.shape, generator=generator),
            torch.rand(b, 2, h, w, generator=generator) * 2 + 0.5,
            torch.rand(b, 1, h, w, generator=generator) * 3,
        )
        return tuple(t.to(device, self.dtype) for t in made)

    def least_bytes(self, direction: str) -> int:
        b, c, h, w = self.shape
        planes = 3 + 2 * c if direction == "forward" else 9 + 5 * c
        return planes * b * h * w * _bytes(self.dtype)

    def operations(self, direction: str) -> int:
        b, c, h, w = self.shape
        use = b * c * h * w * 2 * self.kernel_size**2
        return use if direction == "forward" else 3 * use

    def contenders(self, device: str) -> dict[str, Callable[..., Tensor]]:
        return _ours_and_reference(partial(ops.anisotropic_reblur, kernel_size=self.kernel_size), device)


FRAME, PHOTO = (1, 128, 70, 105), (1, 3, 256, 256)


def cases(device: str) -> list[Case]:
    """Cases of this file, for ``cases.cases``."""
    return [
        *(PixelConv(FRAME, size, 128) for size in (3, 5, 7)),
        PixelConv((1, 32, 70, 105), 11, 32),
        *(PixelConv(FRAME, 5, 128, dtype) for dtype in (torch.bfloat16, torch.float16)),
        PixelConv(FRAME, 5, 128, memory_format=torch.channels_last),
        PixelConv((1, 64, 128, 128), 7, 1),
        *(ProductConv(PHOTO, size, 6) for size in (5, 15, 31)),
        *(ProductConv((1, 3, 1120, 1680), size, 6) for size in (5, 11) if device == "cuda"),
        *(AnisotropicReblur(PHOTO, size) for size in (7, 15, 31)),
    ]
