"""A transformer restorer with the names of the official weights, written from its paper, to plug blur maps into.

Source: Restormer: efficient transformer for high-resolution image restoration (Zamir et al., CVPR 2022).
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs, outputs, size=1, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **options)


class ChannelNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.LayerNorm(channels)

    def forward(self, x):
        return self.body(x.movedim(1, -1)).movedim(-1, 1)


class ChannelAttention(nn.Module):
    """Attention between channels, whose features are compared over all pixels."""

    def __init__(self, channels, heads):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.project_out = conv(channels, 3 * channels), conv(channels, channels)
        self.qkv_dwconv = conv(3 * channels, 3 * channels, 3, groups=3 * channels)

    def forward(self, x):
        heads = len(self.temperature)
        q, k, v = (t.flatten(2).unflatten(1, (heads, -1)) for t in self.qkv_dwconv(self.qkv(x)).chunk(3, 1))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature
        return self.project_out((scores.softmax(-1) @ v).reshape(x.shape))


class GatedFeedForward(nn.Module):
    def __init__(self, channels, expansion):
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in, self.project_out = conv(channels, 2 * hidden), conv(hidden, channels)
        self.dwconv = conv(2 * hidden, 2 * hidden, 3, groups=2 * hidden)

    def forward(self, x):
        gate, value = self.dwconv(self.project_in(x)).chunk(2, 1)
        return self.project_out(F.gelu(gate) * value)


class Block(nn.Module):
    def __init__(self, channels, heads, expansion):
        super().__init__()
        self.norm1, self.attn = ChannelNorm(channels), ChannelAttention(channels, heads)
        self.norm2, self.ffn = ChannelNorm(channels), GatedFeedForward(channels, expansion)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Resample(nn.Module):
    def __init__(self, channels, outputs, shuffle):
        super().__init__()
        self.body = nn.Sequential(conv(channels, outputs, 3), shuffle)

    def forward(self, x):
        return self.body(x)


class Embed(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.proj = conv(3, channels, 3)

    def forward(self, x):
        return self.proj(x)


class Restormer(nn.Module):
    def __init__(self, dim=48, blocks=(4, 6, 6, 8), refinement=4, heads=(1, 2, 4, 8), expansion=2.66):
        super().__init__()

        def level(channels, i, count=None):
            return nn.Sequential(*(Block(channels, heads[i], expansion) for _ in range(count or blocks[i])))

        self.patch_embed = Embed(dim)
        self.encoder_level1, self.encoder_level2 = level(dim, 0), level(2 * dim, 1)
        self.encoder_level3, self.latent = level(4 * dim, 2), level(8 * dim, 3)
        for name, channels in (("down1_2", dim), ("down2_3", 2 * dim), ("down3_4", 4 * dim)):
            setattr(self, name, Resample(channels, channels // 2, nn.PixelUnshuffle(2)))
        for name, channels in (("up4_3", 8 * dim), ("up3_2", 4 * dim), ("up2_1", 2 * dim)):
            setattr(self, name, Resample(channels, 2 * channels, nn.PixelShuffle(2)))
        self.reduce_chan_level3, self.decoder_level3 = conv(8 * dim, 4 * dim), level(4 * dim, 2)
        self.reduce_chan_level2, self.decoder_level2 = conv(4 * dim, 2 * dim), level(2 * dim, 1)
        self.decoder_level1, self.refinement = level(2 * dim, 0), level(2 * dim, 0, refinement)
        self.output = conv(2 * dim, 3, 3)

    def forward(self, x):
        first = self.encoder_level1(self.patch_embed(x))
        second = self.encoder_level2(self.down1_2(first))
        third = self.encoder_level3(self.down2_3(second))
        y = self.latent(self.down3_4(third))
        y = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(y), third], 1)))
        y = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(y), second], 1)))
        y = self.decoder_level1(torch.cat([self.up2_1(y), first], 1))
        return self.output(self.refinement(y)) + x
