"""One CauSiam step on DPDNet-S against the released update rule, written anew: equal outputs, time, memory.

    python -m benchmarks.causiam_step                  # prints a table and writes results/causiam_step.json
    python -m benchmarks.causiam_step --sides 512      # rows of other sizes stay in it

All sides run the same weights, frames and encoder (a fixed projection; CLIP costs both the same) in turn in one
process, on one thread; the ratio is that of median processor times. Memory is measured in a fresh process per side.
``released`` runs the network as published, written anew; ``released, our network`` the same rule on ours, which shows
how much of the ratio is the network's.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from tta_restore import models
from tta_restore.adapters import CauSiam, Semantic
from tta_restore.nn import SemanticCrossAttention

from .dpdnet_original import ReleasedDpdnet

RESULTS = Path(__file__).parent / "results"
WIDTH = 512


class WithAttention(nn.Module):
    """DPDNet-S with the cross-attention built in behind conv6, as the release has it."""

    def __init__(self, net: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.net, self.attention, self.context = net, attention, None
        net.conv6.register_forward_hook(self.attend)

    def attend(self, module, inputs, output):
        return None if self.context is None else self.attention(output, self.context)

    def forward(self, x, context=None):
        self.context = context
        try:
            return self.net(x)
        finally:
            self.context = None


class ReleasedRule:
    """What the released script does to a frame, in its order, with the work that it throws away."""

    def __init__(self, model: nn.Module, encoder, restore: float) -> None:
        self.student, self.encoder, self.restore = model, encoder, restore
        self.source, self.teacher, self.anchor = (copy.deepcopy(model) for _ in range(3))
        self.saved = copy.deepcopy(model.state_dict())
        for part in (self.source, self.teacher, self.anchor):
            part.requires_grad_(False)
        self.student.requires_grad_(True)
        adapted = [parameter for name, parameter in self.student.named_parameters() if "attention" in name]
        self.adam = torch.optim.Adam(adapted, lr=1e-4)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.adam, 1, 0.95)

    def __call__(self, x):
        with torch.no_grad():
            context = self.encoder(self.source(x))
            views = []
            for k in range(4):
                turned = torch.from_numpy(_rot90(x.numpy(), k))
                views.append(torch.from_numpy(_rot90(self.teacher(turned, context).numpy(), -k)))
            views = torch.stack(views)
            target = views.mean(0)
            torch.sigmoid((views - target).square().mean(0) / 0.001)  # a confidence that nothing uses
        loss = (target - self.student(x, context)).abs().mean()
        loss.backward()  # for all weights; those outside Adam are never cleared
        self.adam.step()
        self.adam.zero_grad()
        self.schedule.step()
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                old.data = 0.9 * old + 0.1 * new
            for name, parameter in self.student.named_parameters():
                mask = (torch.rand(parameter.shape) < self.restore).float()
                parameter.data = self.saved[name] * mask + parameter * (1 - mask)
        return target


def _rot90(array, k):
    import numpy

    return numpy.rot90(array, k, (2, 3)).copy()


def encoder():
    """A projection of what is seen to one vector."""
    projection = torch.randn(48, WIDTH, generator=torch.Generator().manual_seed(1)) / 7
    return lambda restored: nn.functional.adaptive_avg_pool2d(restored, 4).flatten(1) @ projection


def network() -> nn.Module:
    """DPDNet-S with the random weights that both sides start from."""
    torch.manual_seed(0)
    return models.create_model("dpdnet_s").eval()


def released(restore: float) -> ReleasedRule:
    """The released rule on the network as published."""
    original = ReleasedDpdnet().eval()
    original.load_state_dict(network().state_dict())
    return _released(original, restore)


def released_on_ours(restore: float) -> ReleasedRule:
    """The released rule on our network."""
    return _released(network(), restore)


def _released(net: nn.Module, restore: float) -> ReleasedRule:
    layer: SemanticCrossAttention = copy.deepcopy(ours(restore).injection.layers[0])
    return ReleasedRule(WithAttention(net, layer), encoder(), restore)


def ours(restore: float, net: nn.Module | None = None, **options) -> CauSiam:
    """The same on the adapter core."""
    semantic = Semantic(encoder(), at="conv6", zero_init=False)
    return CauSiam(net or network(), semantic=semantic, variant="official", restore=restore, **options)


def ours_channels_last(restore: float) -> CauSiam:
    """The same with weights and frames laid out for convolutions on CPUs."""
    layout = torch.channels_last
    return ours(restore, network().to(memory_format=layout), memory_format=layout)


SIDES = {
    "released": released,
    "released, our network": released_on_ours,
    "ours": ours,
    "ours, channels_last": ours_channels_last,
}


def frames(side: int, count: int) -> list[torch.Tensor]:
    """Noise pictures."""
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(1, 3, side, side, generator=generator) for _ in range(count)]


def differences(side: int, count: int = 3) -> dict[str, float]:
    """Largest difference of outputs from the released rule's over a stream, without restore, whose masks are random."""
    released, *others = (make(0.0) for make in SIDES.values())
    found = dict.fromkeys(list(SIDES)[1:], 0.0)
    for x in frames(side, count):
        expected = released(x)
        for name, step in zip(found, others, strict=True):
            found[name] = max(found[name], float((expected - step(x)).abs().max()))
    return found


def times(side: int, rounds: int) -> dict[str, list[float]]:
    """Processor seconds per step of each side, in turn and back; two frames to warm up."""
    both = {name: make(0.01) for name, make in SIDES.items()}
    taken: dict[str, list[float]] = {name: [] for name in both}
    for number, x in enumerate(frames(side, rounds + 2)):
        for name, step in list(both.items())[:: 1 if number % 2 else -1]:
            start = time.process_time()
            step(x)
            if number >= 2:
                taken[name].append(time.process_time() - start)
    return taken


def peak(name: str, side: int) -> int:
    """Resident bytes of this process at its peak, after three steps, above those with the network alone."""
    net = network()
    net(torch.rand(1, 3, 16, 16))
    with open("/proc/self/status") as lines:
        before = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024
    del net
    step = SIDES[name](0.01)
    for x in frames(side, 3):
        step(x)
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 - before


def main(arguments: list[str]) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=SIDES, help="print the peak of one side in bytes, and nothing else")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.memory:
        print(peak(options.memory, options.sides[0]))
        return
    path = RESULTS / "causiam_step.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for side in options.sides:
        taken = times(side, options.rounds)
        medians = {name: statistics.median(values) for name, values in taken.items()}
        memory = {}
        for name in SIDES:
            command = [sys.executable, "-m", "benchmarks.causiam_step", "--memory", name, "--sides", str(side)]
            memory[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        row = {
            "side": side,
            "seconds": medians,
            "all_seconds": taken,
            "ratio": {name: medians[name] / medians["released"] for name in list(SIDES)[1:]},
            "largest_difference": differences(side),
            "peak_bytes_above_network": memory,
            "load": os.getloadavg()[0],
        }
        rows = sorted([row, *(old for old in rows if old["side"] != side)], key=lambda found: found["side"])
        facts = {"torch": torch.__version__, "threads": 1, "processor": platform.processor(), "cores": os.cpu_count()}
        path.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
        print(f"{side}x{side}, load {row['load']:.1f}: released {medians['released']:.2f} s, ", end="")
        print(f"{memory['released'] / 2**20:.0f} MiB above the network", flush=True)
        for name, ratio in row["ratio"].items():
            print(
                f"  {name}: {medians[name]:.2f} s, ratio {ratio:.3f}, outputs differ by "
                f"{row['largest_difference'][name]:.1e}, {memory[name] / 2**20:.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
