"""Triton launchers of the adaptive convolutions: one launch for all steps, or one or two per step.

The state fits the L2 cache and stays there between steps; every filter tap is read once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from . import triton_kernels as kernels
from .reference import in_format_of, states_in_format_of

STEP = {"BLOCK": 1024, "num_warps": 8}
CHANNEL = {"BLOCK": 8192, "num_warps": 32}
CHANNEL_BACKWARD = {"BLOCK": 2048, "num_warps": 16}
LEAST_BUSY = 0.75  # share of the multiprocessors that the programs of a channel each keep busy on average


def _launch(kernel: Any, grid: tuple[int], *args: Any, **constants: Any) -> None:
    """Launch; Triton warns where fusion of multiply and add is left to its changing default."""
    kernel[grid](*args, **constants, enable_fp_fusion=True)


def _blocks(x: Tensor, pixels: int) -> int:
    """Blocks of so many pixels in a plane; offsets within one are 32-bit."""
    height, width = x.shape[2:]
    if height * width > 2**31 - pixels:
        raise ValueError(f"triton: expected fewer than 2^31 pixels in x (B, C, H, W), got H, W = {height}, {width}")
    return triton.cdiv(height * width, pixels)


def _fills_device(x: Tensor) -> bool:
    """Return whether a program per channel and frame, one to a multiprocessor, keeps most of the device busy."""
    programs = x.shape[0] * x.shape[1]
    at_once = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    return programs >= LEAST_BUSY * at_once * triton.cdiv(programs, at_once)


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

    def forward(self, x: Tensor, out: Tensor, states: Tensor | None = None, first: int = 0) -> None:
        """Run the steps from ``first`` on; ``states`` (B, steps - 1, C, H, W) take what lies between them."""
        slopes, bias = self.slopes[first:], self.vertical if self.bias is None else self.bias
        constants = {"KS": self.kernel_size, "BIAS": self.bias is not None}
        frames = x.stride(0), self.vertical.stride(0), bias.stride(0), out.stride(0)
        pixels = self.sizes[1] * self.sizes[2]
        if self._in_one_launch(x, out):
            scratch = _wide(x, min(2, len(slopes)))
            _launch(
                kernels.channel_kernel, (x.shape[0] * x.shape[1],), x, self.vertical, self.horizontal, bias,
                scratch if states is None else states, scratch, out, self.sizes[0], self.sizes[2], pixels // 8,
                *(frame // pixels for frame in frames), first, len(slopes), slopes[0], slopes[-1],
                SAVE=states is not None, **constants, **CHANNEL,
            )  # fmt: skip
            return
        if states is None:
            spare = _wide(x, min(2, len(slopes) - 1))
            planes = [x, *(spare[n % 2] for n in range(len(slopes) - 1)), out]
        else:
            planes = [x, *states.unbind(1), out]
        for n, (slope, u, result) in enumerate(zip(slopes, planes, planes[1:], strict=False), first):
            _launch(
                kernels.step_kernel, self.grid, u, self.vertical, self.horizontal, bias, result, *self.sizes,
                u.stride(0), *frames[1:3], result.stride(0), n, slope, **constants, **STEP,
            )  # fmt: skip

    def backward(
        self, grad: Tensor, x: Tensor, states: Tensor | None, out: Tensor | None, grad_x: Tensor,
        grad_taps: tuple[Tensor, Tensor, Tensor] | None,
    ) -> None:  # fmt: skip
        """Turn ``grad``, in the output of the last step, into ``grad_x``, in the input of the first, and ``grad_taps``.

        ``states`` (B, steps - 1, C, H, W) are what lies between the steps; ``out`` None: no activation is the last.
        """
        slopes, out = self.slopes, grad if out is None else out
        vertical, horizontal, bias = grad_taps or (grad_x,) * 3
        constants = {"TAPS": grad_taps is not None, "OWN": self.own, "BIAS": self.bias is not None}
        pixels = self.sizes[1] * self.sizes[2]
        if self.kernel_size == 3 and self._in_one_launch(grad, out, x, grad_x, vertical, horizontal):
            scratch = _wide(x, 2 if grad_taps is None else 4 if self.own else 5)
            _launch(
                kernels.channel_backward_kernel, (x.shape[0] * x.shape[1],), grad, out, x,
                scratch if states is None else states, self.vertical, self.horizontal, scratch, grad_x, vertical,
                horizontal, bias, self.sizes[0], self.sizes[2], pixels // 8,
                *(t.stride(0) // pixels for t in (out, x, self.vertical)), len(slopes), slopes[0], slopes[-1],
                **constants, **CHANNEL_BACKWARD,
            )  # fmt: skip
            return
        middle, spare = _wide(x), _wide(x, min(2, len(slopes) - 1))
        planes = [x] if states is None else [x, *states.unbind(1)]
        outs, grads = [*planes[1:], out], [grad_x, *(spare[n % 2] for n in range(len(slopes) - 1)), grad]
        for n, (slope, u, y) in reversed(list(enumerate(zip(slopes, planes, outs, strict=True)))):
            frames = y.stride(0), u.stride(0), self.vertical.stride(0)
            _launch(
                kernels.rows_backward_kernel, self.grid, grads[n + 1], y, self.horizontal, middle, *self.sizes,
                frames[0], frames[2], n, slope, KS=self.kernel_size, **STEP,
            )  # fmt: skip
            _launch(
                kernels.columns_backward_kernel, self.grid, grads[n + 1], y, u, middle, self.vertical, grads[n],
                vertical, horizontal, bias, *self.sizes, *frames, bias.stride(0), n, slope, KS=self.kernel_size,
                **constants, **STEP,
            )  # fmt: skip

    def _in_one_launch(self, x: Tensor, *tensors: Tensor) -> bool:
        """Return whether the kernels of a channel each can take planes like ``x``, and fill the device.

        More taps spill registers; planes that start at any address are read and written value by value.
        """
        aligned = all(t.data_ptr() % 16 == 0 for t in (x, self.vertical, self.horizontal, *tensors))
        pixels = self.sizes[1] * self.sizes[2]
        return aligned and pixels % 8 == 0 and pixels < 2**28 and self.kernel_size <= 3 and _fills_device(x)


def _taps(filters: Tensor, num_steps: int, channels: int, kernel_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the offsets of the taps of the first step and of the biases."""
    taps = channels * kernel_size
    return filters, filters[:, taps:], filters[:, num_steps * 2 * taps :]


