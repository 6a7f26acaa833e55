"""Count the files that a second call of an adapter visits, and the moves between them.

python benchmarks/moves.py
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import nn

import tta_restore
from tta_restore.adapters import Adapter, ReblurPairs, SiamCTTA
from tta_restore.models import RestorerSpec, create_model

PACKAGE = os.path.dirname(tta_restore.__file__) + os.sep


def moves(adapter: Adapter, x: torch.Tensor) -> tuple[int, int]:
    """Return the number of files of the package and of moves between them, in one call after a first one."""
    adapter(x)
    visited: list[str] = []

    def watch(frame: Any, event: str, _argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE) and (not visited or visited[-1] != name):
            visited.append(name)

    sys.setprofile(watch)
    try:
        adapter(x)
    finally:
        sys.setprofile(None)
    return len(set(visited)), len(visited)


def main() -> None:
    """Print both for two methods."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    estimator = create_model("lens_estimator", checkpoint="lens_estimator")
    for adapter in (SiamCTTA(net, spec=RestorerSpec()), ReblurPairs(net, estimator, steps=1, spec=RestorerSpec())):
        files, count = moves(adapter, torch.rand(1, 3, 48, 48))
        print(f"{type(adapter).__name__:<12} {files} files, {count} moves")


if __name__ == "__main__":
    main()
