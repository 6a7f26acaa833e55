"""Restorers written in many styles, and what each method does with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from adapters.body import BUILT, Body, changed, conv
from adapters.keeping import KEEPING, NOT_EXCHANGED
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from tta_restore import adapters
from tta_restore.adapters import Adapter
from tta_restore.degradations import Estimator
from tta_restore.models import RestorerSpec, SizeRequirements, create_model


class Checkpointed(Body):
    def __init__(self, reentrant: bool):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if not y.requires_grad:
            return x + self.b(F.gelu(y))
        return x + checkpoint(lambda z: self.b(F.gelu(z)), y, use_reentrant=self.reentrant)


class Coupling(torch.autograd.Function):
    """A reversible block, which computes its input anew in the backward pass and adds to the weights' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: nn.Module) -> Tensor:
        first, second = x.chunk(2, 1)
        with torch.no_grad():
            out = torch.cat([first + F.gelu(part(second)), second], 1)
        ctx.kept, ctx.part = out, part
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        first, second = gradient.chunk(2, 1)
        with torch.enable_grad():
            inputs = ctx.kept.chunk(2, 1)[1].detach().requires_grad_()
            F.gelu(ctx.part(inputs)).backward(first)
        return torch.cat([first, second + inputs.grad], 1), None


class Reversible(Body):
    def __init__(self):
        super().__init__()
        self.c = conv(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(Coupling.apply(self.a(x), self.c))


class HookedSkip(Body):
    def __init__(self):
        super().__init__()
        self.c = conv(6, 6)
        self.a.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.skip = output

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.c(F.gelu(self.a(x))) + self.skip)


class HookedFromOutside(Body):
    """The hook is a function that holds the module itself, so that a copy of the module would write into it."""

    def __init__(self):
        super().__init__()
        self.a.register_forward_hook(lambda module, inputs, output: self.__dict__.update(skip=output))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(x)) + self.skip)


class TiedWeights(Body):
    def __init__(self):
        super().__init__()
        self.c, self.d = conv(3, 6), conv(6, 3)
        self.c.weight, self.d.weight = self.a.weight, self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + self.d(F.gelu(self.c(x)))


class Recurrent(Body):
    def __init__(self):
        super().__init__()
        self.rows = nn.GRU(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.a(x))
        batch, channels, height, width = y.shape
        rows, _ = self.rows(y.permute(0, 2, 3, 1).reshape(batch * height, width, channels))
        return x + self.b(rows.reshape(batch, height, width, channels).permute(0, 3, 1, 2))


class SeveralDtypes(Body):
    """Its first weight is a factor of another dtype than its kernels."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(x))) * self.gain.float()


class Spectral(Body):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 1, 1, dtype=torch.complex64) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.fft.irfft2(torch.fft.rfft2(x) * self.w, s=x.shape[-2:])


class Counting(Body):
    """A buffer that every pass replaces, and one that it writes into."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.mean = x.detach().mean()
        return super().forward(x)


@dataclass
class Output:
    score: Tensor
    image: Tensor


class Wrapped(Body):
    def __init__(self, wrap: Callable[[Tensor], Any]):
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


class Valid(Body):
    def __init__(self):
        super().__init__(padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 2:-2, 2:-2] + self.b(F.gelu(self.a(x)))


class NonBlind(Body):
    def __init__(self):
        super().__init__()
        self.a = conv(4, 6)

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return x + self.b(F.gelu(self.a(torch.cat([x, torch.full_like(x[:, :1], sigma)], 1))))


class Multiple(Body):
    def __init__(self, multiple: int):
        super().__init__()
        self.multiple = multiple

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise RuntimeError(f"sides must be multiples of {self.multiple}")
        return super().forward(x)


