"""Is a restorer that was meta-trained to adapt better on a blur it never saw? `python -m benchmarks.meta_transfer`.

The restorer is the shipped "generalist", which was pre-trained on defocus; the clips are those of a camera that moves.
Tasks of meta-training are diagonal pans over the photographs for training; the test clips move vertically, or turn,
over photographs that nothing was trained or chosen on. On a test clip nobody has sharp frames: it is adapted to by
what it shows itself (mining, reblur stage, deblur stage).

pre-trained         the start of everything
  + fine-tuned      the same steps on the test clip, from that start
trained on          the pre-trained restorer, trained further with true pairs of the meta-training clips, as many
                    updates on as many pairs as meta-training had
  + fine-tuned      the same steps on the test clip, from there
meta-trained        the start that meta-training found, without adaptation
  + adapted         meta-testing

Rows of other seeds stay in the results file; the table is of all in it.
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from tta_restore.adapters.inner_loop import InnerLoopSettings
from tta_restore.data import photos
from tta_restore.data.camera_shake import CameraShake
from tta_restore.data.clips import stack_frames
from tta_restore.data.image import Image
from tta_restore.data.image_io import write_image
from tta_restore.engine.clip_source import bundled_clips
from tta_restore.engine.contact_sheet import contact_sheet
from tta_restore.engine.meta import MetaObjective
from tta_restore.engine.meta_settings import MetaSettings
from tta_restore.engine.meta_tasks import TaskSource, query_windows
from tta_restore.engine.meta_train import meta_train
from tta_restore.engine.pretrain_reblur import ReblurSettings, pretrain_reblur
from tta_restore.engine.training import TrainingRun
from tta_restore.metrics import psnr
from tta_restore.models.registry import create_model

QUARTER = torch.pi / 4


def motions(pans, vertical, turning, **varied):
    """Of meta-training, and by name those of the test."""
    meta = [CameraShake(pan=pan, direction=turn, **varied) for turn in (-QUARTER, QUARTER) for pan in pans]
    return meta, {
        "vertical": CameraShake(pan=vertical, direction=2 * QUARTER, **varied),
        "turning": CameraShake(pan=0.0, rotation=turning, **varied),
    }


# calm: about half of the frames are nearly sharp; restless: few are.
MATERIAL = {
    "calm": motions((4.0, 8.0), 7.0, 0.12, variation=0.8),
    "restless": motions((6.0, 12.0), 10.0, 0.3, variation=0.7, period=3.0),
}
KINDS = ("vertical", "turning")
ROWS = (
    "blurred", "pre-trained", "pre-trained + fine-tuned", "trained on", "trained on + fine-tuned",
    "meta-trained", "meta-trained + adapted",
)  # fmt: skip
FRAMES, SIZE, PATCH, PATCHES = 8, 96, 64, 10


def networks(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reblur = create_model("video_reblur", num_layers=1, base_channels=8, fusion="channels")
        return create_model("lens_unet", checkpoint="generalist"), reblur


def supervised(restorer, clips, seed, *, steps, lr, pairs=8):
    """Plain training with true pairs, the mean absolute difference, Adam."""
    optimiser = torch.optim.Adam(restorer.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(0, len(clips), (pairs,), generator=generator).tolist()
        cut = [query_windows(clips[i], PATCH, generator, count=1, num_frames=1) for i in chosen]
        blurry, sharp = (torch.cat(side)[:, 0] for side in zip(*cut, strict=True))
        optimiser.zero_grad()
        (restorer(blurry) - sharp).abs().mean().backward()
        optimiser.step()
    return restorer


def prepared(clips):
    """The same clips, made once."""
    return [clips[i] for i in range(len(clips))]


def restore_all(objective, values, clip):
    with torch.no_grad():
        windows = stack_frames(clip.blurry)[:, None].expand(-1, 5, -1, -1, -1)
        return objective.restored(values, windows)[0][0].clamp(0, 1)


def run(seed, options, folder, test_photos):
    started = time.process_time()
    restorer, reblur = networks(seed)
    make = {"frames": FRAMES, "size": SIZE, "moments": 11}
    tasks = prepared(bundled_clips(photos.TRAIN, MATERIAL[options.material][0], seed=seed, length=20, **make))
    pretrain_reblur(
        reblur, tasks, TrainingRun(folder / "reblur", steps=options.reblur, batch=4, save_every=10**6, log_every=100,
        draw_every=0, seed=seed, progress=False), size=PATCH, settings=ReblurSettings(lr=1e-3),
    )  # fmt: skip
    inner = InnerLoopSettings(
        lr=options.inner, reblur_lr=options.inner_reblur, order="published" if options.joint else "repaired"
    )
    settings = MetaSettings(
        inner, lr=options.outer, reblur_lr=options.outer, second_order=options.second_order, query_batch=8
    )
    further = supervised(
        copy.deepcopy(restorer).train(), tasks, seed + 1, steps=options.meta, lr=options.outer, pairs=6
    )
    start = MetaObjective(copy.deepcopy(restorer), copy.deepcopy(reblur), settings=settings)
    trained = MetaObjective(further, copy.deepcopy(reblur), settings=settings)
    learnt = meta_train(
        restorer, reblur, tasks, TrainingRun(folder / "meta", steps=options.meta, batch=1, save_every=10**6,
        log_every=1, draw_every=50, seed=seed, progress=False), settings=settings, num_patches=PATCHES,
        patch_size=PATCH, query_frames=6,
    )  # fmt: skip
    seconds = time.process_time() - started
    source = TaskSource(tasks, num_patches=PATCHES, patch_size=PATCH)
    rows, pictures = [], {}
    for number, (kind, shake) in enumerate(MATERIAL[options.material][1].items()):
        chosen = test_photos[(number + seed) % 2 :: 2]  # every photograph moves in one of the ways per seed
        for clip in prepared(bundled_clips(chosen, [shake], seed=seed + 1000, **make)):
            sharp, found = stack_frames(clip.originals()), {"blurred": stack_frames(clip.blurry)}
            for name, objective, adapted in (
                ("pre-trained", start, "pre-trained + fine-tuned"),
                ("trained on", trained, "trained on + fine-tuned"),
                ("meta-trained", learnt, "meta-trained + adapted"),
            ):
                objective.eval()
                values = dict(objective.weights())
                found[name] = restore_all(objective, values, clip)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    task = source.task(clip, torch.Generator().manual_seed(seed))
                    moved, _ = objective.adapt(values, task, torch.Generator().manual_seed(seed))
                found[adapted] = restore_all(objective, moved, clip)
            scores = {name: psnr(frames, sharp).tolist() for name, frames in found.items()}
            rows.append({"seed": seed, "kind": kind, "clip": clip.name, "psnr": scores})
            pictures[f"{kind}-{clip.name}"] = found | {"original": sharp}
            print(kind, clip.name, " ".join(f"{statistics.mean(scores[row]):.2f}" for row in ROWS), flush=True)
    return rows, pictures, seconds, time.process_time() - started


def draw(pictures, rows, folder):
    """Per clip, the frame with the strongest blur: every row's result, and the original."""
    for (name, found), row in zip(pictures.items(), rows, strict=True):
        worst = min(range(FRAMES), key=lambda t: row["psnr"]["blurred"][t])
        tiles = [found[key][worst] for key in (*ROWS, "original")]
        write_image(folder / f"seed{row['seed']}-{name}.png", Image(contact_sheet(tiles, columns=4)))


