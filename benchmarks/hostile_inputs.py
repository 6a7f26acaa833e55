"""Count what happens to at least 150 damaged, lying and unusual inputs: each has to be named in one line, or restored.

    python -m benchmarks.hostile_inputs [--out results.json] [--only images,videos,states,checkpoints,configurations]

Those that are whole, and only unusual, have to be restored, and so has a good image that is given together with each.
A child process takes the inputs one after the other; one that takes more than ten seconds, ends the process or lets an
exception out is a failure, and the child goes on behind it. Peak memory is that of the child.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from benchmarks.hostile.files import Made
from benchmarks.hostile.images import make_images
from benchmarks.hostile.networks import NETWORK, RAN, make_checkpoints, make_configurations, make_states
from benchmarks.hostile.videos import make_videos

KINDS = ("images", "videos", "states", "checkpoints", "configurations")
LONGEST = 10.0  # seconds for one input
RAN_CODE = Path(RAN)
_OTHER_RESTORED = ("1 restored, 1 failed", "2 restored, 1 of them in part")


def make_inputs(folder: Path, kinds: tuple[str, ...] = KINDS) -> list[tuple[str, Made]]:
    """Write all hostile inputs below a folder; return their kinds and paths."""
    makers: dict[str, Callable[[Path], Iterator[Made]]] = {
        "images": make_images, "videos": make_videos, "states": make_states, "checkpoints": make_checkpoints,
        "configurations": make_configurations,
    }  # fmt: skip
    found = []
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        found += [(kind, made) for made in makers[kind](folder / kind)]
    rows = [(kind, os.fsencode(made.path).hex(), made.is_whole) for kind, made in found]  # any bytes may be a name
    (folder / "list.json").write_text(json.dumps(rows))
    return found


def run_child(folder: Path, numbers: list[int], kinds: tuple[str, ...], found: list[tuple[str, Made]]) -> None:
    """Take the inputs with these numbers and print a line of JSON for each."""
    good = folder / "good.png"
    with contextlib.redirect_stderr(io.StringIO()):  # imports are not what is timed
        _take("images", good, good, folder / "warm")
    with _captured() as printed:
        _take_all(folder, numbers, found, good, printed)


@contextlib.contextmanager
def _captured() -> Iterator[BinaryIO]:
    """Give a file that receives what libraries in C print to standard error in a ``with`` block."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            yield printed
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _take_all(folder: Path, numbers: list[int], found: list[tuple[str, Made]], good: Path, printed: BinaryIO) -> None:
    for number in numbers:
        kind, path = found[number][0], found[number][1].path
        print(json.dumps({"start": number}), flush=True)
        before = time.perf_counter()
        said, out, status, failure = io.StringIO(), io.StringIO(), None, None
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
                status = _take(kind, path, good, folder / "out")
        except BaseException as error:  # what gets out is a failure, whatever it is
            failure = f"{type(error).__name__}: {str(error)[:150]}"
        lines = [line for line in said.getvalue().splitlines() if line.strip()]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        printed.seek(0)
        extra = out.getvalue() + printed.read(500).decode(errors="replace")
        printed.seek(0)
        printed.truncate()
        result = {"number": number, "status": status, "failure": failure, "lines": lines[:20], "printed": extra[:500]}
        print(json.dumps(result | {"seconds": time.perf_counter() - before, "peak": peak}), flush=True)


def _take(kind: str, path: Path, good: Path, out: Path) -> int:
    from tta_restore.cli import main

    identity = ["--method", "source", "--model", "torch.nn:Identity", "--device", "cpu"]
    try:
        if kind in ("images", "videos"):
            return main(["restore", str(path), str(good), "-o", str(out / kind / str(abs(hash(path)))), *identity])
        if kind == "states":
            identity[1], identity[3] = "siam-ctta", "benchmarks.hostile.networks:restorer"
            options = ["--state", str(path), "--overwrite"]
            return main(["restore", str(good), "-o", str(out / "states"), *options, *identity])
        if kind == "checkpoints":
            given = ["--model", str(path)]
            if path.name.startswith("unet_"):
                given = ["--model", "lens_unet", "--checkpoint", str(path)]
                given += [word for name, value in NETWORK.items() for word in ("--set", f"{name}={value}")]
            shared = ["-o", str(out / "checkpoints"), "--method", "source", "--device", "cpu", "--overwrite"]
            return main(["restore", str(good), *shared, *given])
        return main(["train", "supervised", "--config", str(path), "--out", str(out / "run")])
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 2


