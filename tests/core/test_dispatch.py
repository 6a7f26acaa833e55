"""Choice of the backend: requests, fallbacks and what is logged about them."""

import _thread
import asyncio
import functools
import importlib.util
import logging
import sys
import threading
import time
import types
from contextlib import contextmanager

import pytest
import torch
from _base import needs_extension
from _fresh import run_program
from torch._decomp import decomposition_table
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

import tta_restore
from tta_restore import BackendUnavailable, ops
from tta_restore._core import dispatch, extension, library
from tta_restore.ops.adaptive_conv import autograd as autograd

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


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
    monkeypatch.setattr(extension, "AVAILABLE", True)
    monkeypatch.setattr(extension, "implements", lambda name: True)
    monkeypatch.setattr(dispatch, "_logged", set())
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
        seen.append((None, dispatch.requested()))

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
    monkeypatch.setattr(extension, "AVAILABLE", False)
    with pytest.raises(BackendUnavailable, match="cpu: the C\\+\\+ extension is "), tta_restore.backend("cpu"):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailable, match="triton: no CUDA device"), tta_restore.backend("triton"):
        pass
    assert dispatch.requested() is None


def in_a_thread_of_torch(call):
    """Run ``call`` on a thread that Python's threading module did not start, as autograd's threads of CUDA devices."""
    done, results = threading.Event(), []

    def target():
        results.append(call())
        done.set()

    _thread.start_new_thread(target, ())
    assert done.wait(10)
    return results[0]


def test_backward_threads_obey_the_open_block(monkeypatch):
    monkeypatch.setattr(extension, "AVAILABLE", True)
    assert in_a_thread_of_torch(dispatch.requested) is None
    with tta_restore.backend("reference"):
        assert in_a_thread_of_torch(dispatch.requested) == "reference"
        with tta_restore.backend("cpu"):
            assert in_a_thread_of_torch(dispatch.requested) == "cpu"
        assert in_a_thread_of_torch(dispatch.requested) == "reference"
    assert in_a_thread_of_torch(dispatch.requested) is None
    assert not dispatch._open_blocks


def test_backward_threads_log_when_blocks_disagree(monkeypatch, caplog):
    monkeypatch.setattr(extension, "AVAILABLE", True)
    monkeypatch.setattr(dispatch, "_logged", set())
    entered, ended = threading.Event(), threading.Event()

    def other():
        with tta_restore.backend("cpu"):
            entered.set()
            ended.wait(10)

    thread = threading.Thread(target=other)
    with tta_restore.backend("reference"):
        thread.start()
        assert entered.wait(10)
        assert in_a_thread_of_torch(dispatch.requested) is None
        assert dispatch.requested() == "reference"
        ended.set()
        thread.join()
        assert in_a_thread_of_torch(dispatch.requested) == "reference"
    assert "threads ask for different backends (cpu, reference)" in caplog.text


@contextmanager
def watched(*names):
    """The names of those ops, each time their reference runs."""
    ran = []
    operators = [dispatch.OPERATORS[name] for name in names]
    kept = [dict(operator._kernels) for operator in operators]

    def watch(operator):
        return lambda *args: ran.append(operator.name) or operator.reference(*args)

    try:
        for operator in operators:
            operator._kernels["reference"] = watch(operator)
        yield ran
    finally:
        for operator, kernels in zip(operators, kept, strict=True):
            operator._kernels.clear()
            operator._kernels.update(kernels)


@needs_extension
def test_double_backward_obeys_the_block():
    x, filters = torch.rand(1, 2, 5, 6, requires_grad=True), torch.rand(1, 28, 5, 6, requires_grad=True)
    names = ["iac", "iac_backward", "iac_double_backward"]
    with watched(*names) as ran, tta_restore.backend("reference"):
        gradients = torch.autograd.grad(ops.iac(x, filters, num_steps=2).sum(), (x, filters), create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in gradients), (x, filters))
    assert ran == names


@pytest.mark.thorough
@needs_extension
def test_compiled_backward_obeys_the_block():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, f: ops.iac(x, f, num_steps=2), fullgraph=True, backend="aot_eager")
    x, filters = torch.rand(1, 2, 5, 6, requires_grad=True), torch.rand(1, 28, 5, 6, requires_grad=True)
    compiled(x, filters).sum().backward()
    out = compiled(x, filters)
    with watched("iac", "iac_backward") as ran, tta_restore.backend("reference"):
        out.sum().backward()
    assert ran == ["iac_backward"]


