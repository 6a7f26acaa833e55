"""sac, iac and iac_from_features against their definition, their calculus and the official tensors."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from _base import Bad, OpTests, Sample, gradients, needs_extension, random
from _compare import Tolerance, assert_agrees
from safetensors import safe_open
from safetensors.torch import load_file

import tta_restore
from tta_restore import ops
from tta_restore.ops.adaptive_conv import functional

GOLDEN = Path(__file__).parents[1] / "golden/ifan"
CASES = sorted(path.stem for path in GOLDEN.glob("iac_k*.safetensors"))


def taps(*shape, generator):
    """Filters of either sign, seldom cancelling: a single pixel near zero would fail any relative tolerance."""
    return random(*shape, generator=generator, low=-0.4, high=1)


class TestSac(OpTests):
    op = staticmethod(ops.sac)

    def samples(self, generator):
        sizes = [
            (2, 2, 4, 5, 3),
            (1, 1, 1, 1, 5),
            (1, 3, 9, 130, 3),
            (2, 1, 3, 4, 7),
            (1, 2, 6, 3, 1),
            (1, 1, 13, 14, 11),
        ]
        return [
            Sample(
                (random(b, c, h, w, generator=generator), *(taps(b, c * k, h, w, generator=generator) for _ in "vh"))
            )
            for b, c, h, w, k in sizes
        ]

    def bad(self):
        x, k = torch.rand(2, 3, 4, 5), torch.rand(2, 9, 4, 5)
        return [
            Bad((x[0], k, k), ValueError, r"expected x of shape \(B, C, H, W\), got \(3, 4, 5\)"),
            Bad((x[:, :, :0], k, k), ValueError, r"with C, H and W at least 1, got \(2, 3, 0, 5\)"),
            Bad((x, k[:, :6], k), ValueError, r"\(B, C\*K, H, W\) = \(2, 3\*K, 4, 5\), K odd, got \(2, 6, 4, 5\)"),
            Bad((x, k[:, :8], k), ValueError, r"expected vertical .* K odd, got \(2, 8, 4, 5\)"),
            Bad((x, k[0], k), ValueError, r"expected vertical .* got \(9, 4, 5\)"),
            Bad((x, k, k[:, :3]), ValueError, r"expected horizontal of shape .* = \(2, 9, 4, 5\), got \(2, 3, 4, 5\)"),
            Bad((x, k[:1], k), ValueError, r"expected vertical .* got \(1, 9, 4, 5\)"),
            Bad((x, k, k.int()), TypeError, "horizontal with a floating dtype, got torch.int32"),
            Bad((x, k.double(), k), TypeError, "one dtype, got x torch.float32, vertical torch.float64"),
            Bad((x, k, k.to("meta")), ValueError, "one device, got x on cpu, vertical on cpu, horizontal on meta"),
            Bad((x, k, None), TypeError, "horizontal to be a torch.Tensor, got NoneType"),
        ]


# (B, C, H, W, N, K) and further options; the first one also serves the expensive checks
IAC_SAMPLES = [
    ((2, 2, 3, 4), 2, 3, {}),
    ((1, 3, 9, 130), 3, 3, {"activate_last": False}),
    ((1, 2, 6, 5), 3, 5, {"horizontal": "vertical", "negative_slope": 0.25}),
    ((2, 1, 1, 1), 2, 7, {}),
    ((1, 2, 2, 3), 3, 5, {"horizontal": "vertical", "activate_last": False}),
    ((1, 1, 20, 90), 1, 1, {"negative_slope": 0.0}),
    ((1, 2, 12, 13), 2, 9, {}),
]


class TestIac(OpTests):
    op = staticmethod(ops.iac)

    def samples(self, generator):
        return [
            Sample(
                (random(*shape, generator=generator, low=-1),
                 taps(shape[0], n * shape[1] * (2 * k + 1), *shape[2:], generator=generator)),
                {"num_steps": n, "kernel_size": k, **options},
            )
            for shape, n, k, options in IAC_SAMPLES
        ]  # fmt: skip

    def test_opcheck_with_saved_states(self, device, generator, monkeypatch):
        monkeypatch.setattr(functional, "_CHANNEL_IN_CACHE", 0)
        self.test_opcheck(device, generator, None)

    def bad(self):
        x, filters, steps = torch.rand(2, 3, 4, 5), torch.rand(2, 42, 4, 5), {"num_steps": 2}
        return [
            Bad((x[0], filters), ValueError, r"expected x of shape \(B, C, H, W\), got \(3, 4, 5\)", steps),
            Bad(
                (x, filters[:, :41]),
                ValueError,
                r"filters of shape \(B, N\*C\*\(2K\+1\), H, W\) = \(2, 42, 4, 5\), got \(2, 41, 4, 5\)",
                steps,
            ),
            Bad((x, filters[..., :4]), ValueError, r"= \(2, 42, 4, 5\), got \(2, 42, 4, 4\)", steps),
            Bad((x, filters[:1]), ValueError, r"= \(2, 42, 4, 5\), got \(1, 42, 4, 5\)", steps),
            Bad((x, filters[0]), ValueError, r"= \(2, 42, 4, 5\), got \(42, 4, 5\)", steps),
            Bad((x, filters), ValueError, r"= \(2, 66, 4, 5\), got", {"num_steps": 2, "kernel_size": 5}),
            Bad((x, filters), ValueError, "kernel_size to be an odd integer >= 1, got 4", {**steps, "kernel_size": 4}),
            Bad(
                (x, filters), ValueError, "kernel_size to be an odd integer >= 1, got -1", {**steps, "kernel_size": -1}
            ),
            Bad((x, filters), ValueError, "num_steps to be an integer >= 1, got 0", {"num_steps": 0}),
            Bad((x, filters), TypeError, "num_steps to be an integer >= 1, got float 2.0", {"num_steps": 2.0}),
            Bad(
                (x, filters),
                ValueError,
                "horizontal to be one of 'own', 'vertical', got 'v'",
                {**steps, "horizontal": "v"},
            ),
            Bad(
                (x, filters), ValueError, "negative_slope to be a number >= 0, got -1", {**steps, "negative_slope": -1}
            ),
            Bad((x, filters), ValueError, "negative_slope .* got nan", {**steps, "negative_slope": float("nan")}),
            Bad((x.int(), filters), TypeError, "x with a floating dtype, got torch.int32", steps),
            Bad((x, filters.half()), TypeError, "one dtype, got x torch.float32, filters torch.float16", steps),
            Bad((x, filters.to("meta")), ValueError, "one device, got x on cpu, filters on meta", steps),
            Bad((x, "filters"), TypeError, "filters to be a torch.Tensor, got str", steps),
        ]


class TestIacFromFeatures(OpTests):
    op = staticmethod(ops.iac_from_features)

    def sample(self, generator, shape, n, k, d, options):
        b, c, h, w = shape
        rows = n * c * (2 * k + 1)
        tensors = (
            random(b, c, h, w, generator=generator, low=-1),
            random(b, d, h, w, generator=generator, low=-1),
            taps(rows, d, generator=generator) / d**0.5,
            taps(rows, generator=generator) / 2,
        )
        return Sample(tensors, {"num_steps": n, "kernel_size": k, **options}, unbatched=(2, 3))

    def samples(self, generator):
        # 17 channels: a full group and a rest; 33 features: more than a vector, and a rest
        cases = [*IAC_SAMPLES, ((2, 17, 5, 67), 2, 3, {}), ((1, 5, 3, 400), 2, 3, {"horizontal": "vertical"})]
        samples = [
            self.sample(generator, shape, n, k, (2, 33, 5)[i % 3], options)
            for i, (shape, n, k, options) in enumerate(cases)
        ]
        # 48 features fill whole vectors
        return [*samples, self.sample(generator, (1, 2, 4, 9), 2, 3, 48, {})]

    def test_sums_over_a_frame_do_not_round_against_their_total(self, device, generator):
        """Gradients of the predictor are sums over all pixels: as exact as torch's own, and not ten times worse."""
        sample = self.sample(generator, (1, 4, 70, 105), 2, 3, 8, {}).to(torch.float32).map(lambda t: t.to(device))
        exact = sample.to(torch.float64)
        limit = Tolerance(element=1e-6, norm=5e-7, cosine=1e-12, bias=1e-6)
        for got, want in zip(gradients(self.call, sample)[1][2:], gradients(self.reference, exact)[1][2:], strict=True):
            assert_agrees(got, want, tolerance=limit)

    def test_gradgradcheck(self, device, generator):
        sample = self.sample(generator, (2, 1, 2, 3), 2, 3, 2, {}).map(lambda tensor: tensor.to(device))
        assert torch.autograd.gradgradcheck(lambda *t: self.call(*t, **sample.options), sample.leaves())

    def bad(self):
        x, features, weight, bias = torch.rand(2, 3, 4, 5), torch.rand(2, 6, 4, 5), torch.rand(42, 6), torch.rand(42)
        steps = {"num_steps": 2}
        return [
            Bad((x[0], features, weight, bias), ValueError, r"x of shape \(B, C, H, W\), got \(3, 4, 5\)", steps),
            Bad(
                (x, features[:, :, :3], weight, bias),
                ValueError,
                r"features of shape \(B, D, H, W\) = \(2, any, 4, 5\), got \(2, 6, 3, 5\)",
                steps,
            ),
            Bad((x, features[0], weight, bias), ValueError, r"features of shape .* got \(6, 4, 5\)", steps),
            Bad(
                (x, features, weight[:, :5], bias),
                ValueError,
                r"weight of shape \(N\*C\*\(2K\+1\), D\) = \(42, 6\), got \(42, 5\)",
                steps,
            ),
            Bad((x, features, weight[..., None, None], bias), ValueError, r"= \(42, 6\), got \(42, 6, 1, 1\)", steps),
            Bad(
                (x, features, weight, bias[:1]),
                ValueError,
                r"bias of shape \(N\*C\*\(2K\+1\),\) = \(42\), got \(1,\)",
                steps,
            ),
            Bad((x, features, weight, bias), ValueError, "kernel_size to be an odd", {**steps, "kernel_size": 2}),
            Bad((x, features, weight, bias), ValueError, "num_steps to be an integer >= 1, got -3", {"num_steps": -3}),
            Bad((x, features, weight.long(), bias), TypeError, "weight with a floating dtype, got torch.int64", steps),
            Bad((x, features.double(), weight, bias), TypeError, "one dtype, got .* features torch.float64", steps),
            Bad((x, features, weight, bias.to("meta")), ValueError, "one device, got .* bias on meta", steps),
            Bad((x, features, weight, None), TypeError, "bias to be a torch.Tensor, got NoneType", steps),
        ]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "horizontal"), [("fixed", "own"), ("quirk", "vertical")])
