"""Percentile bootstrap intervals of a mean, over single values or over blocks of values that belong together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with the range that holds `level` of the bootstrap means, and what was drawn with replacement."""

    mean: float
    low: float
    high: float
    count: int
    over: str
    level: float = 0.95

    @property
    def half_width(self) -> float:
        """Half the length of the range."""
        return (self.high - self.low) / 2


def bootstrap_mean(
    values: Sequence[float],
    *,
    blocks: Sequence[Hashable] | None = None,
    over: str = "frames",
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of `values`.

    With `blocks`, whole blocks are drawn: frames of one lens share its difficulty and the state of the adapter, so
    intervals that treat them as independent are too narrow. A single block (or value) has no interval: its
    ends are NaN.

    Args:
        values: one number per frame.
        blocks: one label per value; values of equal labels are drawn together.
        over: what is drawn, for the reader of the result.
        draws: number of bootstrap samples.
        level: share of the bootstrap means inside the interval.
        seed: of the draws; the same values and seed give the same interval.

    Raises:
        ValueError: no values, or not one block label per value.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"bootstrap_mean: expected a sequence of at least one value, got shape {array.shape}")
    labels = list(range(array.size)) if blocks is None else list(blocks)
    if len(labels) != array.size:
        raise ValueError(f"bootstrap_mean: expected one block per value ({array.size}), got {len(labels)}")
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    mean = float(array.mean())
    if len(members) < 2:
        return Interval(mean, float("nan"), float("nan"), len(members), over, level)
    sums = np.array([array[rows].sum() for rows in members.values()])
    sizes = np.array([len(rows) for rows in members.values()])
    drawn = np.random.default_rng(seed).integers(0, len(members), (draws, len(members)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), len(members), over, level)