@pytest.mark.thorough
@needs_extension
def test_compiled_graph_obeys_the_block():
    torch._dynamo.reset()
    compiled = torch.compile(ops.self_shift_score, fullgraph=True, backend="aot_eager")
    frame = torch.rand(1, 3, 8, 8)
    compiled(frame)
    with watched("self_shift_products") as ran:
        compiled(frame)
        assert ran == []
        with tta_restore.backend("reference"):
            compiled(frame)
    assert ran == ["self_shift_products"]


def test_bare_operator_refuses_a_gradient():
    out = torch.ops.tta_restore.self_shift_products(*[torch.rand(1, 1, 3, 3, requires_grad=True)] * 2)
    with pytest.raises(RuntimeError, match="self_shift_products has no gradient; call the function in tta_restore.ops"):
        out.sum().backward()


def test_symbolic_sizes_run_the_fake_kernel(monkeypatch):
    """The decomposition, for torch.onnx.export, runs the whole reference: tracing would take many times as long."""
    op = torch.ops.tta_restore.self_shift_products.default
    monkeypatch.setitem(decomposition_table, op, None)
    frame = FakeTensorMode(shape_env=ShapeEnv()).from_tensor(torch.rand(2, 3, 8, 9))
    assert isinstance(frame.shape[2], torch.SymInt)
    assert op(frame, frame).shape[0] == frame.shape[0]


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
    run = run_program(program, TTA_RESTORE_NO_EXTENSION="1", TTA_RESTORE_REQUIRE_EXTENSION="0")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("switched off by TTA_RESTORE_NO_EXTENSION=1") == 1
    assert ["self_shift_products", "reference", "reference"] in [line.split() for line in run.stdout.splitlines()]


def test_required_extension_makes_import_fail():
    run = run_program("import tta_restore.ops", TTA_RESTORE_NO_EXTENSION="1", TTA_RESTORE_REQUIRE_EXTENSION="1")
    assert run.returncode != 0
    assert "ImportError: tta_restore: TTA_RESTORE_REQUIRE_EXTENSION=1" in run.stderr


def fake_gpu(monkeypatch, capability=(9, 0), launch=lambda device: None):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "tta_restore._core._triton_probe", types.SimpleNamespace(launch=launch))
    monkeypatch.setattr(dispatch, "_device_lacks", functools.cache(dispatch._device_lacks.__wrapped__))


@needs_triton
def test_a_capable_gpu_is_probed_once(monkeypatch):
    launches = []
    fake_gpu(monkeypatch, launch=launches.append)
    assert dispatch.triton_missing() is None
    assert dispatch.triton_missing(torch.device("cuda", 0)) is None
    assert launches == [torch.device("cuda", 0)]


@needs_triton
def test_an_old_gpu_falls_back_with_the_reason(monkeypatch):
    fake_gpu(monkeypatch, capability=(7, 5))
    reason = "Tesla T4 has compute capability 7.5, the kernels need 8.0"
    assert dispatch.triton_missing() == reason
    assert dispatch.OPERATORS["iac"].missing("triton") == f"cannot run in Triton: {reason}"
    with pytest.raises(BackendUnavailable, match="triton: Tesla T4 has compute"), tta_restore.backend("triton"):
        pass


@needs_triton
def test_a_gpu_without_a_compiler_falls_back_with_the_reason(monkeypatch):
    def launch(device):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    fake_gpu(monkeypatch, launch=launch)
    expected = "a trivial kernel does not compile or run: RuntimeError: Failed to find C compiler. Please"
    assert dispatch.triton_missing().startswith(expected)


@pytest.mark.gpu
def test_the_probe_runs_on_the_device():
    assert dispatch.triton_missing(torch.device("cuda", torch.cuda.device_count() - 1)) is None


def test_a_long_compilation_is_explained_once(monkeypatch, probe, caplog):
    monkeypatch.setattr(dispatch, "COMPILING_IS_SLOW", 0.01)
    monkeypatch.setattr(dispatch, "interpreting", lambda: True)
    monkeypatch.setattr(dispatch, "triton_missing", lambda device=None: None)
    probe.triton, probe.triton_dtypes = "nowhere", (torch.float32,)
    probe._kernels["triton"] = lambda x: time.sleep(0.2) or x.clone()
    with tta_restore.backend("triton"):
        probe(torch.ones(1))
        probe(torch.ones(1))
    (record,) = caplog.records
    assert "Triton compiles the kernels of probe for torch.float32" in record.message


def test_binary_from_older_sources_is_named(monkeypatch, probe):
    monkeypatch.setattr(extension, "implements", lambda name: False)
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

    monkeypatch.setattr(autograd.Sac, "apply", refuse)
    assert torch.equal(ops.sac(x, taps, taps), expected)
    with torch.no_grad():
        assert torch.equal(ops.sac(x.requires_grad_(), taps, taps), expected)
