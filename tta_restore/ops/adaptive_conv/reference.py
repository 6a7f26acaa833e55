"""Definition of the adaptive convolutions in plain torch, and reference fallback.

One step is ``z = H(K2) V(K1) u + b`` and a leaky ReLU; ``V`` filters columns, ``H`` rows, every pixel with its own
taps, borders replicated. Both are linear in the plane and in the taps, so each derivative below is built from the same
four maps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def is_channels_last(filters: Tensor) -> bool:
    """Return whether the channels of every pixel are adjacent, in all of a channels_last tensor or in a slice of it."""
    if filters.stride(1) != 1 or filters.shape[1] < 2 or filters.is_contiguous():
        return False
    _, c, h, w = filters.shape
    return filters.stride(3) >= c and (h == 1 or filters.stride(2) == w * filters.stride(3))


def in_format_of(filters: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient of filters in the memory format that convolutions beside them expect: channels_last as they."""
    if grad.ndim != 4 or not is_channels_last(filters):
        return grad
    return grad.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def states_in_format_of(filters: Tensor, states: Tensor) -> Tensor:
    """Return states (B, N-1, C, H, W) with adjacent channels where the filters have them."""
    return states.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if is_channels_last(filters) else states


COLUMN, ROW = 2, 3  # the axis along which the taps of the vertical and of the horizontal pass lie


def _source(size: int, offset: int, device: torch.device) -> Tensor:
    return (torch.arange(size, device=device) + offset).clamp(0, size - 1)


def _gather(x: Tensor, offset: int, axis: int) -> Tensor:
    return x.index_select(axis, _source(x.shape[axis], offset, x.device))