def table(results):
    for kind in (*KINDS, "all"):
        print(f"\n{kind}: PSNR in dB, mean over frames and clips; per seed")
        seeds = sorted({row["seed"] for row in results})
        for name in ROWS:
            line = []
            for seed in seeds:
                chosen = [r for r in results if r["seed"] == seed and kind in (r["kind"], "all")]
                line.append(statistics.mean(statistics.mean(r["psnr"][name]) for r in chosen))
            print(f"{name:28}" + "".join(f"{value:9.2f}" for value in [*line, statistics.mean(line)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--reblur", type=int, default=200, help="steps of the reblurrer (default: %(default)s)")
    parser.add_argument("--meta", type=int, default=40, help="clips in meta-training (default: %(default)s)")
    parser.add_argument("--inner", type=float, default=2e-4, help="rate of adaptation (default: %(default)s)")
    parser.add_argument("--inner-reblur", type=float, default=2e-4, help="that of the reblurrer (default: %(default)s)")
    parser.add_argument("--outer", type=float, default=1e-4, help="rate of meta-training (default: %(default)s)")
    parser.add_argument("--second-order", action="store_true")
    parser.add_argument("--joint", action="store_true", help="the restorer moves in the reblur stage, too, as released")
    parser.add_argument("--material", choices=tuple(MATERIAL), default="restless", help="how clips move")
    parser.add_argument("--split", choices=("test", "dev"), default="test", help="photographs (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file; rows of other seeds in it are kept")
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.output.read_text()) if options.output and options.output.exists() else {"rows": []}
    results = [row for row in known["rows"] if row["seed"] not in options.seeds]
    seconds = {key: value for key, value in known.get("seconds", {}).items() if int(key) not in options.seeds}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows, pictures, training, total = run(seed, options, Path(folder), getattr(photos, options.split.upper()))
        results += rows
        seconds[str(seed)] = {"training": round(training), "all": round(total), "load": os.getloadavg()[0]}
        print(
            f"seed {seed}: {training:.0f} s of training, {total:.0f} s in all, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        if options.pictures:
            draw(pictures, rows, options.pictures)
        if options.output:
            chosen = {key: value for key, value in vars(options).items() if key not in ("output", "pictures", "seeds")}
            content = {"options": chosen, "torch": torch.__version__, "seconds": seconds, "rows": results}
            options.output.write_text(json.dumps(content, indent=1) + "\n")
    table(results)


if __name__ == "__main__":
    main()
