"""Autograd Functions as they are in restorers: right first derivatives, wrong second ones."""

import torch
from torch import nn


class SavesIntermediates(torch.autograd.Function):
    """A LayerNorm over channels as written in many restorers: backward uses what forward computed, as constants."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        centerd = x - x.mean(1, keepdim=True)
        scale = (centerd.square().mean(1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(centerd * scale, scale, weight)
        return centerd * scale * weight[:, None, None] + bias[:, None, None]

    @staticmethod
    def backward(ctx, grad):
        normed, scale, weight = ctx.saved_tensors
        g = grad * weight[:, None, None]
        inner = g - normed * (g * normed).mean(1, keepdim=True) - g.mean(1, keepdim=True)
        return scale * inner, (grad * normed).sum((0, 2, 3)), grad.sum((0, 2, 3)), None


class TheirLayerNorm2d(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels)), 1e-6

    def forward(self, x):
        return SavesIntermediates.apply(x, self.weight, self.bias, self.eps)


class Squares(torch.autograd.Function):
    """Marked as not to be differentiated twice: torch leaves the missing part out without a word."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]