def _slopes(num_steps: int, negative_slope: float, activate_last: bool) -> list[float]:
    return [negative_slope] * (num_steps - 1) + [negative_slope if activate_last else 1.0]


def _wide(like: Tensor, *leading: int) -> Tensor:
    """Room for planes that are computed with: (*leading, B, C, H, W)."""
    return like.new_empty(*leading, *like.shape, dtype=torch.float32)


def _states(x: Tensor, num_steps: int) -> Tensor:
    """Room for u_1 .. u_{N-1}: (B, N-1, C, H, W)."""
    return x.new_empty(x.shape[0], num_steps - 1, *x.shape[1:], dtype=torch.float32)


def sac(x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Launch the one step."""
    x, vertical, horizontal = x.contiguous(), vertical.contiguous(), horizontal.contiguous()
    out = torch.empty_like(x)
    if out.numel():
        with torch.cuda.device_of(x):
            steps = _Steps(x, (vertical, horizontal, None), vertical.shape[1] // x.shape[1], True, [1.0])
            steps.forward(x, out)
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
            steps.backward(grad, x, None, None, grad_x, taps)
    return grad_x, in_format_of(given[0], grad_vertical), in_format_of(given[1], grad_horizontal)


def iac(
    x: Tensor, filters: Tensor, num_steps: int, kernel_size: int, negative_slope: float, activate_last: bool,
    own: bool, save_states: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch all steps, or step after step."""
    given, x, filters = filters, x.contiguous(), filters.contiguous()
    out, states = torch.empty_like(x), _states(x, num_steps if save_states else 1)
    if out.numel():
        taps = _taps(filters, num_steps, x.shape[1], kernel_size)
        steps = _Steps(x, taps, kernel_size, own, _slopes(num_steps, negative_slope, activate_last))
        with torch.cuda.device_of(x):
            steps.forward(x, out, states if save_states else None)
    return out, states_in_format_of(given, states)


def iac_backward(
    grad: Tensor, x: Tensor, filters: Tensor, states: Tensor, num_steps: int, kernel_size: int, negative_slope: float,
    activate_last: bool, own: bool, need_filters: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch all steps, or two kernels per step from the last to the first."""
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
        last = _wide(x)  # the output again, for the sign of what was activated
        if states.ndim == 5 and states.shape[1] == num_steps - 1:
            states = states.contiguous()
            if activate_last:
                steps.forward([x, *states.unbind(1)][-1], last, first=num_steps - 1)
        else:
            states = _states(x, num_steps)
            steps.forward(x, last, states)
        steps.backward(grad, x, states, last if activate_last else None, grad_x, grad_taps)
    return grad_x, in_format_of(given, grad_filters)


class _Predictor:
    """The filters of one step at a time, in float32: a matrix product of weights and features.

    The bias is the weight of a feature of ones, so that torch multiplies and adds at once; zeros fill the features up
    to a multiple of eight, which tensor cores need.
    """

    def __init__(
        self, features: Tensor, weight: Tensor, bias: Tensor, x: Tensor, kernel_size: int, own: bool,
        slopes: list[float],
    ) -> None:  # fmt: skip
        frames, d, pixels = features.shape[0], features.shape[1], features.shape[2] * features.shape[3]
        self.channels, self.kernel_size, self.own, self.slopes = x.shape[1], kernel_size, own, slopes
        self.taps, num_steps = self.channels * kernel_size, len(slopes)
        rest = -(d + 1) % 8
        table = F.pad(torch.cat([weight, bias[:, None]], 1), (0, rest))
        taps = table[: num_steps * 2 * self.taps].view(num_steps, 2, self.taps, -1)[:, : 2 if own else 1]
        biases = table[num_steps * 2 * self.taps :].view(num_steps, self.channels, -1)
        self.weights = torch.cat([taps.flatten(1, 2), biases], 1)
        ones = features.new_ones(frames, 1, pixels)
        self.features = torch.cat([features.flatten(2), ones, features.new_zeros(frames, rest, pixels)], 1)

    def filters(self, n: int) -> Tensor:
        """Return the filters of step n: (B, C*(2K+1), H*W), or without horizontal taps C*(K+1) rows."""
        weights = self.weights[n].expand(self.features.shape[0], -1, -1)
        if weights.dtype == torch.float32 or not weights.is_cuda:
            return torch.bmm(weights.float(), self.features.float())
        return torch.bmm(weights, self.features, out_dtype=torch.float32)  # not rounded before it is used

    def steps(self, n: int, x: Tensor, filters: Tensor) -> _Steps:
        return _Steps(x, self.split(filters), self.kernel_size, self.own, self.slopes[n : n + 1])

    def split(self, filters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vertical taps, horizontal ones, which are not there unless they are own, and biases."""
        return filters, filters[:, self.taps :], filters[:, -self.channels :]

    def forward(self, n: int, u: Tensor, out: Tensor) -> None:
        self.steps(n, u, self.filters(n)).forward(u, out)


def iac_from_features(
    x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, num_steps: int, kernel_size: int,
    negative_slope: float, activate_last: bool, own: bool,
) -> Tensor:  # fmt: skip
    """Make the filters of one step after the other, and apply them."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if out.numel():
        slopes, spare = _slopes(num_steps, negative_slope, activate_last), _wide(x, min(2, num_steps - 1))
        planes = [x, *(spare[n % 2] for n in range(num_steps - 1)), out]
        with torch.cuda.device_of(x):
            predictor = _Predictor(features, weight, bias, x, kernel_size, own, slopes)
            for n in range(num_steps):
                predictor.forward(n, planes[n], planes[n + 1])
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
        last, spare = _wide(x), _wide(x, min(2, num_steps - 1))
        planes = [x, *_states(x, num_steps).unbind(1), last]
        outs = [*planes[1:-1], last if activate_last else None]
        grads = [grad_x, *(spare[n % 2] for n in range(num_steps - 1)), grad]
        with torch.cuda.device_of(x):
            predictor = _Predictor(features, weight, bias, x, kernel_size, own, slopes)
            for n in range(num_steps if activate_last else num_steps - 1):
                predictor.forward(n, planes[n], planes[n + 1])
            for n in reversed(range(num_steps)):
                filters = predictor.filters(n)
                grad_filters = torch.empty_like(filters, dtype=x.dtype) if need_features or need_weight else None
                predictor.steps(n, x, filters).backward(
                    grads[n + 1], planes[n], None, outs[n], grads[n],
                    None if grad_filters is None else predictor.split(grad_filters),
                )  # fmt: skip
                del filters  # before those of the next step are made
                if grad_filters is not None and need_features:
                    flat_grad += torch.matmul(predictor.weights[n, :, :d].t(), grad_filters)
                if grad_filters is not None and need_weight:
                    first, biases = n * 2 * taps, num_steps * 2 * taps + n * channels
                    sizes = [grad_filters.shape[1] - channels, channels]
                    rows = slice(first, first + sizes[0]), slice(biases, biases + channels)
                    of_weight = torch.matmul(grad_filters, flat.transpose(1, 2)).sum(0).split(sizes)
                    of_bias = grad_filters.sum((0, 2)).split(sizes)
                    for r, w, b in zip(rows, of_weight, of_bias, strict=True):
                        grad_weight[r], grad_bias[r] = w, b
    return grad_x, grad_features.to(x.dtype), grad_weight, grad_bias