@pytest.mark.parametrize("backend", ["reference", None])
def test_official_tensors(case, name, horizontal, backend, device):
    """What the official implementation computed, forward and backward, corrected and as released."""
    path = GOLDEN / f"{case}.safetensors"
    golden = {key: value.to(device) for key, value in load_file(path).items()}
    config = json.loads(safe_open(path, "pt").metadata()["config"])
    options = {
        "num_steps": config["N"],
        "kernel_size": config["k"],
        "activate_last": bool(config["is_act_last"]),
        "horizontal": horizontal,
    }

    def call(x, filters):
        out = ops.iac(x, filters, **options)
        return out, *torch.autograd.grad(out, (x, filters), golden["grad_out"])

    leaves = golden["x"].requires_grad_(), golden["F"].requires_grad_()
    if backend:
        with tta_restore.backend(backend):
            found = call(*leaves)
    else:
        found = call(*leaves)
    for got, key in zip(found, ("out", "grad_x", "grad_F"), strict=True):
        want = golden[f"{key}_{name}"]
        assert (got - want).norm() <= 3e-6 * want.norm(), key


@pytest.mark.parametrize("name", ["fixed", "quirk"])
def test_official_layout(name):
    """One-hot taps: which channel of the filters does what, without any arithmetic to hide behind."""
    golden = load_file(GOLDEN / "iac_layout_probe.safetensors")
    probes = [key.removeprefix(f"out_{name}_") for key in golden if key.startswith(f"out_{name}_")]
    assert len(probes) == 8
    for probe in probes:
        horizontal = "own" if name == "fixed" else "vertical"
        out = ops.iac(golden["x"], golden[f"F_{probe}"], num_steps=1, activate_last=False, horizontal=horizontal)
        assert torch.equal(out, golden[f"out_{name}_{probe}"]), probe


