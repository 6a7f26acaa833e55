"""Which kernel runs, what a caller may ask for, and what is said about it."""

import asyncio
import logging
import os
import subprocess
import sys
import threading

import pytest
import torch
from _base import needs_extension
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import tta_restore
from tta_restore import BackendUnavailable, ops
from tta_restore._core import dispatch, library
from tta_restore._core import extension as _extension
from tta_restore.ops.adaptive_conv import autograd as calculus


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True
    )


@pytest.fixture
def probe(monkeypatch):
    """An op whose reference tells that it ran."""
    ran = []
    operator = dispatch.Operator(
        name="probe",
        reference=lambda x: ran.append("reference") or x.clone(),
        cpu=True,
        cpu_dtypes=(torch.float32,),
        triton=None,
        triton_dtypes=(),
    )
    operator._kernels["cpu"] = lambda x: ran.append("cpu") or x.clone()
    monkeypatch.setattr(_extension, "AVAILABLE", True)
    monkeypatch.setattr(_extension, "implements", lambda name: True)
    monkeypatch.setattr(dispatch, "_said", set())
    operator.ran = ran
    return operator


def test_fastest_kernel_runs_when_nobody_asks(probe):
    probe(torch.ones(1))
    assert probe.ran == ["cpu"]


def test_forced_reference_runs(probe):
    with tta_restore.backend("reference"):
        probe(torch.ones(1))
    assert probe.ran == ["reference"]


def test_blocks_nest_and_end(probe):
    with tta_restore.backend("reference"):
        with tta_restore.backend("cpu"):
            assert dispatch.requested() == "cpu"
        assert dispatch.requested() == "reference"
    assert dispatch.requested() is None


def test_block_ends_on_error():
    with pytest.raises(KeyError), tta_restore.backend("reference"):
        raise KeyError
    assert dispatch.requested() is None


def test_choice_belongs_to_the_thread():
    seen = []
    with tta_restore.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(dispatch.requested()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_choice_belongs_to_the_task():
    async def ask(name, seen):
        with tta_restore.backend(name):
            await asyncio.sleep(0)
            seen.append((name, dispatch.requested()))

    async def both(seen):
        await asyncio.gather(ask("reference", seen), ask("reference", seen), asyncio.sleep(0))
        seen.append((None, dispatch._requested.get()))

    seen = []
    asyncio.run(both(seen))
    assert seen == [("reference", "reference"), ("reference", "reference"), (None, None)]


def test_forced_backend_explains_why_it_cannot(probe):
    with (
        tta_restore.backend("cpu"),
        pytest.raises(BackendUnavailable, match="cpu: probe has no kernel for torch.float64"),
    ):
        probe(torch.ones(1, dtype=torch.float64))
    with tta_restore.backend("cpu"), pytest.raises(BackendUnavailable, match="needs a CPU tensor, got meta"):
        probe(torch.ones(1, device="meta"))
    assert probe.ran == []


def test_fallback_is_audible_once(probe, caplog):
    with caplog.at_level(logging.INFO, logger="tta_restore"):
        for _ in range(3):
            probe(torch.ones(1, dtype=torch.float64))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "probe runs its reference" in record.message
    assert "has no kernel for torch.float64" in record.message


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend: expected one of 'reference', 'cpu', 'triton', got 'cuda'"):
        tta_restore.backend("cuda")


def test_absent_backend_is_refused_on_entering(monkeypatch):
    monkeypatch.setattr(_extension, "AVAILABLE", False)
    with pytest.raises(BackendUnavailable, match="cpu: the C\\+\\+ extension is "), tta_restore.backend("cpu"):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailable, match="triton: no CUDA device"), tta_restore.backend("triton"):
        pass
    assert dispatch.requested() is None


def test_forcing_a_backend_keeps_the_references_of_its_name():
    """torch 2.11 drops one more than it takes: the string was freed while in use."""
    name = "".join(("refer", "ence"))
    before = sys.getrefcount(name), sys.getrefcount(None)
    for _ in range(1000):
        with tta_restore.backend(name):
            pass
    after = sys.getrefcount(name), sys.getrefcount(None)
    assert all(abs(a - b) < 100 for a, b in zip(after, before, strict=True))


