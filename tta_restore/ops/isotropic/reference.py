"""Definition of the isotropic kernels and of the blur that they make, in plain torch; also the kernel of last resort.

The blur is linear in the image and in one coefficient per class of offsets (symmetry.py):
``out = sum over classes of coefficient * (sum of the image over the class)``. The coefficients are a function of seeds
and weights at the same pixel alone, so derivatives of both parts are written apart.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tta_restore.ops.isotropic import symmetry
from tta_restore.ops.isotropic.symmetry import Branch


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return half-precision values as float32."""
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def _logits(magnitudes: Tensor, branch: Branch) -> Tensor:
    """(B, m+1, H, W) -> (B, rings + 1, H, W): linear in the magnitudes; the corner ring is 0."""
    rows = []
    for ring in branch.rings:
        row = magnitudes[:, ring.below]
        rows.append(torch.lerp(row, magnitudes[:, ring.below + 1], ring.fraction) if ring.fraction else row)
    return torch.stack([*rows, torch.zeros_like(rows[0])], 1)


def _logits_adjoint(gradient: Tensor, branch: Branch) -> Tensor:
    """(B, rings + 1, H, W) -> (B, m+1, H, W)."""
    out = gradient.new_zeros(gradient.shape[0], branch.radius + 1, *gradient.shape[2:])
    for i, ring in enumerate(branch.rings):
        out[:, ring.below] += (1 - ring.fraction) * gradient[:, i]
        if ring.fraction:
            out[:, ring.below + 1] += ring.fraction * gradient[:, i]
    return out


def _taps(branch: Branch, like: Tensor) -> Tensor:
    counts = [*(ring.taps for ring in branch.rings), branch.corner_taps]
    # no new_tensor here and below: torch.onnx.export cannot trace it
    return torch.stack([like.new_full((1, 1), count) for count in counts])


def _tap_weights(seeds: Tensor, branch: Branch) -> Tensor:
    """Weight of one tap of each ring, the corners last: (B, rings + 1, H, W). All taps together sum to 1."""
    logits, taps = _logits(seeds.abs(), branch), _taps(branch, seeds)
    return (logits + taps.log()).softmax(1) / taps.clamp(min=1)


