"""Refuse models whose weights do not fit into the memory of this machine, before they fill it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from tta_restore.engine.run.device import physical_memory
from tta_restore.models import create_model

__all__ = ["expect_memory", "within_memory"]


def expect_memory(name: str, config: Mapping[str, Any]) -> None:
    """Expect that the weights of a registered network fit into memory, before the first one is drawn.

    Raises:
        ValueError: they do not.
    """
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            module = create_model(name, **config)
    except Exception as error:
        if "overflow" in str(error).lower():
            raise ValueError(f"model {name!r}: its weights need more memory than any machine has") from error
        return  # it needs values, or its error comes again
    needed = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    available = physical_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"model {name!r}: its weights need {needed / 1e9:.3g} GB of memory, and this machine has "
            f"{available / 1e9:.3g} GB"
        )


@contextmanager
def within_memory(name: str) -> Iterator[None]:
    """Stop code of a user before its weights outgrow the memory of this machine, which would end the process.

    Weights are counted when they become a part of a module, before most initializers write to their memory; building
    on the meta device first would run the code twice, whatever it does besides.

    Raises:
        ValueError: they need more.
    """
    available, here = physical_memory(), threading.get_ident()
    held: dict[int, weakref.ref[nn.Parameter]] = {}
    total, problem = 0, ""

    def count(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal total, problem
        if parameter is None or parameter.device.type != "cpu" or threading.get_ident() != here or not available:
            return
        held[id(parameter)] = weakref.ref(parameter)
        total += parameter.nbytes
        if total > available:  # without those that are gone, or were cast since
            found = [known for reference in held.values() if (known := reference()) is not None]
            total = sum(known.nbytes for known in found)
        if total > available:
            problem = (
                f"model {name!r}: its weights need more than {total / 1e9:.3g} GB of memory, and this machine has "
                f"{available / 1e9:.3g} GB"
            )
            raise MemoryError(problem)

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except Exception as error:
        if problem:
            raise ValueError(problem) from error
        if "can't allocate memory" in str(error):  # torch's words, for one tensor that is too large
            raise ValueError(f"model {name!r}: its weights need more memory than this machine has") from error
        raise
    finally:
        hook.remove()
