"""Is a restorer that was meta-trained to adapt better on a blur it never saw? `python -m benchmarks.meta_transfer`.

A camera pans over a photograph and stops now and then. Its direction and speed differ from clip to clip: up to 45
degrees from the horizontal in training, steeper in the test, over photographs that nothing was trained or chosen on.
A small restorer is trained with true pairs of the training clips, and then trained further in two ways. On a test clip
nobody has sharp frames; it is adapted to by what it shows itself: patches that are sharp when the camera stands,
blurred along the motion that other moments of the clip show (`MotionReblur`, whose exposure was learnt).

pre-trained         the start of everything
  + fine-tuned      the inner loop on the test clip, from there
trained on          the pre-trained restorer, trained further with true pairs of the same clips
  + fine-tuned      the inner loop on the test clip, from there
meta-trained        the start that meta-training on the same clips found, without adaptation
  + adapted         meta-testing: the inner loop on the test clip, from there

``--split dev`` is for choosing: other photographs and other directions than those of the test. Rows of other seeds stay
in the results file; the table is of all in it.
"""

import argparse
import copy
import json
import math
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from tta_restore.adapters.inner_loop import InnerLoopSettings
from tta_restore.adapters.meta_transfer import left_sharp
from tta_restore.data import photos
from tta_restore.data.camera_shake import CameraShake, ShakenClips
from tta_restore.data.clips import Clip, stack_frames
from tta_restore.data.image import Image
from tta_restore.data.image_io import write_image
from tta_restore.engine.contact_sheet import contact_sheet
from tta_restore.engine.meta import MetaObjective
from tta_restore.engine.meta_settings import MetaSettings
from tta_restore.engine.meta_tasks import TaskSource, query_windows
from tta_restore.engine.pretrain_reblur import ReblurSettings, pretrain_reblur
from tta_restore.engine.train_demo import sharp_bank
from tta_restore.engine.training import TrainingRun, train
from tta_restore.metrics import psnr
from tta_restore.models.registry import create_model

FRAMES, SIZE, PATCH, PLACES = 16, 96, 64, 8
RESTING = 40.0  # dB from the original: the camera stands
SPEEDS = (3.0, 4.0, 5.0)  # pixels per frame, most of it with an open shutter


def pans(*degrees, speeds=SPEEDS):
    rests = {"variation": 0.0, "period": 16.0, "rest": 0.25}
    return [CameraShake(pan=speed, direction=math.radians(angle), **rests) for angle in degrees for speed in speeds]


TRAINING = pans(-45, -22.5, 0, 22.5, 45)
KINDS = {
    "dev": {"72 degrees": pans(72, speeds=[3.5]), "-63 degrees": pans(-63, speeds=[4.5])},
    "test": {"90 degrees": pans(90, speeds=[3.5]), "-67.5 degrees": pans(-67.5, speeds=[4.5])},
}
STARTS = {
    "pre-trained": "pre-trained + fine-tuned",
    "trained on": "trained on + fine-tuned",
    "meta-trained": "meta-trained + adapted",
}
ROWS = ("blurred", *(row for pair in STARTS.items() for row in pair))


def moving_frames(clip):
    """Which frames of a clip there is something to restore in: (T,)."""
    return psnr(stack_frames(clip.blurry), stack_frames(clip.originals())) <= RESTING


def in_motion(clip):
    """These frames, as a clip."""
    moving = moving_frames(clip)
    return Clip(clip.name, stack_frames(clip.blurry)[moving], stack_frames(clip.originals())[moving])


class Decaying(MetaObjective):
    """Outer steps grow over ten steps and shrink along a cosine: constant ones unsettle a start that was trained so."""

    steps = 1

    def rate(self, step):
        return min((step + 1) / 10, 0.5 * (1 + math.cos(math.pi * step / self.steps)))


class Tasks(TaskSource):
    """Adapted to on the whole clip, judged by the frames in motion."""

    def task(self, clip, generator):
        query = query_windows(in_motion(clip), self.patch_size, generator, count=self.query_frames)
        return replace(super().task(clip, generator), query_blurry=query[0], query_sharp=query[1])


