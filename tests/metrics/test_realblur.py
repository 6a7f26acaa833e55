"""The protocol of RealBlur: against recorded values, and against shifts that are known."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tta_restore.data.synthetic import photos
from tta_restore.metrics import aligned_scores, psnr
from tta_restore.metrics.realblur import align_by_correlation

GOLDEN = Path(__file__).parents[1] / "golden" / "meta"


def frame(array):
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    return array.permute(2, 0, 1)[None].float() / 255


def test_values_recorded_from_the_official_evaluation():
    """OpenCV's fixed-point resampling differs in the last digits; the tolerance is that of the recording."""
    golden = load_file(GOLDEN / "metrics.safetensors")
    found = aligned_scores(frame(golden["pred_misaligned"]), frame(golden["gt"]))
    assert found.converged
    assert found.psnr == pytest.approx(golden["rb_psnr"].item(), abs=0.05)
    assert found.ssim == pytest.approx(golden["rb_ssim"].item(), abs=2e-3)
    torch.testing.assert_close(found.homography[:2, 2], golden["rb_warp"].double()[:2, 2], atol=0.05, rtol=0)


def test_a_known_shift_turn_and_gain_are_found():
    sharp = photos.load("astronaut")[None, :, 100:228, 200:360]
    height, width = sharp.shape[2:]
    angle, shift = 0.01, (1.7, -2.4)
    theta = torch.tensor(
        [
            [1.0, -angle * height / width, 2 * shift[0] / width],
            [angle * width / height, 1.0, 2 * shift[1] / height],
        ]
    )
    grid = F.affine_grid(theta[None], [1, 3, height, width], align_corners=False)
    moved = 0.8 * F.grid_sample(sharp, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    plain = psnr(moved, sharp).item()
    found = aligned_scores(moved, sharp)
    assert plain < 20
    assert found.psnr > plain + 10
    center = torch.tensor([(width - 1) / 2, (height - 1) / 2, 1.0], dtype=torch.float64)
    place = found.homography @ center
    torch.testing.assert_close((place[:2] / place[2] - center[:2]), -torch.tensor(shift).double(), atol=0.15, rtol=0)


def test_the_same_picture_needs_nothing():
    picture = photos.load("coffee")[None, :, 50:150, 50:180]
    found = aligned_scores((picture + 0.01).clamp(0, 1), picture)
    torch.testing.assert_close(found.homography, torch.eye(3, dtype=torch.float64), atol=1e-2, rtol=0)


def test_what_cannot_be_aligned_is_compared_as_it_is_and_told():
    flat = torch.full((1, 3, 32, 32), 0.5)
    found = aligned_scores(flat, torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert not found.converged
    assert torch.equal(found.homography, torch.eye(3, dtype=torch.float64))
    assert align_by_correlation(torch.rand(1, 1, 32, 32), torch.full((1, 1, 32, 32), 0.5)) is None
    with pytest.raises(ValueError, match=r"one shape \(1, 3, H, W\)"):
        aligned_scores(flat, flat[..., 1:])
