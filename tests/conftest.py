"""What every test gets: devices, seeds, poisoned memory, quiet threads, hypothesis profiles."""

import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("ci", max_examples=25, deadline=None, derandomize=True)
hypothesis.settings.register_profile("dev", max_examples=15, deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where tests with a `device` run")


def pytest_configure(config):
    # Two workers of xdist share two cores.
    torch.set_num_threads(1 if os.environ.get("PYTEST_XDIST_WORKER") else min(2, os.cpu_count() or 1))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on a GPU
    # Memory that nobody wrote reads as NaN: torch.empty and its relatives, also when C++ kernels call them.
    torch.set_deterministic_debug_mode("warn")  # without the import of the compiler
    torch.utils.deterministic.fill_uninitialized_memory = True
    if torch.cuda.is_available():  # where some of torch's own operators, such as grid_sample, are not deterministic
        config.addinivalue_line("filterwarnings", "ignore:.*does not have a deterministic implementation:UserWarning")


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available() or config.getoption("--device") == "cuda" or config.option.markexpr == "gpu":
        return  # who asks for the GPU gets failures where there is none, not green
    no_device = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(no_device)


@pytest.fixture
def device(request) -> torch.device:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda, but no CUDA device is available")
    return torch.device(name)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
