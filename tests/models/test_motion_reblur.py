"""The reblurrer without training: it smears as the clip moves, learns the exposure, and names what it cannot take."""

import pytest
import torch
from torch.autograd import gradcheck

from tta_restore import models
from tta_restore.data.datasets.clips import stack_frames
from tta_restore.data.synthetic.camera_shake import simulate_shake
from tta_restore.data.synthetic.dead_leaves import tile
from tta_restore.degradations.motion import CameraShake
from tta_restore.metrics import psnr
from tta_restore.models.motion_reblur import MotionReblur


def pan(direction, speed=4.0, **options):
    photo = tile(160, torch.Generator().manual_seed(1), oversample=1)
    shake = CameraShake(pan=speed, direction=direction, variation=0.0, **options)
    return simulate_shake(photo, shake, torch.Generator().manual_seed(2), frames=5, size=80)


def windows(clip):
    """Blurred frames with the sharp one in the middle, and the true blur of that."""
    frames = stack_frames(clip.blurry).clone()
    true = frames[2:3].clone()
    frames[2] = clip.originals()[2]
    return frames[None], true


def inside(x):
    return x[..., 10:-10, 10:-10]


@pytest.mark.parametrize("direction", [0.0, 0.9, 1.57])
@pytest.mark.parametrize("speed", [2.0, 6.0])
def test_a_sharp_frame_is_blurred_as_the_camera_moved(direction, speed):
    window, true = windows(pan(direction, speed, exposure_fraction=0.8))
    blurred = MotionReblur(exposure=0.8)(window)
    before, after = (psnr(inside(x), inside(true)).item() for x in (window[:, 2], blurred))
    assert after > before + 8, (before, after)
    assert after > 33


def test_the_middle_may_be_any_picture_and_is_blurred_as_its_neighbors_move():
    window, _ = windows(pan(1.5708))
    window[:, 2] = torch.rand(3, 80, 80, generator=torch.Generator().manual_seed(3))
    blurred = MotionReblur(exposure=0.8)(window)
    across, down = ((blurred.roll(1, side) - blurred).abs().mean().item() for side in (-1, -2))
    assert down < 0.6 * across


def test_without_motion_the_frame_is_what_it_was():
    frame = torch.rand(1, 1, 3, 24, 31, generator=torch.Generator().manual_seed(0))
    out = MotionReblur(num_frames=3)(frame.expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(out, frame[:, 0], atol=1e-5, rtol=0)


@pytest.mark.thorough
def test_the_exposure_can_be_learned():
    window, true = windows(pan(0.4, exposure_fraction=0.8))
    reblur = MotionReblur(exposure=0.3)
    assert [name for name, _ in reblur.named_parameters()] == ["exposure"]
    optimizer = torch.optim.Adam(reblur.parameters(), lr=0.06)
    for _ in range(30):
        optimizer.zero_grad()
        (inside(reblur(window)) - inside(true)).square().mean().backward()
        optimizer.step()
    assert reblur.exposure.item() == pytest.approx(0.8, abs=0.08)


@pytest.mark.thorough
def test_gradients_are_those_of_finite_differences():
    window = torch.nn.functional.interpolate(pan(0.4).blurry[:, :, :48, :48], size=(12, 12), mode="area").double()
    reblur = MotionReblur(exposure=0.4, num_subframes=3, dtype=torch.float64)
    assert gradcheck(
        lambda exposure: torch.func.functional_call(reblur, {"exposure": exposure}, (window[None],)),
        torch.tensor(0.37, dtype=torch.float64, requires_grad=True),
    )


def test_it_is_registered_and_names_what_it_cannot_take():
    assert "motion_reblur" in models.list_models("reblurrer")
    reblur = models.create_model("motion_reblur", exposure=0.7)
    assert reblur.num_frames == 5
    assert reblur.exposure.item() == pytest.approx(0.7)
    with pytest.raises(ValueError, match=r"MotionReblur: expected clip of shape \(B, T, 3, H, W\)"):
        reblur(torch.rand(1, 3, 3, 16, 16))
    with pytest.raises(TypeError, match="MotionReblur: expected clip with a floating dtype"):
        reblur(torch.zeros(1, 5, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(TypeError, match="MotionReblur: expected flow to be a function of two images, got str"):
        MotionReblur(flow="raft")
    with pytest.raises(ValueError, match=r"exposure to be a number in \(0, 1\], got 0"):
        MotionReblur(exposure=0)
    with pytest.raises(ValueError, match="num_subframes to be an integer >= 2"):
        MotionReblur(num_subframes=1)
    with pytest.raises(ValueError, match="num_frames to be an odd integer"):
        MotionReblur(num_frames=1)
