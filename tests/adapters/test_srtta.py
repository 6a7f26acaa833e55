"""SRTTA: features of degraded patches, and the weights that stay."""

import pytest
import torch
from adapters.zoo import build, frames

from tta_restore.adapters import SRTTA
from tta_restore.degradations import Blur


def make(**options):
    return SRTTA(build("plain"), **{"steps": 3, "lr": 1e-2, "num_patches": 2, "patch_size": 16} | options)


def test_the_most_important_half_of_the_weights_stays_at_the_source():
    adapter = make()
    for x in frames("plain", 2):
        adapter(x)
    important = adapter.memory["important"]
    chosen = torch.cat([mask.flatten() for mask in important.values()])
    moved = torch.cat([(adapter.student[n].detach() != t).flatten() for n, t in adapter.source.items()])
    assert chosen.float().mean() == pytest.approx(0.5, abs=0.01)
    assert not (moved & chosen).any()
    assert moved.float().mean() > 0.1  # what lies behind the features does not move


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_all_or_nothing_may_stay(keep):
    adapter = make(restore_fraction=keep)
    adapter(frames("plain", 1)[0])
    assert all(mask.float().mean() == keep for mask in adapter.memory["important"].values())
    assert (adapter.report.drift == 0) == (keep == 1)


def test_it_learns_to_see_through_the_degradation():
    """The same patches, degraded alike, before and after: random numbers depend on the number of the frame alone."""
    blobs = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(blobs, scale_factor=8, mode="bilinear")
    options = {
        "steps": 1, "restore_fraction": 0.0, "lr": 1e-3, "num_patches": 8, "max_noise_std": 0.1,
        "degradations": "blur_noise",
    }  # fmt: skip
    learned, before, after = (make(**options) for _ in range(3))
    for _ in range(60):
        learned.adapt(x)
    for name, tensor in after.student.items():
        tensor.data.copy_(learned.student[name])
    assert after.adapt(x).loss < 0.98 * before.adapt(x).loss


def test_degraded_patches_keep_their_mean_and_range():
    adapter = make(max_blur_std=2.0, max_noise_std=0.02)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with adapter._session(frames("plain", 1)[0]), adapter._working_on(adapter.state.view()):
        worse = adapter._degraded(x, ("blur", "noise"))
    assert worse.shape == x.shape
    assert worse.min() >= 0
    assert worse.max() <= 1
    torch.testing.assert_close(worse.mean((2, 3)), x.mean((2, 3)), atol=0.02, rtol=0)
    detail = [(t[..., 1:] - t[..., :-1]).square().mean((1, 2, 3)) for t in (worse, x)]
    assert (detail[0] < detail[1]).all()


def test_patches_get_the_degradations_of_the_frame():
    adapter = make()
    generator = torch.Generator().manual_seed(0)
    blobs = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=generator), size=64, mode="bicubic")
    smooth = 0.2 + 0.6 * blobs.clamp(0, 1)
    noisy = (smooth + 25 / 255 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
    assert "noise" in adapter._present(noisy)
    assert "noise" not in make()._present(smooth)
    assert make(degradations="blur_noise")._present(noisy) == ("blur", "noise")
    x = torch.rand(2, 3, 32, 32, generator=generator)
    with adapter._session(frames("plain", 1)[0]), adapter._working_on(adapter.state.view()):
        only_noise = adapter._degraded(x, ("noise",))
        jpeg = adapter._degraded(x, ("jpeg",))
    assert (only_noise - x).std() < 12 / 255
    assert 0 <= jpeg.min() < jpeg.max() <= 1


class PadsInside(torch.nn.Module):
    """Rounds the sides of a frame up to multiples of 8, and keeps features at an eighth of them."""

    def __init__(self):
        super().__init__()
        self.down = torch.nn.Conv2d(3, 16, 8, stride=8)
        self.up = torch.nn.ConvTranspose2d(16, 3, 8, stride=8)

    def forward(self, x):
        height, width = x.shape[-2:]
        padded = torch.nn.functional.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        return x + self.up(self.down(padded))[..., :height, :width]


def test_features_are_found_in_a_frame_of_odd_sides():
    adapter = SRTTA(PadsInside(), steps=1, num_patches=1, patch_size=16, views="identity")
    adapter(torch.rand(1, 3, 38, 51, generator=torch.Generator().manual_seed(0)))
    assert adapter.at == "down"


def test_a_known_degradation_takes_the_place_of_those_that_were_read():
    adapter = make(degradations=Blur(radius=3.0, lens="gaussian"))
    x = torch.zeros(2, 3, 33, 33)
    x[..., 16, 16] = 1
    with adapter._session(frames("plain", 1)[0]), adapter._working_on(adapter.state.view()):
        blurred = adapter._degraded(x, ("noise",))
    assert blurred[..., 16, 16].max() < 0.3  # a point is spread, and no noise is added
    assert blurred[..., :2, :2].abs().max() < 1e-3
    with pytest.raises(ValueError, match="expected degradations to be one of 'estimated', 'blur_noise'"):
        make(degradations="fog")


def test_refusals():
    with pytest.raises(ValueError, match="SRTTA: Residual has no module 'nowhere'"):
        make(at="nowhere")
    with pytest.raises(ValueError, match=r"restore_fraction to be a number in \[0, 1\], got 2"):
        make(restore_fraction=2)
    with pytest.raises(TypeError, match="num_patches to be an integer"):
        make(num_patches=1.5)
