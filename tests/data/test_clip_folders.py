"""Data sets of videos in folders: every published layout, and what is said when something is missing."""

import pytest
import torch

from tta_restore.data.datasets import layouts
from tta_restore.data.datasets.clip_folders import clip_of_folder, find_clips
from tta_restore.data.datasets.clips import Clip, DegradedClips, sliding_windows, stack_frames, window
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.degradations import Noise, Quantize


def write(path, value):
    write_image(path, Image(torch.full((3, 4, 6), value / 255)))


LAYOUTS = [
    ("gopro", "train", "train/{}/blur/{:06d}.png", "train/{}/sharp/{:06d}.png"),
    ("gopro", "test", "test/{}/blur_gamma/{:06d}.png", "test/{}/sharp/{:06d}.png"),
    ("dvd", "test", "test/{}/input/{:05d}.jpg", "test/{}/GT/{:05d}.jpg"),
    ("dvd", "test", "{}/input/{:05d}.jpg", "{}/GT/{:05d}.jpg"),
    ("reds", "test", "test/{}/blur/{:08d}.png", "test/{}/sharp/{:08d}.png"),
    ("reds", "val", "val/val_blur/{}/{:08d}.png", "val/val_sharp/{}/{:08d}.png"),
    ("reds", "train", "train_blur/{}/{:08d}.png", "train_sharp/{}/{:08d}.png"),
    ("realblur", "test", "test/{}/blur/blur_{}.png", "test/{}/gt/gt_{}.png"),
    ("realblur", "test", "{}/blur/blur_{}.png", "{}/gt/gt_{}.png"),
]


@pytest.mark.parametrize(("layout", "split", "blurry", "sharp"), LAYOUTS)
def test_layouts(tmp_path, layout, split, blurry, sharp):
    """Two videos, frames 8 to 11: the 10th comes after the 9th although no zeros pad the names."""
    for number, video in enumerate(("scene2", "scene10")):
        for frame in range(8, 12):
            write(tmp_path / blurry.format(video, frame), frame + 100 * number)
            write(tmp_path / sharp.format(video, frame), frame + 50 + 100 * number)
    (tmp_path / f"{layout}_{split}_list.txt").write_text("x/scene2/gt/1.png x/scene2/blur/1.png\nscene10\n")
    clips = find_clips(tmp_path, layout, split)
    assert [clip.name for clip in clips] == ["scene2", "scene10"]
    for number, clip in enumerate(clips):
        for frames, offset in ((clip.blurry, 0), (clip.originals(), 50)):
            values = stack_frames(frames)[:, 0, 0, 0] * 255
            assert values.round().tolist() == [n + offset + 100 * number for n in range(8, 12)]


def test_what_is_missing_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        find_clips(tmp_path / "nowhere", "gopro")
    with pytest.raises(ValueError, match="layout to be one of"):
        find_clips(tmp_path, "gopr0")
    (tmp_path / "readme").mkdir()
    with pytest.raises(ValueError, match="expected videos in test/<video>/input or <video>/input .* found: readme"):
        find_clips(tmp_path, "dvd")
    for video, names in (("a", "123"), ("b", "12"), ("c", "")):
        (tmp_path / "test" / video / "blur").mkdir(parents=True)
        for name in names:
            (tmp_path / f"test/{video}/blur/{name}.png").write_bytes(b"not read")
    (tmp_path / "test/a/sharp").mkdir()
    (tmp_path / "test/c/sharp").mkdir()
    for name in "12":
        (tmp_path / f"test/a/sharp/{name}.png").write_bytes(b"not read")
    with pytest.raises(ValueError, match="gopro .test. is not whole") as told:
        find_clips(tmp_path, "gopro")
    lines = str(told.value).splitlines()[1:]
    assert lines[0].strip() == "a: 3 blurred and 2 sharp frames do not belong together; without a partner: 3"
    assert "b: there is no folder" in lines[1]
    assert "c: no images in" in lines[2]
    (tmp_path / "test/a/sharp/4.png").write_bytes(b"not read")
    with pytest.raises(ValueError, match="without a partner: 3, 4"):
        find_clips(tmp_path, "gopro")


def test_raw_folders_mix_their_splits_only_where_a_list_tells_them_apart(tmp_path):
    for scene in range(4):
        for folder in ("blur", "gt"):
            write(tmp_path / f"scene{scene}/{folder}/1.png", scene)
    for split in ("train", "val", "test"):
        with pytest.raises(ValueError, match=f"nothing tells which of its 4 videos are for {split}"):
            find_clips(tmp_path, "realblur", split)
    (tmp_path / "RealBlur_J_test_list.txt").write_text("RealBlur-J/scene1/gt/1.png RealBlur-J/scene1/blur/1.png\n")
    (tmp_path / "latest_notes.txt").write_text("scene0 scene2")  # no list of the test split
    assert [clip.name for clip in find_clips(tmp_path, "realblur", "test")] == ["scene1"]
    assert [clip.name for clip in find_clips(tmp_path, "realblur", "train")] == ["scene0", "scene2", "scene3"]
    with pytest.raises(ValueError, match="are for val"):
        find_clips(tmp_path, "realblur", "val")
    (tmp_path / "train.txt").write_text("scene3\n")
    assert [clip.name for clip in find_clips(tmp_path, "realblur", "train")] == ["scene3"]


