"""Small strange restorers: each one does something that was seen in a real one and breaks naive wrappers."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from adapters.body import BUILT
from torch import Tensor, nn

from tta_restore.models import RestorerSpec, SizeRequirements, create_model


def conv(inside: int, outside: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, padding=size // 2)


class Residual(nn.Module):
    """A restorer of 400 weights; ``body`` is what the strange ones replace."""

    def __init__(self, *body: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*(body or (conv(3, 8), nn.ReLU(), conv(8, 3))))

    def forward(self, x: Tensor) -> Any:
        return x + 0.3 * self.body(x)


class Returning(Residual):
    def __init__(self, wrap: Callable[[Tensor], Any]):
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


@dataclass
class Result:
    score: Tensor
    result: Tensor


class ModelOutput(OrderedDict):
    """As in transformers: a dict, a dataclass in spirit, and its keys are attributes."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class WritesInput(Residual):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return super().forward(x) / 2


class Tied(Residual):
    """Encoder and decoder share a weight, and the shared tensor has two names."""

    def __init__(self):
        super().__init__(conv(3, 3), nn.ReLU(), conv(3, 3))
        self.body[2].weight = self.body[0].weight


class Tokens(nn.Module):
    """A transformer on 4x4 patches, with LayerNorm and a multi-head attention whose weights have their own names."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp, self.head = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)), nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x)
        tokens = patches.flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.mlp(tokens)
        return x + 0.1 * F.pixel_shuffle(self.head(tokens).transpose(1, 2).unflatten(2, patches.shape[-2:]), 4)


class UNet(nn.Module):
    """Three halvings: sides must be multiples of 8."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList([conv(3, 6), conv(6, 6), conv(6, 6)])
        self.decoder = nn.ModuleList([conv(12, 6), conv(12, 6), conv(12, 6)])
        self.head = conv(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        skips, h = [], x
        for layer in self.encoder:
            skips.append(F.gelu(layer(h)))
            h = F.avg_pool2d(skips[-1], 2)
        for layer in self.decoder:
            h = F.interpolate(h, scale_factor=2)
            h = F.gelu(layer(torch.cat([h, skips.pop()], 1)))  # fails for other sizes
        return x + 0.2 * self.head(h)


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = conv(3, 8), conv(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.last(F.relu(self.first(x))), 2)


class Bytes(Residual):
    """Wants 0..255 and says so."""

    spec = RestorerSpec(value_range=(0, 255))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / 255) * 255


class Caching(Residual):
    """Keeps a mask per size on itself, counts its calls in a buffer, and replaces another buffer."""

    def __init__(self, *body: nn.Module):
        super().__init__(*body)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(1))
        self.size, self.mask = None, None

    def forward(self, x: Tensor) -> Tensor:
        if self.size != x.shape:
            self.size, self.mask = x.shape, torch.ones_like(x) * 0.9
        self.calls += 1
        self.mean = self.mean.type_as(x)
        return super().forward(x) * self.mask + 0.1 * x


class OneAtATime(Residual):
    spec = RestorerSpec(batched=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            raise RuntimeError("one image at a time")
        return super().forward(x)


def after_training(net: nn.Module) -> nn.Module:
    """The network with running statistics of batches."""
    for _ in range(3):
        net(torch.rand(4, 3, 8, 8))
    return net


def old_weight_norm() -> nn.Module:
    return Residual(nn.utils.weight_norm(conv(3, 8)), nn.ReLU(), nn.utils.weight_norm(conv(8, 3)))


def new_weight_norm() -> nn.Module:
    weight_norm = nn.utils.parametrizations.weight_norm
    return Residual(weight_norm(conv(3, 8)), nn.ReLU(), weight_norm(conv(8, 3)))


def spandrel(path: str, cls: str, **config: Any) -> nn.Module:
    return getattr(importlib.import_module(f"spandrel.architectures.{path}"), cls)(**config)


def nafnet() -> nn.Module:
    net = spandrel("NAFNet.__arch.NAFNet_arch", "NAFNet", width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    for name, parameter in net.named_parameters():
        if name.endswith(("beta", "gamma")):  # zero as built: every block would be the identity
            nn.init.constant_(parameter, 0.2)
    return net


ZOO: dict[str, Callable[[], nn.Module]] = {
    "plain": Residual,
    "list": lambda: Returning(lambda y: [F.avg_pool2d(y, 2), y]),
    "tuple": lambda: Returning(lambda y: (y, None, "text", y.mean((1, 2, 3)))),
    "dict": lambda: Returning(lambda y: {"features": y.repeat(1, 4, 1, 1), "image": y}),
    "dataclass": lambda: Returning(lambda y: Result(y.mean((1, 2, 3)), y)),
    "model_output": lambda: Returning(lambda y: ModelOutput(reconstruction=y, hidden_states=(y.mean((2, 3)),))),
    "batch_norm": lambda: after_training(Residual(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 3))),
    "new_weight_norm": new_weight_norm,
    "old_weight_norm": old_weight_norm,
    "in_place_relu": lambda: Residual(conv(3, 8), nn.ReLU(inplace=True), conv(8, 8), nn.ReLU(inplace=True), conv(8, 3)),
    "writes_input": WritesInput,
    "tied": Tied,
    "dropout": lambda: Residual(conv(3, 8), nn.ReLU(), nn.Dropout(0.5), conv(8, 3)),
    "tokens": Tokens,
    "multiple_of_8": UNet,
    "super_resolution": SuperResolution,
    "bytes": Bytes,
    "caching": Caching,
    "demanding": lambda: after_training(Caching(nn.BatchNorm2d(3), UNet())),
    "one_at_a_time": OneAtATime,
    "bfloat16": lambda: Residual().to(torch.bfloat16),
    "frozen": lambda: Residual().requires_grad_(False),
    "compiled": lambda: torch.compile(Residual(), backend="eager"),
    "ifan": lambda: create_model("ifan", base_channels=2, num_steps=2, num_res_blocks=1),
    "nafnet": nafnet,
    "compact": lambda: spandrel("Compact.__arch.SRVGG", "SRVGGNetCompact", num_feat=4, num_conv=1, upscale=1),
    "rcan": lambda: spandrel(
        "RCAN.__arch.rcan_arch", "RCAN", scale=1, n_resgroups=1, n_resblocks=1, n_feats=4, reduction=2
    ),
}  # fmt: skip
MULTIPLES = {"tokens": 4, "multiple_of_8": 8, "demanding": 8, "ifan": 8}
SCALES = {"super_resolution": 2}
#: A whole network of 158 tensors: the recipes that run it by default; the others are slow.
LARGE = {"ifan": ("self_ensemble", "siam_ctta")}


def build(name: str) -> nn.Module:
    """The same network every time, in the train mode that modules are born in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ZOO[name]()
    BUILT[getattr(net, "_orig_mod", net)] = f"zoo: {name}"
    return net


def frames(name: str, count: int = 3, *, batch: int = 1, height: int = 16, width: int = 24) -> list[Tensor]:
    """Frames that this network takes as they are."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(batch, 3, height, width, generator=generator) for _ in range(count)]


def declared(name: str) -> RestorerSpec | None:
    """The spec where the network declares none itself and measuring it every time would take long."""
    if name in ("bytes", "one_at_a_time"):
        return None
    return RestorerSpec(scale=SCALES.get(name, 1), size=SizeRequirements(multiple_of=MULTIPLES.get(name, 1)))
