"""self_shift_score against the official values, its definition and its calculus."""

import functools
import json
from pathlib import Path

import pytest
import torch
from _base import Bad, OpTests, Sample, needs_extension, random
from _compare import assert_same_bits_for_threads
from _fresh import run_program
from safetensors.torch import load_file

import tta_restore
from tta_restore import ops

GOLDEN = load_file(Path(__file__).parents[1] / "golden/meta/self_shift.safetensors")
PATCHES = sorted(key.removeprefix("patch.") for key in GOLDEN if key.startswith("patch."))


class TestSelfShiftScore(OpTests):
    op = staticmethod(ops.self_shift_score)

    def samples(self, generator):
        # 515 and 512 pixels: a row longer than a tile of the kernel, and one that ends with a tile
        return [
            Sample((random(2, 2, 3, 4, generator=generator),)),
            Sample((random(1, 1, 2, 2, generator=generator),)),
            Sample((random(2, 2, 3, 515, generator=generator),)),
            Sample((random(1, 3, 4, 512, generator=generator),)),
        ]

    def bad(self):
        return [
            Bad((torch.rand(3, 8, 8),), ValueError, r"expected x of shape \(B, C, H, W\), got \(3, 8, 8\)"),
            Bad((torch.rand(1, 3, 1, 8),), ValueError, r"H >= 2 and W >= 2, got \(1, 3, 1, 8\)"),
            Bad((torch.rand(1, 0, 4, 8),), ValueError, r"C >= 1"),
            Bad((torch.zeros(1, 3, 8, 8, dtype=torch.uint8),), TypeError, r"divide by 255"),
            Bad(([1.0],), TypeError, r"torch.Tensor, got list"),
        ]


@pytest.mark.parametrize("name", PATCHES)
@pytest.mark.parametrize("backend", ["reference", None])
def test_official_scores(name, backend, device):
    patch = GOLDEN[f"patch.{name}"].permute(2, 0, 1)[None].to(device) / 255
    if backend:
        with tta_restore.backend(backend):
            score = ops.self_shift_score(patch)
    else:
        score = ops.self_shift_score(patch)
    assert score.item() == pytest.approx(GOLDEN[f"score.{name}"].item(), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_scored_in_float32(dtype, generator):
    assert ops.self_shift_score(random(1, 3, 8, 8, generator=generator).to(dtype)).dtype == torch.float32


def test_equal_pixels_score_100_each_and_give_no_gradient():
    frame = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    score = ops.self_shift_score(frame)
    score.sum().backward()
    assert score.item() == 400
    assert not frame.grad.any()


def test_order_of_channels_and_frames_does_not_matter(generator):
    frames = random(4, 3, 9, 11, generator=generator)
    score = ops.self_shift_score(frames)
    torch.testing.assert_close(ops.self_shift_score(frames.flip(0, 1)), score.flip(0))
    torch.testing.assert_close(ops.self_shift_score(frames.flip(3)), score)


def test_hessian_by_functional_transforms(generator):
    """jacrev of jacrev vmaps the second derivative."""
    frame = random(1, 1, 3, 4, generator=generator)

    def score(x):
        return ops.self_shift_score(x).square().sum()

    hessian = torch.func.jacrev(torch.func.jacrev(score))(frame)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(score, frame))


def test_vmap_equals_a_loop(generator):
    frames = random(3, 2, 3, 6, 7, generator=generator)
    assert torch.equal(torch.vmap(ops.self_shift_score)(frames), torch.stack([ops.self_shift_score(x) for x in frames]))
    gradient = torch.func.grad(lambda x: ops.self_shift_score(x).sum())
    assert torch.equal(torch.vmap(gradient)(frames), torch.stack([gradient(x) for x in frames]))


def test_blur_raises_the_score(generator):
    frame = random(1, 3, 32, 32, generator=generator)
    assert ops.self_shift_score(torch.nn.functional.avg_pool2d(frame, 3, 1)) > ops.self_shift_score(frame) + 6


def test_same_bits_for_any_number_of_threads(generator):
    frames = random(2, 3, 65, 700, generator=generator).float()

    def derivatives():
        leaf = frames.clone().requires_grad_()
        score = ops.self_shift_score(leaf)
        return score.detach(), *torch.autograd.grad(score.sum(), leaf)

    assert_same_bits_for_threads(derivatives)


INSTRUCTION_SET_PROGRAM = """
import json, torch, tta_restore
from tta_restore import ops
from tta_restore._core import extension as _extension
with tta_restore.backend("cpu"):
    result = {"level": _extension.instruction_set()}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.rand(1, 3, 33, 530, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        score = ops.self_shift_score(x)
        (gradient,) = torch.autograd.grad(score.sum(), x)
        result[str(dtype)] = [score.item(), gradient.double().norm().item()]
print(json.dumps(result))
"""


@functools.cache
def values_at(level):
    """Return results of the kernels of one instruction set, computed in a new process; "" takes the best set."""
    run = run_program(INSTRUCTION_SET_PROGRAM, TTA_RESTORE_ISA=level)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@needs_extension
@pytest.mark.parametrize("level", ["v2", "v3"])
def test_every_instruction_set_computes_the_same(level):
    """The kernels of older processors, on this one."""
    best, older = dict(values_at("")), dict(values_at(level))
    assert older.pop("level") <= f"x86-64-{level}"
    best.pop("level")
    for dtype, values in best.items():
        assert older[dtype] == pytest.approx(values, rel=1e-6)
