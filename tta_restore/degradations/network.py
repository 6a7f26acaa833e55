"""Network that reads noise and blur together, given the JPEG compression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core import checks

__all__ = ["DegradationNet"]

_FLOOR = 1.5 / 255  # standard deviation below which local contrast is not amplified further
_LUMA = (0.299, 0.587, 0.114)


class DegradationNet(nn.Module):
    """Estimate the logarithms of blur radius and noise level, with their uncertainty.

    A convolutional network over the image, its high-pass and its locally normalized luminance, which does not depend on
    contrast. Attention pools the features, so that few sharp edges decide about blur and few smooth areas about noise,
    and the size of the image is free.

    Args:
        widths: channels at half, quarter and eighth resolution.
        heads: attention maps that pool the features.

    Shape:
        - image: (B, 3, H, W) in [0, 1], H and W at least 32 and multiples of 8
        - quality: (B,), JPEG quality of libjpeg; 100 for uncompressed images
        - output: means (B, 2) and log scales (B, 2) of Laplace distributions: log root mean square blur radius in
          pixels, log standard deviation of the noise in [0, 1] values

    Raises:
        ValueError: the image has another shape.
    """

    def __init__(self, *, widths: tuple[int, int, int] = (40, 64, 88), heads: int = 6) -> None:
        super().__init__()
        first, second, third = widths
        self.heads = heads
        self.stem = nn.Conv2d(8 * 4 + 1, first, 3, padding=1)
        self.block1 = _Block(first)
        self.down2, self.block2 = nn.Conv2d(first, second, 3, stride=2, padding=1), _Block(second)
        self.down3, self.block3 = nn.Conv2d(second, third, 3, stride=2, padding=1), _Block(third)
        self.attention = nn.Conv2d(third, heads, 1)
        self.head = nn.Sequential(
            nn.Linear(heads * third + third + second + first + 1, 128), nn.GELU(), nn.Linear(128, 4)
        )

    def forward(self, image: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Read a batch."""
        checks.expect_shape("DegradationNet", "image", image, "(B, C, H, W)", (None, 3, None, None))
        if min(image.shape[-2:]) < 32 or any(side % 8 for side in image.shape[-2:]):
            raise ValueError(
                f"DegradationNet: expected image (B, 3, H, W) with H, W >= 32 and multiples of 8, "
                f"got {tuple(image.shape)}"
            )
        compression = (100 - quality.to(image)) / 50
        planes = F.pixel_unshuffle(self._planes(image), 2)
        plane = compression.view(-1, 1, 1, 1).expand(-1, 1, *planes.shape[-2:])
        fine = self.block1(F.gelu(self.stem(torch.cat([planes, plane], 1))))
        middle = self.block2(F.gelu(self.down2(fine)))
        deep = self.block3(F.gelu(self.down3(middle)))
        attention = self.attention(deep).flatten(2).softmax(-1)
        pooled = torch.einsum("bkn,bcn->bkc", attention, deep.flatten(2)).flatten(1)
        # smooth areas show the noise: the mean of small responses, as of a geometric mean
        quiet = [torch.log(part.square().mean(1, keepdim=True) + 1e-4).mean((1, 2, 3)) for part in (fine,)]
        features = [pooled, deep.mean((2, 3)), middle.abs().mean((2, 3)), fine.abs().mean((2, 3)), quiet[0][:, None]]
        means, log_scales = self.head(torch.cat(features, 1)).chunk(2, dim=1)
        offset = means.new_tensor([0.3, -4.0])  # about the middle of the training distribution
        return means + offset, log_scales.clamp(-4, 1.5)

    def _planes(self, image: Tensor) -> Tensor:
        luma = torch.einsum("bchw,c->bhw", image, image.new_tensor(_LUMA))[:, None]
        planes = [image - 0.5, ((image - _mean(image, 5)) * 8).clamp(-2, 2)]
        for size in (7, 15):
            mean = _mean(luma, size)
            variance = (_mean(luma.square(), size) - mean.square()).clamp(min=0)
            planes.append((luma - mean) / (variance + _FLOOR**2).sqrt())
        return torch.cat(planes, 1)


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.first(x))


def _mean(x: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(F.pad(x, (size // 2,) * 4, mode="reflect"), size, 1)