def film(pictures, shakes, seed, length):
    """Clips; motion and photograph both change from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=generator).tolist()
    clips = []
    for i in range(length):
        made = ShakenClips(
            [pictures[order[i % len(order)]]], [shakes[i % len(shakes)]], frames=FRAMES, size=SIZE, moments=11,
            seed=seed + i,
        )  # fmt: skip
        clips.append(made[0])
    return clips


def supervised(restorer, clips, seed, *, steps, lr, pairs=8):
    """Plain training with true pairs, Adam along a cosine."""
    restorer.train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(restorer.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda t: min((t + 1) / 100, 0.5 * (1 + math.cos(math.pi * t / steps)) + 1e-3)
    )
    generator = torch.Generator().manual_seed(seed)
    clips, gains = [in_motion(clip) for clip in clips], []
    for _ in range(steps):
        chosen = torch.randint(0, len(clips), (pairs,), generator=generator).tolist()
        cut = [query_windows(clips[i], PATCH, generator, count=1, num_frames=1) for i in chosen]
        blurry, sharp = (torch.cat(side)[:, 0] for side in zip(*cut, strict=True))
        optimiser.zero_grad()
        restored = restorer(blurry.contiguous(memory_format=torch.channels_last))
        F.l1_loss(restored, sharp).backward()
        torch.nn.utils.clip_grad_norm_(restorer.parameters(), 0.5)
        optimiser.step()
        schedule.step()
        gains.append((psnr(restored.detach(), sharp) - psnr(blurry, sharp)).mean().item())
        if len(gains) % 250 == 0:
            print(f"step {len(gains)}: {statistics.mean(gains[-250:]):.2f} dB above the blurred frame", flush=True)
    return restorer.to(memory_format=torch.contiguous_format)


def training_clips(options):
    generator = torch.Generator().manual_seed(0)
    bank = sharp_bank(generator, count=options.clips // 2)
    clips = film([(f"tile{i}", tile.float() / 255) for i, tile in enumerate(bank)], TRAINING, 1000, options.clips)
    return [clip for clip in clips if moving_frames(clip).sum() >= FRAMES // 2]  # not those without detail


def pretrained(options, clips, folder):
    """Restorer and reblurrer; one pair for all seeds."""
    if options.keep and options.keep.exists():
        return torch.load(options.keep, weights_only=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        restorer, reblur = create_model("lens_unet"), create_model("motion_reblur")
    supervised(restorer, clips, 0, steps=options.pretrain, lr=1.2e-3)
    run = TrainingRun(
        folder / "reblur", steps=60, batch=8, save_every=10**6, log_every=20, draw_every=0, progress=False
    )
    pretrain_reblur(reblur, clips, run, size=PATCH, settings=ReblurSettings(lr=2e-2))
    print(f"exposure: {reblur.exposure.item():.3f} of 0.8", flush=True)
    if options.keep:
        torch.save((restorer, reblur), options.keep)
    return restorer, reblur


def inner(rate, options):
    return InnerLoopSettings(rate, 0.0, options.optimiser, 0.0, passes=options.passes, noise=1 / 255, least_blur=0.01)


def starts_of(restorer, reblur, clips, seed, options, folder):
    """Restorers by the name of the start; seconds of training by its part."""
    spent, begun = {}, time.process_time()

    def lap(name):
        nonlocal begun
        spent[name], begun = round(time.process_time() - begun), time.process_time()

    found = {"pre-trained": copy.deepcopy(restorer).eval()}
    found["trained on"] = supervised(
        copy.deepcopy(restorer), clips, seed, steps=options.further, lr=options.further_lr
    ).eval()
    lap("training on")
    settings = MetaSettings(
        inner(options.inner, options), lr=options.outer, reblur_lr=0.0, reblur_weight=0.0,
        second_order=options.second_order, query_batch=8,
    )  # fmt: skip
    run = TrainingRun(
        folder / "meta", steps=options.meta, batch=options.tasks, save_every=10**6, log_every=25, draw_every=0,
        seed=seed, progress=False,
    )  # fmt: skip
    history = []

    def show(step, found):
        history.append(found.parts["deblur"].item())
        if len(history) % 25 == 0:
            print(f"meta-training {len(history)}: {statistics.mean(history[-25:]):.4f}", flush=True)

    learnt = Decaying(copy.deepcopy(restorer), reblur, settings=settings)
    learnt.steps = options.meta
    source = Tasks(
        clips, num_patches=PLACES, patch_size=PATCH, query_frames=8, other_moments=options.other_moments
    )  # fmt: skip
    train(learnt, source, run, on_step=show)
    found["meta-trained"] = learnt.restorer.eval()
    lap("meta-training")
    return found, spent


def restore_all(restorer, reblur, values, clip):
    """All frames of a clip, those that were sharp before as they are: in every row of the table."""
    own = {name.removeprefix("restorer."): value for name, value in values.items() if name.startswith("restorer.")}
    blurry = stack_frames(clip.blurry)
    with torch.no_grad():
        restored = torch.func.functional_call(restorer, own, (blurry,)).clamp(0, 1)
    return left_sharp(blurry, restored, reblur)


def run(networks, clips, seed, options, folder):
    restorer, reblur = copy.deepcopy(networks)
    found, spent = starts_of(restorer, reblur, clips, seed, options, folder)
    print(spent, flush=True)
    names = getattr(photos, options.split.upper())
    source = TaskSource([None], num_patches=PLACES, patch_size=PATCH, other_moments=options.other_moments)
    rows, pictures = [], {}
    for number, (kind, shakes) in enumerate(KINDS[options.split].items()):
        chosen = names[(number + seed) % 2 :: 2]  # every photograph moves in one of the ways per seed
        for clip in film([(name, photos.load(name)) for name in chosen], shakes, 5000 + 100 * seed, len(chosen)):
            sharp, seen = stack_frames(clip.originals()), {"blurred": stack_frames(clip.blurry)}
            for name, network in found.items():
                rates = {STARTS[name]: options.inner if name == "meta-trained" else options.fine_tune}
                if options.split == "dev":
                    rates |= {f"{name} by {rate:g}": rate for rate in options.rates}
                for label, rate in [(name, None), *rates.items()]:
                    objective = MetaObjective(network, reblur, settings=MetaSettings(inner(rate or 0.0, options)))
                    values = dict(objective.weights())
                    if rate is not None:
                        task = source.task(clip, torch.Generator().manual_seed(seed))
                        values, _ = objective.adapt(values, task, torch.Generator().manual_seed(seed))
                    seen[label] = restore_all(network, reblur, values, clip)
            scores = {name: psnr(frames, sharp).tolist() for name, frames in seen.items()}
            rows.append({"seed": seed, "kind": kind, "clip": clip.name, "psnr": scores})
            pictures[f"{kind}-{clip.name}".replace(" ", "-")] = seen | {"original": sharp}
            print(kind, clip.name, " ".join(f"{statistics.mean(scores[row]):.2f}" for row in ROWS), flush=True)
    return rows, pictures, spent


def draw(pictures, rows, folder):
    """Per clip, the frame with the strongest blur: every row's result, and the original."""
    for (name, found), row in zip(pictures.items(), rows, strict=True):
        worst = min(range(FRAMES), key=lambda t: row["psnr"]["blurred"][t])
        tiles = [found[key][worst] for key in (*ROWS, "original")]
        write_image(folder / f"seed{row['seed']}-{name}.png", Image(contact_sheet(tiles, columns=4)))


