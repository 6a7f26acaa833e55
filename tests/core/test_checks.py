"""Messages of the argument checks."""

import math
from fractions import Fraction

import pytest
import torch

from tta_restore._core import checks as _checks


def test_shape_returns_its_sizes():
    assert _checks.expect_shape("op", "x", torch.ones(1, 2, 3, 4), "(B, C, H, W)") == (1, 2, 3, 4)
    assert _checks.expect_shape("op", "x", torch.ones(1, 2), "(B, S)", (1, None)) == (1, 2)


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 3, 4, 5)])
def test_wrong_number_of_axes(shape):
    with pytest.raises(ValueError, match=r"^op: expected x of shape \(B, C, H, W\), got \("):
        _checks.expect_shape("op", "x", torch.ones(shape), "(B, C, H, W)")


@pytest.mark.parametrize("shape", [(1, 5), (2, 4), (1, 4, 1)])
def test_wrong_sizes_are_given_with_letters_and_values(shape):
    with pytest.raises(ValueError, match=r"^op: expected weight of shape \(B, 2K\) = \(1, 4\), got \("):
        _checks.expect_shape("op", "weight", torch.ones(shape), "(B, 2K)", (1, 4))


def test_free_axes_are_called_any():
    with pytest.raises(ValueError, match=r"= \(any, 4\), got \(1, 5\)"):
        _checks.expect_shape("op", "weight", torch.ones(1, 5), "(B, K)", (None, 4))


def test_dtypes():
    with pytest.raises(TypeError, match=r"^op: expected x with a floating dtype, got torch.int64$"):
        _checks.expect_floating("op", x=torch.ones(1, dtype=torch.int64))
    with pytest.raises(TypeError, match="divide by 255 first"):
        _checks.expect_floating("op", x=torch.ones(1, dtype=torch.uint8))
    with pytest.raises(TypeError, match="^op: expected all tensors with one dtype, got x .*float32, w .*float64$"):
        _checks.expect_same_dtype("op", x=torch.ones(1), w=torch.ones(1).double())
    with pytest.raises(TypeError, match="expected x to be a torch.Tensor, got NoneType"):
        _checks.expect_tensor("op", x=None)


def test_devices():
    with pytest.raises(ValueError, match=r"^op: expected all tensors on one device, got x on cpu, w on meta$"):
        _checks.expect_same_device("op", x=torch.ones(1), w=torch.ones(1, device="meta"))


def test_integers():
    _checks.expect_int("op", "num_steps", 3, minimum=1)
    for value, error, match in (
        (0, ValueError, "num_steps to be an integer >= 1, got 0"),
        (2.0, TypeError, "num_steps to be an integer >= 1, got float 2.0"),
        (True, TypeError, "got bool True"),
    ):
        with pytest.raises(error, match=match):
            _checks.expect_int("op", "num_steps", value, minimum=1)
    with pytest.raises(ValueError, match="kernel_size to be an odd integer >= 1, got 4"):
        _checks.expect_int("op", "kernel_size", 4, minimum=1, odd=True)


def test_numbers():
    for value in (0, 0.5, 1, Fraction(1, 3)):
        _checks.expect_number("op", "share", value, minimum=0, maximum=1)
    _checks.expect_number("op", "clip", math.inf, above=0)
    for value, error, match in (
        (-0.1, ValueError, "^op: expected share to be a number in \\[0, 1\\), got -0.1$"),
        (1, ValueError, "got 1$"),
        (math.nan, ValueError, "got nan$"),
        ("0.5", TypeError, "^op: expected share to be a number, got str '0.5'$"),
        (True, TypeError, "got bool True$"),
        (None, TypeError, "got NoneType None$"),
    ):
        with pytest.raises(error, match=match):
            _checks.expect_number("op", "share", value, minimum=0, below=1)
    with pytest.raises(ValueError, match="lr to be a number in \\(0, 1\\], got 0$"):
        _checks.expect_number("op", "lr", 0, above=0, maximum=1)
    _checks.expect_number("op", "clip", None, above=0, optional=True)
    with pytest.raises(ValueError, match="clip to be a number > 0 or None, got 0$"):
        _checks.expect_number("op", "clip", 0, above=0, optional=True)
    with pytest.raises(TypeError, match="clip to be a number or None, got str 'x'$"):
        _checks.expect_number("op", "clip", "x", above=0, optional=True)
    with pytest.raises(ValueError, match="pan to be a number, got nan$"):
        _checks.expect_number("op", "pan", math.nan)


def test_choices():
    with pytest.raises(ValueError, match=r"^op: expected mode to be one of 'a', 'b', got 'c'$"):
        _checks.expect_choice("op", "mode", "c", ("a", "b"))
