"""Is a restorer that was meta-trained to adapt better on a blur it never saw? `python -m benchmarks.meta_transfer`.

A camera pans over a photograph and stops now and then; its direction and speed differ from clip to clip. A small
restorer is pre-trained with true pairs of clips of one camera that pans within 15 degrees of the horizontal. Clips of
others, in steps of 30 degrees, train it further, in two ways: with plain pairs, and by meta-training. Test clips pan at
45 and -75 degrees, which neither has, over photographs that nothing was trained or chosen on, and nobody has sharp
frames of them. A restorer is adapted to one by what it shows itself: patches that are sharp when the camera stands,
blurred along the motion that other moments of the clip show (`MotionReblur`, whose exposure was learned).

pre-trained         the start of the other two
trained on          with true pairs of the clips of other cameras
meta-trained        on the same clips, for as many steps

There is each of them as it is, and after one and after four passes of the inner loop over the patches of the test clip:
from the pre-trained and the trained one that is plain fine-tuning, from the meta-trained one it is meta-testing, at the
same rate.

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
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from tta_restore.adapters.methods.inner_loop import InnerLoopSettings, InnerSample
from tta_restore.adapters.methods.meta_transfer import keep_sharp_frames
from tta_restore.data.datasets.clips import Clip, stack_frames
from tta_restore.data.synthetic import photos
from tta_restore.data.synthetic.camera_shake import ShakenClips
from tta_restore.degradations.motion import CameraShake
from tta_restore.engine.demo.train import sharp_bank
from tta_restore.engine.evaluate.results import FrameRecord, StreamResult
from tta_restore.engine.report.page import (
    MethodNote,
    Report,
    Sample,
    require_packages,
    worst_frame_rule,
    write_report,
)
from tta_restore.engine.train.config import MetaSettings, ReblurSettings, TrainingRun
from tta_restore.engine.train.loop import train
from tta_restore.engine.train.meta import MetaObjective
from tta_restore.engine.train.reblur import pretrain_reblur
from tta_restore.engine.train.windows import MetaTask, TaskSource, query_windows
from tta_restore.metrics import psnr, ssim
from tta_restore.models.registry import create_model

FRAMES, SIZE, PATCH, PLACES = 16, 96, 64, 8
ITEMS = 8  # of the patches of a training clip that are adapted on in a step of meta-training
RESTING = 40.0  # dB from the original: the camera stands
SPEEDS = (3.0, 4.0, 5.0)  # pixels per frame, most of it with an open shutter
PASSES = (1, 4)


def pans(*degrees, speeds=SPEEDS):
    rests = {"variation": 0.0, "period": 16.0, "rest_fraction": 0.25}
    return [CameraShake(pan=speed, direction=math.radians(angle), **rests) for angle in degrees for speed in speeds]


ONE_CAMERA = pans(-15, 0, 15)
OTHERS = pans(-60, -30, 0, 30, 60, 90)
KINDS = {
    "dev": {"75 degrees": pans(75, speeds=[3.5]), "-45 degrees": pans(-45, speeds=[4.5])},
    "test": {"45 degrees": pans(45, speeds=[3.5]), "-75 degrees": pans(-75, speeds=[4.5])},
}
STARTS = ("pre-trained", "trained on", "meta-trained")


def after(start, passes):
    """The name of a row."""
    return f"{start} + {passes} pass{'es' * (passes > 1)}" if passes else start


ROWS = ("blurred", *(after(start, passes) for start in STARTS for passes in (0, *PASSES)))


def moving_frames(clip):
    """Which frames of a clip there is something to restore in: (T,)."""
    return psnr(stack_frames(clip.blurry), stack_frames(clip.originals())) <= RESTING


def in_motion(clip):
    """These frames, as a clip."""
    moving = moving_frames(clip)
    return Clip(clip.name, stack_frames(clip.blurry)[moving], stack_frames(clip.originals())[moving])


class Decaying(MetaObjective):
    """Outer steps grow over ten steps and shrink along a cosine: constant ones unsettle a start that was trained so."""

    steps, clip = 1, 0.5

    def rate(self, step):
        return min((step + 1) / 10, 0.5 * (1 + math.cos(math.pi * step / self.steps)))


class MadeBefore(torch.nn.Module):
    """Reblurs windows whose first frame is the reblurred middle one."""

    num_frames = 3

    def forward(self, windows):
        return windows[:, 0]


class Tasks(TaskSource):
    """Patches of each clip are mined and, as nothing learns there, reblurred once; judged by the frames in motion."""

    def __init__(self, clips, reblur, settings, other_moments):
        super().__init__(clips, num_patches=PLACES, patch_size=PATCH, query_frames=8, num_extra_times=other_moments)
        self.known = []
        for clip in tqdm(clips, desc="mining"):
            task = super().task(clip, torch.Generator().manual_seed(len(self.known)))
            items = settings.filter_samples(task.items, reblur)
            if items:
                with torch.no_grad():
                    made = [reblur(item.clip[None]) for item in items]
                windows = [torch.cat([blur, item.sharp, blur]) for blur, item in zip(made, items, strict=True)]
                self.known.append((clip.name, [InnerSample(window) for window in windows], in_motion(clip)))
        self.clips = range(len(self.known))

    def task(self, clip, generator):
        name, items, moving = self.known[clip]
        chosen = torch.randperm(len(items), generator=generator)[:ITEMS].tolist()
        query = query_windows(moving, PATCH, generator, count=self.query_frames, num_frames=3)
        return MetaTask(name, tuple(items[i] for i in chosen), *query)


def film(pictures, shakes, seed, length):
    """Clips; motion and photograph both change from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=generator).tolist()
    clips = []
    for i in range(length):
        made = ShakenClips(
            [pictures[order[i % len(order)]]], [shakes[i % len(shakes)]], frames=FRAMES, size=SIZE, num_subframes=11,
            seed=seed + i,
        )  # fmt: skip
        clips.append(made[0])
    return clips


