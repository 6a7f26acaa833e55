"""One thread, because tiny tensors gain nothing from two, and one estimate per frame."""

import dataclasses

import pytest
import torch
from adapters.body import BUILT

from tta_restore.adapters import backbone
from tta_restore.degradations import Estimator


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def estimates():
    """Estimate the degradation of each frame once: most tests share a few frames, and steps are faster."""
    read, found = Estimator.read, {}

    def remember(self, frame, **options):
        if options or frame.requires_grad:
            return read(self, frame, **options)
        modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()
        key = (self.num_candidates, frame.shape, frame.dtype, frame.numpy().tobytes(), *modes)
        if key not in found:
            found[key] = read(self, frame)
        return dataclasses.replace(found[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Estimator, "read", remember)
        yield


@pytest.fixture(scope="session")
def found_once():
    return {}


@pytest.fixture(scope="module")
def one_examination(found_once):
    """Examine each network of the tables once: adapters around others of the same name find the same.

    For tests that leave the networks as they were built.
    """
    examine, found = backbone.examine_copies, found_once

    def remember(make, restorer, frame, arguments, **options):
        name = BUILT.get(getattr(restorer.module, "_orig_mod", restorer.module))
        key = (name, frame.shape, *arguments, *options.values())
        if name is None or key not in found:
            findings = examine(make, restorer, frame, arguments, **options)
            found[key] = dataclasses.replace(findings, replicas=None)
            return findings
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone, "examine_copies", remember)
        yield
