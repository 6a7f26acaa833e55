"""The test bases notice what they are there to notice."""

import pytest
import torch
from _base import LossTests, ModuleTests, OpTests, Sample, random
from torch import nn
from torch.autograd.gradcheck import GradcheckError

from tta_restore._core import library


class ForgetsSecondOrder(torch.autograd.Function):
    """Square whose backward cannot be differentiated, as with a bare backward kernel."""

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * 2 * ctx.saved_tensors[0].detach()


class HasNoTangent(ForgetsSecondOrder):
    @staticmethod
    def jvp(ctx, tangent):
        return torch.zeros_like(tangent)


def op_tests(op, reference=torch.square, **attributes):
    methods = {
        "op": staticmethod(op),
        "reference": lambda self, x: reference(x),
        "samples": lambda self, generator: [Sample((random(2, 3, generator=generator, low=0.5),))],
        "bad": lambda self: [],
        **attributes,
    }
    return type("Tests", (OpTests,), methods)()


CPU = torch.device("cpu")


def test_dropped_second_order_is_noticed(generator):
    tests = op_tests(ForgetsSecondOrder.apply)
    tests.test_gradcheck(CPU, generator)
    with pytest.raises(GradcheckError):
        tests.test_gradgradcheck(CPU, generator)


@pytest.mark.parametrize("declared", ["raises", "right"])
def test_silent_zero_tangent_is_noticed(generator, declared):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        op_tests(HasNoTangent.apply, jvp=declared).test_jvp(CPU, generator)
    op_tests(lambda x: library.differentiate(ForgetsSecondOrder, "square", x)).test_jvp(CPU, generator)
    op_tests(torch.square, jvp="right").test_jvp(CPU, generator)


def test_wrong_gradient_is_noticed(generator):
    with pytest.raises(AssertionError, match="gradient 0"):
        op_tests(lambda x: x * x.detach()).test_reference(CPU, generator)
    op_tests(torch.square).test_reference(CPU, generator)


def test_dependence_on_memory_layout_is_noticed(generator):
    def reads_storage(x):
        return torch.as_strided(x, x.shape, (x.shape[1], 1), 0).square()

    tests = op_tests(reads_storage)
    with pytest.raises(AssertionError):
        tests.test_memory_layout(CPU, generator, _offset)


def _offset(tensor):
    buffer = torch.full((tensor.numel() + 1,), 7.0)
    buffer[1:] = tensor.flatten()
    return buffer[1:].view(tensor.shape)


def test_infinite_gradient_where_equal_is_noticed(generator):
    class Tests(LossTests):
        op = staticmethod(lambda a, b: (a - b).square().mean().sqrt())
        samples = bad = None  # not asked here

        def equal(self, generator):
            frame = random(2, 3, generator=generator)
            return Sample((frame, frame.clone()))

    with pytest.raises(AssertionError):
        Tests().test_smallest_where_equal(CPU, generator)


class Idle(nn.Linear):
    def __init__(self, **factory):
        super().__init__(3, 3, **factory)
        self.idle = nn.Parameter(torch.ones(1, **factory))


class Leaky(nn.Linear):
    def __init__(self, **factory):
        super().__init__(3, 3, **factory)
        self.register_buffer("count", torch.zeros((), **factory))

    def forward(self, x):
        self.count += 1
        return super().forward(x)


@pytest.mark.parametrize(
    ("module", "method", "message"),
    [
        (Idle, "test_gradient_reaches_every_parameter", "no gradient reaches .*idle"),
        (Leaky, "test_forward_leaves_no_trace", None),
        (lambda **factory: nn.Linear(3, 3), "test_device_and_dtype", None),
    ],
)
def test_faulty_modules_are_noticed(module, method, message, generator):
    class Tests(ModuleTests):
        def module(self, **factory):
            return module(**factory)

        def inputs(self, generator):
            return (random(2, 3, generator=generator),), {}

    arguments = () if method == "test_device_and_dtype" else (CPU, generator)
    with pytest.raises(AssertionError, match=message):
        getattr(Tests(), method)(*arguments)
