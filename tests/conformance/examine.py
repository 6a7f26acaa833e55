"""Every restoration architecture of spandrel in a small configuration: probe, wrap, adapt, reset, save, load, detach.

    python tests/conformance/examine.py [--write docs/conformance.md] [KEY ...]

prints one line per architecture, or writes the table of the documentation.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from adapters._base import picture, same_bits

from tta_restore.adapters import Adapter, SiamCTTA
from tta_restore.models import ProbeReport, probe

TABLE: dict[str, dict[str, Any]] = {
    entry["key"]: entry for entry in json.loads(Path(__file__).with_name("architectures.json").read_text())
}
HEADER = """# Which restorers work

Every restoration architecture of spandrel 0.4 and spandrel_extra_arches 0.2, in a small configuration with random
weights, runs the same steps: `models.probe` examines it, `SiamCTTA` wraps it with the options that the probe advises,
and must plan, adapt on three frames of odd sizes, predict, reset, save, load and detach; afterwards the model must be
unchanged bit by bit.
Written by `python tests/conformance/examine.py --write docs/conformance.md`; a part of it runs in the tests.

*adapted*: share of the weights that a gradient reaches. *traps*: properties that the probe found without a declaration.

| architecture | scale | sides | mode | adapted | traps | result |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Finding:
    """What the course said about an architecture."""

    key: str
    report: ProbeReport | None
    adapted: float
    problem: str | None
    seconds: float

    @property
    def row(self) -> str:
        if self.report is None:
            return f"| {self.key} | | | | | | {self.problem} |"
        spec, size = self.report.spec, self.report.spec.size
        sides = f"multiple of {size.multiple_of}, from {size.minimum}{', square' if size.square else ''}"
        cells = [
            self.key, str(spec.scale), sides, self.report.advice["mode"], f"{self.adapted:.0%}",
            "; ".join(self.report.traps) or "none", self.problem or "passes",
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"


def installed(key: str) -> bool:
    """Whether the package that has the architecture is there."""
    return importlib.util.find_spec(package(key)) is not None


def package(key: str) -> str:
    """The package that has the architecture."""
    return TABLE[key]["module"].split(".")[0]


def build(key: str) -> nn.Module:
    """The architecture with random weights, the same every time, as it is born."""
    entry = TABLE[key]
    cls = getattr(importlib.import_module(entry["module"]), entry["class"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = cls(**entry["config"])
        for name, parameter in net.named_parameters():
            if not parameter.any() and not name.endswith("bias"):
                nn.init.constant_(parameter, 0.1)  # gates that are born shut let nothing be learned in three frames
    return net


def frames(key: str, report: ProbeReport, count: int = 3) -> list[Tensor]:
    """Frames of odd sides, or of the one size that the architecture takes."""
    generator = torch.Generator().manual_seed(1)
    fixed = TABLE[key].get("side")
    height, width = (fixed, fixed) if fixed else (37, 45)
    return [torch.rand(1, report.spec.in_channels, height, width, generator=generator) for _ in range(count)]


def examine(key: str) -> Finding:
    """Send an architecture through the course."""
    started, report, adapted = time.perf_counter(), None, 0.0
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # some draw noise as they restore; a course is the same every time
            net = build(key)
            before = picture(net)
            side = TABLE[key].get("side")
            example = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) if side else None
            report = probe(net, example)
            expect(same_bits(picture(net), before), "the probe left it as it was")
            adapted = course(net, key, report)
            expect(same_bits(picture(net), before), "the model is as it was")
        problem = None
    except Exception as error:  # whatever a stranger's model raises is the finding
        problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    return Finding(key, report, adapted, problem, time.perf_counter() - started)


def course(net: nn.Module, key: str, report: ProbeReport) -> float:
    """Wrap, plan, adapt, predict, reset, save, load, detach; the share of weights that is adapted."""

    def make() -> SiamCTTA:
        lr = TABLE[key].get("lr", 1e-3)  # a network of random weights may diverge where a trained one would not
        return SiamCTTA(net, lr=lr, restore=0.0, **report.advice)

    stream = frames(key, report)
    adapter = make()
    plan = adapter.plan()
    expect(0 < plan.adapted <= plan.total, "something is adapted")
    source = Adapter(net, spec=report.spec, mode=report.advice["mode"]).predict(stream[0])
    expect(source is not None, "the source restores")
    first = adapter.predict(stream[0])
    outputs = [adapter(x) for x in stream]
    expect(adapter.report.updated, "three frames are learned from")
    expect(not same_bits(adapter.predict(stream[0]), first), "learning changes the output")
    with tempfile.TemporaryDirectory() as folder:
        adapter.save(Path(folder) / "state.safetensors")
        again = make()
        again.load(Path(folder) / "state.safetensors")
    if report.repeatable:
        expect(same_bits(again(stream[0]), adapter(stream[0])), "a loaded state goes on bit by bit")
    adapter.reset()
    expect(same_bits(adapter.state_dict(), make().state_dict()), "a reset forgets everything")
    if report.repeatable:
        expect(same_bits([adapter(x) for x in stream], outputs), "a reset stream repeats")
    expect(adapter.detach() is net, "detach gives the model back")
    return plan.adapted / plan.total


def expect(held: bool, promise: str) -> None:
    """Raise for a promise that was not kept."""
    if not held:
        raise RuntimeError(f"not kept: {promise}")


def main(arguments: list[str]) -> int:
    """Examine all that is installed, or what is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("keys", nargs="*", metavar="KEY")
    parser.add_argument("--write", type=Path, help="write the table there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows, failed = [], 0
    for key in options.keys or TABLE:
        if not installed(key):
            rows.append(f"| {key} | | | | | | not run: {package(key)} is not installed |")
            continue
        finding = examine(key)
        failed += finding.problem is not None
        rows.append(finding.row)
        print(f"{finding.seconds:6.1f} s {finding.row}", flush=True)
    if options.write:
        options.write.write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