def isotropic_kernels(seeds: Tensor, kernel_size: int) -> Tensor:
    """(B, (K+1)/2, H, W) -> (B, K*K, H, W), rows of the kernel one after the other."""
    branch = symmetry.branch(kernel_size // 2)
    index = {pair: i for i, pair in enumerate(symmetry.classes(branch.radius))}
    reach = range(-branch.radius, branch.radius + 1)
    places = [index[max(abs(i), abs(j)), min(abs(i), abs(j))] for i in reach for j in reach]
    rings = torch.tensor([branch.ring_of_class[place] for place in places], device=seeds.device)
    return _tap_weights(widen(seeds)[0], branch).index_select(1, rings).to(seeds.dtype)


def _class_sums(image: Tensor, radius: int) -> Tensor:
    """Sum of the image over every class of offsets, zeros outside: (B, C, H, W) -> (B, C, classes, H, W)."""
    padded = F.pad(image, (radius,) * 4)
    h, w = image.shape[2:]

    def of_class(a: int, b: int) -> Tensor:
        moved = [padded[:, :, radius + y :, radius + x :][:, :, :h, :w] for y, x in symmetry.offsets(a, b)]
        return functools.reduce(torch.add, moved)

    return torch.stack([of_class(a, b) for a, b in symmetry.classes(radius)], 2)


def _own_seeds(seeds: Tensor, branch: Branch) -> Tensor:
    return seeds[:, branch.first_seed : branch.first_seed + branch.radius + 1]


def _to_classes(rings: Tensor, branch: Branch) -> Tensor:
    return torch.stack([rings[:, ring] for ring in branch.ring_of_class], 1)


def _to_rings(classes: Tensor, branch: Branch) -> Tensor:
    """Sum over the classes of each ring, the corners last."""
    index = torch.tensor(branch.ring_of_class, device=classes.device)
    out = classes.new_zeros(classes.shape[0], len(branch.rings) + 1, *classes.shape[2:])
    return out.index_add(1, index, classes[:, : len(index)])


def _coefficients(seeds: Tensor, weights: Tensor, kernel_sizes: Sequence[int]) -> Tensor:
    """(B, seeds, H, W), (B, 1+n, H, W) -> (B, classes, H, W): the kernels of all branches, mixed."""
    sizes = tuple(kernel_sizes)
    classes = len(symmetry.classes(symmetry.largest_radius(sizes)))
    out = F.pad(weights[:, :1], (0, 0, 0, 0, 0, classes - 1))
    for n, branch in enumerate(symmetry.branches(sizes), 1):
        kernel = weights[:, n, None] * _to_classes(_tap_weights(_own_seeds(seeds, branch), branch), branch)
        out = out + F.pad(kernel, (0, 0, 0, 0, 0, classes - kernel.shape[1]))
    return out


def _apply(image: Tensor, coefficients: Tensor, radius: int) -> Tensor:
    return (_class_sums(image, radius) * coefficients[:, None]).sum(2)


def _apply_adjoint(grad: Tensor, coefficients: Tensor, radius: int) -> Tensor:
    """Return the gradient of ``_apply`` in the image: every class of offsets is its own mirror image."""
    padded = F.pad(grad[:, :, None] * coefficients[:, None], (radius,) * 4)
    h, w = grad.shape[2:]
    out = torch.zeros_like(grad)
    for i, (a, b) in enumerate(symmetry.classes(radius)):
        for y, x in symmetry.offsets(a, b):
            out += padded[:, :, i, radius + y : radius + y + h, radius + x : radius + x + w]
    return out


def isotropic_reblur(image: Tensor, seeds: Tensor, weights: Tensor, kernel_sizes: Sequence[int]) -> Tensor:
    """Blur the image with the mixed kernels; see functional.py."""
    x, s, w = widen(image, seeds, weights)
    radius = symmetry.largest_radius(tuple(kernel_sizes))
    return _apply(x, _coefficients(s, w, kernel_sizes), radius).to(image.dtype).contiguous()


def _kernel_gradients(
    correlation: Tensor, seeds: Tensor, weights: Tensor, kernel_sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Gradients in seeds and weights of ``sum(coefficients * correlation)``, correlation (B, classes, H, W)."""
    grad_seeds, grad_weights = torch.empty_like(seeds), torch.empty_like(weights)
    grad_weights[:, 0] = correlation[:, 0]
    for n, branch in enumerate(symmetry.branches(tuple(kernel_sizes)), 1):
        own = _own_seeds(seeds, branch)
        tap, q = _tap_weights(own, branch), _to_rings(correlation, branch)
        expected = (tap * q).sum(1, keepdim=True)
        grad_weights[:, n] = expected[:, 0]
        gradient = _logits_adjoint(weights[:, n, None] * tap * (q - _taps(branch, q) * expected), branch)
        _own_seeds(grad_seeds, branch).copy_(gradient * own.sign())
    return grad_seeds, grad_weights


def isotropic_reblur_backward(
    grad: Tensor,
    image: Tensor,
    seeds: Tensor,
    weights: Tensor,
    kernel_sizes: Sequence[int],
    need_image: bool,
    need_kernels: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in image, seeds and weights; empty where not needed."""
    g, x, s, w = widen(grad, image, seeds, weights)
    radius = symmetry.largest_radius(tuple(kernel_sizes))
    none = image.new_empty(0)
    grad_image, grad_seeds, grad_weights = none, none.clone(), none.clone()
    if need_image:
        grad_image = _apply_adjoint(g, _coefficients(s, w, kernel_sizes), radius).to(image.dtype).contiguous()
    if need_kernels:
        correlation = (_class_sums(x, radius) * g[:, :, None]).sum(1)
        gradients = _kernel_gradients(correlation, s, w, kernel_sizes)
        grad_seeds, grad_weights = (t.to(image.dtype).contiguous() for t in gradients)
    return grad_image, grad_seeds, grad_weights


def isotropic_reblur_double_backward(
    dimage: Tensor | None,
    dseeds: Tensor | None,
    dweights: Tensor | None,
    grad: Tensor,
    image: Tensor,
    seeds: Tensor,
    weights: Tensor,
    kernel_sizes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients in (grad, image, seeds, weights) of ``<gradients of the blur, (dimage, dseeds, dweights)>``.

    That product is the derivative of ``<grad, blur>`` along (dimage, dseeds, dweights). The blur is linear in the
    image, so with ``dC`` the derivative of the coefficients it is ``<grad, apply(dimage, C) + apply(image, dC)>``.
    """
    g, x, s, w = widen(grad, image, seeds, weights)
    dx = torch.zeros_like(x) if dimage is None else widen(dimage)[0]
    ds = torch.zeros_like(s) if dseeds is None else widen(dseeds)[0]
    dw = torch.zeros_like(w) if dweights is None else widen(dweights)[0]
    radius = symmetry.largest_radius(tuple(kernel_sizes))
    sums = _class_sums(x, radius)
    first, second = (_class_sums(dx, radius) * g[:, :, None]).sum(1), (sums * g[:, :, None]).sum(1)
    # what dimage adds is a gradient of first order; what (dseeds, dweights) add is a Hessian of the kernels
    grad_seeds, grad_weights = _kernel_gradients(first, s, w, kernel_sizes)
    change = torch.zeros_like(second)
    change[:, 0] += dw[:, 0]
    for n, branch in enumerate(symmetry.branches(tuple(kernel_sizes)), 1):
        own, taps = _own_seeds(s, branch), _taps(branch, s)
        weight, dweight = w[:, n, None], dw[:, n, None]
        tap = _tap_weights(own, branch)
        dlogits = _logits(_own_seeds(ds, branch) * own.sign(), branch)
        dtap = tap * (dlogits - (taps * tap * dlogits).sum(1, keepdim=True))
        q = _to_rings(second, branch)
        expected, dexpected = (tap * q).sum(1, keepdim=True), (dtap * q).sum(1, keepdim=True)
        surplus = q - taps * expected
        grad_weights[:, n] += dexpected[:, 0]
        gradient = (dweight * tap + weight * dtap) * surplus - weight * tap * taps * dexpected
        _own_seeds(grad_seeds, branch).add_(_logits_adjoint(gradient, branch) * own.sign())
        kernel = _to_classes(dweight * tap + weight * dtap, branch)
        change[:, : kernel.shape[1]] += kernel
    grad_grad = _apply(dx, _coefficients(s, w, kernel_sizes), radius) + (sums * change[:, None]).sum(2)
    grad_image = _apply_adjoint(g, change, radius)
    results = (grad_grad, grad_image, grad_seeds, grad_weights)
    first, *rest = (t.to(image.dtype).contiguous() for t in results)
    return first, rest[0], rest[1], rest[2]