def test_one_step_without_bias_is_sac(generator):
    x, filters = random(2, 3, 6, 7, generator=generator), taps(2, 3 * 11, 6, 7, generator=generator)
    filters[:, 30:] = 0
    out = ops.iac(x, filters, num_steps=1, kernel_size=5, activate_last=False)
    assert_agrees(ops.sac(x, filters[:, :15], filters[:, 15:30]), out)


def test_half_precision_sums_in_float32(generator):
    """17 steps in bfloat16 round once, at the end, not after every product."""
    x, filters = random(1, 4, 16, 16, generator=generator), taps(1, 17 * 4 * 7, 16, 16, generator=generator)
    for dtype in (torch.float16, torch.bfloat16):
        rounded, halves = x.to(dtype), filters.to(dtype)
        expected = ops.iac(rounded.double(), halves.double(), num_steps=17)
        error = (ops.iac(rounded, halves, num_steps=17).double() - expected).norm() / expected.norm()
        assert error < torch.finfo(dtype).eps / 3


@pytest.mark.parametrize("horizontal", ["own", "vertical"])
def test_equals_convolution_and_iac(generator, horizontal):
    channels, rows = 17, 3 * 17 * 7  # the second derivative takes 17 channels in pairs
    x, features = random(2, channels, 6, 7, generator=generator), random(2, 5, 6, 7, generator=generator)
    weight, bias = taps(rows, 5, generator=generator) / 2, taps(rows, generator=generator) / 2
    options = {"num_steps": 3, "horizontal": horizontal}

    def composed(x, features, weight, bias, **options):
        filters = torch.nn.functional.conv2d(features, weight[:, :, None, None], bias)
        return ops.iac(x, filters, **options)

    sample = Sample((x, features, weight, bias), options)
    out, found = gradients(ops.iac_from_features, sample)
    expected, wanted = gradients(composed, sample)
    assert_agrees(out, expected)
    for got, want in zip(found, wanted, strict=True):
        assert_agrees(got, want, what="gradient")

    def second(function):
        leaves = sample.leaves()
        first = torch.autograd.grad(function(*leaves, **options).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for got, want in zip(second(ops.iac_from_features), second(composed), strict=True):
        assert_agrees(got, want, what="second derivative")


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (1, 2), (0, 3)])
def test_only_the_gradients_that_are_asked_for(generator, wanted):
    sample = TestIacFromFeatures().samples(generator)[0]
    every = gradients(ops.iac_from_features, sample)[1]
    leaves = [tensor.clone().requires_grad_(i in wanted) for i, tensor in enumerate(sample.tensors)]
    out = ops.iac_from_features(*leaves, **sample.options)
    out.sum().backward()
    for i, (leaf, expected) in enumerate(zip(leaves, every, strict=True)):
        assert (leaf.grad is not None) == (i in wanted)
        if i in wanted:
            assert_agrees(leaf.grad, expected)


