"""Test bases: a subclass names the thing under test and some inputs, and inherits what every thing of its kind keeps.

``OpTests`` for functions of tensors, ``LossTests`` for losses, ``ModuleTests`` for layers and models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from _compare import TOLERANCES, assert_agrees
from _module_base import ModuleTests
from _samples import (
    Bad,
    Sample,
    channels_last,
    default_float64,
    default_meta,
    gradients,
    offset,
    random,
    recorded_operators,
    strided,
)
from torch import Tensor

import tta_restore
from tta_restore._core import dispatch as _backend
from tta_restore._core import extension as _extension

__all__ = [
    "GRID_SAMPLE",
    "Bad",
    "FunctionTests",
    "LossTests",
    "ModuleTests",
    "OpTests",
    "Sample",
    "gradients",
    "needs_extension",
    "random",
]

# Checks of opcheck: of what a kernel returns and writes, and of tracing, which is the same for every kernel of an op
_OF_KERNELS = ("test_schema", "test_faketensor")
_OF_AUTOGRAD = ("test_autograd_registration", "test_aot_dispatch_dynamic")
HALF_TYPES = (torch.float16, torch.bfloat16)
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
# Of functions made of grid_sample, whose derivatives torch has written bit by bit
GRID_SAMPLE = {"test_gradgradcheck": (2, 12), "test_opcheck": (2, 12), "test_jvp": (2, 15)}

# For what the C++ kernels alone promise. `make test` works without a compiler, too.
needs_extension = pytest.mark.skipif(not _extension.AVAILABLE, reason="the C++ extension is not built, or switched off")


class FunctionTests(ABC):
    """What every differentiable function of tensors keeps. Subclass ``OpTests`` or ``LossTests``."""

    op: Callable[..., Tensor]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, *HALF_TYPES)
    jvp = "raises"  # or "right"
    torch_since: ClassVar[dict[str, tuple[int, int]]] = {}  # tests of what torch itself has only since a version

    @abstractmethod
    def samples(self, generator: torch.Generator) -> list[Sample]:
        """Small inputs in float64, away from kinks; the first one also serves the expensive checks."""

    @abstractmethod
    def bad(self) -> list[Bad]:
        """Calls that must be refused."""

    @pytest.fixture(autouse=True)
    def _torch_has_it(self, request):
        since = self.torch_since.get(request.node.originalname, (0, 0))
        if since > TORCH:
            pytest.skip("needs torch {}.{}".format(*since))

    def call(self, *tensors: Tensor, **options: Any) -> Tensor:
        """Call the function under test (a class attribute would bind self)."""
        return type(self).op(*tensors, **options)

    def reference(self, *tensors: Tensor, **options: Any) -> Tensor:
        """Compute the expectation; by default the same function on the reference backend."""
        with tta_restore.backend("reference"):
            return self.call(*tensors, **options)

    def on(self, device: torch.device, generator: torch.Generator) -> list[Sample]:
        return [sample.map(lambda tensor: tensor.to(device)) for sample in self.samples(generator)]

    def test_errors(self):
        cases = self.bad()
        assert cases, "name at least one call that must be refused"
        for case in cases:
            with pytest.raises(case.error, match=case.match) as caught:
                self.call(*case.tensors, **case.options)
            name = type(self).op.__name__
            assert str(caught.value).startswith(f"{name}: "), (
                f"the message does not start with {name!r}: {caught.value}"
            )

    def test_reference(self, device, generator):
        """Results and gradients in every dtype against the reference in float64."""
        for sample in self.on(device, generator):
            for dtype in self.dtypes:
                rounded = sample.to(dtype)
                exact = rounded.to(torch.float64)
                expected = self.reference(*exact.tensors, **exact.options)
                weights = random(*expected.shape, generator=generator, low=-1, high=1)
                weights = weights.to(device, dtype)  # an input, too
                if not any(leaf.requires_grad for leaf in sample.leaves()):
                    assert_agrees(self.call(*rounded.tensors, **rounded.options), expected, what=f"{dtype}")
                    continue
                with tta_restore.backend("reference"):
                    expected, expected_gradients = gradients(self.reference, exact, weights)
                out, found = gradients(self.call, rounded, weights)
                assert_agrees(out, expected, what=f"{dtype} result")
                assert out.device == expected.device
                for i, (got, want) in enumerate(zip(found, expected_gradients, strict=True)):
                    assert got.dtype == dtype
                    assert_agrees(got, want, what=f"{dtype} gradient {i}", tolerance=TOLERANCES[dtype])

    def test_gradcheck(self, device, generator):
        sample = self.on(device, generator)[0]
        assert torch.autograd.gradcheck(lambda *t: self.call(*t, **sample.options), sample.leaves())

    def test_gradgradcheck(self, device, generator):
        """Second order: what meta-learning differentiates, and what opcheck does not see."""
        sample = self.on(device, generator)[0]
        assert torch.autograd.gradgradcheck(lambda *t: self.call(*t, **sample.options), sample.leaves())

    @pytest.mark.thorough
    def test_compile_fullgraph(self, device, generator):
        torch._dynamo.reset()
        sample = self.on(device, generator)[0].to(torch.float32)
        compiled = torch.compile(self.call, fullgraph=True, backend="aot_eager")
        out, found = gradients(compiled, sample)
        expected, expected_gradients = gradients(self.call, sample)
        assert_agrees(out, expected)
        for got, want in zip(found, expected_gradients, strict=True):
            assert_agrees(got, want)

    @pytest.mark.slow
    def test_compile_inductor(self, device, generator):
        torch._dynamo.reset()
        sample = self.on(device, generator)[0].to(torch.float32)
        out, found = gradients(torch.compile(self.call, fullgraph=True), sample)
        expected, expected_gradients = gradients(self.call, sample)
        assert_agrees(out, expected)
        for got, want in zip(found, expected_gradients, strict=True):
            assert_agrees(got, want)

    @pytest.mark.parametrize("half", [False, True])
    def test_autocast(self, device, generator, half):
        """Inside autocast, in float32 or bfloat16 frames, results and gradients stay those of the function."""
        sample = self.on(device, generator)[0].to(torch.bfloat16)
        expected, expected_gradients = gradients(self.reference, sample.to(torch.float64))
        sample = sample if half else sample.to(torch.float32)
        with torch.autocast(device.type, torch.bfloat16):
            out, found = gradients(self.call, sample)
        limit = TOLERANCES[torch.bfloat16]
        assert_agrees(out, expected, tolerance=limit)
        for got, want in zip(found, expected_gradients, strict=True):
            assert_agrees(got, want, what="gradient", tolerance=limit)

    @pytest.mark.parametrize("layout", [strided, channels_last, offset])
    def test_memory_layout(self, device, generator, layout):
        for sample in self.on(device, generator):
            sample = sample.to(torch.float32)
            expected, expected_gradients = gradients(self.call, sample)
            moved = sample.map(layout)
            out = self.call(*moved.tensors, **moved.options)
            assert_agrees(out, expected)
            leaves = [
                tensor.detach().requires_grad_(i not in sample.frozen and tensor.is_floating_point())
                for i, tensor in enumerate(moved.tensors)
            ]
            out = self.call(*leaves, **moved.options)
            taking = [leaf for leaf in leaves if leaf.requires_grad]
            grad = layout(torch.ones_like(out))
            for got, want in zip(torch.autograd.grad(out, taking, grad), expected_gradients, strict=True):
                assert_agrees(got, want, what="gradient")

    def test_deterministic(self, device, generator):
        for sample in self.on(device, generator):
            sample = sample.to(torch.float32)
            first, second = gradients(self.call, sample), gradients(self.call, sample)
            assert torch.equal(first[0], second[0])
            assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))

    def test_ambient_defaults(self, device, generator):
        """The caller's default dtype and device change nothing."""
        sample = self.on(device, generator)[0].to(torch.float32)
        expected, expected_gradients = gradients(self.call, sample)
        for around in (default_float64, default_meta):
            with around():
                out, found = gradients(self.call, sample)
            assert out.dtype == expected.dtype
            assert_agrees(out, expected)
            for got, want in zip(found, expected_gradients, strict=True):
                assert_agrees(got, want, what="gradient")

    def test_func_grad(self, device, generator):
        sample = self.on(device, generator)[0]
        leaves = sample.leaves()
        wanted = tuple(i for i, leaf in enumerate(leaves) if leaf.requires_grad)
        tensors = [leaf.detach() for leaf in leaves]

        def total(*t: Tensor) -> Tensor:
            return self.call(*t, **sample.options).square().sum()

        found = torch.func.grad(total, argnums=wanted)(*tensors)
        expected = torch.autograd.grad(total(*leaves), [leaves[i] for i in wanted])
        for got, want in zip(found, expected, strict=True):
            assert_agrees(got, want, what="torch.func.grad")

    def test_jvp(self, device, generator):
        """Forward mode is right, or refuses; it never returns a silent zero."""
        sample = self.on(device, generator)[0]
        tangents = tuple(random(*t.shape, generator=generator, low=-1, high=1).to(t) for t in sample.tensors)

        def function(*t: Tensor) -> Tensor:
            return self.call(*t, **sample.options)

        if self.jvp == "raises":
            with pytest.raises(NotImplementedError, match=": has no forward-mode derivative"):
                torch.func.jvp(function, sample.tensors, tangents)
            return
        _, found = torch.func.jvp(function, sample.tensors, tangents)
        step = 1e-6
        ahead = function(*(t + step * d for t, d in zip(sample.tensors, tangents, strict=True)))
        behind = function(*(t - step * d for t, d in zip(sample.tensors, tangents, strict=True)))
        torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