class OneSize(Body):
    def __init__(self, height: int, width: int | None = None):
        super().__init__()
        self.register_buffer("position", torch.zeros(1, 3, height, width or height))
        if width is not None:
            self.spec = RestorerSpec(size=SizeRequirements((height, width), maximum=(height, width)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.position)


class Random(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-3 * torch.randn_like(x)


class InPlace(Body):
    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5)  # the tensor that it was given
        y = self.b(F.relu_(self.a(x)))
        y += x
        return y.add_(0.5)


def weight_norm(net: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(net.a)


def spectral_norm(net: nn.Module) -> None:
    nn.utils.parametrizations.spectral_norm(net.a)


class Quantized(Body):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.mix(F.gelu(self.a(x)).movedim(1, -1)).movedim(-1, 1))


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Quantized(), {nn.Linear}, dtype=torch.qint8)


class Stored(Body):
    """Holds a kernel in floats of 8 bits."""

    def __init__(self):
        super().__init__()
        kernel = (torch.randn(3, 3, 3, 3) / 8).to(torch.float8_e4m3fn)
        self.kernel = nn.Parameter(kernel, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.conv2d(x, self.kernel.to(x.dtype), padding=1)


class Hypernetwork(Body):
    """Makes a kernel from the frame."""

    def __init__(self):
        super().__init__()
        self.maker = nn.Linear(3, 81)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.maker(x.mean((2, 3))).view(-1, 3, 3, 3, 3)
        parts = [F.conv2d(one[None], kernel, padding=1) for one, kernel in zip(x, kernels, strict=True)]
        return super().forward(x) + 0.1 * torch.cat(parts)


class FixedPoint(torch.autograd.Function):
    """The gradient of an equilibrium by the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(20):
            z = FixedPoint.step(z, x, kernel)
        ctx.save_for_backward(x, kernel, z)
        return z

    @staticmethod
    def step(z: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
        return torch.tanh(0.3 * F.conv2d(z, kernel, padding=1) + x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, kernel, z = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            next_z = FixedPoint.step(z, x, kernel)
        total = gradient
        for _ in range(20):
            total = gradient + torch.autograd.grad(next_z, z, total, retain_graph=True)[0]
        return torch.autograd.grad(next_z, (x, kernel), total)


class Equilibrium(Body):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 6, 3, 3) * 0.05)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(FixedPoint.apply(self.a(x), self.kernel))


class Late(Body):
    """Makes a layer in its first pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = conv(3, 3)
        return self.late(super().forward(x))


class LowRank(nn.Module):
    """A frozen convolution and a change of rank 2."""

    def __init__(self, base: nn.Conv2d):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.up, self.down = nn.Parameter(torch.randn(6, 2) * 0.1), nn.Parameter(torch.randn(2, 27) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        change = (self.up @ self.down).view_as(self.base.weight)
        return F.conv2d(x, self.base.weight + change, self.base.bias, padding=1)


def low_rank(net: nn.Module) -> None:
    net.a = LowRank(net.a)


class Lazy(Body):
    def __init__(self):
        super().__init__()
        self.a = nn.LazyConv2d(6, 3, padding=1)


class Output3(NamedTuple):
    aux: None
    image: Tensor
    more: dict


class Guided(Body):
    """Differentiates within its pass."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            y = super().forward(z)
            (towards,) = torch.autograd.grad((y - x).square().sum(), z, create_graph=True)
        return y - 0.1 * towards


def scripted_part(net: nn.Module) -> None:
    net.a = torch.jit.script(net.a)


def backward_hook(net: nn.Module) -> None:
    net.a.register_full_backward_hook(lambda module, inputs, outputs: tuple(g if g is None else g / 2 for g in inputs))


def without_values(net: nn.Module) -> None:
    net.to("meta")


def exported() -> nn.Module:
    return torch.export.export(Body(), (torch.rand(1, 3, 24, 24),)).module()


def under_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Body()


class Holding(Tensor):
    """A weight that holds integers and a scale, as libraries of quantization have."""

    @staticmethod
    def __new__(cls, whole: Tensor, scale: Tensor) -> Holding:
        return Tensor._make_wrapper_subclass(cls, whole.shape, dtype=torch.float32)

    def __init__(self, whole: Tensor, scale: Tensor):
        self.whole, self.scale = whole, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["whole", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], *_: Any) -> Holding:
        return cls(inner["whole"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(function(args[0].whole), function(args[0].scale))
        args, kwargs = tree_map_only(cls, lambda t: t.whole * t.scale, (args, kwargs or {}))
        return function(*args, **kwargs)


def integers_with_scale(net: nn.Module) -> None:
    scale = net.a.weight.detach().abs().max() / 127
    whole = (net.a.weight.detach() / scale).round().to(torch.int8)
    net.a.weight = nn.Parameter(Holding(whole, scale), requires_grad=False)


STYLES: dict[str, Callable[[], nn.Module]] = {
    "plain": Body,
    "activation checkpointing": lambda: Checkpointed(False),
    "reentrant checkpointing": lambda: Checkpointed(True),
    "reversible": Reversible,
    "skip by a hook": HookedSkip,
    "skip by a function's hook": HookedFromOutside,
    "tied weights": TiedWeights,
    "recurrent": Recurrent,
    "TorchScript": lambda: torch.jit.script(nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 3))),
    "quantized": quantized,
    "8-bit floats": Stored,
    "complex weights": Spectral,
    "several dtypes": SeveralDtypes,
    "weight norm": changed(weight_norm),
    "spectral norm": changed(spectral_norm),
    "frozen base with LoRA": changed(low_rank),
    "hypernetwork": Hypernetwork,
    "deep equilibrium": Equilibrium,
    "makes a layer late": Late,
    "lazy": Lazy,
    "changing buffers": Counting,
    "list output": lambda: Wrapped(lambda y: [F.avg_pool2d(y, 2), y]),
    "dict output": lambda: Wrapped(lambda y: {"score": y.mean(), "image": y}),
    "dataclass output": lambda: Wrapped(lambda y: Output(y.mean(), y)),
    "object output": lambda: Wrapped(lambda y: SimpleNamespace(image=y, score=y.mean())),
    "eats its border": Valid,
    "second input": NonBlind,
    "1 channel": lambda: Body(1),
    "2 channels": lambda: Body(2),
    "4 channels": lambda: Body(4),
    "6 channels": lambda: Body(6),
    "multiple of 64": lambda: Multiple(64),
    "multiple of 6": lambda: Multiple(6),
    "one size of 64": lambda: OneSize(64),
    "one size of 16": lambda: OneSize(16),
    "one size of 24x32": lambda: OneSize(24, 32),
    "non-deterministic": Random,
    "in place": InPlace,
    "named tuple with None": lambda: Wrapped(lambda y: Output3(None, y, {"none": None})),
    "differentiates inside": Guided,
    "backward hook": changed(backward_hook),
    "made under inference_mode": under_inference_mode,
    "exported program": exported,
    "TorchScript inside": changed(scripted_part),
    "weights hold tensors": changed(integers_with_scale),
    "weights without values": changed(without_values),
} | KEEPING
ARGUMENTS: dict[str, dict[str, Any]] = {"second input": {"sigma": 0.1}}
REFUSED = {
    "TorchScript": "TorchScript hides the weights of a model",
    "TorchScript inside": "TorchScript hides the weights of a;",
    "lazy": "lazy weights",
    "makes a layer late": "Late creates weights in its first pass .* run it on a frame first",
    "weights without values": "weights without values",
} | NOT_EXCHANGED
"""Styles that methods refuse, by a part of the message."""
NOT_COMPARED = {
    "non-deterministic": "no two runs agree",
    "exported program": "eval() is refused",
    "depends on earlier calls": "a plain loop starts from other hidden states",
    "made under inference_mode": "a plain loop cannot train such weights",
    "one size of 16": "tests of restorers compare tiles",
} | REFUSED
COMPARED = tuple(name for name in STYLES if name not in NOT_COMPARED)
"""Styles whose adaptation is compared with a plain loop."""


class Smear(nn.Module):
    num_frames = 3

    def forward(self, clip: Tensor) -> Tensor:
        return F.avg_pool2d(clip[:, 1], 3, 1, 1)


@cache
def _lens_estimator() -> nn.Module:
    return create_model("lens_estimator", checkpoint="lens_estimator")


_degradation_estimator = cache(Estimator)


def _colors(image: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(image, (1, 2)).flatten(2).mT


def pairs(
    method: type[adapters.DegradationPairs], net: Any, estimator: nn.Module | None = None, **options: Any
) -> adapters.DegradationPairs:
    sharp = torch.rand(2, 3, 80, 80, generator=torch.Generator().manual_seed(3))
    small: dict[str, Any] = {"steps": 1, "batch_size": 1, "patch_size": 16, "lr": 1e-2, "task": "denoise"}
    return method(net, estimator or _degradation_estimator(), sharp_images=sharp, **small | options)


METHODS: dict[str, Callable[[Any], Adapter]] = {
    "Adapter": adapters.Adapter,
    "DegradationPairs": lambda net: pairs(adapters.DegradationPairs, net),
    "SelfDenoise": lambda net: adapters.SelfDenoise(net, steps=1, lr=1e-2),
    "SelfEnsemble": adapters.SelfEnsemble,
    "SiamCTTA": lambda net: adapters.SiamCTTA(net, lr=1e-2, restore=0.0),
    "CauSiam": lambda net: adapters.CauSiam(net, semantic=adapters.Semantic(_colors, at="auto", num_heads=2)),
    "CoTTA": lambda net: adapters.CoTTA(net),
    "Tent": lambda net: adapters.Tent(net, select="all"),
    "SAR": lambda net: adapters.SAR(net, select="all"),
    "EATA": lambda net: adapters.EATA(net, select="all"),
    "ROID": lambda net: adapters.ROID(net, select="all"),
    "RoTTA": lambda net: adapters.RoTTA(net, select="all", interval=1, patch_size=16),
    "SRTTA": lambda net: adapters.SRTTA(net, steps=1, num_patches=1, patch_size=16),
    "ReblurConsistency": lambda net: adapters.ReblurConsistency(net, _lens_estimator(), steps=1),
    "ReblurPairs": lambda net: pairs(adapters.ReblurPairs, net, _lens_estimator(), task="defocus"),
    "MetaTransfer": lambda net: adapters.MetaTransfer(
        net, Smear(), num_patches=1, patch_size=16, min_sharpness_gain=0.0
    ),
}


def build(style: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        net = STYLES[style]()
    BUILT[net] = f"styles: {style}"
    return net


def frames(style: str, count: int = 3, *, clip: bool = False, width: int = 24) -> list[Tensor]:
    channels = int(style[0]) if "channel" in style else 3
    generator = torch.Generator().manual_seed(0)
    shape = (4 if clip else 1, channels, 24, width)
    return [torch.rand(shape, generator=generator) for _ in range(count)]


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    named = [*net.named_parameters(), *net.named_buffers()]
    return {name: t.detach().clone() for name, t in named if not nn.parameter.is_lazy(t) and not t.is_meta}


def outcome(method: str, style: str) -> str:
    """Return "yes", or why the method refuses the network; AssertionError where something is wrong."""
    net = build(style)
    before = tensors_of(net)
    try:
        adapter = METHODS[method](net)
        for x in frames(style, 2, clip=method == "MetaTransfer"):
            image = adapter.restore(x, **ARGUMENTS.get(style, {}))
            assert image.shape == x.shape, f"output {tuple(image.shape)}"
            assert image.isfinite().all()
        said = "yes"
    except Exception as error:
        notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("restorer: ")]
        if not isinstance(error, (ValueError, TypeError)) and not str(error).startswith(f"{method}: ") and not notes:
            raise
        said = f"{notes[0]}: {error}" if notes else str(error)
    after = tensors_of(net)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "the network was changed"
    return said
