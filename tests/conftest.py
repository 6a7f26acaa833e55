"""Fixtures of all tests: devices, seeds, poisoned memory, threads, hypothesis profiles, restored registries."""

import gc
import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("ci", max_examples=25, deadline=None, derandomize=True)
hypothesis.settings.register_profile("dev", max_examples=15, deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where tests with a `device` run")


def pytest_configure(config):
    # Two workers of xdist, and the processes that they start, share two cores.
    threads = 1 if os.environ.get("PYTEST_XDIST_WORKER") else min(2, os.cpu_count() or 1)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on a GPU
    # Memory that nobody wrote reads as NaN: torch.empty and its relatives, also when C++ kernels call them.
    torch.set_deterministic_debug_mode("warn")  # without the import of the compiler
    torch.utils.deterministic.fill_uninitialized_memory = True
    if torch.cuda.is_available():  # where some of torch's own operators, such as grid_sample, are not deterministic
        config.addinivalue_line("filterwarnings", "ignore:.*does not have a deterministic implementation:UserWarning")


def pytest_collection_finish(session):
    # A sixth of the time of small tests was spent on searches for garbage among all that was imported.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_sessionfinish(session):
    gc.unfreeze()  # else libraries report leaks at the end


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available() or config.getoption("--device") == "cuda" or config.option.markexpr == "gpu":
        return  # who asks for the GPU gets failures where there is none, not green
    no_device = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):  # keywords hold the names of folders, too
            item.add_marker(no_device)


@pytest.fixture
def device(request) -> torch.device:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda, but no CUDA device is available")
    return torch.device(name)


_REGISTRIES = (
    ("tta_restore.adapters.registry", "_methods"),
    ("tta_restore.data.datasets.clip_folders", "CLIP_LAYOUTS"),
    ("tta_restore.data.datasets.layouts", "LAYOUTS"),
    ("tta_restore.degradations.registry", "_entries"),
    ("tta_restore.models.registry", "_entries"),
)


def _is_shipped(entry):
    """Return whether an entry is registered by the library itself."""
    return str(getattr(entry, "origin", getattr(entry, "__module__", ""))).startswith("tta_restore.")


@pytest.fixture(autouse=True)
def own_registries(tmp_path_factory):
    """Take away what a test registered, and the modules that it imported from temporary folders."""
    held = [getattr(sys.modules[module], name) for module, name in _REGISTRIES if module in sys.modules]
    before, modules = [dict(registry) for registry in held], set(sys.modules)
    yield
    for registry, kept in zip(held, before, strict=True):
        kept |= {name: entry for name, entry in registry.items() if name not in kept and _is_shipped(entry)}
        registry.clear()
        registry.update(kept)
    folder = tmp_path_factory.getbasetemp()
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and folder in Path(file).parents:
            del sys.modules[name]


@pytest.fixture
def one_thread():
    """Run a test with one thread: tiny tensors gain nothing from two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