def judge(kind: str, made: Made, result: dict) -> tuple[str, str]:
    """Return an outcome ("named", "restored" or "failure") and why."""
    path = made.path
    if result["failure"]:
        return "failure", result["failure"]
    if result.get("printed"):
        return "failure", f"a library printed {result['printed'].splitlines()[0][:150]!r}"
    if result["seconds"] > LONGEST:
        return "failure", f"took {result['seconds']:.0f} s"
    errors = [line for line in result["lines"] if not line.startswith(("note:", "usage:"))]
    if any("Traceback" in line for line in result["lines"]):
        return "failure", "a traceback"
    if RAN_CODE.exists():
        return "failure", "code of the file has run"
    if result["status"] == 0:
        if kind in ("images", "videos") or made.is_whole:
            return "restored", "; ".join(line for line in result["lines"] if line.startswith("note:"))[:200]
        return "failure", "accepted without a word"
    if made.is_whole:
        return "failure", f"whole, and not taken: {' / '.join(errors)[:200]}"
    name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path.name)
    named = [line for line in errors if name in line]
    if kind not in ("images", "videos") and len(errors) == 1 and "Error: " not in errors[0]:
        named = errors  # a command with one such file need not repeat its name
    if not named:
        return "failure", f"not named: {' / '.join(errors)[:200]}"
    if kind in ("images", "videos") and not errors[-1].startswith(_OTHER_RESTORED):
        return "failure", f"the good image next to it was not restored: {errors[-1][:200]}"
    if len(named) > 1:
        return "failure", f"named in {len(named)} lines: {' / '.join(named)[:200]}"
    return "named", named[0][-200:]


def run_all(kinds: tuple[str, ...], limit: int | None = None) -> list[dict]:
    """Run all inputs in child processes and return their results."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        RAN_CODE.unlink(missing_ok=True)
        found = make_inputs(folder / "in", kinds)[:limit]
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(folder / "good.png")
        results: dict[int, dict] = {}
        waiting = list(range(len(found)))
        while waiting:
            _watch(folder, waiting, kinds, results)
            waiting = [number for number in waiting if number not in results]
        rows = []
        for number, (kind, made) in enumerate(found):
            outcome, why = judge(kind, made, results[number])
            name = made.path.name.encode("utf-8", "backslashreplace").decode()
            rows.append({"kind": kind, "name": name, "outcome": outcome, "why": why, **results[number]})
        return rows


def _watch(folder: Path, waiting: list[int], kinds: tuple[str, ...], results: dict[int, dict]) -> None:
    """Run a child until it is done, hangs or dies; note the result of the input that it was at."""
    numbers = ",".join(map(str, waiting))
    command = [sys.executable, "-m", "benchmarks.hostile_inputs", "--child", str(folder), "--numbers", numbers]
    started: int | None = None
    with subprocess.Popen(
        [*command, "--only", ",".join(kinds)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        selector = selectors.DefaultSelector()
        assert child.stdout is not None
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            patience = 120.0 if started is None else 3 * LONGEST
            if not selector.select(patience):
                child.kill()
                break
            line = child.stdout.readline()
            if not line:
                break
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if "start" in event:
                    started = event["start"]
                else:
                    results[event["number"]] = event
                    started = -1
    if started is not None and started >= 0 and started not in results:
        why = "hangs" if child.returncode == -9 else f"ends the process ({child.returncode})"
        results[started] = {"failure": why, "seconds": 0.0, "lines": [], "status": None, "peak": 0}
    elif started is None:
        raise SystemExit("the child did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file with a row per input")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, separated by commas")
    parser.add_argument("--limit", type=int, help="first inputs only")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--numbers", help=argparse.SUPPRESS)
    options = parser.parse_args()
    kinds = tuple(options.only.split(","))
    if options.child is not None:
        found = _listed(options.child / "in")
        run_child(options.child, [int(number) for number in options.numbers.split(",")], kinds, found)
        return
    rows = run_all(kinds, options.limit)
    print(f"{'kind':16}{'inputs':>8}{'named':>8}{'restored':>10}{'failure':>9}{'slowest':>10}")
    for kind in kinds:
        of_kind = [row for row in rows if row["kind"] == kind]
        counts = Counter(row["outcome"] for row in of_kind)
        slowest = max((row["seconds"] for row in of_kind), default=0)
        print(
            f"{kind:16}{len(of_kind):8}{counts['named']:8}{counts['restored']:10}{counts['failure']:9}{slowest:9.1f}s"
        )
    print(f"{len(rows)} inputs, peak memory {max(row['peak'] for row in rows) / 1e6:.2f} GB")
    for row in rows:
        if row["outcome"] == "failure":
            print(f"FAILURE {row['kind']}/{row['name']!r}: {row['why']}")
    if options.out is not None:
        facts = {"command": " ".join(["python -m benchmarks.hostile_inputs", *sys.argv[1:]]), "commit": commit()}
        facts |= {"date": time.strftime("%Y-%m-%d"), "machine": platform.platform(), "load": os.getloadavg()}
        facts |= {"inputs": len(rows), "outcomes": Counter(row["outcome"] for row in rows)}
        facts |= {
            "slowest_seconds": max(row["seconds"] for row in rows),
            "peak_kilobytes": max(r["peak"] for r in rows),
        }
        kept = ("kind", "name", "outcome", "why", "seconds")
        table = [{name: row[name] for name in kept} for row in rows]
        options.out.write_text(json.dumps(facts | {"rows": table}, indent=1, default=str) + "\n")


def _listed(folder: Path) -> list[tuple[str, Made]]:
    """Return what :func:`make_inputs` wrote, in its order, by the list that it left."""
    rows = json.loads((folder / "list.json").read_text())
    return [(kind, Made(Path(os.fsdecode(bytes.fromhex(path))), is_whole)) for kind, path, is_whole in rows]


def commit() -> str:
    """Return the commit of the checkout, with a plus where it has changes."""
    command = ["git", "describe", "--always", "--abbrev=10", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
