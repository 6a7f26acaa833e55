"""Adaptive convolutions: public functions with their checks and documentation; reference.py is the definition."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tta_restore._core import checks as _checks
from tta_restore._core import library
from tta_restore._core.library import autocast_dtype
from tta_restore.ops.adaptive_conv.autograd import Iac, IacFromFeatures, Sac
from tta_restore.ops.adaptive_conv.reference import is_channels_last

Horizontal = Literal["own", "vertical"]

# Largest size in bytes of one channel's filters for which the CPU recomputes the states of `iac` in the backward pass.
# Up to there the filters stay in the cache for the backward pass; beyond, they would be read from memory twice, and so
# would channels_last filters, which are read for many channels at a time.
_CHANNEL_IN_CACHE = 4 << 20


def sac(x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    r"""Filter every channel along columns, then along rows, with separate taps per pixel.

    ``v[y, x] = sum_t vertical[t, y, x] u[y + t - p, x]`` and ``z[y, x] = sum_t horizontal[t, y, x] v[y, x + t - p]``
    with ``p = (K - 1) / 2``, borders replicated: tap 0 reads the row above and the column to the left. This is not the
    outer product of the two filters at the output pixel: the vertical pass of a neighbor uses the neighbor's taps.

    Shape:
        - x: (B, C, H, W)
        - vertical, horizontal: (B, C*K, H, W), K odd, channel c*K + t
        - output: (B, C, H, W), contiguous

    Raises:
        TypeError: an argument is not a floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes or devices do not match.

    Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021), one step of its IAC layer.

    >>> x = torch.arange(6.0).reshape(1, 1, 2, 3)
    >>> center = torch.tensor([0.0, 1, 0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 3)
    >>> left = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 3)
    >>> sac(x, center, left).flatten().tolist()
    [0.0, 0.0, 1.0, 3.0, 3.0, 4.0]
    """
    _checks.expect_floating("sac", x=x, vertical=vertical, horizontal=horizontal)
    b, c, h, w = _frames("sac", x)
    taps = vertical.shape[1] // c if vertical.ndim == 4 else 0
    if taps % 2 == 0 or tuple(vertical.shape) != (b, c * taps, h, w):
        raise ValueError(
            f"sac: expected vertical of shape (B, C*K, H, W) = ({b}, {c}*K, {h}, {w}), K odd, "
            f"got {tuple(vertical.shape)}"
        )
    _checks.expect_shape("sac", "horizontal", horizontal, "(B, C*K, H, W)", (b, c * taps, h, w))
    x, vertical, horizontal = _one_dtype("sac", x, vertical, horizontal=horizontal)
    return library.apply(Sac, "sac", x, vertical, horizontal)


def iac(
    x: Tensor,
    filters: Tensor,
    *,
    num_steps: int,
    kernel_size: int = 3,
    negative_slope: float = 0.1,
    activate_last: bool = True,
    horizontal: Horizontal = "own",
) -> Tensor:
    r"""Apply N steps of ``u <- leaky_relu(sac(u, vertical_n, horizontal_n) + bias_n)`` in one kernel.

    Args:
        x: images or feature maps.
        filters: vertical and horizontal taps of every step, then all biases, in channels
            ``vertical[n, c, t]: n*2CK + c*K + t``, ``horizontal[n, c, t]: n*2CK + CK + c*K + t``,
            ``bias[n, c]: N*2CK + n*C + c``. Half-precision filters are converted to float32 while they are read.
        num_steps: number of steps N, at least 1.
        kernel_size: number of taps K, odd; 3, 5 and 7 have specialized kernels, other sizes share a slower one.
        negative_slope: slope of the leaky ReLU for negative values, at least 0.
        activate_last: whether the activation is applied after the last step.
        horizontal: ``"own"`` (separate filters) as in the paper; ``"vertical"`` (shared filters) filters rows with the
            vertical taps and ignores the horizontal ones. The official IFAN checkpoints need ``"vertical"``.

    Shape:
        - x: (B, C, H, W)
        - filters: (B, N*C*(2K+1), H, W)
        - output: (B, C, H, W), contiguous

    Under autocast ``x`` is converted to the dtype of ``filters``, which are too large to convert. On the CPU, filters
    that are contiguous, cropped, or channels_last with ``kernel_size`` 3, 5 or 7 are read in place; others are copied.
    The gradient of channels_last filters is channels_last.

    Raises:
        TypeError: an argument is not a floating-point tensor or integer, or dtypes differ outside autocast.
        ValueError: shapes, devices or options do not match.

    Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021), the IAC layer.

    >>> x = torch.tensor([-1.0, 0, 2]).reshape(1, 1, 1, 3)
    >>> identity = torch.tensor([0.0, 1, 0, 0, 1, 0, 0]).reshape(1, 7, 1, 1).expand(1, 7, 1, 3)
    >>> iac(x, identity, num_steps=1).flatten().tolist()
    [-0.10000000149011612, 0.0, 2.0]
    """
    _checks.expect_floating("iac", x=x, filters=filters)
    b, c, h, w = _frames("iac", x)
    _options("iac", num_steps, kernel_size, negative_slope, horizontal)
    channels = num_steps * c * (2 * kernel_size + 1)
    _checks.expect_shape("iac", "filters", filters, "(B, N*C*(2K+1), H, W)", (b, channels, h, w))
    x, filters = _one_dtype("iac", x, filters)
    cached = not x.is_cuda and num_steps * (2 * kernel_size + 1) * h * w * filters.element_size() <= _CHANNEL_IN_CACHE
    cached = cached and not is_channels_last(filters)
    save = not cached and torch.is_grad_enabled() and (x.requires_grad or filters.requires_grad)
    own = horizontal == "own"
    options = num_steps, kernel_size, float(negative_slope), bool(activate_last), own
    return library.apply(Iac, "iac", x, filters, *options, save)[0]


def iac_from_features(
    x: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    num_steps: int,
    kernel_size: int = 3,
    negative_slope: float = 0.1,
    activate_last: bool = True,
    horizontal: Horizontal = "own",
) -> Tensor:
    r"""Compute ``iac(x, conv1x1(features, weight, bias), ...)`` without storing the filters.

    The filters of a few channels are computed where they are used, and recomputed for the gradient, so that no tensor
    of N*C*(2K+1) planes is allocated. (On CUDA the backward pass stores the filters of one step at a time; the second
    derivative stores those of a sixteenth of the channels.) The options are those of :func:`iac`.

    float32 products on CUDA follow ``torch.backends.cuda.matmul.fp32_precision``: IEEE by default, whereas cuDNN's
    convolutions use TF32 by default. Set it to ``"tf32"`` for the precision and speed of ``conv1x1``.

    Shape:
        - x: (B, C, H, W)
        - features: (B, D, H, W)
        - weight: (N*C*(2K+1), D), rows in the order of the filters' channels
        - bias: (N*C*(2K+1),)
        - output: (B, C, H, W), contiguous

    Under autocast all tensors are converted to its dtype, as for a convolution; sums stay float32.

    Raises:
        TypeError: an argument is not a floating-point tensor or integer, or dtypes differ outside autocast.
        ValueError: shapes, devices or options do not match.

    Source: Iterative Filter Adaptive Network (Lee et al., CVPR 2021), its filter predictor's last layer and IAC layer.

    >>> x, features = torch.full((1, 1, 2, 2), 3.0), torch.ones(1, 2, 2, 2)
    >>> identity = torch.tensor([0.0, 1, 0, 0, 1, 0, 0])
    >>> iac_from_features(x, features, torch.zeros(7, 2), identity, num_steps=1).flatten().tolist()
    [3.0, 3.0, 3.0, 3.0]
    """
    name = "iac_from_features"
    _checks.expect_floating(name, x=x, features=features, weight=weight, bias=bias)
    b, c, h, w = _frames(name, x)
    _options(name, num_steps, kernel_size, negative_slope, horizontal)
    channels = num_steps * c * (2 * kernel_size + 1)
    _, d, _, _ = _checks.expect_shape(name, "features", features, "(B, D, H, W)", (b, None, h, w))
    _checks.expect_shape(name, "weight", weight, "(N*C*(2K+1), D)", (channels, d))
    _checks.expect_shape(name, "bias", bias, "(N*C*(2K+1),)", (channels,))
    _checks.expect_same_device(name, x=x, features=features, weight=weight, bias=bias)
    tensors = (x, features, weight, bias)
    dtype = autocast_dtype(x.device.type)
    if dtype is not None and all(t.dtype != torch.float64 for t in tensors):
        tensors = tuple(t.to(dtype) for t in tensors)
    _checks.expect_same_dtype(name, **dict(zip(("x", "features", "weight", "bias"), tensors, strict=True)))
    own = horizontal == "own"
    options = num_steps, kernel_size, float(negative_slope), bool(activate_last), own
    return library.apply(IacFromFeatures, name, *tensors, *options)


def _frames(name: str, x: Tensor) -> tuple[int, ...]:
    shape = _checks.expect_shape(name, "x", x, "(B, C, H, W)")
    if min(shape[1:]) < 1:
        raise ValueError(f"{name}: expected x of shape (B, C, H, W) with C, H and W at least 1, got {shape}")
    return shape


def _options(name: str, num_steps: int, kernel_size: int, negative_slope: float, horizontal: str) -> None:
    _checks.expect_int(name, "num_steps", num_steps, minimum=1)
    _checks.expect_int(name, "kernel_size", kernel_size, minimum=1, odd=True)
    _checks.expect_choice(name, "horizontal", horizontal, ("own", "vertical"))
    # The backward pass infers the sign of the input from the sign of the activation.
    _checks.expect_number(name, "negative_slope", negative_slope, minimum=0)


def _one_dtype(name: str, x: Tensor, filters: Tensor, **more: Tensor) -> tuple[Tensor, ...]:
    label = "vertical" if more else "filters"
    _checks.expect_same_device(name, x=x, **{label: filters}, **more)
    dtypes = {t.dtype for t in (x, filters, *more.values())}
    if autocast_dtype(x.device.type) is not None and torch.float64 not in dtypes:
        x, more = x.to(filters.dtype), {key: value.to(filters.dtype) for key, value in more.items()}
    _checks.expect_same_dtype(name, x=x, **{label: filters}, **more)
    return x, filters, *more.values()