def filter_axis(x: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Filter ``x`` (B, C, H, W) along one axis with ``taps`` (B, C, K, H, W); tap 0 reads above or to the left."""
    reach = taps.shape[2] // 2
    out = taps[:, :, 0] * _gather(x, -reach, axis)
    for t in range(1, taps.shape[2]):
        out = out + taps[:, :, t] * _gather(x, t - reach, axis)
    return out


def filter_axis_adjoint(grad: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Transpose of :func:`filter_axis` in ``x``: every border pixel collects what its replicas received."""
    reach, out = taps.shape[2] // 2, torch.zeros_like(grad)
    for t in range(taps.shape[2]):
        out = out.index_add(axis, _source(grad.shape[axis], t - reach, grad.device), grad * taps[:, :, t])
    return out


def tap_gradient(grad: Tensor, x: Tensor, kernel_size: int, axis: int) -> Tensor:
    """Return the gradient of :func:`filter_axis` in its taps, (B, C, K, H, W)."""
    return torch.stack([grad * _gather(x, t - kernel_size // 2, axis) for t in range(kernel_size)], 2)


def split_filters(filters: Tensor, num_steps: int, kernel_size: int, own: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Cut (B, N*C*(2K+1), H, W) into vertical and horizontal taps (B, N, C, K, H, W) and biases (B, N, C, H, W)."""
    b, total, h, w = filters.shape
    c = total // (num_steps * (2 * kernel_size + 1))
    taps, bias = filters.split([num_steps * 2 * c * kernel_size, num_steps * c], 1)
    taps = taps.reshape(b, num_steps, 2, c, kernel_size, h, w)
    return taps[:, :, 0], taps[:, :, 1 if own else 0], bias.reshape(b, num_steps, c, h, w)


def _join_filters(vertical: Tensor, horizontal: Tensor, bias: Tensor, own: bool) -> Tensor:
    if not own:  # both passes read the vertical taps, the horizontal ones are never read
        vertical, horizontal = vertical + horizontal, torch.zeros_like(horizontal)
    return torch.cat([torch.stack([vertical, horizontal], 2).flatten(1, 4), bias.flatten(1, 2)], 1)


def widen(*tensors: Tensor) -> list[Tensor]:
    """Convert half-precision tensors to float32."""
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]


def _per_channel(x: Tensor, *taps: Tensor) -> list[Tensor]:
    return [t.unflatten(1, (x.shape[1], t.shape[1] // x.shape[1])) for t in taps]


def sac(x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Filter columns, then rows: x (B, C, H, W), taps (B, C*K, H, W)."""
    plane, k1, k2 = widen(x, *_per_channel(x, vertical, horizontal))
    return filter_axis(filter_axis(plane, k1, COLUMN), k2, ROW).to(x.dtype)


def sac_backward(
    grad: Tensor, x: Tensor, vertical: Tensor, horizontal: Tensor, need_taps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in x, vertical and horizontal; the last two are empty unless needed."""
    g, plane, k1, k2 = widen(grad, x, *_per_channel(x, vertical, horizontal))
    g_middle = filter_axis_adjoint(g, k2, ROW)
    grad_x = filter_axis_adjoint(g_middle, k1, COLUMN).to(x.dtype)
    if not need_taps:
        return grad_x, x.new_empty(0), x.new_empty(0)
    grad_vertical = tap_gradient(g_middle, plane, k1.shape[2], COLUMN)
    grad_horizontal = tap_gradient(g, filter_axis(plane, k1, COLUMN), k2.shape[2], ROW)
    grad_vertical, grad_horizontal = (g.reshape(vertical.shape).to(x.dtype) for g in (grad_vertical, grad_horizontal))
    return grad_x, in_format_of(vertical, grad_vertical), in_format_of(horizontal, grad_horizontal)


def _steps(
    x: Tensor, filters: Tensor, num_steps: int, kernel_size: int, negative_slope: float, activate_last: bool, own: bool
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Run the recursion; return its states u_0..u_N, the taps, and the slope of the activation after every step."""
    vertical, horizontal, bias = split_filters(filters, num_steps, kernel_size, own)
    states, slopes = [x], []
    for n in range(num_steps):
        z = filter_axis(filter_axis(states[-1], vertical[:, n], COLUMN), horizontal[:, n], ROW) + bias[:, n]
        active = n < num_steps - 1 or activate_last
        one = torch.ones_like(z)  # a Python 1.0 here would round the slope to float32 for float64 planes
        slopes.append(torch.where(z > 0, one, negative_slope) if active else one)
        states.append(functional.leaky_relu(z, negative_slope) if active else z)
    return states, slopes, vertical, horizontal


def iac(x: Tensor, filters: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """Return the output and, where the last option asks for them, u_1..u_{N-1}, (B, N-1, C, H, W)."""
    *settings, save_states = options
    plane, taps = widen(x, filters)
    states, *_ = _steps(plane, taps, *settings)
    saved = states[1:-1] if save_states else []
    inner = torch.stack(saved, 1) if saved else states[0].new_empty(len(x), 0, *x.shape[1:])
    return states[-1].to(x.dtype), states_in_format_of(filters, inner)


def iac_backward(grad: Tensor, x: Tensor, filters: Tensor, states: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """Gradients in x and in the filters, the latter empty unless the last option asks for it; ``states`` saves time."""
    *settings, need_filters = options
    num_steps, kernel_size, own = settings[0], settings[1], settings[4]
    g, plane, taps = widen(grad, x, filters)
    inputs, slopes, vertical, horizontal = _steps(plane, taps, *settings)
    grad_vertical, grad_horizontal, grad_bias = torch.zeros_like(vertical), torch.zeros_like(horizontal), []
    for n in reversed(range(num_steps)):
        k1, k2 = vertical[:, n], horizontal[:, n]
        g = g * slopes[n]
        g_middle = filter_axis_adjoint(g, k2, ROW)
        grad_bias.insert(0, g)
        grad_horizontal[:, n] = tap_gradient(g, filter_axis(inputs[n], k1, COLUMN), kernel_size, ROW)
        grad_vertical[:, n] = tap_gradient(g_middle, inputs[n], kernel_size, COLUMN)
        g = filter_axis_adjoint(g_middle, k1, COLUMN)
    if not need_filters:
        return g.to(x.dtype), x.new_empty(0)
    grad_filters = _join_filters(grad_vertical, grad_horizontal, torch.stack(grad_bias, 1), own)
    return g.to(x.dtype), in_format_of(filters, grad_filters.to(filters.dtype))


def iac_double_backward(
    dx: Tensor | None, dfilters: Tensor | None, grad: Tensor, x: Tensor, filters: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``<grad, J (dx, dfilters)>`` in grad, x and filters, J the Jacobian of iac at (x, filters).

    Either direction may be None, zero. The slopes are constant almost everywhere, so the tangent recursion
    ``du' = slope (dH V u + H dV u + H V du + db)`` is differentiated like the primal one: ``p`` is adjoint to the
    tangent du, ``q`` to the state u.
    """
    num_steps, kernel_size, own = options[0], options[1], options[4]
    dx = torch.zeros_like(x) if dx is None else dx
    dfilters = torch.zeros_like(filters) if dfilters is None else dfilters
    du, dtaps, p, plane, taps = widen(dx, dfilters, grad, x, filters)
    states, slopes, vertical, horizontal = _steps(plane, taps, *options)
    dvertical, dhorizontal, dbias = split_filters(dtaps, num_steps, kernel_size, own)
    middles, dmiddles, tangents = [], [], [du]
    for n in range(num_steps):
        k1, k2, u, du = vertical[:, n], horizontal[:, n], states[n], tangents[n]
        middles.append(filter_axis(u, k1, COLUMN))
        dmiddles.append(filter_axis(du, k1, COLUMN) + filter_axis(u, dvertical[:, n], COLUMN))
        dz = filter_axis(dmiddles[n], k2, ROW) + filter_axis(middles[n], dhorizontal[:, n], ROW) + dbias[:, n]
        tangents.append(slopes[n] * dz)
    q = torch.zeros_like(p)
    grad_vertical, grad_horizontal, grad_bias = torch.zeros_like(vertical), torch.zeros_like(horizontal), []
    for n in reversed(range(num_steps)):
        k1, k2, dk1, dk2 = vertical[:, n], horizontal[:, n], dvertical[:, n], dhorizontal[:, n]
        p, q = p * slopes[n], q * slopes[n]
        grad_bias.insert(0, q)
        grad_horizontal[:, n] = tap_gradient(p, dmiddles[n], kernel_size, ROW) + tap_gradient(
            q, middles[n], kernel_size, ROW
        )
        p, q = filter_axis_adjoint(p, k2, ROW), filter_axis_adjoint(q, k2, ROW) + filter_axis_adjoint(p, dk2, ROW)
        grad_vertical[:, n] = tap_gradient(p, tangents[n], kernel_size, COLUMN) + tap_gradient(
            q, states[n], kernel_size, COLUMN
        )
        p, q = (
            filter_axis_adjoint(p, k1, COLUMN),
            filter_axis_adjoint(q, k1, COLUMN) + filter_axis_adjoint(p, dk1, COLUMN),
        )
    grad_filters = _join_filters(grad_vertical, grad_horizontal, torch.stack(grad_bias, 1), own)
    return tangents[-1].to(grad.dtype), q.to(x.dtype), grad_filters.to(filters.dtype)


def predict_filters(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply the 1x1 convolution that turns features (B, D, H, W) into filters."""
    return functional.conv2d(features, weight[:, :, None, None], bias)


def iac_from_features(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
    """Run :func:`iac` with predicted filters. The reference materializes them; the kernels do not."""
    plane, *predictor = widen(x, features, weight, bias)
    return iac(plane, predict_filters(*predictor), *options, False)[0].to(x.dtype)


def iac_from_features_backward(
    grad: Tensor, x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients in x, features, weight and bias; the last two options ask for the second, and for the last two."""
    *settings, need_features, need_weight = options
    g, plane, h, w, b = widen(grad, x, features, weight, bias)
    filters = predict_filters(h, w, b)
    grad_x, grad_filters = iac_backward(g, plane, filters, plane.new_empty(0), *settings, need_features or need_weight)
    none = x.new_empty(0)
    grad_features = none
    if need_features:
        grad_features = torch.einsum("od,bohw->bdhw", w, grad_filters).to(x.dtype).contiguous()
    if not need_weight:
        return grad_x.to(x.dtype), grad_features, none, none.clone()
    grad_weight = torch.einsum("bohw,bdhw->od", grad_filters, h).to(x.dtype).contiguous()
    return grad_x.to(x.dtype), grad_features, grad_weight, grad_filters.sum((0, 2, 3)).to(x.dtype)
