"""Muon: orthogonal steps for matrices and filters, Adam's for everything else."""

import pytest
import torch
from _fresh import run_program

from tta_restore.adapters import Muon
from tta_restore.adapters.methods._muon import orthogonalised


def _leaf(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def _steps(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, count: int = 4) -> torch.Tensor:
    """The parameter after steps along gradients that depend on its number of elements only."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        parameter.grad = torch.randn(parameter.numel(), generator=generator).to(parameter.dtype).view(parameter.shape)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (12, 40), (40, 12), (2, 500)])
def test_singular_values_end_near_one(rows, columns):
    left, _ = torch.linalg.qr(torch.randn(3, rows, rows, generator=torch.Generator().manual_seed(2)))
    right, _ = torch.linalg.qr(torch.randn(3, columns, columns, generator=torch.Generator().manual_seed(3)))
    rank = min(rows, columns)
    values = torch.logspace(0, -1.5, rank) * 1e3
    result = orthogonalised(left[..., :rank] * values @ right[..., :rank].mT)
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.65
    assert singular.max() < 1.22
    # the vectors are those of the input: turned back, the result is diagonal
    turned = left[..., :rank].mT @ result @ right[..., :rank]
    assert (turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3


def test_matrices_without_length_stay_so():
    assert torch.equal(orthogonalised(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_matrices_go_as_in_torch(shape):
    """torch rounds to bfloat16 on the way."""
    ours, theirs = _leaf(*shape), _leaf(*shape)
    start = ours.detach().clone()
    moved = _steps(Muon([ours], lr=0.01), ours) - start
    settings = {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    expected = _steps(torch.optim.Muon([theirs], lr=0.01, **settings), theirs) - start
    assert (moved - expected).norm() < 0.02 * expected.norm()


def test_filters_are_matrices_of_one_row_per_output_channel():
    filters, matrix = _leaf(6, 4, 3, 3), _leaf(6, 36)
    moved, expected = (_steps(Muon([one], lr=0.01), one) for one in (filters, matrix))
    assert torch.equal(moved.flatten(1), expected)


def test_layouts_in_memory_do_not_matter():
    plain = _leaf(6, 4, 3, 3)
    last = plain.detach().to(memory_format=torch.channels_last).requires_grad_()
    moved, expected = (_steps(Muon([one], lr=0.01), one) for one in (last, plain))
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(7,), (), (1, 9, 1, 1), (9, 1), (300, 260)])
def test_the_rest_goes_as_in_adam(shape):
    ours, theirs = _leaf(*shape), _leaf(*shape)
    moved = _steps(Muon([ours], lr=0.01), ours)
    torch.testing.assert_close(moved, _steps(torch.optim.Adam([theirs], lr=0.01), theirs), rtol=1e-6, atol=1e-7)


def test_tensors_side_by_side_go_as_alone():
    """Those of one shape are stepped together; some have no gradient this time."""
    together = [_leaf(6, 8, seed=seed) for seed in range(3)] + [_leaf(5, seed=5), _leaf(6, 8, seed=7)]
    alone = [tensor.detach().clone().requires_grad_() for tensor in together]
    optimizers = [Muon(together, lr=0.01), *(Muon([tensor], lr=0.01) for tensor in alone)]
    for step in range(3):
        for index, (one, other) in enumerate(zip(together, alone, strict=True)):
            gradient = None if (step + index) % 3 == 0 else torch.randn(one.shape)
            one.grad, other.grad = gradient, None if gradient is None else gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_it_takes_a_closure():
    parameter = _leaf(4, 6)
    optimizer = Muon([parameter], lr=0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameter.square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(8)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.thorough
def test_adaptation_does_not_import_the_compiler():
    program = """
import sys, torch
from tta_restore import adapters
frame = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
options = dict(task="denoise", steps=1, batch_size=1, patch_size=16, lr=1e-2, sharp_images=frame)
adapter = adapters.DegradationPairs(torch.nn.Conv2d(3, 3, 3, padding=1), **options)
adapter(frame)
print(adapter.state.updates > 0, "torch._dynamo" in sys.modules)
"""
    assert run_program(program).stdout == "True False\n"


def test_autocast_around_it_rounds_nothing():
    inside, outside = _leaf(6, 8), _leaf(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        moved = _steps(Muon([inside], lr=0.01), inside)
    assert torch.equal(moved, _steps(Muon([outside], lr=0.01), outside))


def test_bad_settings():
    for options in ({"lr": -1.0}, {"momentum": 1.5}, {"momentum": float("nan")}):
        with pytest.raises(ValueError, match=f"Muon: expected {next(iter(options))} to be a number"):
            Muon([_leaf(2, 2)], **options)
