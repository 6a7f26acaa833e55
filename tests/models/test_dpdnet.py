"""DPDNet-S: the published topology and size, written out in another way, and checkpoints under other names."""

import pytest
import torch
import torch.nn.functional as F
from _module_base import ModuleTests
from torch.profiler import ProfilerActivity, profile

from tta_restore import models


def written_out(weights, x):
    """The published table of layers, over a flat list of (weight, bias)."""
    layers = iter(weights)

    def conv(x, relu=True):
        weight, bias = next(layers)
        size = weight.shape[-1]
        before = (size - 1) // 2
        x = F.conv2d(F.pad(x, (before, size - 1 - before, before, size - 1 - before)), weight, bias)
        return x * (x > 0) if relu else x

    stages = []
    for stage in range(5):
        x = conv(conv(x if stage == 0 else F.max_pool2d(x, 2)))
        stages.append(x)
    for stage in (3, 2, 1, 0):
        x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        x = conv(conv(torch.cat([stages[stage], x], 1)))
    return conv(conv(x), relu=False).sigmoid()


class TestDPDNet(ModuleTests):
    compiler = "eager"

    def module(self, **factory):
        return models.create_model("dpdnet_s", width=4, **factory)

    def inputs(self, generator):
        return (torch.rand(1, 3, 32, 48, generator=generator, dtype=torch.float64),), {}

    def functional(self, module, x):
        flat = list(module.state_dict().values())
        return written_out(zip(flat[::2], flat[1::2], strict=True), x)


def test_large_pictures_take_the_merged_upsampling_and_come_out_the_same():
    torch.manual_seed(0)
    net = models.create_model("dpdnet_s", width=4, dtype=torch.float64)
    x = torch.rand(2, 3, 96, 128, dtype=torch.float64, requires_grad=True)
    flat = list(net.parameters())
    expected = written_out(zip(flat[::2], flat[1::2], strict=True), x)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        restored = net.eval()(x)
    assert "aten::conv_transpose2d" in {event.key for event in profiled.key_averages()}
    torch.testing.assert_close(restored, expected, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(y.square().sum(), [x, *flat]) for y in (restored, expected))
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def test_it_has_as_many_weights_as_published():
    for channels, count in ((3, 31_033_423), (6, 31_035_151)):
        net = models.create_model("dpdnet_s", in_channels=channels, device="meta")
        assert sum(parameter.numel() for parameter in net.parameters()) == count
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert parts["conv5"] == 14_157_824
    assert parts["up6"] + parts["conv6"] == 9_176_576
    assert parts["up9"] + parts["conv9"] == 143_552


def test_dropout_is_at_the_two_deepest_stages_in_train_mode():
    net, seen = models.create_model("dpdnet_s", width=4), []
    net.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1:]))
    x = torch.rand(1, 3, 32, 32)
    assert not torch.equal(net(x), net(x))
    assert seen[:2] == [(32, 4, 4), (64, 2, 2)]
    net.eval()
    assert torch.equal(net(x), net(x))


def test_checkpoints_under_other_names_load_if_order_and_shapes_are_those_of_the_network(tmp_path):
    torch.manual_seed(0)
    net, other = (models.create_model("dpdnet_s", width=4) for _ in range(2))
    tensors = list(net.state_dict().values())
    kinds = ("weight", "bias")
    port = {f"module.enc.block{i // 2}.conv.{kinds[i % 2]}": tensor for i, tensor in enumerate(tensors)}
    torch.save({"state_dict": port}, tmp_path / "port.pth")
    models.load_checkpoint(other, tmp_path / "port.pth")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    torch.save(net.state_dict(), tmp_path / "own.pth")
    models.create_model("dpdnet_s", width=4, checkpoint=tmp_path / "own.pth")
    shuffled = dict(reversed(port.items()))
    with pytest.raises(ValueError, match="does not fit DPDNet: 48 missing, 48 unknown"):
        models.load_checkpoint(other, shuffled)
