"""Kill restorations by SIGKILL at random moments, continue them, and compare with an uninterrupted run bit by bit.

    python -m benchmarks.kills [--kills 100] [--seed 0] [--interpreters 4] [--out results.json]

Every trial runs `restore` on a folder of images with a state, or on a video, in a process of its own, kills it after a
random part of its time, half of the times while results are being written, and checks that each result that is there is
whole. A second process continues to the end: the results and the state have to be those of an uninterrupted run.
Processes are forked from one that has imported the package; `--interpreters` of the trials start the command line anew
instead.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.hostile_inputs import commit
from tta_restore._core.progress import ProgressBar
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.parts import PartStore
from tta_restore.data.io.pixels import Image
from tta_restore.data.io.video import VideoFile
from tta_restore.data.io.video_writer import write_video
from tta_restore.engine.run.restore import restore_files

IMAGES, FRAMES, PART_FRAMES = 6, 30, 5  # short runs: a trial costs two of them
CODEC = "ffv1"  # libx264 does not always encode the same frames to the same bytes
MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
"""
OPTIONS: dict[str, Any] = {"method": "siam-ctta", "model": "kills_net:net", "device": "cpu", "seed": 3}
SETTINGS = {"steps": 1, "lr": 0.01}


def make_inputs(folder: Path) -> None:
    """Write the model, a folder of images and a video."""
    (folder / "kills_net.py").write_text(MODEL)
    generator = torch.Generator().manual_seed(0)
    for number in range(IMAGES):
        write_image(folder / f"images/{number}.png", Image(torch.rand(3, 16, 24, generator=generator)))
    write_video(folder / "film.mkv", torch.rand(FRAMES, 3, 16, 24, generator=generator))


def run(folder: Path, kind: str, out: Path) -> None:
    """Restore the images, or the video, as the command does."""
    if kind == "images":
        restore_files([folder / "images"], out, state=out.with_suffix(".state"), method_options=SETTINGS, **OPTIONS)
    else:
        restore_files([folder / "film.mkv"], out / "film.mkv", codec=CODEC, method_options=SETTINGS, **OPTIONS)


def command(folder: Path, kind: str, out: Path) -> list[str]:
    """Return the command line that does what :func:`run` does."""
    rest = [f"--{name}={value}" for name, value in OPTIONS.items()]
    rest += [f"--method.{name}={value}" for name, value in SETTINGS.items()]
    if kind == "images":
        names = [str(folder / "images"), "-o", str(out), "--state", str(out.with_suffix(".state"))]
    else:
        names = [str(folder / "film.mkv"), "-o", str(out / "film.mkv"), "--codec", CODEC]
    return [sys.executable, "-m", "tta_restore", "restore", *names, *rest]


def start(folder: Path, kind: str, out: Path, *, anew: bool) -> Any:
    """Start a run in a process of its own; return it, with `pid` and `wait`."""
    if anew:
        environment = os.environ | {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command(folder, kind, out), env=environment, **quiet)
    process = multiprocessing.get_context("fork").Process(target=_silently, args=(folder, kind, out))
    process.start()
    process.wait = process.join  # type: ignore[attr-defined]
    return process


def _silently(folder: Path, kind: str, out: Path) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        run(folder, kind, out)


