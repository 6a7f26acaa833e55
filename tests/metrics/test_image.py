"""PSNR and SSIM against scikit-image and against the values recorded from the official evaluations."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tta_restore.metrics import Protocol, mae, protocols, psnr, ssim

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(3, 3, 40, 52, generator=generator)
    noise = torch.randn(target.shape, generator=generator) * torch.tensor([0.02, 0.1, 0.3]).view(3, 1, 1, 1)
    return (target + noise).clamp(0, 1), target


def frame(array: torch.Tensor) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    return array.permute(2, 0, 1)[None].float() / 255


def test_one_value_per_image_equal_to_scikit_image(pair):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    restored, target = pair
    expected_psnr = [peak_signal_noise_ratio(t.numpy(), r.numpy(), data_range=1.0) for r, t in zip(*pair, strict=True)]
    expected_ssim = [
        structural_similarity(
            t.double().numpy(), r.double().numpy(), channel_axis=0, data_range=1.0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for r, t in zip(*pair, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(psnr(restored, target), expected_psnr, rtol=1e-5)
    np.testing.assert_allclose(ssim(restored, target), expected_ssim, atol=2e-5)
    assert psnr(restored, target).shape == ssim(restored, target).shape == (3,)


def test_a_batch_of_one_keeps_its_axis(pair):
    restored, target = pair
    assert torch.equal(psnr(restored[:1], target[:1]), psnr(restored, target)[:1])
    assert torch.equal(ssim(restored[:1], target[:1]), ssim(restored, target)[:1])


def test_values_recorded_from_ifan():
    golden = load_file(GOLDEN / "ifan" / "metrics.safetensors")
    restored, target = golden["img1"][None], golden["img2"][None]
    for_psnr, for_ssim = protocols["ifan"]
    torch.testing.assert_close(psnr(restored, target, protocol=for_psnr).double(), golden["psnr"], rtol=0, atol=1e-4)
    torch.testing.assert_close(ssim(restored, target, protocol=for_ssim).double(), golden["ssim"], rtol=0, atol=1e-6)


def test_values_recorded_from_meta_transferring():
    golden = load_file(GOLDEN / "meta" / "metrics.safetensors")
    restored, misaligned, target = (frame(golden[name]) for name in ("pred", "pred_misaligned", "gt"))
    for_psnr, for_ssim = protocols["meta-transferring"]
    measured = {
        "psnr": psnr(restored, target, protocol=for_psnr),
        "ssim_y": ssim(restored, target, protocol=for_ssim),
        "plain_psnr_misaligned": psnr(misaligned, target, protocol=for_psnr),
        "rb_ssim_identity_mask": ssim(restored, target),
    }
    for name, value in measured.items():
        torch.testing.assert_close(
            value.double().squeeze(), golden[name], rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_protocol_changes_what_is_measured(pair):
    restored, target = pair
    cut = psnr(restored, target, protocol=Protocol(border=5))
    assert torch.equal(cut, psnr(restored[..., 5:-5, 5:-5], target[..., 5:-5, 5:-5]))
    assert not torch.equal(cut, psnr(restored, target))
    near = target + 0.3 / 255  # rounds to the same 8-bit value where the target is one
    on_grid = (target * 255).round() / 255
    assert psnr((on_grid + 0.3 / 255).clamp(0, 1), on_grid, protocol=Protocol(bit_depth=8)).isinf().all()
    assert psnr(near.clamp(0, 1), target, protocol=Protocol(bit_depth=16)).isfinite().all()


def test_out_of_range_results_are_measured_as_they_would_be_shown(pair):
    _, target = pair
    assert psnr(torch.where(target > 0.5, 7.0, target), target.clamp(max=1)).equal(
        psnr(torch.where(target > 0.5, 1.0, target), target)
    )


def test_aggregation_over_images_and_groups():
    values, groups = [10.0, 20.0, 40.0], ["a", "a", "b"]
    assert Protocol().aggregate(values, groups) == pytest.approx(70 / 3)
    assert Protocol(aggregation="group").aggregate(torch.tensor(values), groups) == pytest.approx(27.5)
    with pytest.raises(ValueError, match="one group per value"):
        Protocol(aggregation="group").aggregate(values)
    with pytest.raises(ValueError, match="at least one"):
        Protocol().aggregate([])


@pytest.mark.parametrize("setting", [{"bit_depth": 10}, {"border": -1}, {"color": "hsv"}, {"window": "box"}])
def test_unknown_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Protocol(**setting)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_bad_input_is_named(measure, pair):
    restored, target = pair
    with pytest.raises(ValueError, match=r"one shape \(B, C, H, W\)"):
        measure(restored, target[..., 1:])
    with pytest.raises(ValueError, match=r"one shape \(B, C, H, W\)"):
        measure(restored[0], target[0])
    with pytest.raises(TypeError, match="float tensor"):
        measure((restored * 255).byte(), target)
    with pytest.raises(ValueError, match="expected border < min"):
        measure(restored, target, protocol=Protocol(border=20))
    with pytest.raises(ValueError, match="luma"):
        measure(restored[:, :1], target[:, :1], protocol=Protocol(color="luma"))


def test_images_below_the_window_are_refused(pair):
    restored, target = pair
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(restored[..., :10], target[..., :10])
    with pytest.raises(ValueError, match="at least 7x7"):
        ssim(restored[..., :6], target[..., :6], protocol=Protocol(window="uniform"))


def test_a_missing_torchmetrics_says_what_to_install(monkeypatch, pair):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ImportError, match=r"pip install 'tta-restore\[metrics\]'"):
        psnr(*pair)


def test_mean_absolute_error(pair):
    restored, target = pair
    torch.testing.assert_close(mae(restored, target), (restored - target).abs().mean((1, 2, 3)))
    assert mae(restored[:1], target[:1]).shape == (1,)
    golden = load_file(GOLDEN / "ifan" / "metrics.safetensors")
    found = mae(golden["img1"][None], golden["img2"][None])
    torch.testing.assert_close(found.double(), golden["mae"], rtol=0, atol=1e-6)


def test_truncated_levels_and_identical_images():
    image = torch.tensor([0.5, 0.999]).view(1, 1, 1, 2)
    down = Protocol(bit_depth=8, rounding="down").prepare(image) * 255
    torch.testing.assert_close(down.flatten(), torch.tensor([127.0, 254.0]))
    pair = torch.stack([image[0], torch.zeros_like(image[0])])
    assert psnr(pair, image.expand(2, -1, -1, -1), protocol=Protocol(identical_psnr=100.0))[0] == 100
    assert psnr(image, image).isinf()
    assert protocols["causiam"][0].rounding == "down"
