"""flow_warp and disparity_warp against the official tensors and a loop over pixels."""

from pathlib import Path

import pytest
import torch
from _base import GRID_SAMPLE, Bad, OpTests, Sample, random
from _compare import assert_agrees
from safetensors.torch import load_file

from tta_restore import ops

GOLDEN = Path(__file__).parents[1] / "golden"
DISPARITY = load_file(GOLDEN / "ifan/dpd_warp.safetensors")
FLOW = load_file(GOLDEN / "jdrl/d_warp.safetensors")


def cases(tensors):
    return sorted({key.rsplit(".", 1)[0] for key in tensors})


def gather(x, flow, *, padding_mode="zeros", align_corners=True):
    """Bilinear sampling by explicit indices: the definition, differentiable as written."""
    height, width = x.shape[2:]
    axes = []
    for axis, size in ((0, width), (1, height)):
        pixels = torch.arange(size, device=x.device, dtype=x.dtype)
        position = flow[:, axis] + (pixels if axis == 0 else pixels[:, None])
        if not align_corners:
            position = position * size / (size - 1) - 0.5
        if padding_mode == "border":
            position = position.clamp(0, size - 1)
        if padding_mode == "reflection":
            period = 2 * (size - 1) or 1
            folded = position.abs() % period
            position = torch.where(folded > size - 1, period - folded, folded)
        axes.append(position)
    floors = [axis.detach().floor() for axis in axes]
    out = torch.zeros_like(x)
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = floors[0].long() + dx, floors[1].long() + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            pixels = x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)
            weight = (1 - (axes[0] - column).abs()) * (1 - (axes[1] - row).abs()) * inside
            out = out + pixels * weight[:, None]
    return out


def away(*shape, generator, reach):
    """Bilinear sampling has kinks at whole pixels; stay off them."""
    whole = torch.randint(-reach, reach + 1, shape, generator=generator)
    return whole + random(*shape, generator=generator, low=0.2, high=0.8)


class TestFlowWarp(OpTests):
    op = staticmethod(ops.flow_warp)
    dtypes = (torch.float32, torch.float64)
    jvp = "right"
    torch_since = GRID_SAMPLE

    def reference(self, *tensors, **options):
        return gather(*tensors, **options)

    def samples(self, generator):
        first = (random(2, 2, 4, 5, generator=generator), away(2, 2, 4, 5, generator=generator, reach=1))
        far = (random(1, 3, 7, 9, generator=generator), away(1, 2, 7, 9, generator=generator, reach=12))
        thin = (random(1, 2, 1, 6, generator=generator), away(1, 2, 1, 6, generator=generator, reach=1))
        return [
            Sample(first),
            Sample(far),
            Sample(far, {"padding_mode": "border"}),
            Sample(far, {"padding_mode": "reflection"}),
            Sample(thin),
            Sample(thin, {"padding_mode": "border"}),
        ]

    def bad(self):
        x, flow = torch.rand(1, 3, 4, 6), torch.zeros(1, 2, 4, 6)
        return [
            Bad((x[0], flow), ValueError, r"x of shape \(B, C, H, W\), got \(3, 4, 6\)"),
            Bad((x, flow[..., :5]), ValueError, r"flow of shape \(B, 2, H, W\) = \(1, 2, 4, 6\), got \(1, 2, 4, 5\)"),
            Bad((x, flow.long()), TypeError, "flow with a floating dtype, got torch.int64"),
            Bad((x, flow), ValueError, "padding_mode to be one of 'zeros', .* got 'wrap'", {"padding_mode": "wrap"}),
            Bad((x[:, :, :1], flow[:, :, :1]), ValueError, "H >= 2", {"align_corners": False}),
            Bad((x, flow.to("meta")), ValueError, "on one device, got x on cpu, flow on meta"),
        ]


