"""The comparator accepts rounding and rejects what elementwise tolerances let through."""

import pytest
import torch
from _compare import TOLERANCES, Tolerance, assert_agrees

WIDE = Tolerance(element=1.0, norm=1.0, cosine=1.0, bias=1.0)


def vector(n: int = 10_000) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_rounding_to_the_dtype_is_accepted(dtype):
    assert_agrees(vector().to(dtype), vector())


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [float("inf"), float("nan"), -2.0]])
def test_equal_tensors_are_accepted(values):
    assert_agrees(torch.tensor(values), torch.tensor(values, dtype=torch.float64))


def test_rejects_one_wrong_element():
    wrong = vector()
    wrong[17] += 1e-3
    with pytest.raises(AssertionError, match="largest element error"):
        assert_agrees(wrong, vector())


def test_rejects_small_errors_everywhere():
    noise = torch.randn(10_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with pytest.raises(AssertionError, match="relative L2"):
        assert_agrees(vector() + 1e-4 * noise, vector(), tolerance=Tolerance(1.0, 1e-5, 1.0, 1.0))


def test_rejects_another_direction():
    turned = vector() + 0.1 * vector().roll(1)
    with pytest.raises(AssertionError, match="cosine"):
        assert_agrees(turned, vector(), tolerance=Tolerance(1.0, 1.0, 1e-3, 1.0))


def test_cosine_ignores_length():
    assert_agrees(vector() * 1.5, vector(), tolerance=Tolerance(1.0, 1.0, 1e-12, 1.0))


def test_rejects_a_signed_bias():
    with pytest.raises(AssertionError, match="signed bias"):
        assert_agrees(vector() + 1e-3, vector(), tolerance=Tolerance(1.0, 1.0, 1.0, 1e-4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rejects_non_finite_elements(value):
    wrong = vector()
    wrong[3] = value
    with pytest.raises(AssertionError, match="other places"):
        assert_agrees(wrong, vector(), tolerance=WIDE)


def test_rejects_an_infinity_of_the_other_sign():
    with pytest.raises(AssertionError, match="another sign"):
        assert_agrees(torch.tensor([float("inf"), 1.0]), torch.tensor([-float("inf"), 1.0]), tolerance=WIDE)


def test_rejects_another_shape_even_if_it_broadcasts():
    with pytest.raises(AssertionError, match="shape"):
        assert_agrees(vector()[None], vector())


def test_rejects_something_where_nothing_is_expected():
    with pytest.raises(AssertionError, match="largest element error"):
        assert_agrees(torch.full((4,), 1e-3), torch.zeros(4))
