"""Definition of the anisotropic Gaussian blur and of its derivatives, in plain torch; also the reference fallback.

The frame has its margin already. A pixel's precision ``(a, b, c)`` gives tap ``t = (i, j)`` the weight
``p_t = exp(-(a j^2 + 2 b i j + c i^2)) / Z``: a softmax of ``-m_t . (a, b, c)`` with ``m_t = (j^2, 2 i j, i^2)``.
Taps t and -t have one weight, so each is computed for both. No kernel is held.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def _widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def _half_taps(kernel_size: int) -> Iterator[tuple[int, int]]:
    """Return the center, then one of each pair of opposite taps."""
    m = kernel_size // 2
    for i in range(m + 1):
        for j in range(-m, m + 1):
            if i > 0 or j >= 0:
                yield i, j


def _moments(i: int, j: int) -> tuple[float, float, float]:
    return float(j * j), float(2 * i * j), float(i * i)


def _weight(precision: Tensor, i: int, j: int) -> Tensor:
    """Weight of a tap before the normalization, (B, H, W); 1 at the center and less elsewhere."""
    a, b, c = precision.unbind(1)
    return torch.exp(-(j * j * a + 2 * i * j * b + i * i * c))


def _count(i: int, j: int) -> int:
    return 2 if i or j else 1


def _sums(precision: Tensor, kernel_size: int) -> tuple[Tensor, list[Tensor]]:
    """1 / Z, and the mean of each moment under p."""
    total, moments = torch.zeros_like(precision[:, 0]), [torch.zeros_like(precision[:, 0])] * 3
    for i, j in _half_taps(kernel_size):
        weight = _count(i, j) * _weight(precision, i, j)
        total = total + weight
        moments = [one + m * weight for one, m in zip(moments, _moments(i, j), strict=True)]
    return 1 / total, [one / total for one in moments]


def _pair(padded: Tensor, kernel_size: int, i: int, j: int) -> Tensor:
    """Return the sum of what taps (i, j) and (-i, -j) read, (B, C, H, W)."""
    m = kernel_size // 2
    h, w = padded.shape[2] - 2 * m, padded.shape[3] - 2 * m
    first = padded[:, :, m + i : m + i + h, m + j : m + j + w]
    return first + padded[:, :, m - i : m - i + h, m - j : m - j + w] if i or j else first


def _spread(to: Tensor, values: Tensor, kernel_size: int, i: int, j: int) -> None:
    """Adjoint of :func:`_pair`: add to ``to`` in place."""
    m = kernel_size // 2
    h, w = values.shape[2:]
    to[:, :, m + i : m + i + h, m + j : m + j + w] += values
    if i or j:
        to[:, :, m - i : m - i + h, m - j : m - j + w] += values


def anisotropic_reblur(padded: Tensor, precision: Tensor, kernel_size: int) -> Tensor:
    """Blur an extended image: (B, C, H+K-1, W+K-1), (B, 3, H, W) -> (B, C, H, W)."""
    x, q = _widen(padded, precision)
    scale, _ = _sums(q, kernel_size)
    out = x.new_zeros(*x.shape[:2], *q.shape[2:])
    for i, j in _half_taps(kernel_size):
        out = out + (scale * _weight(q, i, j))[:, None] * _pair(x, kernel_size, i, j)
    return out.to(padded.dtype).contiguous()


def anisotropic_reblur_backward(
    grad: Tensor, padded: Tensor, precision: Tensor, kernel_size: int, need_image: bool, need_precision: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients in the padded frame and in the precision; empty where not needed.

    With ``G_t = sum_c grad_c x_(c, t)``: ``d/dq_k = -sum_t p_t (m_(t, k) - M_k) G_t``, M the mean of m under p. ``G_t``
    may be replaced by ``G_t - G_0``, whose terms cancel less.
    """
    g, x, q = _widen(grad, padded, precision)
    scale, mean = _sums(q, kernel_size)
    grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format) if need_image else x.new_empty(0)
    center = (g * _pair(x, kernel_size, 0, 0)).sum(1)
    grad_q = [torch.zeros_like(scale)] * 3
    for i, j in _half_taps(kernel_size):
        p = scale * _weight(q, i, j)
        if need_image:
            _spread(grad_x, p[:, None] * g, kernel_size, i, j)
        if need_precision:
            product = (g * _pair(x, kernel_size, i, j)).sum(1) - _count(i, j) * center
            grad_q = [one - p * (m - each) * product for one, m, each in zip(grad_q, _moments(i, j), mean, strict=True)]
    found = torch.stack(grad_q, 1) if need_precision else x.new_empty(0)
    return grad_x.to(padded.dtype), found.to(padded.dtype)


def anisotropic_reblur_double_backward(
    dimage: Tensor | None,
    dprecision: Tensor | None,
    grad: Tensor,
    padded: Tensor,
    precision: Tensor,
    kernel_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in (grad, frame, precision) of ``<gradients of the blur, (dimage, dprecision)>``.

    With ``e_t = m_t . dprecision``, E its mean under p and ``q_t = p_t (e_t - E)``, the product is
    ``sum_t p_t <grad, dimage_t> - q_t <grad, x_t>``, whose derivatives are sums over taps again.
    """
    g, x, q = _widen(grad, padded, precision)
    dx = torch.zeros_like(x) if dimage is None else _widen(dimage)[0]
    direction = torch.zeros_like(q) if dprecision is None else _widen(dprecision)[0]
    scale, mean = _sums(q, kernel_size)
    zero = torch.zeros_like(scale)

    def change(i: int, j: int) -> Tensor:
        """e_t"""
        return sum((m * direction[:, k] for k, m in enumerate(_moments(i, j))), zero)

    expected, covariance = zero, [zero] * 3
    for i, j in _half_taps(kernel_size):
        p, e = _count(i, j) * scale * _weight(q, i, j), change(i, j)
        expected = expected + p * e
        for k, m in enumerate(_moments(i, j)):
            covariance[k] = covariance[k] + (m - mean[k]) * p * e
    grad_grad, grad_x = torch.zeros_like(g), torch.zeros_like(x, memory_format=torch.contiguous_format)
    grad_q, total = [zero] * 3, zero
    for i, j in _half_taps(kernel_size):
        p, surplus = scale * _weight(q, i, j), change(i, j) - expected
        pair, dpair = _pair(x, kernel_size, i, j), _pair(dx, kernel_size, i, j)
        grad_grad = grad_grad + p[:, None] * dpair - (p * surplus)[:, None] * pair
        _spread(grad_x, -(p * surplus)[:, None] * g, kernel_size, i, j)
        product, dproduct = (g * pair).sum(1), (g * dpair).sum(1)
        total = total + p * product
        for k, m in enumerate(_moments(i, j)):
            grad_q[k] = grad_q[k] + p * (m - mean[k]) * (surplus * product - dproduct)
    found = torch.stack([one - c * total for one, c in zip(grad_q, covariance, strict=True)], 1)
    first, second, third = (t.to(padded.dtype).contiguous() for t in (grad_grad, grad_x, found))
    return first, second, third