@needs_extension
def test_compiled_graph_obeys_the_block():
    torch._dynamo.reset()
    ran = []
    original = dispatch.OPERATORS["self_shift_products"]
    compiled = torch.compile(ops.self_shift_score, fullgraph=True, backend="aot_eager")
    frame = torch.rand(1, 3, 8, 8)
    compiled(frame)
    kernels = dict(original._kernels)
    try:
        original._kernels["reference"] = lambda a, b: ran.append("reference") or original.reference(a, b)
        compiled(frame)
        assert ran == []
        with tta_restore.backend("reference"):
            compiled(frame)
        assert ran == ["reference"]
    finally:
        original._kernels.clear()
        original._kernels.update(kernels)


def test_bare_operator_refuses_a_gradient():
    out = torch.ops.tta_restore.self_shift_products(*[torch.rand(1, 1, 3, 3, requires_grad=True)] * 2)
    with pytest.raises(RuntimeError, match="self_shift_products has no gradient; call the function in tta_restore.ops"):
        out.sum().backward()


def test_names_of_ops_are_unique():
    with pytest.raises(ValueError, match="an op called 'self_shift_products' exists already"):
        library.define("self_shift_products(Tensor a) -> Tensor", reference=None, fake=None)


def test_show_config_names_every_op_and_reason():
    text = tta_restore.show_config()
    assert tta_restore.__version__ in text
    assert torch.__version__ in text
    for name in dispatch.OPERATORS:
        assert f"\n{name} " in text
    with tta_restore.backend("reference"):
        assert "forced backend  reference" in tta_restore.show_config()


def test_without_extension_the_references_run_and_say_so():
    program = """
import torch, tta_restore
tta_restore.ops.self_shift_score(torch.rand(1, 3, 8, 8)); tta_restore.ops.self_shift_score(torch.rand(1, 3, 8, 8))
print(tta_restore.show_config())
"""
    run = run_python(program, TTA_RESTORE_NO_EXTENSION="1", TTA_RESTORE_REQUIRE_EXTENSION="0")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("switched off by TTA_RESTORE_NO_EXTENSION=1") == 1
    assert ["self_shift_products", "reference", "reference"] in [line.split() for line in run.stdout.splitlines()]


def test_required_extension_makes_import_fail():
    run = run_python("import tta_restore", TTA_RESTORE_NO_EXTENSION="1", TTA_RESTORE_REQUIRE_EXTENSION="1")
    assert run.returncode != 0
    assert "ImportError: tta_restore: TTA_RESTORE_REQUIRE_EXTENSION=1" in run.stderr


def test_binary_from_older_sources_is_named(monkeypatch, probe):
    monkeypatch.setattr(_extension, "implements", lambda name: False)
    assert "rebuild it with `make build`" in probe.missing("cpu")


def test_a_call_that_nobody_watches_goes_straight_to_the_kernel(monkeypatch):
    """Modes, transforms and gradients still find the whole op; without any of them autograd is not even asked."""
    x, taps = torch.rand(1, 2, 4, 5), torch.rand(1, 6, 4, 5)
    expected = ops.sac(x.clone().requires_grad_(), taps, taps).detach()

    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Recorder():
        ops.sac(x, taps, taps)
    assert torch.ops.tta_restore.sac.default in seen
    with forward_ad.dual_level():
        assert torch.equal(ops.sac(x, taps, taps), expected)  # nothing here carries a tangent
        with pytest.raises(NotImplementedError, match="sac: has no forward-mode derivative"):
            ops.sac(forward_ad.make_dual(x, torch.ones_like(x)), taps, taps)
    for transform in (torch.func.jacfwd, torch.func.hessian):
        with pytest.raises(NotImplementedError, match="sac: has no forward-mode derivative"):
            transform(lambda x: ops.sac(x, taps, taps).square().sum())(x)

    def refuse(*args):
        raise AssertionError("autograd was asked")

    monkeypatch.setattr(calculus.Sac, "apply", refuse)
    assert torch.equal(ops.sac(x, taps, taps), expected)
    with torch.no_grad():
        assert torch.equal(ops.sac(x.requires_grad_(), taps, taps), expected)
