"""The adaptive convolution as it was released, written anew from its description: unfold, permute, multiply, sum.

Every step makes the K shifted views of its input, brings taps and views into one layout, multiplies and sums over K.
This is what the ops replace, and the baseline of every ratio.
"""

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
