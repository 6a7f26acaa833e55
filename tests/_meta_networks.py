"""Small networks and tasks for the tests of meta-learning."""

import torch
from torch import nn

from tta_restore.adapters.methods.inner_loop import InnerSample
from tta_restore.data.datasets.clips import Clip
from tta_restore.engine.train.windows import MetaTask


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class Deblur(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x):
        return x + self.last(self.first(x).tanh())


class Reblur(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(15, 3, 3, padding=1)

    def forward(self, x):
        return x[:, 2] + 0.3 * self.conv(x.flatten(1, 2)).tanh()


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.score = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4, 1)

    def forward(self, x):
        return self.score(self.conv(x).tanh().mean((2, 3)))


def task(seed=0, *, patches=2, queries=3, size=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    items = tuple(InnerSample(rand(5, 3, size, size), rand(3, size, size)) for _ in range(patches))
    return MetaTask(f"clip{seed}", items, rand(queries, 5, 3, size, size), rand(queries, 5, 3, size, size))


def clips(count=3, frames=6, size=32):
    """Flicker of random patterns: the sharp frames move, the blurred ones are means of neighbors."""
    found = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        picture = torch.rand(3, size // 4, size // 4 + frames, generator=generator)
        picture = picture.repeat_interleave(4, 1).repeat_interleave(4, 2)
        sharp = torch.stack([picture[:, :, 4 * t : 4 * t + size] for t in range(frames)])
        light = torch.stack([sharp.roll(shift, 3) for shift in (-1, 0, 1)]).mean(0)
        found.append(Clip(f"clip{number}", light, sharp))
    return found
