"""Clips of a moving camera: seeded, exposed in linear light, blurred as far as the camera moved."""

import pytest
import torch

from tta_restore._core.color import linear_to_srgb, srgb_to_linear
from tta_restore.data.synthetic import photos
from tta_restore.data.synthetic.camera_shake import ShakenClips, simulate_shake
from tta_restore.degradations.motion import CameraPath, CameraShake, camera_path

PICTURE = (
    torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0)).repeat_interleave(8, 1).repeat_interleave(8, 2)
)
STILL = CameraShake(pan=0.0, noise_std=0.0)


def make(shake, seed=0, **options):
    return simulate_shake(PICTURE, shake, torch.Generator().manual_seed(seed), **{"frames": 4, "size": 48} | options)


def test_seeds_decide_everything_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    clips = [make(CameraShake(rotation=0.02, tremor=1.0), seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(clips[0].blurry, clips[1].blurry)
    assert torch.equal(clips[0].sharp, clips[1].sharp)
    assert not torch.equal(clips[0].sharp, clips[2].sharp)
    assert clips[0].blurry.shape == clips[0].sharp.shape == (4, 3, 48, 48)
    assert 0 <= clips[0].blurry.min() <= clips[0].blurry.max() <= 1


def test_a_camera_that_stands_still_takes_sharp_frames():
    clip = make(STILL)
    torch.testing.assert_close(clip.blurry, clip.sharp)
    assert torch.equal(clip.sharp[0], clip.sharp[3])


def test_light_is_averaged_and_not_its_stored_values():
    """A steady horizontal pan over stripes: the frame is the mean of the light that fell onto each pixel."""
    stripes = (torch.arange(200) % 8 < 4).float().expand(3, 60, 200).contiguous()
    shake = CameraShake(pan=64.0, direction=0.0, variation=0.0, exposure_fraction=1.0, noise_std=0.0)
    clip = simulate_shake(stripes, shake, torch.Generator().manual_seed(0), frames=1, size=32, num_subframes=65)
    assert clip.blurry[0].mean() == pytest.approx(linear_to_srgb(torch.tensor(0.5)).item(), abs=0.02)  # not 0.5
    assert clip.blurry[0].std() < 0.05
    assert clip.sharp[0].std() > 0.4


@pytest.mark.parametrize(
    "shake",
    [CameraShake(), CameraShake(pan=0, zoom=0.05), CameraShake(pan=0, rotation=0.15), CameraShake(pan=0, tremor=2)],
)
def test_each_kind_of_motion_blurs(shake):
    clip = make(shake)
    motion = (clip.blurry - clip.sharp).abs().mean((1, 2, 3))
    assert (motion > 0.01).any()


def test_blur_varies_within_a_clip():
    path = camera_path(CameraShake(variation=1.0), 30, torch.Generator().manual_seed(0))
    traveled = path.displacement(96)
    assert traveled.max() > 4 * traveled.min()
    assert 2 < traveled.median() < 15
    steady = camera_path(CameraShake(variation=0.0, direction=1.0), 30, torch.Generator().manual_seed(0)).displacement(
        96
    )
    torch.testing.assert_close(steady, torch.full_like(steady, 6.0 * 0.8), atol=0.3, rtol=0.05)


def test_exposures_are_apart_by_the_rest_of_the_frame_time():
    path = camera_path(CameraShake(pan=10.0, direction=0.0, variation=0.0, exposure_fraction=0.5), 3, torch.Generator())
    x = path.poses[..., 0]
    step = (x[0, 1] - x[0, 0]).abs()
    torch.testing.assert_close((x[1, 0] - x[0, 0]).abs(), torch.tensor(10.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(step * 16, torch.tensor(5.0), atol=1e-3, rtol=0)


def test_the_original_is_the_middle_of_the_exposure():
    """Not its beginning: restoring must not shift."""
    clip = make(CameraShake(pan=8.0, direction=0.0, variation=0.0, noise_std=0.0, exposure_fraction=1.0))
    light, sharp = srgb_to_linear(clip.blurry[1]).mean(0), srgb_to_linear(clip.sharp[1]).mean(0)

    def off(shift):
        return (light[:, 8:-8] - sharp.roll(shift, 1)[:, 8:-8]).square().mean()

    assert min(range(-4, 5), key=off) == 0


def test_displacement_of_a_turn():
    poses = torch.zeros(1, 2, 4)
    poses[0, 1, 3] = torch.pi / 2
    traveled = CameraPath(poses).displacement(10)
    torch.testing.assert_close(traveled, torch.tensor([10.0]))  # from one corner to the next


def test_shaken_clips_are_a_sequence():
    clips = ShakenClips([("a", PICTURE), ("b", PICTURE)], [STILL, CameraShake()], frames=2, size=32, seed=3)
    assert len(clips) == 4
    assert [clips[i].name for i in range(4)] == ["a-0-0000", "b-0-0001", "a-1-0002", "b-1-0003"]
    assert torch.equal(clips[3].blurry, clips[3].blurry)
    assert torch.equal(clips[0].sharp[0], clips[0].sharp[1])
    with pytest.raises(IndexError):
        clips[4]
    assert len(list(clips)) == 4
    longer = ShakenClips([("a", PICTURE)], [CameraShake()], length=3, frames=1, size=32)
    assert not torch.equal(longer[0].sharp, longer[1].sharp)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="zoom to be a number >= 0"):
        CameraShake(zoom=-1.0)
    with pytest.raises(ValueError, match=r"exposure_fraction to be a number in \(0, 1\]"):
        CameraShake(exposure_fraction=0.0)
    with pytest.raises(ValueError, match="H, W >= 200"):
        make(STILL, size=200)
    with pytest.raises(ValueError, match="num_subframes to be an odd integer"):
        camera_path(STILL, 2, torch.Generator(), num_subframes=4)
    with pytest.raises(ValueError, match="expected photographs and motions, got 0 and 1"):
        ShakenClips([], [STILL])


def test_on_a_real_photograph():
    """Restoring is worth something: the blurred frames are far from their originals."""
    from tta_restore.metrics import psnr

    clip = simulate_shake(
        photos.load("grace_hopper"), CameraShake(), torch.Generator().manual_seed(0), frames=3, size=96
    )
    assert 15 < psnr(clip.blurry, clip.sharp).mean() < 40


def test_a_camera_rests_for_a_part_of_each_period():
    shake = CameraShake(pan=4.0, direction=0.0, variation=0.0, period=10.0, rest_fraction=0.3)
    traveled = camera_path(shake, 100, torch.Generator().manual_seed(0)).displacement(64)
    assert 0.1 <= (traveled < 1e-3).float().mean() <= 0.3  # whole exposures at rest; others are cut by its ends
    moving = traveled.max()
    assert moving == pytest.approx(3.2, rel=0.01)  # 0.8 of the time between two frames
    assert (traveled > 0.99 * moving).float().mean() >= 0.5
    steady = CameraShake(pan=4.0, direction=0.0, variation=0.0, period=10.0)
    assert camera_path(steady, 9, torch.Generator().manual_seed(0)).displacement(64).min() == pytest.approx(
        3.2, rel=0.01
    )
    with pytest.raises(ValueError, match="rest_fraction to be a number < 1, got"):
        CameraShake(rest_fraction=1.0)