@pytest.mark.parametrize(("op", "test"), [(ops.sac, TestSac), (ops.iac, TestIac)])
def test_gradient_of_one_argument(generator, op, test):
    sample = test().samples(generator)[0]
    every = gradients(op, sample)[1]
    for wanted, expected in enumerate(every):
        leaves = [tensor.clone().requires_grad_(i == wanted) for i, tensor in enumerate(sample.tensors)]
        (found,) = torch.autograd.grad(op(*leaves, **sample.options).sum(), leaves[wanted])
        assert_agrees(found, expected)


@pytest.mark.parametrize("activate_last", [True, False])
def test_states_are_made_again_while_filters_stay_in_the_cache(generator, monkeypatch, activate_last):
    """A graph holds the inputs alone, or the states, too, N - 1 frames; the gradients are the same to the last bit."""
    steps, shape = 3, (2, 3, 5, 67)
    x = random(*shape, generator=generator, low=-1).float().requires_grad_()
    filters = taps(2, steps * 3 * 7, 5, 67, generator=generator).float().requires_grad_()

    def held_and_gradients():
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
            out = ops.iac(x, filters, num_steps=steps, activate_last=activate_last)
        found = torch.autograd.grad(out.square().sum(), (x, filters))
        return sum(tensor.numel() for tensor in held), found

    inputs = x.numel() + filters.numel()
    alone, again = held_and_gradients()
    monkeypatch.setattr(functional, "_CHANNEL_IN_CACHE", 0)
    with_states, saved = held_and_gradients()
    assert (alone, with_states) == (inputs, inputs + (steps - 1) * x.numel())
    assert all(torch.equal(a, b) for a, b in zip(again, saved, strict=True))