def supervised(restorer, clips, seed, *, steps, lr, pairs=32):
    """Plain training with true pairs, Adam along a cosine."""
    restorer.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(restorer.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / 100, 0.5 * (1 + math.cos(math.pi * t / steps)) + 1e-3)
    )
    generator = torch.Generator().manual_seed(seed)
    clips, gains = [in_motion(clip) for clip in clips], []
    for _ in range(steps):
        chosen = torch.randint(0, len(clips), (pairs,), generator=generator).tolist()
        cut = [query_windows(clips[i], PATCH, generator, count=1, num_frames=1) for i in chosen]
        blurry, sharp = (torch.cat(side)[:, 0] for side in zip(*cut, strict=True))
        optimizer.zero_grad()
        restored = restorer(blurry.contiguous(memory_format=torch.channels_last))
        F.l1_loss(restored, sharp).backward()
        torch.nn.utils.clip_grad_norm_(restorer.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        gains.append((psnr(restored.detach(), sharp) - psnr(blurry, sharp)).mean().item())
        if len(gains) % 250 == 0:
            print(f"step {len(gains)}: {statistics.mean(gains[-250:]):.2f} dB above the blurred frame", flush=True)
    return restorer.to(memory_format=torch.contiguous_format)


def training_clips(shakes, seed, length):
    bank = sharp_bank(torch.Generator().manual_seed(0), count=length // 2)
    clips = film([(f"tile{i}", tile.float() / 255) for i, tile in enumerate(bank)], shakes, seed, length)
    return [clip for clip in clips if moving_frames(clip).sum() >= FRAMES // 2]  # not those without detail


def pretrained(options, folder):
    """Restorer and reblurrer; one pair for all seeds."""
    if options.keep and options.keep.exists():
        return torch.load(options.keep, weights_only=False)
    clips = training_clips(ONE_CAMERA, 1000, options.clips)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        restorer = create_model("lens_unet", widths=(12, 16, 24), blocks=1)
        reblur = create_model("motion_reblur")
    supervised(restorer, clips, 0, steps=options.pretrain, lr=2e-3)
    run = TrainingRun(
        folder / "reblur", steps=60, batch_size=8, save_every=10**6, log_every=20, draw_every=0, progress=False
    )
    pretrain_reblur(reblur, clips, run, size=PATCH, settings=ReblurSettings(lr=2e-2))
    print(f"exposure: {reblur.exposure.item():.3f} of 0.8", flush=True)
    if options.keep:
        torch.save((restorer, reblur), options.keep)
    return restorer, reblur


def inner(rate, passes):
    return InnerLoopSettings(rate, 0.0, "adam", 0.0, num_epochs=passes, noise_std=1 / 255, min_blur_rms=0.01)


def starts_of(restorer, tasks, seed, options, folder):
    """Restorers by the name of the start; seconds of training by its part."""
    spent, begun = {}, time.process_time()

    def lap(name):
        nonlocal begun
        spent[name], begun = round(time.process_time() - begun), time.process_time()

    clips = [moving for _, _, moving in tasks.known]
    found = {"pre-trained": copy.deepcopy(restorer).eval()}
    plain = supervised(copy.deepcopy(restorer), clips, seed, steps=options.further, lr=2e-3)
    found["trained on"] = plain.eval()
    lap("training on")
    settings = MetaSettings(
        inner(options.inner, 1), lr=options.outer, reblur_lr=0.0, reblur_weight=0.0, query_batch_size=8,
        second_order=options.second_order, initial_loss_weight=options.start_weight,
    )  # fmt: skip
    run = TrainingRun(
        folder / "meta", steps=options.further, batch_size=options.tasks, save_every=10**6, log_every=25, draw_every=0,
        seed=seed, progress=False,
    )  # fmt: skip
    history = []

    def show(step, found):
        history.append([found.parts[name].item() for name in ("deblur_before", "deblur")])
        if len(history) % 100 == 0:
            before, adapted = (statistics.mean(part) for part in zip(*history[-100:], strict=True))
            print(f"meta-training {len(history)}: {before:.5f}, adapted {adapted:.5f}", flush=True)

    learned = Decaying(copy.deepcopy(restorer), MadeBefore(), settings=settings)
    learned.steps = options.further
    train(learned, tasks, run, on_step=show)
    found["meta-trained"] = learned.restorer.eval()
    lap("meta-training")
    return found, spent


def restore_all(restorer, reblur, values, clip):
    """All frames of a clip, those that were sharp before as they are: in every row of the table."""
    own = {name.removeprefix("restorer."): value for name, value in values.items() if name.startswith("restorer.")}
    blurry = stack_frames(clip.blurry)
    with torch.no_grad():
        restored = torch.func.functional_call(restorer, own, (blurry,)).clamp(0, 1)
    kept = keep_sharp_frames(blurry, restored, reblur)
    return torch.where(kept[:, None, None, None], blurry, restored)


def run(networks, tasks, seed, options, folder):
    restorer, reblur = copy.deepcopy(networks)
    found, spent = starts_of(restorer, tasks, seed, options, folder)
    print(spent, flush=True)
    names = getattr(photos, options.split.upper())
    source = TaskSource([None], num_patches=PLACES, patch_size=PATCH, num_extra_times=options.other_moments)
    rows, restored = [], []
    for number, (kind, shakes) in enumerate(KINDS[options.split].items()):
        chosen = names[(number + seed) % 2 :: 2]  # every photograph moves in one of the ways per seed
        for clip in film([(name, photos.load(name)) for name in chosen], shakes, 5000 + 100 * seed, len(chosen)):
            sharp, seen = stack_frames(clip.originals()), {"blurred": stack_frames(clip.blurry)}
            took = {"blurred": (0.0, 0.0)}
            task = source.task(clip, torch.Generator().manual_seed(seed))
            for start, network in found.items():
                rates = {start: None}
                for passes in PASSES:
                    rates[after(start, passes)] = inner(options.inner, passes)
                    for rate in options.rates if options.split == "dev" else ():
                        rates[f"{after(start, passes)} by {rate:g}"] = inner(rate, passes)
                for label, settings in rates.items():
                    objective = MetaObjective(network, reblur, settings=MetaSettings(settings or inner(0.0, 1)))
                    values, begun = dict(objective.weights()), (time.perf_counter(), time.process_time())
                    if settings:
                        values, _ = objective.adapt(values, task, torch.Generator().manual_seed(seed))
                    seen[label] = restore_all(network, reblur, values, clip)
                    took[label] = time.perf_counter() - begun[0], time.process_time() - begun[1]
            scores = {name: psnr(frames, sharp).tolist() for name, frames in seen.items()}
            rows.append({"seed": seed, "kind": kind, "clip": clip.name, "psnr": scores})
            seconds = {name: (wall / FRAMES, cpu / FRAMES) for name, (wall, cpu) in took.items()}
            restored.append(RestoredClip(seed, len(restored), kind, clip.name, seen, sharp, scores, seconds))
            print(kind, clip.name, " ".join(f"{statistics.mean(scores[row]):.2f}" for row in ROWS), flush=True)
    return rows, restored, spent


@dataclass(frozen=True)
class RestoredClip:
    """A test clip, of this number with its seed, as every row left it: frames, PSNR of each in dB, seconds per frame
    (wall, processor).
    """

    seed: int
    number: int
    kind: str
    name: str
    frames: dict
    sharp: torch.Tensor
    scores: dict
    seconds: dict

    def records(self):
        """Of every row and frame."""
        for row in ROWS:
            similar = ssim(self.frames[row], self.sharp).tolist()
            for t, (db, index) in enumerate(zip(self.scores[row], similar, strict=True)):
                place = (self.seed, self.number * FRAMES + t, self.kind, self.name, t)
                yield FrameRecord(row, *place, db, index, *self.seconds[row])

    def sample(self, t, rule, before, failure=False):
        pictures = {row: self.frames[row][t] for row in ROWS}
        scores = {row: self.scores[row][t] for row in ROWS}
        title = f"{self.kind}: {self.name}, frame {t + 1}, seed {self.seed}"
        return Sample(title, rule, pictures, self.sharp[t], scores, before, ROWS[-1], failure)


def write_html(path, clips, options):
    """The HTML report: tables with intervals, and frames chosen by rule."""
    result = StreamResult(tuple(record for clip in clips for record in clip.records()))
    samples = []
    for clip in clips:
        t = min(range(FRAMES), key=clip.scores["blurred"].__getitem__)
        samples.append(clip.sample(t, "The most blurred frame of this clip.", "blurred"))
    shown, rival = ROWS[-1], after("pre-trained", PASSES[-1])
    record, gain = result.worst(shown, rival)
    worst = {(clip.seed, clip.number): clip for clip in clips}[record.stream, record.index // FRAMES]
    rule = f"{worst_frame_rule(shown, rival)} Here: {gain:+.2f} dB."
    samples.append(worst.sample(record.position, rule, rival, failure=True))
    contrasts = [(shown, "meta-trained"), (shown, rival), (shown, after("trained on", PASSES[-1]))]
    facts = {"clips": f"{len(clips)} of {FRAMES} frames of {SIZE} x {SIZE}", "torch": torch.__version__}
    facts["options"] = ", ".join(f"{name} {value}" for name, value in settings_of(options).items())
    notes = {
        "blurred": MethodNote("The clip as it came."),
        "pre-trained": MethodNote("Trained with true pairs of one camera, which pans within 15 degrees."),
        "trained on": MethodNote("The same, trained further with true pairs of other cameras."),
        "meta-trained": MethodNote("Meta-trained on the same clips, from the pre-trained one, for as many steps."),
    }
    limits = [
        "Frames that were sharp before are left as they are, in every row.",
        "The pre-trained restorer has not seen the clips that the other two were trained further on: what meta-training"
        " is worth beyond these clips is its lead over the restorer that was trained on.",
    ]
    report = Report(
        "Meta-training for clips of an unseen blur", result, "blurred", contrasts, ROWS, notes, samples, facts=facts,
        limits=limits, group="pan", stream=False,
    )  # fmt: skip
    write_report(path, report)
    print(f"Report: {path}", flush=True)


def settings_of(options):
    """What a result depends on."""
    return {k: v for k, v in vars(options).items() if k not in ("output", "report", "seeds", "keep", "rates")}


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
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6])
    parser.add_argument("--clips", type=int, default=150, help="of one camera (default: %(default)s)")
    parser.add_argument("--others", type=int, default=216, help="clips of other cameras (default: %(default)s)")
    parser.add_argument("--pretrain", type=int, default=800, help="steps of pre-training (default: %(default)s)")
    parser.add_argument(
        "--further", type=int, default=1000, help="steps on others, of either kind (default: %(default)s)"
    )
    parser.add_argument("--tasks", type=int, default=4, help="clips per meta-step (default: %(default)s)")
    parser.add_argument("--outer", type=float, default=2e-3, help="outer rate of meta-training (default: %(default)s)")
    parser.add_argument("--start-weight", type=float, default=0.8, help="see MetaSettings (default: %(default)s)")
    parser.add_argument("--second-order", action="store_true")
    parser.add_argument("--inner", type=float, default=1e-3, help="rate on a clip (default: %(default)s)")
    parser.add_argument("--other-moments", type=int, default=2, help="per place (default: %(default)s)")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="more to try on test clips of --split dev")
    parser.add_argument("--split", choices=("test", "dev"), default="test", help="clips (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="file of pre-trained networks, used again")
    parser.add_argument("--output", type=Path, help="JSON file; rows of other seeds in it are kept")
    parser.add_argument("--report", type=Path, help="HTML page, with pictures, of the seeds that are run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.report:
        require_packages("jinja2", "matplotlib", "torchmetrics")  # not after all the work
    known = json.loads(options.output.read_text()) if options.output and options.output.exists() else {"rows": []}
    results = [row for row in known["rows"] if row["seed"] not in options.seeds]
    seconds = {key: value for key, value in known.get("seconds", {}).items() if int(key) not in options.seeds}
    with tempfile.TemporaryDirectory() as folder:
        networks = pretrained(options, Path(folder))
    others = training_clips(OTHERS, 3000, options.others)
    tasks = Tasks(others, networks[1], inner(options.inner, 1), options.num_extra_times)
    print(f"pre-training, mining: {time.process_time():.0f} s", flush=True)
    restored = []
    for seed in options.seeds:
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            rows, found, spent = run(networks, tasks, seed, options, Path(folder))
        results += rows
        seconds[str(seed)] = spent | {"all": round(time.process_time() - begun), "load": os.getloadavg()[0]}
        print(f"seed {seed}: {seconds[str(seed)]}", flush=True)
        restored += found
        if options.output:
            content = {"options": settings_of(options), "torch": torch.__version__, "seconds": seconds, "rows": results}
            options.output.write_text(json.dumps(content, indent=1) + "\n")
    if options.report:
        write_html(options.report, restored, options)
    table(results, list(results[0]["psnr"]) if options.split == "dev" else ROWS)


if __name__ == "__main__":
    main()
