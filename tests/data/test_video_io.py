"""Video files there and back: pixels, colors, bits, odd sides, orientation, times, sound, and damaged files."""

from fractions import Fraction

import pytest
import torch

from tta_restore.data.datasets.clips import stack_frames
from tta_restore.data.io.pixels import ImageError
from tta_restore.data.io.video import VideoFile, write_video

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")


def moving(count=5, height=48, width=64):
    """A colored pattern that moves a pixel per frame; its colors change slowly, for chroma has half the samples."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin((x + t) / 5) * torch.cos(y / 7) for t in range(count)]
    return torch.stack([torch.stack([base + 0.3 * wave for base in (0.6, 0.4, 0.5)]) for wave in waves])


def error(a, b):
    return (a - b).abs().mean().item()


@pytest.mark.parametrize(("suffix", "height", "width"), [(".mp4", 48, 64), (".mkv", 48, 64), (".mov", 37, 51)])
def test_round_trip(tmp_path, suffix, height, width):
    frames = moving(5, height, width)
    path = tmp_path / f"clip{suffix}"
    write_video(path, frames, frame_rate=Fraction(30000, 1001), quality=4)
    video = VideoFile(path)
    assert (video.info.height, video.info.width, video.info.bit_depth) == (height, width, 8)
    assert video.info.frame_rate == pytest.approx(30000 / 1001, rel=1e-3)
    assert not video.info.sound
    back = torch.stack(list(video))
    assert back.shape == frames.shape
    assert error(back, frames) < 0.004
    assert error(back[1:], frames[:-1]) > 0.01  # in the right order
    kept = video.load()
    assert kept.samples[0].dtype == torch.uint8
    torch.testing.assert_close(stack_frames(kept), back)
    clip = video.clip()
    assert (clip.name, len(clip)) == ("clip", 5)


@pytest.mark.parametrize("matrix", [1, 5, 2])
def test_colors_survive_whatever_matrix_the_file_uses(tmp_path, matrix):
    """BT.709, BT.601 and untagged files: the same red comes out, and is written again as it came."""
    red = torch.tensor([200, 30, 90]).view(3, 1, 1).expand(3, 32, 32) / 255
    write_video(tmp_path / "a.mp4", [red] * 3)
    first = VideoFile(tmp_path / "a.mp4")
    object.__setattr__(first.info, "colors", (matrix, matrix, matrix if matrix != 5 else 6))
    list(first)
    write_video(tmp_path / "b.mp4", [red] * 3, like=first, quality=4)
    second = VideoFile(tmp_path / "b.mp4")
    assert second.info.colors[0] == matrix
    for frame in (next(iter(first)), next(iter(second))):
        torch.testing.assert_close(frame.mean((1, 2)), red[:, 0, 0], atol=0.008, rtol=0)


def test_ten_bits(tmp_path):
    """A ramp of less than one step of 8 bits survives 10."""
    ramp = (0.5 + torch.arange(64) / 64 / 255 * 1.5).expand(3, 64, 64).contiguous()
    write_video(tmp_path / "deep.mkv", [ramp] * 2, bit_depth=10, quality=1)
    video = VideoFile(tmp_path / "deep.mkv")
    assert video.info.bit_depth == 10
    back = next(iter(video))
    assert error(back, ramp) < 0.0008
    assert video.load().samples[0].dtype == torch.uint16
    write_video(tmp_path / "again.mkv", video, like=video)
    assert VideoFile(tmp_path / "again.mkv").info.bit_depth == 10
    write_video(tmp_path / "flat.mkv", [ramp] * 2, quality=1)
    assert next(iter(VideoFile(tmp_path / "flat.mkv"))).unique().numel() < back.unique().numel()


def test_full_range_is_not_taken_for_limited(tmp_path):
    with av.open(str(tmp_path / "full.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuvj444p"
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 250, np.uint8), format="rgb24")
        frame = frame.reformat(format="yuvj444p", dst_color_range=2)
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    assert next(iter(VideoFile(tmp_path / "full.mkv"))).mean() == pytest.approx(250 / 255, abs=0.01)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_orientation_is_applied(tmp_path, matrix, turns):
    """Phones store frames lying down and say so in the track header."""
    frames = moving(2)
    write_video(tmp_path / "a.mp4", frames, quality=4)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    for entry, value in zip((0, 1, 3, 4), matrix, strict=True):
        content[at + 4 * entry : at + 4 * entry + 4] = int(value * 65536).to_bytes(4, "big", signed=True)
    (tmp_path / "b.mp4").write_bytes(content)
    video = VideoFile(tmp_path / "b.mp4")
    upright = torch.rot90(frames, turns, (2, 3))
    assert (video.info.height, video.info.width) == tuple(upright.shape[2:])
    assert error(torch.stack(list(video)), upright) < 0.004


def test_times_and_sound_go_along(tmp_path):
    """Frames at uneven times stay there, and the sound is copied packet by packet."""
    frames, times = moving(6), [0, 1, 2, 8, 9, 10]
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        track = container.add_stream("aac", rate=8000)
        for frame, time in zip(frames, times, strict=True):
            array = (frame.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            picture = av.VideoFrame.from_ndarray(array, format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 10)
            for packet in stream.encode(picture):
                container.mux(packet)
        tone = np.sin(np.arange(8192) / 5).astype(np.float32)[None]
        sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        sound.sample_rate = 8000
        for packet in [*stream.encode(), *track.encode(sound), *track.encode()]:
            container.mux(packet)
    first = VideoFile(tmp_path / "a.mp4")
    assert first.info.sound
    write_video(tmp_path / "b.mp4", first, like=first)  # read and written in step
    second = VideoFile(tmp_path / "b.mp4")
    list(second)
    assert [round(float(t), 3) for t in second.times] == [t / 10 for t in times]
    assert second.info.sound

    def samples(path):
        with av.open(str(path)) as container:
            return sum(frame.samples for frame in container.decode(audio=0))

    assert samples(tmp_path / "b.mp4") == samples(tmp_path / "a.mp4") > 8000


def test_what_cannot_be_read_or_written_is_told(tmp_path):
    with pytest.raises(ImageError, match=r"none.mp4: no such file"):
        VideoFile(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ImageError, match=r"text.mp4: "):
        VideoFile(tmp_path / "text.mp4")
    with pytest.raises(ImageError, match=r"videos are written as .mp4"):
        write_video(tmp_path / "a.avi", moving(1))
    with pytest.raises(ImageError, match="no frames to write"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(ImageError, match=r"frame 1 is \(3, 24, 64\)"):
        write_video(tmp_path / "a.mp4", [moving(1)[0], moving(1)[0][:, :24]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.mp4"]
    write_video(tmp_path / "whole.mkv", moving(30), quality=1)
    content = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "half.mkv").write_bytes(content[: len(content) // 8])
    with pytest.raises(ImageError, match=r"half.mkv: "):
        list(VideoFile(tmp_path / "half.mkv"))


def test_without_pyav(tmp_path, monkeypatch):
    import importlib

    def missing(name, *rest):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImageError, match=r"pip install 'tta-restore\[video\]'"):
        write_video(tmp_path / "a.mp4", moving(1))
