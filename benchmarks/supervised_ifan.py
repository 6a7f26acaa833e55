"""Does IFAN learn from its first step on? `python -m benchmarks.supervised_ifan`.

A small IFAN, the three published losses, pairs with dual-pixel views made of the training photographs by one lens, as
a data set is made with one; the same pairs, steps and rates for both initializations: ``identity`` (ours), and
``published``, whose filters are so small that nothing of the encoder's features passes N steps. PSNR is measured on
photographs that nothing was trained on, through the same lens. Gradients are those of the last layer of the encoder
whose features are filtered. ``--random-lenses`` draws one per picture: even the best linear filter gains 0.1 dB then.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from tta_restore import models
from tta_restore.data.datasets.pairs import LensPairs, Pair
from tta_restore.data.synthetic import photos
from tta_restore.degradations import lens as optics
from tta_restore.engine.demo.train import sharp_bank
from tta_restore.engine.train.build import bundled_images
from tta_restore.engine.train.config import SupervisedSettings, TrainingRun
from tta_restore.engine.train.supervised import train_supervised
from tta_restore.metrics import psnr

CONFIG = {"base_channels": 8, "num_steps": 17, "num_res_blocks": 1}
SIZE = 48
LENS = optics.Lens("disk", optics.disk, (2.0, 4.0))
COLORS = {"ours": "#0072B2", "official": "#D55E00"}


def one_lens(generator):
    return LENS


def random_lenses(generator):
    return optics.random_lens(generator, radius=(1.0, 5.0))


def held_out(lens, seed=77, count=12):
    sharp = bundled_images(SIZE * 2 + 16, photos.TEST)
    generator = torch.Generator().manual_seed(seed)
    source = LensPairs(sharp, size=SIZE * 2, lens=lens, views=True)
    return source(count, generator)


def train(init, seed, steps, bank, pair, settings, lens):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        restorer = models.create_model("ifan", variant=init, **CONFIG)
    source = LensPairs(bank, size=SIZE, lens=lens, views=True)
    curve, norms = [], []
    encoder = restorer.get_submodule("encoder.stage4")[2][0].weight
    every = max(steps // 10, 1)

    def look(step, found):
        norms.append(float(encoder.grad.norm()))
        curve.append({name: float(part) for name, part in found.parts.items()})

    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(Path(folder), steps=steps, batch_size=4, save_every=steps, log_every=every, draw_every=0,
                          validate_every=every, seed=seed, progress=False)  # fmt: skip
        start = time.process_time()
        halves = [Pair(pair.blurry[i : i + 6], pair.sharp[i : i + 6]) for i in range(0, len(pair.blurry), 6)]
        train_supervised(restorer, source, run, settings=settings, validation=halves, on_step=look)
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    scores = [[line["step"] + 1, line["validation/psnr"]] for line in lines if "validation/psnr" in line]
    return {
        "init": init,
        "seed": seed,
        "seconds": round(time.process_time() - start, 1),
        "psnr": scores,
        "losses": [
            {name: sum(c[name] for c in curve[i : i + every]) / every for name in curve[0]}
            for i in range(0, steps - every + 1, every)
        ],
        "every": every,
        "encoder_gradient": {
            "first": norms[0],
            "steps with exactly none": sum(norm == 0 for norm in norms),
            "by step": [norms[i] for i in range(0, steps, max(steps // 50, 1))],
        },
    }


def plot(results, blurry, path):
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    loss, score, gradient = figure.subplots(1, 3)
    for result in results:
        label = f"{result['init']}, seed {result['seed']}"
        style = {"color": COLORS[result["init"]], "label": label, "linestyle": ("-", "--", ":")[result["seed"] % 3]}
        ends = [(i + 1) * result["every"] for i in range(len(result["losses"]))]
        loss.plot(ends, [part["image"] for part in result["losses"]], **style)
        score.plot(*zip(*result["psnr"], strict=True), **style)
        norms = result["encoder_gradient"]["by step"]
        steps = result["psnr"][-1][0]
        gradient.semilogy([i * steps / len(norms) for i in range(len(norms))], [max(n, 1e-14) for n in norms], **style)
    score.axhline(blurry, color="#5C6470", linewidth=0.8)
    score.annotate("blurry", (0, blurry), fontsize=7, va="bottom")
    titles = ("image loss (MSE)", "held-out PSNR, dB", "gradient norm, filtered features")
    for axes, title in zip((loss, score, gradient), titles, strict=True):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    loss.legend(fontsize=6)
    figure.savefig(path, format="svg", metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--random-lenses", action="store_true")
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--reblur-weight", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/supervised_ifan.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = SupervisedSettings(
        lr=options.lr, cosine_steps=options.steps, warm_up=options.warm_up, reblur_weight=options.reblur_weight
    )
    bank = sharp_bank(torch.Generator().manual_seed(0), size=SIZE + 32, count=96)
    lens = random_lenses if options.random_lenses else one_lens
    pair = held_out(lens)
    blurry = float(psnr(pair.blurry, pair.sharp).mean())
    results = []
    for seed in options.seeds:
        for init in ("ours", "official"):
            results.append(train(init, seed, options.steps, bank, pair, settings, lens))
            last = results[-1]
            losses, scores, gradient = last["losses"], last["psnr"], last["encoder_gradient"]
            print(
                f"{init:10} seed {seed}: image loss {losses[0]['image']:.5f} -> {losses[-1]['image']:.5f}, "
                f"PSNR {scores[0][1]:.2f} -> {scores[-1][1]:.2f} dB (blurry {blurry:.2f}), gradient at the first step "
                f"{gradient['first']:.1e}, exactly none in {gradient['steps with exactly none']} steps; "
                f"{last['seconds']:.0f} s",
                flush=True,
            )
            content = {
                "command": " ".join(["python -m benchmarks.supervised_ifan", *sys.argv[1:]]),
                "config": CONFIG, "size": SIZE, "batch": 4, "blurry_psnr": blurry,
                "load": os.getloadavg()[0], "torch": torch.__version__, "results": results,
            }  # fmt: skip
            options.output.write_text(json.dumps(content, indent=1) + "\n")
    plot(results, blurry, options.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