def table(results, rows=ROWS):
    """Means over clips, per seed and of all: of all frames, of those while the camera moves, of those at rest."""
    seeds = sorted({row["seed"] for row in results})
    parts = {
        "all frames": lambda blurred: True,
        "frames in motion": lambda blurred: blurred <= RESTING,
        "frames at rest (blurred above 40 dB)": lambda blurred: blurred > RESTING,
    }
    for part, belongs in parts.items():
        print(f"\nPSNR in dB, mean over clips, {part}; per seed; of all")
        for name in rows:
            line = []
            for seed in seeds:
                values = []
                for row in (row for row in results if row["seed"] == seed):
                    both = zip(row["psnr"][name], row["psnr"]["blurred"], strict=True)
                    values.append([value for value, blurred in both if belongs(blurred)])
                line.append(statistics.mean(statistics.mean(v) for v in values if v))
            print(f"{name:48}" + "".join(f"{value:8.2f}" for value in [*line, statistics.mean(line)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--clips", type=int, default=300, help="for training (default: %(default)s)")
    parser.add_argument("--pretrain", type=int, default=1500, help="steps of pre-training (default: %(default)s)")
    parser.add_argument("--meta", type=int, default=40, help="steps of meta-training (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=2, help="clips in each (default: %(default)s)")
    parser.add_argument("--outer", type=float, default=1e-4, help="its rate (default: %(default)s)")
    parser.add_argument("--second-order", action="store_true")
    parser.add_argument("--further", type=int, default=400, help="steps of training on (default: %(default)s)")
    parser.add_argument("--further-lr", type=float, default=5e-4, help="its rate (default: %(default)s)")
    parser.add_argument("--optimiser", choices=("adam", "sgd"), default="adam", help="of the inner loop")
    parser.add_argument("--inner", type=float, default=1e-3, help="rate of meta-testing (default: %(default)s)")
    parser.add_argument("--fine-tune", type=float, default=1e-3, help="and of fine-tuning (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=4, help="of the inner loop (default: %(default)s)")
    parser.add_argument("--other-moments", type=int, default=2, help="per place (default: %(default)s)")
    parser.add_argument(
        "--rates", type=float, nargs="*", default=[], help="of fine-tuning, more to try with --split dev"
    )
    parser.add_argument("--split", choices=("test", "dev"), default="test", help="clips (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="file of pre-trained networks, used again")
    parser.add_argument("--output", type=Path, help="JSON file; rows of other seeds in it are kept")
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.output.read_text()) if options.output and options.output.exists() else {"rows": []}
    results = [row for row in known["rows"] if row["seed"] not in options.seeds]
    seconds = {key: value for key, value in known.get("seconds", {}).items() if int(key) not in options.seeds}
    clips = training_clips(options)
    with tempfile.TemporaryDirectory() as folder:
        networks = pretrained(options, clips, Path(folder))
    print(f"pre-training: {time.process_time():.0f} s", flush=True)
    for seed in options.seeds:
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            rows, pictures, spent = run(networks, clips, seed, options, Path(folder))
        results += rows
        seconds[str(seed)] = spent | {"all": round(time.process_time() - begun), "load": os.getloadavg()[0]}
        print(f"seed {seed}: {seconds[str(seed)]}", flush=True)
        if options.pictures:
            draw(pictures, rows, options.pictures)
        if options.output:
            left_out = ("output", "pictures", "seeds", "keep", "rates")
            chosen = {key: value for key, value in vars(options).items() if key not in left_out}
            content = {"options": chosen, "torch": torch.__version__, "seconds": seconds, "rows": results}
            options.output.write_text(json.dumps(content, indent=1) + "\n")
    table(results, list(results[0]["psnr"]) if options.split == "dev" else ROWS)


if __name__ == "__main__":
    main()