class TestDisparityWarp(OpTests):
    op = staticmethod(ops.disparity_warp)
    dtypes = (torch.float32, torch.float64)
    jvp = "right"
    torch_since = GRID_SAMPLE

    def reference(self, x, disparity):
        return gather(x, torch.cat((disparity, torch.zeros_like(disparity)), 1))

    def samples(self, generator):
        return [
            Sample((random(2, 3, 4, 5, generator=generator), away(2, 1, 4, 5, generator=generator, reach=2))),
            Sample((random(1, 1, 3, 1, generator=generator), away(1, 1, 3, 1, generator=generator, reach=0))),
        ]

    def bad(self):
        x = torch.rand(1, 3, 4, 6)
        return [
            Bad((x, x), ValueError, r"disparity of shape \(B, 1, H, W\) = \(1, 1, 4, 6\), got \(1, 3, 4, 6\)"),
            Bad((x, 1.0), TypeError, "disparity to be a torch.Tensor, got float"),
        ]


@pytest.mark.parametrize("case", cases(DISPARITY))
def test_official_disparity_warp(case):
    x, disparity = DISPARITY[f"{case}.input"].requires_grad_(), DISPARITY[f"{case}.disparity"].requires_grad_()
    out = ops.disparity_warp(x, disparity)
    torch.testing.assert_close(out, DISPARITY[f"{case}.output"], atol=1e-6, rtol=0)
    if f"{case}.grad_out" in DISPARITY and DISPARITY[f"{case}.disparity"].any():  # zero disparity lies on a kink
        found = torch.autograd.grad(out, (x, disparity), DISPARITY[f"{case}.grad_out"])
        for got, name in zip(found, ("grad_input", "grad_disparity"), strict=True):
            torch.testing.assert_close(got, DISPARITY[f"{case}.{name}"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", cases(FLOW))
def test_released_jdrl_warp(case):
    flow = FLOW[f"{case}.flow"]
    if case == "normalized_true":  # recorded in units of the grid, whose width of 2 spans N - 1 pixels
        flow = flow * (flow.new_tensor([flow.shape[3], flow.shape[2]])[:, None, None] - 1) / 2
    x, flow = FLOW[f"{case}.img"].requires_grad_(), flow.requires_grad_()
    out = ops.flow_warp(x, flow, padding_mode="border", align_corners=False)
    torch.testing.assert_close(out, FLOW[f"{case}.out"], atol=2e-6, rtol=1e-6)
    (gradient,) = torch.autograd.grad(out, x, FLOW[f"{case}.upstream"])
    torch.testing.assert_close(gradient, FLOW[f"{case}.grad_img"], atol=1e-5, rtol=1e-5)


def test_zero_flow_is_the_identity(generator):
    x = random(1, 3, 6, 7, generator=generator)
    assert_agrees(ops.flow_warp(x, torch.zeros(1, 2, 6, 7).double()), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_sampled_in_float32(dtype, generator):
    """A half-precision grid could not tell the pixels of a wide frame apart."""
    x = random(1, 3, 2, 2000, generator=generator).to(dtype)
    flow = torch.full((1, 2, 2, 2000), 0.5).to(dtype)
    out = ops.flow_warp(x, flow, padding_mode="border")
    assert out.dtype == dtype
    assert_agrees(out, gather(x.double(), flow.double(), padding_mode="border"))


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_flow_that_is_not_finite_gives_nan_there(padding_mode, value, generator):
    """The backward pass of torch's sampler ends the process at such places."""
    x = torch.rand(1, 3, 24, 32, generator=generator, requires_grad=True)
    flow = torch.zeros(1, 2, 24, 32)
    flow[0, 1, 3, 4] = value
    warped = ops.flow_warp(x, flow.requires_grad_(), padding_mode=padding_mode)
    warped.sum().backward()
    assert warped.isnan().nonzero()[:, 2:].tolist() == [[3, 4]] * 3
    assert x.grad.isfinite().all()