class OpTests(FunctionTests):
    """Functions in ``tta_restore.ops``."""

    def test_empty_batch(self, device, generator):
        sample = self.on(device, generator)[0].to(torch.float32)
        tensors = tuple(t if i in sample.unbatched else t[:0] for i, t in enumerate(sample.tensors))
        empty = Sample(tensors, sample.options, sample.unbatched, sample.frozen)
        full = self.call(*sample.tensors, **sample.options)
        out, found = gradients(self.call, empty)
        assert out.shape == (0, *full.shape[1:])
        taking = [t for t in empty.leaves() if t.requires_grad]
        for got, leaf in zip(found, taking, strict=True):
            assert got.shape == leaf.shape
            assert not got.any()

    @pytest.mark.parametrize("backend", [None, "reference"])
    def test_opcheck(self, device, generator, backend):
        """Schema, fake and dispatch of every registered op that the function and its derivatives run."""
        sample = self.on(device, generator)[0]
        with tta_restore.backend(backend) if backend else nullcontext():
            with recorded_operators() as calls:
                leaves = sample.leaves()
                out = self.call(*leaves, **sample.options)
                taking = [leaf for leaf in leaves if leaf.requires_grad]
                first = torch.autograd.grad(out, taking, torch.ones_like(out), create_graph=True)
                again = [g for g in first if g.requires_grad]
                if again:
                    torch.autograd.grad(again, taking, [torch.ones_like(g) for g in again], allow_unused=True)
            for name, args in dict(calls).items():  # one call of each
                utils = _OF_KERNELS if backend else _OF_KERNELS + _OF_AUTOGRAD
                torch.library.opcheck(getattr(torch.ops.tta_restore, name).default, args, test_utils=utils)

    def test_registered_ops_match_their_references(self, device, generator):
        """Each kernel beneath the function equals its own reference, backward ops included."""
        for sample in self.on(device, generator):
            for dtype in self.dtypes:
                with recorded_operators() as calls:
                    gradients(self.call, sample.to(dtype))
                for name, args in calls:
                    operator = _backend.OPERATORS[name]
                    exact = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
                    found, expected = operator(*args), operator.reference(*exact)
                    pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected, strict=True)
                    for got, want in pairs:
                        assert_agrees(got, want, what=f"{name} {dtype}", tolerance=TOLERANCES[dtype])


