"""Triton launchers of the adaptive convolutions, one launch or two per step.

The state fits the L2 cache and stays there between steps; every filter tap is read once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_kernels as kernels
from .reference import in_format_of, states_in_format_of

STEP = {"BLOCK": 1024, "num_warps": 8}
# One compiled form per kernel and dtype of the predictor: (channels, depth, pixels) of a tile, and warps.
PREDICTED = {"full": (32, 16, 64, 8), "half": (64, 32, 64, 8)}


def predicted_tile(dtype: torch.dtype, channels: int, features: int, pixels: int) -> dict[str, Any]:
    """Return tile sizes, precision, offsets and warps of the kernel whose taps are predicted."""
    half = dtype != torch.float32
    most_channels, most_depth, width, warps = PREDICTED["half" if half else "full"]
    # Not torch.get_float32_matmul_precision(), which raises once a user has set an `fp32_precision`.
    tf32 = not half and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return {
        "BLOCK_C": max(16, min(most_channels, triton.next_power_of_2(channels))),
        "BLOCK_D": max(16, min(most_depth, triton.next_power_of_2(features))),
        "BLOCK": width,
        "PRECISION": "tf32" if tf32 else "ieee",
        "INDEX": tl.int64 if pixels * max(most_channels, most_depth) >= 2**31 else tl.int32,
        "num_warps": warps,
    }


def _launch(kernel: Any, grid: tuple[int], *args: Any, **constants: Any) -> None:
    """Launch; Triton warns where fusion of multiply and add is left to its changing default."""
    kernel[grid](*args, **constants, enable_fp_fusion=True)


def _blocks(x: Tensor, pixels: int) -> int:
    """Blocks of so many pixels in a plane; offsets within one are 32-bit."""
    height, width = x.shape[2:]
    if height * width > 2**31 - pixels:
        raise ValueError(f"triton: expected fewer than 2^31 pixels in x (B, C, H, W), got H, W = {height}, {width}")
    return triton.cdiv(height * width, pixels)


class _Steps:
    """The steps of one call: where their taps lie, and the slopes of their activations."""

    def __init__(
        self, x: Tensor, taps: tuple[Tensor, Tensor, Tensor | None], kernel_size: int, own: bool, slopes: list[float]
    ) -> None:
        self.vertical, horizontal, self.bias = taps
        self.horizontal = horizontal if own else self.vertical
        self.kernel_size, self.own, self.slopes = kernel_size, own, slopes
        self.sizes = x.shape[1:]
        self.grid = (x.shape[0] * x.shape[1] * _blocks(x, STEP["BLOCK"]),)

    def forward(self, n: int, u: Tensor, out: Tensor) -> None:
        bias = self.vertical if self.bias is None else self.bias
        _launch(
            kernels.step_kernel, self.grid, u, self.vertical, self.horizontal, bias, out, *self.sizes,
            u.stride(0), self.vertical.stride(0), bias.stride(0), out.stride(0), n, self.slopes[n],
            KS=self.kernel_size, BIAS=self.bias is not None, **STEP,
        )  # fmt: skip

    def backward(
        self, n: int, u: Tensor, out: Tensor | None, grad: Tensor, middle: Tensor, grad_u: Tensor,
        grad_taps: tuple[Tensor, Tensor, Tensor] | None,
    ) -> None:  # fmt: skip
        """Turn ``grad``, in the output of step n, into ``grad_u``, in its input; ``out`` None: it has no activation."""
        out = grad if out is None else out
        frames = out.stride(0), u.stride(0), self.vertical.stride(0)
        _launch(
            kernels.rows_backward_kernel, self.grid, grad, out, self.horizontal, middle, *self.sizes,
            frames[0], frames[2], n, self.slopes[n], KS=self.kernel_size, **STEP,
        )  # fmt: skip
        vertical, horizontal, bias = grad_taps or (grad_u,) * 3
        _launch(
            kernels.columns_backward_kernel, self.grid, grad, out, u, middle, self.vertical, grad_u, vertical,
            horizontal, bias, *self.sizes, *frames, bias.stride(0), n, self.slopes[n], KS=self.kernel_size,
            TAPS=grad_taps is not None, OWN=self.own, BIAS=self.bias is not None, **STEP,
        )  # fmt: skip


def _taps(filters: Tensor, num_steps: int, channels: int, kernel_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the offsets of the taps of the first step and of the biases."""
    taps = channels * kernel_size
    return filters, filters[:, taps:], filters[:, num_steps * 2 * taps :]


def _slopes(num_steps: int, negative_slope: float, activate_last: bool) -> list[float]:
    return [negative_slope] * (num_steps - 1) + [negative_slope if activate_last else 1.0]


def _wide(like: Tensor, *leading: int) -> Tensor:
    """Room for planes that are computed with: (*leading, B, C, H, W)."""
    return like.new_empty(*leading, *like.shape, dtype=torch.float32)


