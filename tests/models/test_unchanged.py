import threading
import types

import numpy as np
import torch
from torch import nn

from tta_restore.models.restorer.preserve import preserve_state


class Restless(nn.Module):
    """Does to itself everything that third-party restorers were seen doing."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.merged = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.old_norm = nn.utils.weight_norm(nn.Conv2d(3, 3, 1))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("calls", torch.zeros(1))
        self.size = None

    def forward(self, x):
        self.merged.weight.data = self.conv.weight.data * 2
        self.mean = x.mean()[None].detach()
        self.calls += 1
        self.size = x.shape
        self.cache = x
        self.added, self.norm = nn.Identity(), self.norm if len(self._modules) > 4 else nn.BatchNorm2d(3)
        return self.norm(self.old_norm(self.merged(x)))


def picture(module):
    return (
        {name: value.clone() for name, value in module.state_dict().items()},
        {name: sorted(part.__dict__) for name, part in module.named_modules()},
        {name: part.training for name, part in module.named_modules()},
        {name: id(value) for name, value in (*module.named_parameters(), *module.named_buffers())},
        id(module.old_norm.weight),
        module.size,
    )


def same(a, b):
    return all(torch.equal(a[0][name], b[0][name]) for name in a[0] | b[0]) and a[1:] == b[1:]


def test_everything_a_forward_does_to_a_module_is_undone(recwarn):
    module = Restless()
    module.norm.eval()
    before = picture(module)
    with preserve_state(module, training=False):
        assert not any(part.training for part in module.modules())
        module(torch.rand(2, 3, 4, 4))
        assert not same(before, picture(module))
    assert same(before, picture(module))
    with preserve_state(module, training=True):
        module(torch.rand(2, 3, 4, 4))
    assert same(before, picture(module))
    recwarn.clear()  # old-style weight_norm is deprecated, and still everywhere


def test_it_is_undone_after_an_interrupt_too(recwarn):
    module = Restless()
    before = picture(module)
    try:
        with preserve_state(module, training=False):
            module(torch.rand(1, 3, 4, 4))
            module.conv._parameters["weight"] = torch.zeros(3, 3, 1, 1)  # half-way through functional_call
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert same(before, picture(module))
    recwarn.clear()


def test_tensors_left_by_inference_mode_take_part_in_autograd():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.cache = None

        def forward(self, x):
            if self.cache is None:
                self.cache = torch.full_like(x, 2)
            return x * self.scale * self.cache

    module, x = Caching(), torch.rand(1, 3, 4, 4)
    with torch.inference_mode():
        module(x)
    cache = module.cache
    assert cache.is_inference()
    with preserve_state(module):
        module(x).sum().backward()
        assert module.scale.grad is not None
    assert module.scale.grad is None
    assert module.cache is cache


class Hoarding(nn.Module):
    """Keeps what it saw in everything that an attribute can hold."""

    __slots__ = ("slot",)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.by_name, self.listed, self.nested = {}, [1], ({"inner": []},)
        self.box = types.SimpleNamespace(seen=None)
        self.table, self.array = torch.zeros(2), np.zeros(2)
        self.generator = torch.Generator().manual_seed(1)
        self.pool = threading.Event()

    def forward(self, x):
        self.slot = self.box.seen = self.by_name["x"] = x
        self.listed.append(x)
        self.nested[0]["inner"].append(x)
        self.table.add_(1)
        self.array += 1
        self.pool.set()
        y = self.conv(x)
        with torch.enable_grad():
            self.conv(x).sum().backward()
        return y + torch.rand(x.shape, generator=self.generator)


def test_contents_of_containers_objects_tensors_and_arrays_are_put_back():
    module, x = Hoarding(), torch.rand(1, 3, 4, 4)
    module.conv.weight.grad = torch.ones_like(module.conv.weight)
    state = module.generator.get_state()
    for block in range(2):  # undone each time
        with preserve_state(module):
            module(x)
            assert module.by_name
            assert module.conv.bias.grad is not None
        assert (module.by_name, module.listed, module.nested) == ({}, [1], ({"inner": []},)), block
        assert module.box.seen is None
        assert not hasattr(module, "slot")
        assert not module.table.any()
        assert not module.array.any()
        assert torch.equal(module.generator.get_state(), state)
        assert torch.equal(module.conv.weight.grad, torch.ones_like(module.conv.weight))
        assert module.conv.bias.grad is None
    assert module.pool.is_set()  # what threads wait for is not data
