"""JPEG compression with the real encoder (libjpeg, through Pillow)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tta_restore._core import checks
from tta_restore.degradations._ranges import Range, expect_range, rand, uniform
from tta_restore.degradations.degradation import STEP, Degradation, Parameters, quantity
from tta_restore.degradations.registry import register_degradation

__all__ = ["Jpeg", "JpegParameters", "file_tables", "quality_tables", "tables_quality"]

_SUBSAMPLING = ("4:4:4", "4:2:2", "4:2:0")

# Annex K of ITU-T T.81, tables K.1 (luminance) and K.2 (chrominance), row by row
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99,
    *(99,) * 36,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class JpegParameters(Parameters):
    """Quantization tables of luminance and chrominance, subsampling (0 is 4:4:4), and which images are compressed."""

    tables: Tensor = quantity("quantization steps, row by row", minimum=1, maximum=255, shape="(N, 2, 64)")
    subsampling: Tensor = quantity("position in 4:4:4, 4:2:2, 4:2:0", minimum=0, maximum=2)
    applied: Tensor = quantity("1 where the image is compressed", minimum=0, maximum=1)

    @property
    def quality(self) -> Tensor:
        """Quality setting of libjpeg whose luminance table is nearest, (N,); 100 where nothing is compressed."""
        found = torch.tensor([tables_quality(tables) for tables in self.tables], dtype=torch.float32)
        return torch.where(self.applied.cpu() > 0, found, torch.full_like(found, 100.0)) if len(found) else found


@register_degradation("jpeg")
@dataclass(frozen=True, eq=False)
class Jpeg(Degradation):
    """JPEG compression: values are clipped to [0, 1], rounded to 8 bits, encoded and decoded. No gradient.

    Args:
        quality: quality setting of libjpeg, 1 to 100, drawn uniformly.
        tables: quantization tables of luminance and chrominance (2, 64), row by row, as in a file
            (:func:`file_tables`), instead of ``quality``.
        subsampling: of chrominance: "4:4:4", "4:2:2", "4:2:0", or a tuple to draw from.
        prob: probability that an image is compressed.
    """

    quality: Range = (10.0, 95.0)
    tables: Tensor | None = None
    subsampling: str | tuple[str, ...] = "4:2:0"
    prob: float = 1.0

    Parameters = JpegParameters

    def __post_init__(self) -> None:
        expect_range("Jpeg", "quality", self.quality, minimum=1, maximum=100)
        checks.expect_number("Jpeg", "prob", self.prob, minimum=0, maximum=1)
        if self.tables is not None:
            checks.expect_shape("Jpeg", "tables", self.tables, "(2, 64)", (2, 64))
        for name in self._names():
            checks.expect_choice("Jpeg", "subsampling", name, _SUBSAMPLING)

    def sample(self, generator: torch.Generator, n: int) -> JpegParameters:
        """Draw ``n`` sets of parameters."""
        quality = uniform(self.quality, generator, n)
        tables = quality_tables(quality) if self.tables is None else self.tables.cpu().long().expand(n, 2, 64)
        names = self._names()
        chosen = (rand(generator, n) * len(names)).long().clamp(max=len(names) - 1)
        positions = torch.tensor([_SUBSAMPLING.index(name) for name in names])
        return JpegParameters(tables, positions[chosen], (rand(generator, n) < self.prob).long())

    def apply(self, sharp: Tensor, parameters: JpegParameters, generator: torch.Generator | None = None) -> Tensor:
        """Encode and decode; C is 1 or 3. See :meth:`Degradation.apply`."""
        parameters = self._expect(sharp, parameters)
        if sharp.shape[1] not in (1, 3):
            raise ValueError(f"Jpeg: expected sharp (B, C, H, W) with C = 1 or 3, got {tuple(sharp.shape)}")
        pixels = (sharp.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).movedim(1, -1).numpy()
        settings = (parameters.tables, parameters.subsampling, parameters.applied)
        decoded = sharp.clone()
        for index, values in enumerate(zip(pixels, *(part.tolist() for part in settings), strict=True)):
            image, tables, subsampling, applied = values
            if applied:
                recoded = torch.from_numpy(_recode(image, tables, subsampling))
                decoded[index] = (recoded.movedim(-1, 0).float() / 255).to(sharp)
        return decoded

    def distance(self, a: JpegParameters, b: JpegParameters) -> Tensor:
        """Return the distance of the mean logarithm of the quantization steps, (N,)."""
        first, second = (
            torch.where(part.applied[:, None] > 0, part.tables[:, 0].float(), torch.ones(()).to(part.tables.device))
            for part in (a, b)
        )
        # steps of 3 of 255 are not visible
        return ((first + 3) / (second + 3)).log().abs().mean(1) / STEP

    def _names(self) -> tuple[str, ...]:
        return (self.subsampling,) if isinstance(self.subsampling, str) else tuple(self.subsampling)


def quality_tables(quality: Tensor) -> Tensor:
    """Return the quantization tables that libjpeg uses at a quality: (N,) -> (N, 2, 64), row by row."""
    base = torch.tensor([_LUMINANCE, _CHROMINANCE])
    whole = quality.round().long().clamp(1, 100).cpu()
    scale = torch.where(whole < 50, 5000 // whole, 200 - 2 * whole)
    return ((base * scale[:, None, None] + 50) // 100).clamp(1, 255)


def tables_quality(tables: Tensor) -> float:
    """Return the quality setting of libjpeg whose luminance table is nearest to that of ``tables`` (2, 64)."""
    known = quality_tables(torch.arange(1.0, 101.0))[:, 0].float()
    distance = (known.log() - tables[0].float().cpu().log()).abs().sum(1)
    return float(distance.argmin() + 1)


def file_tables(quantization: dict[int, Sequence[int]]) -> Tensor:
    """Return the tables (2, 64) of a JPEG file from ``PIL.Image.Image.quantization``.

    Raises:
        ValueError: there is no table of 64 values.
    """
    tables = [list(quantization[key]) for key in sorted(quantization)][:2]
    if not tables or any(len(table) != 64 for table in tables):
        raise ValueError(f"file_tables: expected one or two tables of 64 values, got {[len(t) for t in tables]}")
    return torch.tensor([tables[0], tables[-1]]).clamp(1, 255)


def _recode(image: np.ndarray, tables: list[list[int]], subsampling: int) -> np.ndarray:
    gray, stream = image.shape[2] == 1, io.BytesIO()
    source = Image.fromarray(image[..., 0] if gray else image)
    source.save(stream, "JPEG", qtables=tables[:1] if gray else tables, subsampling=subsampling)
    decoded = np.asarray(Image.open(stream))
    return np.array(decoded[..., None] if gray else decoded)
