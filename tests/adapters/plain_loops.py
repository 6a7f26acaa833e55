"""Each adaptation method as a plain training loop over a deep copy of the network.

A loop is made next to an adapter and takes its frames one by one; ``generator`` holds the random numbers of the frame.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from adapters.recipes import look, make_meta_transfer
from adapters.styles import ARGUMENTS, build, pairs
from torch import Tensor, nn

from tta_restore import adapters, ops
from tta_restore.adapters import Adapter
from tta_restore.adapters.methods import self_denoise
from tta_restore.data.datasets.mining import mine_patches

TURNS: dict[str, list[tuple[int, bool]]] = {
    "identity": [(0, False)],
    "rot4": [(k, False) for k in range(4)],
    "rot4_flip": [*((k, False) for k in range(4)), (0, True)],
    "d4": [(k, flip) for flip in (False, True) for k in range(4)],
}
"""Quarter turns, counter-clockwise, of the frame or of its mirror image."""


def turned(x: Tensor, quarters: int, flip: bool) -> Tensor:
    x = x.flip(-1) if flip else x
    for _ in range(quarters):
        x = x.mT.flip(-2)
    return x


def turned_back(x: Tensor, quarters: int, flip: bool) -> Tensor:
    for _ in range(quarters):
        x = x.flip(-2).mT
    return x.flip(-1) if flip else x


def images_of(style: str, net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return how to run a network by itself: padded as its style wants it, its image picked from the output."""

    def run(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if style == "quantized" and len(x) > 1:  # the values of a batch are quantized together
            return torch.cat([run(image) for image in x.split(1)])
        inputs = x.clone()
        if style in ("multiple of 64", "one size of 64"):
            inputs = F.pad(inputs, (0, -width % 64, 0, -height % 64), mode="replicate")
        elif style == "multiple of 6":
            inputs = F.pad(inputs, (0, -width % 6, 0, -height % 6), mode="reflect")
        elif style == "one size of 24x32":
            modes = ["reflect" if 2 * side > whole else "replicate" for side, whole in ((width, 32), (height, 24))]
            inputs = F.pad(inputs, (0, 32 - width, 0, 0), mode=modes[0])
            inputs = F.pad(inputs, (0, 0, 0, 24 - height), mode=modes[1])
        elif style == "eats its border":
            inputs = F.pad(inputs, (2, 2, 2, 2), mode="reflect")
        out = net(inputs, **ARGUMENTS.get(style, {}))
        out = out[1] if isinstance(out, (list, tuple)) else out["image"] if isinstance(out, dict) else out
        out = out if isinstance(out, Tensor) else out.image
        if style == "returns its own memory":
            out = out.clone()
        return out[..., :height, :width]

    return run


def forget(net: nn.Module) -> None:
    """Empty what a network computed from weights that have been stepped since."""
    if hasattr(net, "forget"):
        net.forget()


class Plain:
    """A copy of a network with the weights of a role, run by itself."""

    def __init__(self, style: str, group: str = "identity"):
        self.network = build(style).eval()
        self.run = images_of(style, self.network)
        self.weights = {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}
        self.turns = TURNS[group]

    def views(self, x: Tensor) -> Tensor:
        return torch.stack([turned_back(self.run(turned(x, *turn)), *turn) for turn in self.turns])

    def mean(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.views(x).mean(0)

    def variance(self, x: Tensor) -> Tensor:
        """Variance between views, mean over channels: (B, H, W)."""
        views = self.views(x)
        return (views - views.mean(0)).square().mean((0, 2))

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        for weight in self.weights.values():
            weight.grad = None
        loss.backward()
        return {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}

    def set(self, values: dict[str, Tensor], share: float = 1.0) -> None:
        """Move the weights to others, or a share of the way."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.lerp_(values[name].detach(), share)
        forget(self.network)


class Loop:
    """Steps on ``student``; ``rounding`` names the weights whose gradient is zero but for rounding."""

    group = "rot4"
    prefix = ""  # of the adapter's names of the weights
    generator: torch.Generator

    def __init__(self, style: str, adapter: Any):
        self.adapter = adapter
        self.student, self.teacher, self.source = (Plain(style, self.group) for _ in range(3))
        self.optimizer = self.make_optimizer(list(self.student.weights.values()))
        self.rounding: set[str] = set()

    def compared(self) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Weights of the adapter, and those that they should be."""
        student = {name.removeprefix(self.prefix): weight for name, weight in self.adapter.student.items()}
        assert student.keys() == self.student.weights.keys()
        return [(student, {name: w for name, w in self.student.weights.items() if name not in self.rounding})]

    def make_optimizer(self, weights: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(weights, lr=1e-2)

    def step(self, loss: Tensor) -> None:
        found = {name: float(gradient.abs().max()) for name, gradient in self.student.gradients(loss).items()}
        self.rounding |= {name for name, size in found.items() if size < 1e-5 * max(found.values())}
        self.optimizer.step()
        forget(self.student.network)

    def frame(self, x: Tensor) -> None:
        raise NotImplementedError

    def output(self, x: Tensor) -> Tensor | None:
        """Output for a frame, with the adapter's values of the weights in ``rounding``."""
        own = {name.removeprefix(self.prefix): weight for name, weight in self.adapter.student.items()}
        self.student.set(self.student.weights | {name: own[name] for name in self.rounding})
        return self.student.mean(x)


class SiameseLoop(Loop):
    decay, ema = 0.95, 0.9

    def __init__(self, style: str, adapter: Any):
        super().__init__(style, adapter)
        self.updates = 0

    def frame(self, x: Tensor) -> None:
        target = self.teacher.mean(x)
        self.optimizer.param_groups[0]["lr"] = 1e-2 * self.decay**self.updates
        self.step((self.student.run(x) - target).abs().mean())
        self.teacher.set(self.student.weights, 1 - self.ema)
        self.updates += 1

    def output(self, x: Tensor) -> Tensor:
        return self.teacher.mean(x)


class TurnedSiameseLoop(SiameseLoop):
    group = "d4"


class CoTTALoop(SiameseLoop):
    decay, ema = 1.0, 0.8


class TentLoop(Loop):
    group = "rot4_flip"

    def make_optimizer(self, weights: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(weights, lr=2e-3)

    def frame(self, x: Tensor) -> None:
        self.step(self.student.variance(x).mean())


class ROIDLoop(Loop):
    def frame(self, x: Tensor) -> None:
        uncertainty = self.student.variance(x)
        self.step((torch.exp(-uncertainty.detach() / 0.1) * uncertainty).mean())
        self.student.set(self.source.weights, 1 - 0.9)


class SARLoop(Loop):
    def make_optimizer(self, weights: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=1.0, momentum=0.9)

    def frame(self, x: Tensor) -> None:
        here = {name: weight.detach().clone() for name, weight in self.student.weights.items()}
        first = self.student.variance(x)
        reliable = first <= first.flatten().sort().values[round(0.9 * first.numel()) - 1]
        uphill = self.student.gradients(first[reliable].mean())
        norm = math.sqrt(sum(float(gradient.abs().square().sum()) for gradient in uphill.values()))
        self.student.set({name: weight + 0.05 / norm * uphill.get(name, 0.0) for name, weight in here.items()})
        second = self.student.variance(x)
        reliable = reliable & (second <= second.flatten().sort().values[round(0.9 * second.numel()) - 1])
        self.student.gradients(second[reliable].mean())
        self.student.set(here)
        self.optimizer.step()
        forget(self.student.network)


class EATALoop(Loop):
    """With a penalty on leaving the source, and the second of two similar frames skipped."""

    def __init__(self, style: str, adapter: Any):
        super().__init__(style, adapter)
        self.seen: Tensor | None = None

    def make_optimizer(self, weights: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=1.0, momentum=0.9)

    def frame(self, x: Tensor) -> None:
        look = F.adaptive_avg_pool2d(x.mean((0, 1))[None], 8).flatten()
        look = look - look.mean()
        if self.seen is not None and (look @ self.seen) / (look.norm() * self.seen.norm()) >= 0.5:
            return
        self.seen = look if self.seen is None else 0.9 * self.seen + 0.1 * look
        uncertainty = self.student.variance(x)
        loss = (torch.exp(-uncertainty.detach() / 0.1) * uncertainty).mean()
        for name, weight in self.student.weights.items():
            loss = loss + 0.02 * (weight - self.source.weights[name].detach()).square().sum()
        self.step(loss)


class RoTTALoop(Loop):
    """A bank of two patches of 16 pixels, which the third frame finds full."""

    def __init__(self, style: str, adapter: Any):
        super().__init__(style, adapter)
        self.bank: list[dict[str, Any]] = []

    def draw(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))

    def frame(self, x: Tensor) -> None:
        top, left = self.draw(x.shape[-2] - 15), self.draw(x.shape[-1] - 15)
        patch = x[..., top : top + 16, left : left + 16]
        with torch.no_grad():
            variance = float(self.teacher.variance(patch).mean())
        self.bank.append({"patch": patch, "age": 0, "uncertainty": variance / (variance + 1e-3)})
        if len(self.bank) > 2:
            scores = [1 / (1 + math.exp(-held["age"] / 2)) + held["uncertainty"] for held in self.bank]
            self.bank.pop(scores.index(max(scores)))
        losses = []
        for held in self.bank:
            held["age"] += 1
            target, turn = self.teacher.mean(held["patch"]), self.student.turns[self.draw(4)]
            noise = torch.randn(held["patch"].shape, generator=self.generator)
            seen = turned(held["patch"] + 0.02 * noise, *turn).clamp(0, 1)
            distance = (turned_back(self.student.run(seen), *turn) - target).abs().mean()
            losses.append(1 / (1 + math.exp(held["age"] / 2)) * distance)
        self.step(sum(losses) / len(losses))
        self.teacher.set(self.student.weights, 0.5)

    def output(self, x: Tensor) -> Tensor:
        return self.teacher.mean(x)


class SRTTALoop(Loop):
    """Two steps on what the adapter drew as patches and as their degraded versions."""

    group = "d4"

    def __init__(self, style: str, adapter: Any):
        super().__init__(style, adapter)
        self.drawn: list[tuple[Tensor, Tensor]] = []
        self.important: dict[str, Tensor] = {}
        degraded = adapter._degraded

        def record(clean: Tensor, present: Any) -> Tensor:
            self.drawn.append((clean, degraded(clean, present)))
            return self.drawn[-1][1]

        adapter._degraded = record

    def features(self, plain: Plain, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        part = plain.network.get_submodule(self.adapter.at)
        hook = part.register_forward_hook(lambda module, inputs, output: seen.append(output))
        plain.run(x)
        hook.remove()
        return seen[0]

    def frame(self, x: Tensor) -> None:
        if not self.important:
            found = self.source.gradients(self.source.variance(x).mean())
            importance = {
                name: found[name].abs() ** 2 if name in found else torch.zeros(weight.shape)
                for name, weight in self.source.weights.items()
            }
            values = torch.cat([value.flatten() for value in importance.values()]).sort().values
            least = values[len(values) - round(0.5 * len(values))]
            self.important = {name: value >= least for name, value in importance.items()}
        for clean, degraded in self.drawn:
            found = self.features(self.student, degraded)
            with torch.no_grad():
                targets = [self.features(plain, clean) for plain in (self.source, self.student)]
            self.step(sum(torch.sqrt((found - target) ** 2 + 1e-6).mean() for target in targets))
            merged = {
                name: torch.where(self.important[name], self.source.weights[name], weight).detach()
                for name, weight in self.student.weights.items()
            }
            self.student.set(merged)
        self.drawn.clear()


class CauSiamLoop(Loop):
    """Steps on the weights of an attention with two heads to two tokens, which a hook adds to the features."""

    def __init__(self, style: str, adapter: Any):
        super().__init__(style, adapter)
        self.context: Tensor
        self.updates = 0
        (site,) = adapter.injection.sites
        self.prefix = f"injected.{site.path}."
        start = {name.removeprefix(self.prefix): weight for name, weight in adapter.source.items()}
        for plain in (self.student, self.teacher):
            plain.weights = {name: weight.clone().requires_grad_() for name, weight in start.items()}
            part = plain.network.get_submodule(site.path)
            part.register_forward_hook(lambda _, inputs, features, plain=plain: self.attend(plain.weights, features))
        self.optimizer = self.make_optimizer(list(self.student.weights.values()))

    def attend(self, weights: dict[str, Tensor], features: Tensor) -> Tensor:
        pixels = features.flatten(2).mT
        queries, keys, values = (
            (tokens @ weights[f"to_{kind}.weight"].T).unflatten(2, (2, -1)).transpose(1, 2)
            for kind, tokens in (("q", pixels), ("k", self.context), ("v", self.context))
        )
        share = (queries @ keys.mT / math.sqrt(queries.shape[-1])).softmax(-1)
        found = (share @ values).transpose(1, 2).flatten(2) @ weights["to_out.weight"].T + weights["to_out.bias"]
        return features + 2.0 * found.mT.unflatten(2, features.shape[-2:])

    def see(self, x: Tensor) -> None:
        with torch.no_grad():
            self.context = look(self.source.run(x).clamp(0, 1))

    def frame(self, x: Tensor) -> None:
        self.see(x)
        target = self.teacher.mean(x)
        self.optimizer.param_groups[0]["lr"] = 1e-2 * 0.95**self.updates
        self.step((self.student.run(x) - target).abs().mean())
        self.teacher.set(self.student.weights, 0.1)
        self.updates += 1

    def output(self, x: Tensor) -> Tensor:
        self.see(x)
        return self.teacher.mean(x)


class ReblurLoop(Loop):
    """Two steps per frame towards a restoration that, blurred with the estimated kernels, meets the frame."""

    def frame(self, x: Tensor) -> None:
        kernels = ops.isotropic_kernels(self.adapter.blur_map(x), 17)  # (B, 289, H, W)
        with torch.no_grad():
            source = self.source.run(x)

        def blurred(image: Tensor) -> Tensor:
            batch, channels, height, width = image.shape
            taps = F.unfold(image, 17, padding=8).view(batch, channels, 289, height, width)
            return (taps * kernels[:, None]).sum(2)

        def distance(change: Tensor) -> Tensor:
            return torch.sqrt(change**2 + 1e-3**2).mean()

        for _ in range(2):
            restored = self.student.run(x)
            inside = restored.clamp(0, 1)
            light = torch.where(inside <= 0.04045, inside / 12.92, ((inside + 0.055) / 1.055).clamp(min=1e-9) ** 2.4)
            light = light + (restored - inside) * torch.where(restored < 0, 1 / 12.92, 2.275)
            light = blurred(light)
            inside = light.clamp(1e-4, 1)
            stored = torch.where(inside <= 0.0031308, inside * 12.92, 1.055 * inside ** (1 / 2.4) - 0.055)
            seen = (stored + light - inside - x)[..., 8:-8, 8:-8]
            change = restored - source
            self.step(distance(seen) + 0.5 * distance(change - blurred(change)))
            self.teacher.set(self.student.weights, 0.1)

    def output(self, x: Tensor) -> Tensor:
        return self.teacher.mean(x)


class MetaLoop(Loop):
    """Two epochs of both stages on each clip, from the start again."""

    group = "identity"

    def __init__(self, style: str, adapter: Any):
        super().__init__(style, adapter)
        self.reblur: dict[str, Tensor] = {}

    def compared(self) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        return [*super().compared(), (self.adapter.state.sets["reblur"], self.reblur)]

    def frame(self, x: Tensor) -> None:
        self.student.set(self.source.weights)
        reblur, critic = (copy.deepcopy(net).eval() for net in (self.adapter.reblur, self.adapter.discriminator))
        weights = list(reblur.parameters())
        optimizers = torch.optim.Adam(weights, lr=1e-2), torch.optim.RMSprop(critic.parameters(), lr=1e-3)
        self.optimizer = self.make_optimizer(list(self.student.weights.values()))
        samples = [patch.clip for patch in mine_patches(x, 2, 16, generator=self.generator, num_frames=3)]
        steps: list[tuple[int, int]] = []
        for _ in range(2):
            order = torch.randperm(2, generator=self.generator).tolist()
            steps += [(number, (0, 2)[int(torch.randint(2, (), generator=self.generator))]) for number in order]
        for number, other in steps:
            clip = samples[number]
            blurred = reblur(clip[None])
            optimizers[1].zero_grad()
            (critic(blurred.detach()).mean() - critic(clip[other][None]).mean()).backward()
            optimizers[1].step()
            with torch.no_grad():
                for weight in critic.parameters():
                    weight.clamp_(-0.01, 0.01)
            cycle = (self.student.run(blurred.clamp(0, 1)) - clip[1][None]).abs().mean()
            loss = -0.5 * critic(blurred).mean() + 0.5 * cycle
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
            optimizers[0].step()
        for _ in range(2):
            for number in torch.randperm(2, generator=self.generator).tolist():
                with torch.no_grad():
                    blurred = reblur(samples[number][None]).clamp(0, 1)
                self.step((self.student.run(blurred) - samples[number][1][None]).abs().mean())
        self.reblur = dict(reblur.named_parameters())

    def output(self, x: Tensor) -> Tensor:
        return torch.cat([self.student.mean(frame) for frame in x.split(1)])  # none of rounding


class DenoiseLoop(Loop):
    """Neighbor2Neighbor on the subsamples of the frame's random numbers."""

    group = "rot4_flip"

    def frame(self, x: Tensor) -> None:
        first, second = self_denoise.neighbor_subsamples(x, self.generator)
        restored = self.student.run(first(x))
        with torch.no_grad():
            whole = self.student.run(x)
        apart = restored - second(x)
        self.step((apart**2).mean() + ((apart - (first(whole) - second(whole))) ** 2).mean())
        self.teacher.set(self.student.weights, 0.5)

    def output(self, x: Tensor) -> Tensor:
        return self.teacher.mean(x)


class RecordedPairs(adapters.DegradationPairs):
    """Keeps the pairs of its steps, at a fixed rate, without trials and without returning to earlier weights."""

    recorded: list[tuple[Tensor, Tensor]]

    def make_optimizer(self, tensors: list[Tensor], role: str = "student") -> torch.optim.Optimizer:
        return torch.optim.Adam(tensors, lr=1e-2)

    def _find_rate(self, frame: Any, forward: float) -> None:
        self.memory["rate"] = 1e-2

    def _pairs(self, frame: Any, count: int, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
        found = super()._pairs(frame, count, held_out=held_out)
        if not held_out:
            self.recorded.append(found)
        return found

    def _test(self, frame: Any) -> None:
        pass

    def _finish(self, frame: Any) -> None:
        frame.scratch.update(finished=True, weights=[0.0, 0.0, 1.0])


class PairsLoop(Loop):
    """Charbonnier distances and the no-harm penalty on the pairs that the adapter made."""

    def __init__(self, style: str, adapter: Any):
        super().__init__(style, adapter)
        self.updates = 0

    def frame(self, x: Tensor) -> None:
        def distances(restored: Tensor, target: Tensor) -> Tensor:
            return torch.sqrt((restored - target) ** 2 + 1e-3**2).mean((1, 2, 3))

        for degraded, target in self.adapter.recorded:
            self.optimizer.param_groups[0]["lr"] = 1e-2 / (1 + self.updates / 192)
            with torch.no_grad():
                before = distances(self.source.run(degraded), target)
            error = distances(self.student.run(degraded), target)
            harm = (error / before.clamp(min=1e-4) - 1).clamp(min=0).mean()
            self.step(error.mean() + 0.5 * before.mean() * harm)
            self.updates += 1
        assert len(self.adapter.recorded) == 2
        self.adapter.recorded = []

    def output(self, x: Tensor) -> Tensor | None:
        return None  # a blend, whose weights trials would find


def _meta_transfer(net: Any) -> Adapter:
    options: dict[str, Any] = {"num_patches": 2, "num_epochs": 2, "adversarial_weight": 0.5, "discriminator_lr": 1e-3}
    return make_meta_transfer(net, **options)


class RecordedReblurPairs(RecordedPairs, adapters.ReblurPairs):
    pass


def _pairs(net: Any, method: type[RecordedPairs] = RecordedPairs, task: str = "denoise") -> Adapter:
    adapter = pairs(method, net, steps=2, batch_size=2, task=task)
    adapter.recorded = []
    return adapter


def _causiam(net: Any) -> Adapter:
    semantic = adapters.Semantic(look, at="a", num_heads=2, res_scale=2.0)
    return adapters.CauSiam(net, semantic=semantic, lr=1e-2, restore=0.0)


def _eata(net: Any) -> Adapter:
    fisher = {name: torch.ones(weight.shape) for name, weight in net.named_parameters()}
    options: dict[str, Any] = {"fisher": fisher, "fisher_weight": 0.02, "max_similarity": 0.5}
    return adapters.EATA(net, select="all", lr=1.0, temperature=0.1, **options)


LOOPS: dict[str, tuple[Callable[[Any], Adapter], type[Loop]]] = {
    "SiamCTTA": (lambda net: adapters.SiamCTTA(net, lr=1e-2, restore=0.0), SiameseLoop),
    "SiamCTTA d4": (lambda net: adapters.SiamCTTA(net, lr=1e-2, restore=0.0, views="d4"), TurnedSiameseLoop),
    "SelfDenoise": (lambda net: adapters.SelfDenoise(net, steps=1, lr=1e-2, views="rot4_flip", ema=0.5), DenoiseLoop),
    "DegradationPairs": (_pairs, PairsLoop),
    "ReblurPairs": (lambda net: _pairs(net, RecordedReblurPairs, "defocus"), PairsLoop),
    "CoTTA": (lambda net: adapters.CoTTA(net, lr=1e-2, ema=0.8, restore=0.0), CoTTALoop),
    # Adam magnifies the rounding of gradients near zero, which differs between processors, by the learning rate
    "Tent": (lambda net: adapters.Tent(net, select="all", lr=2e-3, views="rot4_flip"), TentLoop),
    "ROID": (lambda net: adapters.ROID(net, select="all", lr=1e-2, momentum=0.9, temperature=0.1), ROIDLoop),
    "SAR": (lambda net: adapters.SAR(net, select="all", lr=1.0, guards=adapters.Guards()), SARLoop),
    "EATA": (_eata, EATALoop),
    "RoTTA": (
        lambda net: adapters.RoTTA(net, select="all", lr=1e-2, capacity=2, interval=1, patch_size=16, ema=0.5),
        RoTTALoop,
    ),
    "SRTTA": (lambda net: adapters.SRTTA(net, at="a", lr=1e-2, steps=2, num_patches=2, patch_size=16), SRTTALoop),
    "CauSiam": (_causiam, CauSiamLoop),
    "ReblurConsistency": (
        lambda net: adapters.ReblurConsistency(net, lr=1e-2, steps=2, trust_radius=None, views="rot4"),
        ReblurLoop,
    ),
    "MetaTransfer": (_meta_transfer, MetaLoop),
}
"""Builder of the adapter, and the class of its plain loop."""
