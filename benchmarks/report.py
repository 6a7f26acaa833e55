"""Run the cases in fresh processes, print the roofline table, and write JSON and a plot."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from . import cases

RESULTS = Path(__file__).parent / "results"
# Large tensors are mapped anew on every call, so that page faults cost more than arithmetic. Every implementation is
# measured with every setting.
ALLOCATORS = {
    "default": {},
    "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},
    "reuse": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": "67108864"},
}
SCHEMA = 1


def _child(request: dict[str, Any], environment: dict[str, str], threads: int) -> Any:
    """Answer a request in a fresh process."""
    threading = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks", "child", json.dumps({**request, "threads": threads})]
    run = subprocess.run(
        command,
        env={**os.environ, **environment, **threading},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if run.returncode:
        return {"error": f"the measuring process ended with {run.returncode}"}
    return json.loads(run.stdout.splitlines()[-1])


def answer(request: dict[str, Any]) -> Any:
    """Do what the parent process asks for."""
    from . import measure

    torch.set_num_threads(request["threads"])
    device, kind = request["device"], request["kind"]
    if kind == "machine":
        return {"machine": measure.machine(device), "overhead": measure.call_overhead(device)}
    case, direction = cases.cases(device)[request["case"]], request["direction"]
    if kind == "memory":
        return measure.memory(case, direction, device, request["contenders"])
    return measure.compare(case, direction, device, request["rounds"], request["seconds"], request["contenders"])


def save(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


def _commit() -> str:
    """Return the commit by git, or by the variable COMMIT where the tree came without git or its history."""
    if shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty"]
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
        if run.returncode == 0:
            return run.stdout.strip()
    return os.environ.get("COMMIT", "unknown")


def collect(options: argparse.Namespace, path: Path | None) -> tuple[dict[str, Any], Path]:
    """Measure what the options ask for; the file is written again after every comparison, which may take long."""
    device = options.device
    allocators = ["default"] if device == "cuda" else options.allocators
    base = {"device": device}
    found = _child({**base, "kind": "machine"}, {}, 1)
    machine = found.get("machine", found)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine,
        "load_before": os.getloadavg(),
        "overhead_microseconds": found.get("overhead", found),
        "measurements": [],
    }
    name = "".join(c if c.isalnum() else "-" for c in str(machine.get("device", device)).lower()).strip("-")
    path = path or RESULTS / f"{result['date'][:10]}-{name}.json"
    for index, case in enumerate(cases.cases(device)):
        if options.only and options.only not in case.name:
            continue
        for direction in options.directions:
            for allocator in allocators:
                for threads in options.threads:
                    request = {
                        **base,
                        "kind": "time",
                        "case": index,
                        "direction": direction,
                        "rounds": options.rounds,
                        "seconds": options.seconds,
                        "contenders": options.contenders,
                    }
                    print(f"{case.name}, {direction}, {allocator}, {threads} threads ...", file=sys.stderr, flush=True)
                    times = _child(request, ALLOCATORS[allocator], threads)
                    result["measurements"].append(
                        {
                            "case": case.name,
                            "op": case.op,
                            "direction": direction,
                            "allocator": allocator,
                            "threads": threads,
                            "least_bytes": case.least_bytes(direction),
                            "operations": case.operations(direction),
                            "load": os.getloadavg()[0],
                            "times": times,
                        }
                    )
                    save({**result, "load_after": os.getloadavg()}, path)
            if options.memory:
                memory = {}
                names = [name for name in case.contenders(device) if name in (options.contenders or cases.CONTENDERS)]
                # A process each, but not on a GPU, whose allocator tells what was allocated.
                for some in [names] if device == "cuda" else [[name] for name in names]:
                    request = {**base, "kind": "memory", "case": index, "direction": direction, "contenders": some}
                    memory.update(_child(request, {}, 1))
                result["measurements"][-1]["peak_bytes"] = memory
    result["load_after"] = os.getloadavg()
    save(result, path)
    return result, path


def table(result: dict[str, Any]) -> str:
    """The roofline table: time, ratio to the original, bandwidth against the stream measured beside it, peak memory."""
    machine = result["machine"]
    lines = [
        machine.get("error")
        or f"{machine['device']}, {machine['cores']} cores, {machine['instruction_set']}, torch {machine['torch']}, "
        f"commit {result['commit']}, {result['date']}",
        f"load {result['load_before'][0]:.1f} before, {result['load_after'][0]:.1f} after; "
        "processor time (GPU: its own), medians; ratio in brackets: by the wall clock",
        "microseconds per call on tiny tensors, no gradient: "
        + ", ".join(
            f"{name} {value:.0f}" if isinstance(value, (int, float)) else f"{name}: {value}"
            for name, value in result["overhead_microseconds"].items()
        ),
        "",
        f"{'case':46}{'direction':18}{'allocator':11}{'thr':>3}  {'contender':10}{'ms':>9}{'wall ms':>9}"
        f"{'x faster: ours':>17}{'GB/s':>7}{'of stream':>10}{'GFLOP/s':>8}{'peak MB':>9}",
    ]
    for row in result["measurements"]:
        times, memory = row["times"], row.get("peak_bytes", {})
        if "error" in times:
            lines.append(f"{row['case']:46}{row['direction']:18}{times['error']}")
            continue
        ours = times.get("ours", {})
        kind = "read" if row["direction"] == "forward" else "copy"
        stream_bytes = (448 << 20) * (1 if kind == "read" else 2)
        for name, value in times.items():
            if name.startswith("stream"):
                continue
            head = f"{row['case']:46}{row['direction']:18}{row['allocator']:11}{row['threads']:>3}  {name:10}"
            if "error" in value:
                lines.append(head + " " + value["error"][:90])
                continue
            seconds, wall = value["processor"]["median"], value["wall"]["median"]
            ratio = ""
            if "error" not in ours and name != "ours":
                ratio = f"{seconds / ours['processor']['median']:.1f} ({wall / ours['wall']['median']:.1f})"
            stream = times[f"stream {kind}"]["processor"]["median"]
            bandwidth = row["least_bytes"] / seconds / 1e9
            share = bandwidth / (stream_bytes / stream / 1e9)
            peak = memory.get(name)
            shown = f"{peak / 2**20:.1f}" if isinstance(peak, int) else ""
            lines.append(
                f"{head}{seconds * 1e3:9.2f}{wall * 1e3:9.2f}{ratio:>17}{bandwidth:7.1f}{share:10.0%}"
                f"{row['operations'] / seconds / 1e9:8.1f}{shown:>9}"
            )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Time of every contender as a multiple of the memory floor, which is 1."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in result["measurements"] if "error" not in row["times"]]
    names = ["ours", "composed", "reference", "original", "compiled"]
    figure, axes = plt.subplots(figsize=(11, 1.5 + 0.55 * len(rows)), layout="constrained")
    for position, row in enumerate(rows):
        kind, factor = ("read", 1) if row["direction"] == "forward" else ("copy", 2)
        stream = times_per_byte(row["times"][f"stream {kind}"], (448 << 20) * factor)
        for offset, name in enumerate(names):
            value = row["times"].get(name)
            if value and "error" not in value:
                multiple = value["processor"]["median"] / (stream * row["least_bytes"])
                axes.barh(position + (offset - 2) * 0.16, multiple, 0.15, color=f"C{offset}", label=name)
    axes.set_yticks(
        range(len(rows)),
        [f"{r['case']}\n{r['direction']}, {r['allocator']}, {r['threads']} thr" for r in rows],
        fontsize=7,
    )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time / time to move the least bytes at the measured stream bandwidth")
    axes.set_title(
        f"{result['machine']['device']}, {result['date'][:10]}, load {result['load_before'][0]:.1f}", fontsize=9
    )
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), fontsize=8)
    axes.invert_yaxis()
    figure.savefig(path)


def times_per_byte(value: dict[str, Any], count: int) -> float:
    return value["processor"]["median"] / count


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="measure, print the table, write JSON and a plot")
    report.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    report.add_argument("--threads", type=_positive, nargs="+", default=[1, os.cpu_count() or 1])
    report.add_argument("--allocators", nargs="+", default=["default", "huge pages"], choices=list(ALLOCATORS))
    report.add_argument("--directions", nargs="+", default=list(cases.DIRECTIONS), choices=cases.DIRECTIONS)
    report.add_argument("--contenders", nargs="+", default=[], choices=cases.CONTENDERS, help="default: all")
    report.add_argument("--rounds", type=_positive, default=15)
    report.add_argument(
        "--seconds", type=float, default=60, help="stop a comparison after this many, but not before 3 rounds"
    )
    report.add_argument("--only", default="", help="cases whose name contains this")
    report.add_argument("--no-memory", dest="memory", action="store_false")
    report.add_argument("--no-plot", dest="plot", action="store_false")
    report.add_argument("--output", type=Path, help="JSON to write; default: benchmarks/results/<date>-<device>.json")
    show = commands.add_parser("table", help="print the table of a results file")
    show.add_argument("file", type=Path)
    child = commands.add_parser("child", help="answer one request (used by report)")
    child.add_argument("request")
    options = parser.parse_args(arguments)
    if options.command == "child":
        print(json.dumps(answer(json.loads(options.request))))
        return 0
    if options.command == "table":
        print(table(json.loads(options.file.read_text())))
        return 0
    names = [case.name for case in cases.cases(options.device)]
    if not any(options.only in name for name in names):
        report.error(f"--only: no case is called {options.only!r}; there are\n  " + "\n  ".join(names))
    if options.device == "cuda":
        options.threads = [1]
    result, path = collect(options, options.output)
    print(table(result))
    print(f"\nwritten: {path}")
    if options.plot:
        plot(result, path.with_suffix(".svg"))
        print(f"written: {path.with_suffix('.svg')}")
    return 0
