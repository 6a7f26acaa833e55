"""Processes that ``torchrun`` started: rank and number, averages, and values that all of them take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Processes"]


@dataclass(frozen=True)
class Processes:
    """This process among those that share one task, as ``torchrun`` starts them.

    Attributes:
        rank: of this one, from 0.
        count: of all.
        device: of the numbers that they exchange.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @staticmethod
    @contextmanager
    def join(device: str) -> Iterator[Processes]:
        """Join the process group of ``torchrun`` where it started this process; an existing group is used."""
        if dist.is_available() and dist.is_initialized():
            yield Processes(dist.get_rank(), dist.get_world_size(), device)
            return
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield Processes()
            return
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        try:
            yield Processes(dist.get_rank(), dist.get_world_size(), device)
        finally:
            dist.destroy_process_group()

    def agree(self, value: float) -> float:
        """Return the value of the first process, for decisions that all have to take alike."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    @property
    def first(self) -> bool:
        """Return whether this is the one that writes files."""
        return self.rank == 0

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of the first process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors with their means over the processes, which must all bring the same ones."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            dist.barrier()
