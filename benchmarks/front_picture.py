"""The picture at the top of the README: frames of the demo, restored without and with adaptation.

    python -m benchmarks.front_picture docs/front.jpg

The first frame (seed 0) of two conditions of the demo that the models were not trained for, with PSNR against the sharp
photo.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tta_restore.engine.demo.demo import BASELINE, SHOWN, comparison, demo_streams
from tta_restore.engine.report.images import to_bytes
from tta_restore.metrics import psnr

#: Conditions that the restorers were not trained for.
CONDITIONS = ("denoiser: twice the noise", "deblurrer: lens and noise")
COLUMNS = {"input": "before", BASELINE: "restored", SHOWN: "restored, adapted"}
_TILE, _GAP, _TITLE = 248, 8, 28  # pixels


def rows(frames_per_condition: int = 1, seed: int = 0) -> dict[str, dict[str, tuple[Tensor, float]]]:
    """Return image (3, H, W) and PSNR in dB by column, by condition."""
    contenders = {contender.name: contender for contender in comparison().contenders}
    found: dict[str, dict[str, tuple[Tensor, float]]] = {}
    for stream, frames in demo_streams(frames_per_condition, seed).items():
        # One adapter for all frames of a restorer, as in the demo.
        methods = {name: contenders[name].build(stream) for name in COLUMNS}
        for frame in frames:
            images = {name: method(frame.blurry[None])[0].clamp(0, 1) for name, method in methods.items()}
            if frame.family in CONDITIONS and frame.family not in found:
                found[frame.family] = {
                    name: (image, float(psnr(image[None], frame.sharp[None]))) for name, image in images.items()
                }
    return {condition: found[condition] for condition in CONDITIONS}


def draw(table: dict[str, dict[str, tuple[Tensor, float]]]) -> Image.Image:
    """Return one picture: a row per condition, a column per entry of :data:`COLUMNS`."""
    width = len(COLUMNS) * (_TILE + _GAP) + _GAP
    canvas = Image.new("RGB", (width, len(table) * (_TILE + _TITLE + _GAP) + _GAP), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    for row, (condition, entries) in enumerate(table.items()):
        top = row * (_TILE + _TITLE + _GAP) + _GAP
        for column, (name, (image, decibels)) in enumerate(entries.items()):
            left = column * (_TILE + _GAP) + _GAP
            words = condition if name == "input" else COLUMNS[name]
            pen.text((left, top + 4), f"{words}   {decibels:.1f} dB", fill="#1c2430", font=font)
            tile = Image.fromarray(to_bytes(image).permute(1, 2, 0).numpy())
            canvas.paste(tile.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (left, top + _TITLE))
    return canvas


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", type=Path, default=Path("docs/front.jpg"), help="JPEG file to write")
    target = parser.parse_args().target
    torch.set_num_threads(1)
    table = rows()
    draw(table).save(target, quality=82, optimize=True)
    for condition, entries in table.items():
        print(condition, *(f"{COLUMNS[name]} {value:.2f} dB" for name, (_, value) in entries.items()), sep="  ")
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
