"""Patch mining: recorded choices, integral images against the op, one look at every frame, short and odd videos."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tta_restore import ops
from tta_restore.data.datasets import mining as sharp_patches
from tta_restore.data.datasets.mining import ShiftTables, mine_patches, place_patches

GOLDEN = Path(__file__).parents[1] / "golden/meta"


@pytest.fixture(params=["crops", "tables"])
def way(request, monkeypatch):
    """Both ways to score, whatever the number of places."""
    monkeypatch.setattr(sharp_patches, "_DENSE", 0 if request.param == "tables" else 1e9)
    return request.param


class Decoder:
    """Frames that count how often each is asked for."""

    def __init__(self, frames):
        self.frames, self.asked = frames, []

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, time):
        self.asked.append(time)
        return self.frames[time].clone()


def test_recorded_scores_and_choices(way):
    recorded = load_file(GOLDEN / "patch_selection.safetensors")
    video = recorded["frames"].permute(0, 3, 1, 2).float() / 255
    decoder = Decoder(video)
    mined = mine_patches(decoder, 8, 48, places="tile", generator=torch.Generator())
    assert decoder.asked == list(range(9))
    assert [[patch.top, patch.left] for patch in mined] == recorded["top_left"].tolist()
    assert [patch.sharp_time for patch in mined] == recorded["sharp_frame"].tolist()
    assert [patch.blurred_time for patch in mined] == recorded["blur_frame"].tolist()
    for patch, scores in zip(mined, recorded["scores"], strict=True):
        assert patch.sharp_score == pytest.approx(scores[2:7].min().item(), abs=1e-3)
        assert patch.blurred_score == pytest.approx(scores[2:7].max().item(), abs=1e-3)
    torch.testing.assert_close(mined[0].clip, recorded["sample0_blurs"], atol=1e-6, rtol=0)
    torch.testing.assert_close(mined[0].blurred, recorded["sample0_blurrer"], atol=1e-6, rtol=0)


def test_recorded_scores_of_every_frame():
    recorded = load_file(GOLDEN / "patch_selection.safetensors")
    tops, lefts = recorded["top_left"].unbind(1)
    for time, frame in enumerate(recorded["frames"]):
        scores = ShiftTables(frame.permute(2, 0, 1).float() / 255).scores(tops, lefts, (48, 48))
        torch.testing.assert_close(scores, recorded["scores"][:, time], atol=1e-3, rtol=0)


@given(st.integers(2, 20), st.integers(2, 20), st.data())
def test_tables_score_as_the_op_does(height, width, data):
    frame = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(height))
    frame[:, 5:12, 3:11] = 0.5  # crops in there have no difference at all
    exact = (frame * 255).round().double() / 255  # the tables count in bytes; a float32 is not k / 255
    top, left = data.draw(st.integers(0, 20 - height)), data.draw(st.integers(0, 20 - width))
    found = ShiftTables(exact.float()).scores(torch.tensor([top]), torch.tensor([left]), (height, width))
    expected = ops.self_shift_score(exact[None, :, top : top + height, left : left + width])
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_short_videos_repeat_their_ends(length, way):
    video = torch.rand(length, 3, 12, 17, generator=torch.Generator().manual_seed(1))
    decoder = Decoder(video)
    mined = mine_patches(decoder, 3, 8, generator=torch.Generator().manual_seed(0))
    assert decoder.asked == list(range(length))
    for patch in mined:
        region = video[:, :, patch.top : patch.top + 8, patch.left : patch.left + 8]
        scores = ops.self_shift_score(region)
        assert patch.sharp_time == int(scores.argmin())
        assert patch.blurred_time == int(scores.argmax())
        times = [min(max(t, 0), length - 1) for t in range(patch.sharp_time - 2, patch.sharp_time + 3)]
        assert torch.equal(patch.clip, region[times])
        assert torch.equal(patch.blurred, region[patch.blurred_time])


def test_the_chosen_moment_is_the_sharpest_of_those_with_neighbors(way):
    video = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    smooth = torch.nn.functional.avg_pool2d(video, 3, 1, 1)
    video[[0, 1, 3, 4, 5, 7]] = smooth[[0, 1, 3, 4, 5, 7]]  # 2 and 6 stay sharp; 6 has no two frames after it
    for patch in mine_patches(video, 4, 16, generator=torch.Generator()):
        assert patch.sharp_time == 2
        assert torch.equal(patch.clip, video[0:5])


def test_of_equal_moments_the_first_is_taken(way):
    video = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(3)).expand(7, -1, -1, -1)
    (patch,) = mine_patches(video, 1, 9, generator=torch.Generator())
    assert (patch.sharp_time, patch.blurred_time) == (2, 2)
    assert patch.sharp_score == patch.blurred_score


def test_places():
    tops, lefts, size = place_patches(96, 128, 7, 48, places="tile", generator=torch.Generator())
    expected = [(0, 0), (0, 48), (0, 80), (48, 0), (48, 48), (48, 80), (0, 0)]
    assert list(zip(tops.tolist(), lefts.tolist(), strict=True)) == expected
    assert size == (48, 48)
    tops, lefts, size = place_patches(20, 300, 200, 256, places="random", generator=torch.Generator().manual_seed(0))
    assert size == (20, 256)
    assert not tops.any()
    assert (int(lefts.min()), int(lefts.max())) == (0, 44)


def test_crops_of_decoded_frames_do_not_keep_the_frames():
    video = torch.rand(6, 3, 40, 40)
    for patch in mine_patches(Decoder(video), 2, 8, generator=torch.Generator()):
        for tensor in (patch.clip, patch.blurred):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * 4


def test_what_cannot_be_mined_is_named():
    video, generator = torch.rand(5, 3, 16, 16), torch.Generator()
    with pytest.raises(ValueError, match="at least one frame, got none"):
        mine_patches([], 1, 8, generator=generator)
    with pytest.raises(ValueError, match=r"of one size, got \(3, 16, 16\) and, at 1, \(3, 16, 8\)"):
        mine_patches([video[0], video[0][..., :8]], 1, 8, generator=generator)
    with pytest.raises(ValueError, match="places to be one of 'random', 'tile', got 'grid'"):
        mine_patches(video, 1, 8, places="grid", generator=generator)
    with pytest.raises(ValueError, match="frames of at least 2 x 2 pixels, got 1 x 16"):
        mine_patches(video[:, :, :1], 1, 8, generator=generator)
    with pytest.raises(ValueError, match="num_frames to be an odd integer"):
        mine_patches(video, 1, 8, generator=generator, num_frames=4)
    with pytest.raises(ValueError, match=r"inside 16 x 16, got \(8, 8\) at rows \[9\]"):
        ShiftTables(video[0]).scores(torch.tensor([9]), torch.tensor([0]), (8, 8))
    with pytest.raises(TypeError, match="divide by 255"):
        ShiftTables(torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"mine_patches: expected a frame of shape \(C, H, W\), got \(8, 8\)"):
        mine_patches(torch.rand(3, 8, 8), 2, 4, generator=torch.Generator())


def test_other_moments_give_the_sharp_frame_their_neighbors(way):
    video = torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    taken = set()
    for seed in range(30):
        options = {"generator": torch.Generator().manual_seed(seed), "num_frames": 3}
        plain = mine_patches(video, 2, 16, **options)
        options["generator"].manual_seed(seed)
        decoder = Decoder(video)
        for patch, same in zip(mine_patches(decoder, 2, 16, other_moments=2, **options), plain, strict=True):
            assert (patch.sharp_time, patch.top, patch.left) == (same.sharp_time, same.top, same.left)
            assert not same.others
            for other in patch.others:
                assert torch.equal(other[1], patch.clip[1])
                (time,) = [t for t in range(1, 8) if torch.equal(video[t - 1], other[0])]
                assert torch.equal(other[2], video[time + 1])
                taken.add(time)
        assert decoder.asked == list(range(9))
    assert taken == set(range(1, 8))  # of all moments with neighbors
    with pytest.raises(ValueError, match="other_moments to be an integer >= 0"):
        mine_patches(video, 1, 8, generator=torch.Generator(), other_moments=-1)