class LossTests(FunctionTests):
    """Functions in ``tta_restore.losses`` and the Module of the same meaning."""

    module: Callable[..., torch.nn.Module]  # called with the options of a sample

    per_pixel = True  # whether reduction="none" exists

    def equal(self, generator: torch.Generator) -> Sample | None:
        """Arguments at which the loss is smallest, where its gradient must stay finite; None where there is no such."""
        return None

    def test_is_scalar(self, device, generator):
        for sample in self.on(device, generator):
            out = self.call(*sample.to(torch.float32).tensors, **sample.options)
            assert out.shape == ()
            assert out.isfinite()

    def test_reductions(self, device, generator):
        """The mean and the sum of the values per pixel are those of the loss; what does not exist is refused."""
        for sample in self.on(device, generator):
            mean, total = (
                self.call(*sample.tensors, **{**sample.options, "reduction": how}) for how in ("mean", "sum")
            )
            assert mean.shape == total.shape == ()
            assert torch.equal(mean, self.call(*sample.tensors, **sample.options))
            assert not torch.equal(mean, total)
            if self.per_pixel:
                values = self.call(*sample.tensors, **{**sample.options, "reduction": "none"})
                assert_agrees(values.mean(), mean)
                assert_agrees(values.sum(), total)
        for unknown in ("max",) if self.per_pixel else ("max", "none"):
            with pytest.raises(ValueError, match=rf"^{type(self).op.__name__}: expected reduction to be one of 'mean'"):
                self.call(*sample.tensors, **{**sample.options, "reduction": unknown})

    def test_module_is_the_function(self, device, generator):
        for sample in self.on(device, generator):
            module = type(self).module(**sample.options)
            assert torch.equal(module(*sample.tensors), self.call(*sample.tensors, **sample.options))
            assert repr(module).startswith(type(module).__name__)

    def test_smallest_where_equal(self, device, generator):
        sample = self.equal(generator)
        if sample is None:
            return
        sample = sample.map(lambda tensor: tensor.to(device, torch.float32))
        out, found = gradients(self.call, sample)
        assert all(g.isfinite().all() for g in found)
        noisy = sample.map(lambda t: t + 0.1 * random(*t.shape, generator=generator).to(t))
        assert out <= self.call(*noisy.tensors, **noisy.options)
