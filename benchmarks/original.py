"""The algorithms as they were released, written anew from their descriptions: what the ops replace, and the baseline of
every ratio.

Adaptive convolution: unfold, permute, multiply, sum. Every step makes the K shifted views of its input, brings taps and
views into one layout, multiplies and sums over K.

Isotropic blur: every kernel is made tap by tap for a quadrant, mirrored twice and normalized; the image is stacked once
per tap; product, sum.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def sac(x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    b, c, h, w = x.shape
    kernel_size = vertical.shape[1] // c
    reach = kernel_size // 2
    for axis, taps, padding in ((2, vertical, (0, 0, reach, reach)), (3, horizontal, (reach, reach, 0, 0))):
        views = functional.pad(x, padding, mode="replicate").unfold(axis, kernel_size, 1).permute(0, 2, 3, 1, 4)
        x = (views * taps.permute(0, 2, 3, 1).reshape(b, h, w, c, kernel_size)).sum(-1).permute(0, 3, 1, 2)
    return x


def iac(x: Tensor, filters: Tensor, *, num_steps: int, kernel_size: int = 3, horizontal: str = "own") -> Tensor:
    c = x.shape[1]
    taps, biases = c * kernel_size, num_steps * 2 * c * kernel_size
    for n in range(num_steps):
        vertical, own = filters[:, n * 2 * taps : (n + 1) * 2 * taps].chunk(2, 1)
        bias = filters[:, biases + n * c : biases + (n + 1) * c]
        x = functional.leaky_relu(sac(x, vertical, own if horizontal == "own" else vertical) + bias, 0.1)
    return x


def predict(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(features, weight[:, :, None, None], bias)


def isotropic_kernel(seeds: Tensor, size: int) -> Tensor:
    m, a = size // 2, seeds.abs()
    rows = []
    for i in range(m + 1):
        row = []
        for j in range(m + 1):
            r = math.hypot(m - i, m - j)
            low, part = int(r), r - int(r)
            if r > m:
                row.append(torch.zeros_like(a[:, 0]))
            elif part == 0:
                row.append(a[:, low])
            else:
                row.append((1 - part) * a[:, low] + part * a[:, low + 1])
        rows.append(torch.stack(row, 1))
    quadrant = torch.stack(rows, 1)
    half = torch.cat((quadrant, quadrant[:, :, :-1].flip(2)), 2)
    logits = torch.cat((half, half[:, :-1].flip(1)), 1)
    return logits.flatten(1, 2).softmax(1)


def isotropic_reblur(image: Tensor, seeds: Tensor, weights: Tensor, *, kernel_sizes: Sequence[int]) -> Tensor:
    h, w = image.shape[2:]
    out, first = weights[:, :1] * image, 0
    for n, size in enumerate(kernel_sizes, 1):
        kernel = isotropic_kernel(seeds[:, first : first + (size + 1) // 2], size)
        first += (size + 1) // 2
        padded = functional.pad(image, (size // 2,) * 4)
        views = torch.stack([padded[:, :, i : i + h, j : j + w] for i in range(size) for j in range(size)], 2)
        out = out + weights[:, n : n + 1] * (views * kernel[:, None]).sum(2)
    return out