def _states(x: Tensor, num_steps: int, save: bool) -> tuple[Tensor, list[Tensor]]:
    """Allocate the states that ``iac`` returns and u_1 .. u_{N-1}, in two alternating planes unless they are saved."""
    b, *sizes = x.shape
    saved = x.new_empty(b, num_steps - 1 if save else 0, *sizes, dtype=torch.float32)
    if save:
        return saved, list(saved.unbind(1))
    spare = _wide(x, min(2, num_steps - 1))
    return saved, [spare[n % 2] for n in range(num_steps - 1)]


def sac(x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Launch the one step."""
    x, vertical, horizontal = x.contiguous(), vertical.contiguous(), horizontal.contiguous()
    out = torch.empty_like(x)
    if out.numel():
        with torch.cuda.device_of(x):
            steps = _Steps(x, (vertical, horizontal, None), vertical.shape[1] // x.shape[1], True, [1.0])
            steps.forward(0, x, out)
    return out


def sac_backward(
    grad: Tensor, x: Tensor, vertical: Tensor, horizontal: Tensor, need_taps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward of the one step."""
    given = vertical, horizontal
    grad, x, vertical, horizontal = (t.contiguous() for t in (grad, x, vertical, horizontal))
    grad_x = torch.empty_like(x)
    grad_vertical, grad_horizontal = (
        torch.empty_like(t) if need_taps else x.new_empty(0) for t in (vertical, horizontal)
    )
    if x.numel():
        with torch.cuda.device_of(x):
            steps = _Steps(x, (vertical, horizontal, None), vertical.shape[1] // x.shape[1], True, [1.0])
            taps = (grad_vertical, grad_horizontal, grad_horizontal) if need_taps else None
            steps.backward(0, x, None, grad, _wide(x), grad_x, taps)
    return grad_x, in_format_of(given[0], grad_vertical), in_format_of(given[1], grad_horizontal)


def iac(
    x: Tensor, filters: Tensor, num_steps: int, kernel_size: int, negative_slope: float, activate_last: bool,
    own: bool, save_states: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch step after step."""
    given, x, filters = filters, x.contiguous(), filters.contiguous()
    out = torch.empty_like(x)
    states, inner = _states(x, num_steps, save_states)
    if out.numel():
        taps, slopes = (
            _taps(filters, num_steps, x.shape[1], kernel_size),
            _slopes(num_steps, negative_slope, activate_last),
        )
        with torch.cuda.device_of(x):
            steps, planes = _Steps(x, taps, kernel_size, own, slopes), [x, *inner, out]
            for n in range(num_steps):
                steps.forward(n, planes[n], planes[n + 1])
    return out, states_in_format_of(given, states)


def iac_backward(
    grad: Tensor, x: Tensor, filters: Tensor, states: Tensor, num_steps: int, kernel_size: int, negative_slope: float,
    activate_last: bool, own: bool, need_filters: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch two kernels per step, from the last to the first."""
    given, grad, x, filters, channels = filters, grad.contiguous(), x.contiguous(), filters.contiguous(), x.shape[1]
    grad_x, grad_filters = torch.empty_like(x), torch.empty_like(filters) if need_filters else x.new_empty(0)
    if x.numel() == 0:
        return grad_x, in_format_of(given, grad_filters)
    grad_taps = _taps(grad_filters, num_steps, channels, kernel_size) if need_filters else None
    if need_filters and not own:  # the horizontal taps are never read
        halves = grad_filters[:, : num_steps * 2 * channels * kernel_size]
        halves.unflatten(1, (num_steps, 2, channels * kernel_size))[:, :, 1].zero_()
    slopes = _slopes(num_steps, negative_slope, activate_last)
    with torch.cuda.device_of(x):
        steps = _Steps(x, _taps(filters, num_steps, channels, kernel_size), kernel_size, own, slopes)
        if states.ndim == 5 and states.shape[1] == num_steps - 1:
            inner = list(states.contiguous().unbind(1))
        else:
            inner = _states(x, num_steps, save=True)[1]
            for n in range(num_steps - 1):
                steps.forward(n, [x, *inner][n], inner[n])
        last, middle, spare = None, _wide(x), _wide(x, min(2, num_steps - 1))
        planes = [x, *inner]
        if activate_last:  # the sign of the output, which is not saved
            last = _wide(x)
            steps.forward(num_steps - 1, planes[-1], last)
        grads = [grad_x, *(spare[n % 2] for n in range(num_steps - 1)), grad]
        for n in reversed(range(num_steps)):
            steps.backward(n, planes[n], [*inner, last][n], grads[n + 1], middle, grads[n], grad_taps)
    return grad_x, in_format_of(given, grad_filters)


def _predict_and_apply(
    x: Tensor, predictor: tuple[Tensor, Tensor, Tensor], planes: list[Tensor], kernel_size: int, own: bool,
    slopes: list[float],
) -> None:  # fmt: skip
    """Run the first ``len(planes) - 1`` steps from ``planes[0]``; two launches each, their filters never stored."""
    features, weight, bias = predictor
    (frames, channels, height, width), d = x.shape, features.shape[1]
    tile = predicted_tile(x.dtype, channels, d, height * width)
    grid = (frames * triton.cdiv(channels, tile["BLOCK_C"]) * _blocks(x, tile["BLOCK"]),)
    middle = _wide(x)
    for n in range(len(planes) - 1):
        for rows, source, out in ((False, planes[n], middle), (True, middle, planes[n + 1])):
            _launch(
                kernels.predicted_pass_kernel, grid, source, features, weight, bias, out, channels, d, height, width,
                len(slopes), source.stride(0), out.stride(0), n, slopes[n], KS=kernel_size, ROWS=rows, OWN=own, **tile,
            )  # fmt: skip


def _predict(
    x: Tensor, predictor: tuple[Tensor, Tensor, Tensor], first: int, biases: int, taps: int
) -> Tensor:  # fmt: skip
    """Make one step's filters (B, taps + C, H*W), in float32."""
    features, weight, bias = predictor
    (frames, channels, height, width), d = x.shape, features.shape[1]
    rows = taps + channels
    filters = x.new_empty(frames, rows, height * width, dtype=torch.float32)
    tile = predicted_tile(x.dtype, channels, d, height * width)
    grid = (frames * triton.cdiv(rows, tile["BLOCK_C"]) * _blocks(x, tile["BLOCK"]),)
    _launch(
        kernels.predict_kernel, grid, features, weight, bias, filters, d, height, width, first, biases, taps, rows,
        **tile,
    )  # fmt: skip
    return filters


def iac_from_features(
    x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, num_steps: int, kernel_size: int,
    negative_slope: float, activate_last: bool, own: bool,
) -> Tensor:  # fmt: skip
    """Make every tap in registers, where it is used."""
    x, *rest = (t.contiguous() for t in (x, features, weight, bias))
    out = torch.empty_like(x)
    if out.numel():
        planes, slopes = (
            [x, *_states(x, num_steps, save=False)[1], out],
            _slopes(num_steps, negative_slope, activate_last),
        )
        with torch.cuda.device_of(x):
            _predict_and_apply(x, (rest[0], rest[1], rest[2]), planes, kernel_size, own, slopes)
    return out


def iac_from_features_backward(
    grad: Tensor, x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, num_steps: int, kernel_size: int,
    negative_slope: float, activate_last: bool, own: bool, need_features: bool, need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Run forward again for the states; then the filters of one step at a time exist, with their gradient."""
    grad, x, features, weight, bias = (t.contiguous() for t in (grad, x, features, weight, bias))
    frames, channels, d = *x.shape[:2], features.shape[1]
    grad_x = torch.empty_like(x)
    grad_features = torch.zeros_like(features, dtype=torch.float32) if need_features else x.new_empty(0)
    grad_weight = torch.zeros_like(weight) if need_weight else x.new_empty(0)
    grad_bias = torch.zeros_like(bias) if need_weight else x.new_empty(0)
    if x.numel():
        slopes, taps = _slopes(num_steps, negative_slope, activate_last), channels * kernel_size
        flat, flat_grad = features.flatten(2), grad_features.view(frames, d, -1) if need_features else grad_features
        inner = _states(x, num_steps, save=True)[1]
        middle, last = _wide(x), _wide(x) if activate_last else None
        spare, planes = _wide(x, min(2, num_steps - 1)), [x, *inner]
        grads = [grad_x, *(spare[n % 2] for n in range(num_steps - 1)), grad]
        with torch.cuda.device_of(x):
            _predict_and_apply(x, (features, weight, bias), planes, kernel_size, own, slopes)
            for n in reversed(range(num_steps)):
                first, biases = n * 2 * taps, num_steps * 2 * taps + n * channels
                rows = (slice(first, first + (2 if own else 1) * taps), slice(biases, biases + channels))
                filters = _predict(x, (features, weight, bias), first, biases, rows[0].stop - first)
                wanted = need_features or need_weight
                grad_filters = torch.empty_like(filters, dtype=x.dtype) if wanted else None
                steps = _Steps(x, _step_taps(filters, taps, channels), kernel_size, own, slopes[n : n + 1])
                if n == num_steps - 1 and last is not None:
                    steps.forward(0, planes[n], last)
                steps.backward(
                    0, planes[n], [*inner, last][n], grads[n + 1], middle, grads[n],
                    None if grad_filters is None else _step_taps(grad_filters, taps, channels),
                )  # fmt: skip
                if grad_filters is not None and need_features:
                    flat_grad += torch.matmul(torch.cat([weight[r] for r in rows]).t(), grad_filters)
                if grad_filters is not None and need_weight:
                    sizes = [filters.shape[1] - channels, channels]
                    of_weight = torch.matmul(grad_filters, flat.transpose(1, 2)).sum(0).split(sizes)
                    of_bias = grad_filters.sum((0, 2)).split(sizes)
                    for r, w, b in zip(rows, of_weight, of_bias, strict=True):
                        grad_weight[r], grad_bias[r] = w, b
    return grad_x, grad_features.to(x.dtype), grad_weight, grad_bias


def _step_taps(filters: Tensor, taps: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split one step's filters (B, C*(2K+1) or, without horizontal taps, C*(K+1), H*W)."""
    return filters, filters[:, taps:], filters[:, -channels:]
