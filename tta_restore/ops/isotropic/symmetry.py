"""Taps of a square kernel grouped by distance (radial rings) and by symmetry (symmetry classes).

A ring holds the taps of one distance from the center: they share a logit. A class holds the offsets that the symmetries
of the square turn into one another, ``{(+-a, +-b), (+-b, +-a)}``: they share a weight in every kernel size, so the sum
of the image over a class serves all branches. Ring 25 of a 15 x 15 kernel has the classes (5, 0) and (4, 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Ring:
    """Taps at one distance r: their logit is ``(1 - fraction) * |seed[below]| + fraction * |seed[below + 1]|``."""

    taps: int
    below: int
    fraction: float


@dataclass(frozen=True)
class Branch:
    """A kernel size. ``ring_of_class`` counts the corner taps, whose logit is 0, as the ring after the last."""

    radius: int
    first_seed: int
    rings: tuple[Ring, ...]
    corner_taps: int
    ring_of_class: tuple[int, ...]


def classes(radius: int) -> tuple[tuple[int, int], ...]:
    """Offsets (a, b) with ``radius >= a >= b >= 0``, a first: those of a smaller kernel come before the others."""
    return tuple((a, b) for a in range(radius + 1) for b in range(a + 1))


def offsets(a: int, b: int) -> tuple[tuple[int, int], ...]:
    """Return the 1, 4 or 8 offsets (dy, dx) of a class."""
    found = {(s * p, t * q) for p, q in ((a, b), (b, a)) for s in (-1, 1) for t in (-1, 1)}
    return tuple(sorted(found))


def seed_channels(kernel_sizes: tuple[int, ...]) -> int:
    """Seeds that the kernel sizes need together."""
    return sum((size + 1) // 2 for size in kernel_sizes)


def branch(radius: int, first_seed: int = 0) -> Branch:
    """Rings and classes of a kernel of ``2 * radius + 1`` taps across."""
    found = classes(radius)
    inside = sorted({a * a + b * b for a, b in found if a * a + b * b <= radius * radius})
    index = {squared: i for i, squared in enumerate(inside)}
    ring_of_class = tuple(index.get(a * a + b * b, len(inside)) for a, b in found)
    taps = [0] * (len(inside) + 1)
    for ring, (a, b) in zip(ring_of_class, found, strict=True):
        taps[ring] += len(offsets(a, b))
    rings = []
    for squared, count in zip(inside, taps, strict=False):
        below = math.isqrt(squared)
        rings.append(Ring(count, below, math.sqrt(squared) - below))
    return Branch(radius, first_seed, tuple(rings), taps[-1], ring_of_class)


def branches(kernel_sizes: tuple[int, ...]) -> tuple[Branch, ...]:
    """Return every kernel size with its offset among the radial logits."""
    found, first = [], 0
    for size in kernel_sizes:
        found.append(branch(size // 2, first))
        first += (size + 1) // 2
    return tuple(found)


def largest_radius(kernel_sizes: tuple[int, ...]) -> int:
    """Reach of the largest kernel in pixels."""
    return max(size // 2 for size in kernel_sizes)
