"""Ops, and networks made of them, through torch.onnx.export and AOTInductor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tta_restore import models, ops
from tta_restore.adapters import SiamCTTA

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters


def run_exported(module, path, *given, dynamic_shapes=None):
    """Outputs of onnxruntime for each of the given tuples of tensors; the first one is traced."""
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    # not optimized: that takes a third of the time, and write_onnx's tests run optimized programs
    program = torch.onnx.export(
        module, given[0], dynamo=True, verbose=False, dynamic_shapes=dynamic_shapes, optimize=False
    )
    program.save(path)
    assert {node.domain for node in program.model.graph} == {""}  # standard operators alone
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return [
        [
            torch.from_numpy(out)
            for out in session.run(None, {name: t.numpy() for name, t in zip(names, tensors, strict=True)})
        ]
        for tensors in given
    ]


class AllOps(nn.Module):
    def forward(self, x, filters, seeds, kernels, weight, psf):
        features, bias = filters[:, :5], filters.new_ones(len(weight)) / 8
        large = ops.adaptive_upsample(
            x, kernels.repeat_interleave(2, 2).repeat_interleave(2, 3), scale=2, kernel_size=3
        )
        return (
            ops.sac(x, filters[:, :9], filters[:, 9:18]),
            ops.iac(x, filters, num_steps=2),
            ops.iac_from_features(x, features, weight, bias, num_steps=2),
            ops.isotropic_reblur(x, seeds[:, :2], seeds[:, :2], kernel_sizes=(3,)),
            ops.adaptive_conv2d(x, kernels, kernel_size=3, groups=1, normalize="sum", padding_mode="reflect"),
            large,
            ops.product_conv2d(x, psf, seeds[:, :2]),
            ops.product_conv2d(x, psf, seeds[:, :2], adjoint=True, padding_mode="zeros"),
            ops.flow_warp(x, seeds[:, :2]),
        )


@pytest.mark.thorough
def test_ops_become_standard_operators_of_any_size(tmp_path):
    def draw(height, width):
        generator = torch.Generator().manual_seed(height)
        shapes = (1, 3, height, width), (1, 42, height, width), (1, 5, height, width), (1, 9, height, width)
        return (*(torch.rand(s, generator=generator) for s in (*shapes, (42, 5), (1, 2, 1, 7, 7))),)

    frames = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    given = draw(9, 12), draw(17, 10)
    found = run_exported(AllOps(), tmp_path / "ops.onnx", *given, dynamic_shapes=(*[frames] * 4, None, None))
    for outputs, tensors in zip(found, given, strict=True):
        for got, want in zip(outputs, AllOps()(*tensors), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_more_ops(tmp_path):
    class MoreOps(nn.Module):
        def forward(self, x, sigma):
            blurred = ops.anisotropic_reblur(x, sigma[:, :2] + 0.5, sigma[:, 2:], kernel_size=3)
            return blurred, ops.self_shift_score(x)

    tensors = torch.rand(1, 3, 9, 12), torch.rand(1, 3, 9, 12)
    [outputs] = run_exported(MoreOps(), tmp_path / "ops.onnx", tensors)
    for got, want in zip(outputs, MoreOps()(*tensors), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_adapted_ifan(tmp_path):
    net = models.create_model("ifan", base_channels=4, num_steps=2).eval()
    adapter = SiamCTTA(net, steps=1, lr=1e-3)
    frame = torch.rand(1, 3, 64, 64)
    adapter.adapt(frame)
    adapted = adapter.export().eval()
    side = 8 * torch.export.Dim("side", min=4, max=128)
    given = (frame,), (torch.rand(1, 3, 64, 96),)
    dynamic = ({2: side, 3: 8 * torch.export.Dim("other", min=4, max=128)},)
    found = run_exported(adapted, tmp_path / "ifan.onnx", *given, dynamic_shapes=dynamic)
    with torch.no_grad():
        for [got], [x] in zip(found, given, strict=True):
            torch.testing.assert_close(got, adapted(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(adapted(frame), net(frame), rtol=0, atol=1e-6)


@pytest.mark.slow  # a minute of compilation
def test_ifan_in_aot_inductor_keeps_the_kernels(tmp_path):
    net = models.create_model("ifan", base_channels=2, num_steps=2).eval()
    frame = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        program = torch.export.export(net, (frame,))
        assert any("iac_from_features" in str(node.target) for node in program.graph.nodes)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "ifan.pt2"))
        found = torch._inductor.aoti_load_package(package)(frame)
        torch.testing.assert_close(found, net(frame), rtol=1e-4, atol=1e-5)