@pytest.mark.parametrize(
    ("encoding", "end"), [("utf-8-sig", "\r\n"), ("utf-16", "\r\n"), ("utf-8", "\r"), ("utf-8-sig", "\n")]
)
def test_lists_of_any_editor_are_read(tmp_path, encoding, end):
    for scene in ("scene0", "my scene 1", "scene2"):
        for folder in ("blur", "gt"):
            write(tmp_path / scene / folder / "1.png", 1)
    (tmp_path / "test.txt").write_bytes(end.join(("scene0", "a/my scene 1/gt/1.png", "")).encode(encoding))
    (tmp_path / "more_test.txt").mkdir()
    assert [clip.name for clip in find_clips(tmp_path, "realblur", "test")] == ["my scene 1", "scene0"]
    assert [clip.name for clip in find_clips(tmp_path, "realblur", "train")] == ["scene2"]


def test_a_registered_layout_is_known_by_its_name(tmp_path):
    layouts.register_layout("mine", clips=[("{split}/{video}/noisy", "{split}/{video}/clean")])
    layouts.register_layout("mine", pairs={"val": [("low", "high")]})
    for folder in ("val/a/noisy", "val/a/clean", "low", "high"):
        write(tmp_path / folder / "1.png", 3)
    assert [clip.name for clip in find_clips(tmp_path, "mine", "val")] == ["a"]
    assert layouts.find_pairs(tmp_path, "mine", "val") == [(tmp_path / "low/1.png", tmp_path / "high/1.png")]
    with pytest.raises(ValueError, match="'mine' is taken"):
        layouts.register_layout("mine", pairs={"train": [("a", "b")]})
    with pytest.raises(ValueError, match="one {video} in a pattern"):
        layouts.register_layout("other", clips=[("a", "b/{video}")])
    with pytest.raises(ValueError, match="pairs or clips"):
        layouts.register_layout("other")


def test_clips():
    frames = torch.rand(3, 3, 4, 4)
    with pytest.raises(ValueError, match="one has 3 blurred frames and 2 originals"):
        Clip("one", frames, frames[:2])
    with pytest.raises(ValueError, match="one has no frames"):
        Clip("one", frames[:0])
    with pytest.raises(ValueError, match="one has no sharp originals"):
        Clip("one", frames).originals()
    with pytest.raises(ValueError, match="frames of one size"):
        stack_frames([frames[0], frames[1, :, 1:]])
    assert torch.equal(stack_frames(frames, [2, 2, 0]), frames[[2, 2, 0]])
    assert window(0, 10, 5) == [0, 0, 0, 1, 2]
    assert window(9, 10, 5) == [7, 8, 9, 9, 9]
    assert window(1, 2, 5) == [0, 0, 1, 1, 1]


def test_a_folder_of_pictures_is_a_clip(tmp_path):
    for n in (9, 10, 8):
        write(tmp_path / f"holiday/p{n}.png", n)
    clip = clip_of_folder(tmp_path / "holiday")
    assert (clip.name, len(clip), clip.sharp) == ("holiday", 3, None)
    assert (stack_frames(clip.blurry)[:, 0, 0, 0] * 255).round().tolist() == [8, 9, 10]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no frames"):
        clip_of_folder(tmp_path / "empty")


def test_degraded_clips_carry_one_degradation_of_one_strength():
    gray = torch.full((5, 3, 24, 24), 0.5)
    clips = [Clip(name, gray, gray) for name in "abcdef"]
    noise = DegradedClips(clips, [Noise(read_std=(0.02, 0.2)), Quantize(2)], seed=3)
    assert len(noise) == 6
    strengths = []
    for clip in noise:
        assert torch.equal(clip.sharp, gray)
        frames = torch.stack([clip.blurry[t] for t in range(5)])
        assert torch.equal(clip.blurry[2], frames[2])  # always the same
        spread = frames.std((1, 2, 3))
        assert spread.max() == 0 or spread.max() < 1.2 * spread.min()
        strengths.append(float(spread.mean()))
    assert min(strengths) == 0 < 0.02 < max(strengths)
    assert len({round(value, 3) for value in strengths if value}) > 1


@pytest.mark.parametrize("length", [0, 1, 2, 5])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 7])
def test_sliding_windows_are_those_around_each_frame(length, num_frames):
    frames = torch.arange(length).view(-1, 1)
    found = [torch.stack(around).flatten().tolist() for around in sliding_windows(iter(frames), num_frames)]
    assert found == [window(time, length, num_frames) for time in range(length)]
