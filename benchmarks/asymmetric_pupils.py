"""Gain from a known asymmetric pupil function, and from the estimated one: ``python -m benchmarks.asymmetric_pupils``.

Photographs are blurred through lenses, and restored by a Wiener filter with the true point spread function (PSF), with
its symmetric part, which is what the power spectrum shows, and with the one that the estimator reads from the four
blurred frames together. The filter takes the better of four noise levels each time, so that only the PSF differs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
from pathlib import Path

import torch
from torch import Tensor

from tta_restore._core.color import linear_to_srgb, srgb_to_linear
from tta_restore.data.synthetic import photos
from tta_restore.degradations import Blur, BlurParameters, Clip, Compose, Estimator, Noise, Quantize, Reading
from tta_restore.degradations import lens as optics
from tta_restore.degradations.asymmetry import wiener_filter
from tta_restore.degradations.blur import pupil_kernels

SHAPES = {
    "triangle": optics.polygon(3, 0.5),
    "coma": optics.center_pupil(optics.coma),
    "cat eye": optics.cat_eye(),
    "disk": optics.disk,
}
NOISE_LEVELS = (1 / 255, 3 / 255, 8 / 255, 20 / 255)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", choices=("dev", "test"), default="dev")
    parser.add_argument("--radius", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "asymmetric_pupils.json")
    options = parser.parse_args(arguments)
    names = (photos.DEV if options.photos == "dev" else photos.TEST)[:4]
    estimator, generator, rows = Estimator(num_candidates=4), torch.Generator().manual_seed(0), {}
    for shape, function in SHAPES.items():
        rows[shape] = measure(function, names, options.radius, estimator, generator)
        print(shape, {name: round(value, 2) for name, value in rows[shape].items()})
    settings = {"photos": options.photos, "radius": options.radius}
    content = {"date": str(datetime.date.today()), "machine": platform.machine(), "settings": settings, "rows": rows}
    options.out.write_text(json.dumps(content, indent=1) + "\n")


def measure(
    function: optics.Pupil, names: tuple[str, ...], radius: float, estimator: Estimator, generator: torch.Generator
) -> dict[str, float]:
    true = optics.rasterize_pupils([optics.Lens("lens", function, (1.0, 1.0))])
    size = torch.tensor([[radius]])
    blur, finish = BlurParameters(pupil_kernels(true, size), size), Compose([Noise(1 / 255), Clip(), Quantize()])
    pairs = []
    for name in names:
        sharp = photos.load(name)[None, :, 60:252, 60:252]
        pairs.append((sharp, finish.apply(Blur().apply(sharp, blur), finish.sample(generator, 1), generator)))
    reading = Reading.pool([estimator.read(blurry) for _, blurry in pairs], estimator)
    pupils = {"true": true, "symmetric": (true + true.flip((1, 2))) / 2, "read": reading.pupils[:1]}
    found = {"input": sum(psnr(blurry, sharp) for sharp, blurry in pairs) / len(pairs)}
    for label, pupil in pupils.items():
        kernel = pupil_kernels(pupil, size)[0, 0]
        found[label] = sum(best_psnr(blurry, sharp, kernel) for sharp, blurry in pairs) / len(pairs)
    overlap = (reading.pupils[0] * true[0]).sum() / reading.pupils[0].norm() / true[0].norm()
    return found | {"overlap": float(overlap), "read_radius": reading.mean["blur_radius"]}


def best_psnr(blurry: Tensor, sharp: Tensor, kernel: Tensor) -> float:
    light = srgb_to_linear(blurry[0])
    restored = [
        torch.stack([wiener_filter(plane, kernel[None], level)[0] for plane in light]) for level in NOISE_LEVELS
    ]
    return max(psnr(linear_to_srgb(image.clamp(0, 1))[None], sharp) for image in restored)


def psnr(image: Tensor, sharp: Tensor) -> float:
    error = (image.clamp(0, 1) - sharp)[..., 12:-12, 12:-12].square().mean()
    return -10 * math.log10(float(error))


if __name__ == "__main__":
    main()