# Fewer channels than a vector, whole vectors, vectors that overlap, and more than one group
@pytest.mark.parametrize("channels", [3, 4, 32, 37, 129])
@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9])
@pytest.mark.parametrize("horizontal", ["own", "vertical"])
@pytest.mark.parametrize("backend", ["reference", None])
def test_channels_last_filters(generator, channels, kernel_size, horizontal, backend):
    """Filters with adjacent channels give the same results, and gradients of their own memory format."""
    options = {"num_steps": 3, "kernel_size": kernel_size, "horizontal": horizontal, "activate_last": channels % 2 == 0}
    x = random(2, channels, 4, 5, generator=generator, low=-1)
    filters = taps(2, 3 * channels * (2 * kernel_size + 1), 4, 5, generator=generator)
    with tta_restore.backend(backend) if backend else nullcontext():
        expected, wanted = gradients(ops.iac, Sample((x, filters), options))
        leaves = x.clone().requires_grad_(), filters.contiguous(memory_format=torch.channels_last).requires_grad_()
        out = ops.iac(*leaves, **options)
        found = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert_agrees(out, expected)
    for got, want in zip(found, wanted, strict=True):
        assert_agrees(got, want, what="gradient")
    assert found[0].is_contiguous()
    assert found[1].is_contiguous(memory_format=torch.channels_last)


def test_slices_of_channels_last_filters(generator):
    """The halves of one channels_last tensor, as ``chunk`` makes them, are read where they are, too."""
    x, both = random(2, 5, 4, 6, generator=generator), taps(2, 2 * 15, 4, 6, generator=generator)
    expected, wanted = gradients(ops.sac, Sample((x, *both.chunk(2, 1))))
    leaves = x.clone().requires_grad_(), both.contiguous(memory_format=torch.channels_last).requires_grad_()
    out = ops.sac(leaves[0], *leaves[1].chunk(2, 1))
    found = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert_agrees(out, expected)
    assert_agrees(found[0], wanted[0])
    assert_agrees(found[1], torch.cat(wanted[1:], 1))


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [13, 70])
@pytest.mark.parametrize("kernel_size", [3, 5, 9])
def test_cropped_filters_give_the_same_bits(generator, dtype, width, kernel_size):
    x = random(2, 3, 7, width, generator=generator, low=-1).to(dtype)
    wide = taps(2, 2 * 3 * (2 * kernel_size + 1), 7, width + 5, generator=generator).to(dtype)
    cropped, options = wide[..., 2 : 2 + width], {"num_steps": 2, "kernel_size": kernel_size}

    def results(filters):
        leaves = x.clone().requires_grad_(), filters.detach().requires_grad_()
        assert leaves[1].stride() == filters.stride()
        out = ops.iac(*leaves, **options)
        return out, *torch.autograd.grad(out, leaves, torch.ones_like(out))

    assert all(torch.equal(a, b) for a, b in zip(results(cropped), results(cropped.contiguous()), strict=True))
    one = [t.contiguous() for t in cropped.split(3 * kernel_size, 1)[:2]]
    assert torch.equal(ops.sac(x, *one), ops.sac(x, *cropped.split(3 * kernel_size, 1)[:2]))


def test_third_derivative_refuses(generator):
    sample = TestIac().samples(generator)[0]
    x, filters = sample.leaves()
    (first,) = torch.autograd.grad(ops.iac(x, filters, **sample.options).square().sum(), filters, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), filters, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        torch.autograd.grad(second.square().sum(), filters)


def test_autocast_takes_filters_as_they_are(generator):
    """Converting the filters would copy the largest tensor of the network."""
    x, filters = random(1, 2, 4, 5, generator=generator).float(), taps(1, 14, 4, 5, generator=generator).float()
    features, weight, bias = torch.rand(1, 3, 4, 5), torch.rand(14, 3), torch.rand(14)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.iac(x, filters, num_steps=1).dtype == torch.float32
        assert ops.iac(x, filters.bfloat16(), num_steps=1).dtype == torch.bfloat16
        assert ops.iac(x.bfloat16(), filters, num_steps=1).dtype == torch.float32
        assert ops.sac(x, filters[:, :6].bfloat16(), filters[:, 6:12]).dtype == torch.bfloat16
        assert ops.iac_from_features(x, features, weight, bias, num_steps=1).dtype == torch.bfloat16
        assert ops.iac(x.double(), filters.double(), num_steps=1).dtype == torch.float64
