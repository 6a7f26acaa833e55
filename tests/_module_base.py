"""The test base of layers and models."""

from __future__ import annotations

import copy
import io
from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from _compare import assert_agrees
from _samples import default_float64, default_meta
from torch import Tensor


class ModuleTests(ABC):
    """Layers in ``tta_restore.nn`` and models in ``tta_restore.models``."""

    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    unused: tuple[str, ...] = ()  # names of parameters that this forward pass does not touch
    # "eager" only looks for breaks of the graph: for large networks whose layers and ops are compiled in their tests
    compiler: str = "aot_eager"

    @abstractmethod
    def module(self, **factory: Any) -> torch.nn.Module:
        """Build the module; ``factory`` holds device and dtype."""

    @abstractmethod
    def inputs(self, generator: torch.Generator) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Float64 tensors and options of one call."""

    def functional(self, module: torch.nn.Module, *tensors: Tensor, **options: Any) -> Tensor | None:
        """Compute the same without the module, where a function for it exists."""
        return None

    def built(self, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        module = self.module(device=device, dtype=dtype).eval()
        torch.random.set_rng_state(state)
        return module

    def arguments(
        self, device: torch.device, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        tensors, options = self.inputs(generator)
        return tuple(t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in tensors), options

    def test_repr(self, device):
        module = self.built(device)
        assert repr(module).startswith(type(module).__name__ + "(")

    def test_device_and_dtype(self):
        module = self.module(device="meta", dtype=torch.float64)
        kinds = {(t.device.type, t.dtype) for t in module.state_dict().values() if t.is_floating_point()}
        assert kinds <= {("meta", torch.float64)}

    def test_runs_in_each_dtype(self, device, generator):
        for dtype in self.dtypes:
            tensors, options = self.arguments(device, generator, dtype)
            out = self.built(device, dtype)(*tensors, **options)
            assert out.dtype == dtype
            assert out.isfinite().all()

    def test_is_its_function(self, device, generator):
        tensors, options = self.arguments(device, generator)
        module = self.built(device)
        expected = self.functional(module, *tensors, **options)
        if expected is not None:
            assert_agrees(module(*tensors, **options), expected)

    def test_gradient_reaches_every_parameter(self, device, generator):
        tensors, options = self.arguments(device, generator)
        module = self.built(device)
        out = module(*(t.requires_grad_(t.is_floating_point()) for t in tensors), **options)
        (out * torch.rand(out.shape, generator=generator).to(out)).sum().backward()
        silent = [
            n for n, p in module.named_parameters() if n not in self.unused and (p.grad is None or not p.grad.any())
        ]
        assert not silent, f"no gradient reaches {silent}"
        assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)

    def test_state_round_trip(self, device, generator):
        tensors, options = self.arguments(device, generator)
        module = self.built(device)
        buffer = io.BytesIO()
        torch.save(module.state_dict(), buffer)
        buffer.seek(0)
        other = self.module(device=device, dtype=torch.float32).eval()
        other.load_state_dict(torch.load(buffer, weights_only=True))
        expected = module(*tensors, **options)
        assert torch.equal(other(*tensors, **options), expected)
        assert torch.equal(copy.deepcopy(module)(*tensors, **options), expected)

    def test_forward_leaves_no_trace(self, device, generator):
        """Inputs, parameters, the global random state and the mode are as before."""
        tensors, options = self.arguments(device, generator)
        module = self.built(device)
        before = [t.clone() for t in (*tensors, *module.state_dict().values())]
        random_state = torch.random.get_rng_state()
        with torch.no_grad():
            module(*tensors, **options)
        after = [*tensors, *module.state_dict().values()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert torch.equal(random_state, torch.random.get_rng_state())
        assert not module.training

    def test_ambient_defaults(self, device, generator):
        """The caller's default dtype and device change nothing in a pass."""
        tensors, options = self.arguments(device, generator)
        module = self.built(device)
        with torch.no_grad():
            expected = module(*tensors, **options)
            for around in (default_float64, default_meta):
                with around():
                    found = module(*tensors, **options)
                assert found.dtype == expected.dtype
                assert_agrees(found, expected)

    def test_functional_call(self, device, generator):
        """Adapters run one backbone with several sets of tensors."""
        tensors, options = self.arguments(device, generator)
        module = self.built(device)
        doubled = {name: p.detach() * 1.5 for name, p in module.named_parameters()}
        out = torch.func.functional_call(module, doubled, tensors, options)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(doubled[name])
        assert_agrees(out, module(*tensors, **options))

    @pytest.mark.thorough
    def test_compile_fullgraph(self, device, generator):
        torch._dynamo.reset()
        tensors, options = self.arguments(device, generator)
        module = self.built(device)
        compiled = torch.compile(module, fullgraph=True, backend=self.compiler)
        assert_agrees(compiled(*tensors, **options), module(*tensors, **options))

    def test_autocast(self, device, generator):
        tensors, options = self.arguments(device, generator)
        module = self.built(device)
        with torch.autocast(device.type, torch.bfloat16):
            out = module(*tensors, **options)
            out.float().square().mean().backward()
        assert out.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