def digests(out: Path) -> dict[str, str]:
    """Return the checksums of results and state."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    files += [out.with_suffix(".state")] if out.with_suffix(".state").exists() else []
    return {
        str(path.relative_to(out.parent)).replace(out.name, "out"): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "tta-restore.yaml"
    }


def _runs(process: Any) -> bool:
    return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()


def damaged(out: Path, reference: dict[str, str]) -> list[str]:
    """Return the results under their final names that are not whole; hidden files are work in progress."""
    found = []
    for path in out.rglob("*"):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        try:
            if path.suffix == ".png":
                read_image(path)
            elif path.suffix == ".mkv":
                assert len(list(VideoFile(path))) == FRAMES
        except Exception as error:  # whatever is wrong with it
            found.append(f"{path.name}: {error}")
    return found


def timed(folder: Path, kind: str, out: Path, *, anew: bool) -> tuple[dict[str, str], float, float]:
    """Run to the end; return the checksums, and the seconds to the first result or part and to the end."""
    begun, first = time.perf_counter(), None
    waiting = threading.Thread(target=start(folder, kind, out, anew=anew).wait)
    waiting.start()
    while waiting.is_alive():
        if first is None and any(results_of(out)):
            first = time.perf_counter() - begun
        time.sleep(0.002)
    duration = time.perf_counter() - begun
    return digests(out), duration if first is None else first, duration


def results_of(out: Path) -> tuple[int, int]:
    """Return the number of images and of parts of the video that are there."""
    return len(list(out.rglob("*.png"))), len(list(out.glob(".film.mkv.parts/*.part")))


def trial(
    folder: Path, kind: str, number: int, moment: float, reference: dict, *, anew: bool, from_first: bool
) -> dict:
    """Kill one run some seconds after its start or its first result, and continue it; return what was found."""
    out = folder / f"trial-{number}"
    process = start(folder, kind, out, anew=anew)
    while from_first and not any(results_of(out)) and _runs(process):
        time.sleep(0.002)
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    code = process.returncode if anew else process.exitcode
    problems = damaged(out, reference) if out.exists() else []
    done, parts = results_of(out)
    start(folder, kind, out, anew=anew).wait()
    found = digests(out)
    if found != reference:
        problems.append(f"differs in {sorted(n for n in {*found, *reference} if found.get(n) != reference.get(n))}")
    shutil.rmtree(out, ignore_errors=True)
    out.with_suffix(".state").unlink(missing_ok=True)
    return {
        "kind": kind, "anew": anew, "after": round(moment, 3), "killed": code == -9, "images": done,
        "parts": parts, "problems": problems,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--interpreters", type=int, default=4, help="trials that start the command line anew")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    PartStore.__init__.__kwdefaults__["part_frames"] = PART_FRAMES
    moments, rows, started = random.Random(options.seed), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sys.path.insert(0, str(folder))
        make_inputs(folder)
        anew_from = options.kills - options.interpreters
        known: dict[tuple[str, bool], tuple[dict, float, float]] = {}
        kills, tried = 0, 0
        bar = ProgressBar(total=options.kills, desc="killed and continued", unit="run")
        while kills < options.kills and tried < 3 * options.kills:
            kind, anew = ("images", "video")[kills % 2], kills >= anew_from
            if (kind, anew) not in known:
                out = folder / "reference"
                for _ in range(2):  # the first one also warms caches
                    shutil.rmtree(out, ignore_errors=True)
                    out.with_suffix(".state").unlink(missing_ok=True)
                    known[kind, anew] = timed(folder, kind, out, anew=anew)
                shutil.rmtree(out)
                out.with_suffix(".state").unlink(missing_ok=True)
            reference, first, duration = known[kind, anew]
            begins = moments.random() < 0.5  # half of the moments are counted from the first result
            moment = moments.random() * (duration - first if begins else duration)
            row = trial(folder, kind, tried, moment, reference, anew=anew, from_first=begins)
            tried += 1
            kills += row["killed"]
            if not row["killed"]:  # it was done before: the machine is less busy than when it was timed
                known.pop((kind, anew))
            bar.update(row["killed"])
            rows.append(row)
        bar.close()
    killed = [row for row in rows if row["killed"]]
    good = sum(not row["problems"] for row in killed)
    during = sum(row["images"] > 0 or row["parts"] > 0 for row in killed)
    seconds = time.perf_counter() - started
    print(
        f"{good} of {len(killed)} killed runs continued to the same bits ({during} with results or parts there, "
        f"{sum(row['anew'] for row in killed)} by new interpreters); {len(rows) - len(killed)} runs ended before; "
        f"{seconds:.0f} s"
    )
    for row in rows:
        if row["problems"]:
            print("FAILURE", row)
    if options.out is not None:
        facts = {"command": f"benchmarks.kills --kills {options.kills} --seed {options.seed}", "python": sys.version}
        facts |= {
            "machine": platform.platform(),
            "commit": commit(),
            "load": os.getloadavg(),
            "date": time.strftime("%Y-%m-%d"),
        }
        facts |= {"killed": len(killed), "same": good, "seconds": round(seconds), "trials": rows}
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    sys.exit(good != len(killed) or len(killed) < options.kills)


if __name__ == "__main__":
    main()
