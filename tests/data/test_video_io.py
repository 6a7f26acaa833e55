"""Video files there and back: pixels, colors, bits, odd sides, orientation, times, sound, and damaged files."""

import io
import struct
import types
from fractions import Fraction

import pytest
import torch

from tta_restore.data.datasets.clips import stack_frames
from tta_restore.data.io import video
from tta_restore.data.io.formats import detect_format
from tta_restore.data.io.frame_times import timed, with_early_times
from tta_restore.data.io.pixels import ImageError
from tta_restore.data.io.structure import is_broken
from tta_restore.data.io.video import VideoFile
from tta_restore.data.io.video_writer import write_video

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


def record(
    path,
    codec="libx264",
    pixels="yuv420p",
    count=12,
    *,
    format=None,
    options=None,
    tags=None,
    aspect=None,
    size=(48, 64),
):
    """A video by another writer: a bright and a dark half that change slowly."""
    height, width = size
    with av.open(
        path if hasattr(path, "write") else str(path),
        "w",
        format=format,
        container_options={"movflags": "use_metadata_tags"} if tags else {},
    ) as container:
        for key, value in (tags or {}).items():
            container.metadata[key] = value
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, pixels, options or {}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number in range(count):
            array = np.full((height, width, 3), 40 + 4 * (number % 20), np.uint8)
            array[:, : width // 2] = 220 - 3 * (number % 20)
            frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def copy(source, target, **options):
    """Read and write a video in step; return the written file and the notes."""
    video = VideoFile(source)
    notes = write_video(target, iter(video), like=video, **options)
    return VideoFile(target), notes


@pytest.mark.parametrize("turned", [False, True])
def test_the_pixel_aspect_ratio_is_kept(tmp_path, turned):
    record(tmp_path / "a.mp4", aspect=Fraction(32, 27))
    if turned:
        content = bytearray((tmp_path / "a.mp4").read_bytes())
        at = content.index(b"tkhd") + 4 + 40
        for entry, value in zip((0, 1, 3, 4), (0, 1, -1, 0), strict=True):
            content[at + 4 * entry : at + 4 * entry + 4] = int(value * 65536).to_bytes(4, "big", signed=True)
        (tmp_path / "a.mp4").write_bytes(content)
    written, _ = copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert written.info.sample_aspect_ratio == (Fraction(27, 32) if turned else Fraction(32, 27))


def boxes(content):
    at = 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        yield content[at + 4 : at + 8], content[at : at + size]
        at += size


def test_a_cover_picture_is_not_the_film(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 96
        cover.pix_fmt, cover.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        film = container.add_stream("libx264", rate=25)
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        for stream, count, size in ((cover, 1, (96, 96, 3)), (film, 3, (48, 64, 3))):
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(np.full(size, 90, np.uint8), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode())
    content = b""
    for kind, box in boxes((tmp_path / "a.mp4").read_bytes()):
        if kind == b"moov":  # phones write the tags before the tracks, so that the cover is the first stream
            inner = sorted(
                boxes(box[8:]),
                key=lambda item: (b"mvhd", b"udta").index(item[0]) if item[0] in (b"mvhd", b"udta") else 2,
            )
            box = box[:8] + b"".join(part for _, part in inner)
        content += box
    (tmp_path / "a.mp4").write_bytes(content)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mjpeg"
    video = VideoFile(tmp_path / "a.mp4")
    assert (video.info.height, video.info.width, len(list(video))) == (48, 64, 3)
    assert video.notes == ["cover picture left out"]


@pytest.mark.parametrize(
    ("name", "codec", "target", "expected"),
    [
        ("a.avi", "pcm_s16le", "b.mp4", "aac"),
        ("a.mov", "pcm_mulaw", "b.mov", "aac"),
        ("a.avi", "adpcm_ima_wav", "b.mkv", "flac"),
        ("a.mkv", "pcm_s16le", "b.mkv", "pcm_s16le"),
        ("a.mp4", "aac", "b.mp4", "aac"),
        ("a.avi", "mp3", "b.mp4", "mp3"),
    ],
)
def test_every_sound_track_goes_along(tmp_path, name, codec, target, expected):
    with av.open(str(tmp_path / name), "w") as container:
        film = container.add_stream("libx264", rate=25)
        film.width, film.height, film.pix_fmt, film.options = 64, 48, "yuv420p", {"bf": "0"}
        tracks = [container.add_stream(codec, rate=48000, layout="stereo") for _ in range(2)]
        for number in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(film.encode(frame))
        container.mux(film.encode())
        for track in tracks:
            context = track.codec_context
            to = av.AudioResampler(
                format=context.format.name, layout="stereo", rate=48000, frame_size=context.frame_size or None
            )
            wave = (np.sin(np.arange(96000) / 20) * 8000).astype(np.int16).reshape(1, -1)
            sound = av.AudioFrame.from_ndarray(wave, format="s16", layout="stereo")
            sound.sample_rate, sound.pts, sound.time_base = 48000, 0, Fraction(1, 48000)
            for part in [*to.resample(sound), *to.resample(None)]:
                container.mux(track.encode(part))
            container.mux(track.encode())
    written, notes = copy(tmp_path / name, tmp_path / target)
    with av.open(str(written.path)) as container:
        assert [stream.codec_context.codec.canonical_name for stream in container.streams.audio] == [expected] * 2
        samples = sum(frame.samples for frame in container.decode(audio=1))
    assert abs(samples - 48000) <= 4096
    assert len(notes) == (0 if expected == codec else 2)


def test_interlaced_video_is_told_and_deinterlaced_by_choice(tmp_path):
    record(tmp_path / "a.mkv", count=6, options={"flags": "+ildct+ilme", "x264-params": "interlaced=1:tff=1"})
    video = VideoFile(tmp_path / "a.mkv")
    assert video.info.is_interlaced
    assert "interlaced video: restored as it is" in video.notes[0]
    smooth = VideoFile(tmp_path / "a.mkv", deinterlace=True)
    frames = list(smooth)
    assert len(frames) == len(list(video)) == 6
    assert len(smooth.times) == 6
    written, _ = copy(tmp_path / "a.mkv", tmp_path / "b.mkv")
    assert not written.info.is_interlaced
    combed = torch.zeros(3, 48, 64)
    combed[:, ::2] = 1  # bwdif interpolates what differs from row to row
    record(tmp_path / "plain.mkv", count=2)
    assert VideoFile(tmp_path / "plain.mkv", deinterlace=True).notes == []


def test_another_size_ends_a_film_or_what_is_kept_of_it(tmp_path):
    parts = []
    for size in ((32, 48), (48, 64)):
        path = tmp_path / f"{size[0]}.h264"
        record(path, count=3, format="h264", size=size)
        parts.append(path.read_bytes())
    (tmp_path / "both.h264").write_bytes(b"".join(parts))
    with pytest.raises(ImageError, match="change from 48 x 32 to 64 x 48 after frame 3: split it there first"):
        list(VideoFile(tmp_path / "both.h264"))
    video = VideoFile(tmp_path / "both.h264", keep_going=True)
    assert list(video)
    assert video.losses == ["the frames change from 48 x 32 to 64 x 48 after frame 3: the rest is left out"]


def test_damage_is_an_error_or_a_told_loss(tmp_path):
    random = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0))
    blocks = random.repeat_interleave(4, 1).repeat_interleave(4, 2)
    frames = [blocks.roll(4 * number, 2) for number in range(40)]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 320, 240, "yuv420p", {"g": "10", "bf": "0"}
        for number, frame in enumerate(frames):
            array = (frame.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            picture = av.VideoFrame.from_ndarray(array, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    content = bytearray((tmp_path / "a.mkv").read_bytes())
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    middle = len(content) // 2
    content[middle : middle + 300] = np.random.default_rng(0).bytes(300)
    (tmp_path / "bad.mkv").write_bytes(content)
    with pytest.raises(ImageError, match="damaged after frame .*--keep-going restores what can be read"):
        list(VideoFile(tmp_path / "bad.mkv"))
    video = VideoFile(tmp_path / "bad.mkv", keep_going=True)
    good = list(video)
    assert 5 < len(good) < 40
    assert "damaged" in video.losses[0]
    assert len(video.times) == len(good)
    for frame, time in zip(good, video.times, strict=True):  # what is kept is not made of what is damaged
        assert error(frame, frames[round(time * 25)]) < 0.1
    cut = VideoFile(tmp_path / "cut.mkv", keep_going=True)
    assert 0 < len(list(cut)) < 40
    assert "the video ends after" in cut.losses[0] or "damaged" in cut.losses[0]
    whole = VideoFile(tmp_path / "a.mkv")
    assert len(list(whole)) == 40
    assert whole.losses == []


@pytest.mark.parametrize("sound", [False, True])
def test_a_film_that_starts_late_or_ends_before_its_sound_is_whole(sound, tmp_path):
    """Matroska declares when things end, counted from zero, and the length of its longest track."""
    with av.open(str(tmp_path / "late.mkv"), "w") as container:
        film = container.add_stream("ffv1", rate=25)
        film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
        track = container.add_stream("flac", rate=8000, layout="mono") if sound else None
        for number in range(10):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, np.uint8), format="rgb24")
            picture.pts, picture.time_base = 100 + number, Fraction(1, 25)
            container.mux(film.encode(picture.reformat(format="yuv420p")))
        container.mux(film.encode())
        for number in range(80 if sound else 0):
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), format="s16", layout="mono")
            tone.sample_rate, tone.pts, tone.time_base = 8000, 32000 + 1000 * number, Fraction(1, 8000)
            container.mux(track.encode(tone))
        if sound:
            container.mux(track.encode())
    video = VideoFile(tmp_path / "late.mkv")
    assert len(list(video)) == 10
    assert video.losses == []


def test_sound_that_outlasts_the_film_of_a_wmv_is_no_damage(tmp_path):
    with av.open(str(tmp_path / "a.wmv"), "w") as container:
        film = container.add_stream("wmv2", rate=25)
        film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
        track = container.add_stream("pcm_alaw", rate=8000, layout="mono")
        for number in range(10):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, np.uint8), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(film.encode(picture.reformat(format="yuv420p")))
        container.mux(film.encode())
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 6000), np.int16), format="s16", layout="mono")
        tone.sample_rate, tone.pts, tone.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(track.encode(tone))
    video = VideoFile(tmp_path / "a.wmv")
    assert len(list(video)) == 10
    assert video.losses == []


def test_gaps_in_an_even_video_are_told(tmp_path):
    """Matroska's demuxer skips a damaged stretch without an error."""
    record(tmp_path / "a.mkv", "ffv1", count=60)
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "b.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(source.streams.video[0]) if packet.dts is not None]
        for packet in packets[:20] + packets[30:]:
            packet.stream = stream
            target.mux(packet)
    video = VideoFile(tmp_path / "b.mkv")
    assert len(list(video)) == 50
    assert video.losses == ["damaged or incomplete: 10 frames are missing from 0.8 s on"]


def test_dropped_frames_of_an_avi_are_no_damage(tmp_path):
    """Recorders write chunks of zero bytes for them; the frame before stays longer, here and in the result."""
    record(tmp_path / "a.avi", "ffv1", count=60)
    with av.open(str(tmp_path / "a.avi")) as source, av.open(str(tmp_path / "b.avi"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(source.streams.video[0]) if packet.dts is not None]
        for packet in packets[:20] + packets[22:30] + packets[31:]:
            packet.stream = stream
            target.mux(packet)
    content = bytearray((tmp_path / "b.avi").read_bytes())
    (tmp_path / "c.avi").write_bytes(_without_last_frames(content, 5))
    for name, count in (("b.avi", 57), ("c.avi", 52)):
        video = VideoFile(tmp_path / name)
        assert len(list(video)) == count
        assert video.losses == []
        assert [round(time * 25) for time in video.times] == [t for t in range(count + 3) if t not in (20, 21, 30)]
    start = content.index(b"movi") + struct.unpack_from("<I", content, content.index(b"idx1") + 8 + 16 * 40 + 8)[0]
    content[start : start + 400] = b"\xff" * 400  # frames that are there and damaged
    (tmp_path / "d.avi").write_bytes(content)
    video = VideoFile(tmp_path / "d.avi", keep_going=True)
    assert len(list(video)) < 57
    assert video.losses


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "mjpeg"), ("a.flv", "flv1"), ("a.wmv", "wmv2"), ("a.ts", "mpeg2video"), ("a.avi", "ffv1")],
)
def test_the_last_frames_are_not_lost_in_silence(tmp_path, name, codec):
    """They are fewer than a length in seconds could tell, which sound and rounding change too."""
    record(tmp_path / name, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p", count=30)
    content = (tmp_path / name).read_bytes()
    whole = VideoFile(tmp_path / name)
    assert len(list(whole)) == 30
    assert whole.losses == []
    (tmp_path / f"cut-{name}").write_bytes(content[: int(len(content) * (0.5 if name == "a.wmv" else 0.95))])
    video = VideoFile(tmp_path / f"cut-{name}", keep_going=True)
    assert len(list(video)) < 30
    assert video.losses
    if name == "a.ts":
        at = len(content) - 188 * 12 - 100
        (tmp_path / "b.ts").write_bytes(content[:at] + bytes(188 * 6) + content[at + 188 * 6 :])
        video = VideoFile(tmp_path / "b.ts", keep_going=True)
        assert list(video)
        assert video.losses


@pytest.mark.parametrize(
    ("name", "codec", "size"),
    [
        ("a.y4m", "wrapped_avframe", (48, 64)),
        ("a.ogg", "libvpx", (48, 64)),
        ("a.dv", "dvvideo", (576, 720)),
        ("a.ivf", "libvpx", (48, 64)),
        ("a.mxf", "mpeg2video", (48, 64)),
        ("a.obu", "libsvtav1", (64, 64)),
        ("a.hevc", "libx265", (48, 64)),
    ],
)
def test_a_last_frame_that_is_cut_is_told(tmp_path, name, codec, size):
    """These files declare no length."""
    kind = {"a.y4m": "yuv4mpegpipe", "a.ogg": "ogg"}.get(name)
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    record(tmp_path / name, codec, count=4, format=kind, size=size, options=quiet)
    whole = VideoFile(tmp_path / name)
    assert len(list(whole)) == 4
    assert whole.losses == []
    content = (tmp_path / name).read_bytes()
    cut = 12 if name in ("a.obu", "a.hevc") else 100
    if name == "a.ivf":  # within the head of the frame; libav marks frames that are cut
        with av.open(str(tmp_path / name)) as container:
            cut = 6 + [packet.size for packet in container.demux(video=0)][3]
    (tmp_path / f"cut-{name}").write_bytes(content[:-cut])
    video = VideoFile(tmp_path / f"cut-{name}", keep_going=True)
    assert list(video)
    assert len(video.losses) == 1
    assert video.losses[0].startswith("damaged or truncated: ")


@pytest.mark.parametrize(
    ("kind", "size"),
    [("420jpeg", 35 * 57 + 2 * 18 * 29), ("422p10", 2 * (35 + 2 * 18) * 57), ("411", (35 + 2 * 9) * 57),
     ("444p16", 6 * 35 * 57), ("mono", 35 * 57), ("420paldv", 35 * 57 + 2 * 18 * 29)],
)  # fmt: skip
def test_frames_of_every_kind_of_y4m_are_counted(tmp_path, kind, size):
    path = tmp_path / "a.y4m"
    content = f"YUV4MPEG2 W35 H57 F25:1 C{kind} Xnote\n".encode() + 3 * (b"FRAME Ip\n" + bytes(size))
    path.write_bytes(content)
    assert not is_broken(path, "yuv4mpegpipe")
    path.write_bytes(content[:-1])
    assert is_broken(path, "yuv4mpegpipe")


def test_checksums_of_matroska_are_compared(tmp_path):
    """The decoder of VP8 makes a frame of any bytes."""
    record(tmp_path / "a.mkv", "libvpx", count=30)
    content = bytearray((tmp_path / "a.mkv").read_bytes())
    with av.open(str(tmp_path / "a.mkv")) as container:
        packet = [bytes(packet) for packet in container.demux(video=0)][20]
    content[content.index(packet) + len(packet) // 2] ^= 1
    (tmp_path / "b.mkv").write_bytes(content)
    for name, is_whole in (("a.mkv", True), ("b.mkv", False)):
        video = VideoFile(tmp_path / name, keep_going=True)
        assert len(list(video)) == 30
        assert is_whole == (video.losses == [])


@pytest.mark.parametrize(
    ("name", "codec", "number", "at"),
    [
        ("a.webm", "libvpx-vp9", 1, 0.5),
        ("a.avi", "ffv1", 3, 0.5),
        ("a.ogg", "libvpx", 3, 0.5),
        ("a.mp4", "libx265", 3, 0.8),
        ("a.h264", "libx264", 11, 0.8),
    ],
)
def test_damage_within_a_packet_is_told(tmp_path, name, codec, number, at):
    """Decoders make some frame of it, unless checksums are compared and no error of a thread is lost."""
    options = {
        "ffv1": {"level": "3"},
        "libx264": {"g": "4", "bf": "0", "crf": "1"},
        "libx265": {"x265-params": "log-level=none:hash=1:crf=1"},
    }.get(codec, {})
    record(tmp_path / name, codec, options=options, format="ogg" if name == "a.ogg" else None)
    whole = VideoFile(tmp_path / name)
    assert len(list(whole)) == 12
    assert whole.losses == []
    with av.open(str(tmp_path / name)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0)][number]
    content = bytearray((tmp_path / name).read_bytes())
    where = content.index(packet) + int(at * len(packet))
    content[where] ^= 0xFF
    (tmp_path / name).write_bytes(content)
    video = VideoFile(tmp_path / name, keep_going=True)
    list(video)
    assert video.losses


@pytest.mark.parametrize("name", ["a.webm", "a.flv", "a.ts", "a.avi"])
def test_live_recordings_are_whole(tmp_path, name):
    """Written to a pipe, they declare no sizes."""
    codec = {"a.webm": "libvpx-vp9", "a.flv": "flv1", "a.ts": "mpeg2video", "a.avi": "mjpeg"}[name]
    with (tmp_path / name).open("wb") as file:
        pipe = io.BufferedWriter(_Pipe(file))
        record(
            pipe,
            codec,
            "yuvj420p" if codec == "mjpeg" else "yuv420p",
            count=30,
            format=name[2:].replace("ts", "mpegts"),
        )
        pipe.flush()
    video = VideoFile(tmp_path / name)
    assert len(list(video)) == 30
    assert video.losses == []


class _Pipe(io.RawIOBase):
    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, data):
        return self.file.write(data)


def test_frames_that_the_demuxer_passes_over_are_told(tmp_path, monkeypatch):
    record(tmp_path / "a.avi", "ffv1", count=12)
    monkeypatch.setattr("tta_restore.data.io.video.count_avi_frames", lambda path, stream: (15, True))
    video = VideoFile(tmp_path / "a.avi")
    assert len(list(video)) == 12
    assert video.losses == ["damaged: 3 frames are lost, 12 are good"]


def test_every_packet_of_a_transport_stream_has_its_mark(tmp_path):
    packets = bytearray((b"\x47" + bytes(187)) * 40)
    (tmp_path / "a.ts").write_bytes(packets)
    assert not is_broken(tmp_path / "a.ts", "mpegts")
    packets[30 * 188] = 0
    (tmp_path / "a.ts").write_bytes(packets)
    assert is_broken(tmp_path / "a.ts", "mpegts")


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_the_last_packet_of_a_program_stream_is_whole_or_told(tmp_path, codec):
    """It may be one of sound, which the film's decoder does not meet."""
    path = tmp_path / "a.mpg"
    record(path, codec, count=2, format="mpeg" if codec == "mpeg1video" else "vob")
    content = path.read_bytes()
    assert not is_broken(path, "mpeg")
    path.write_bytes(content + b"\0\0\1\xc0\0\x20" + bytes(31))
    assert is_broken(path, "mpeg")
    path.write_bytes(content + b"\0\0\1\xc0\0\x20" + bytes(32))
    assert not is_broken(path, "mpeg")


def _without_last_frames(content, count):
    """Return an AVI file whose last frames are dropped ones: chunks of zero bytes, and filler."""
    content = bytearray(content)
    index = content.index(b"idx1")
    for entry in range(len(content) - 16 * count, len(content), 16):
        (start,) = struct.unpack_from("<I", content, entry + 8)
        start += content.index(b"movi")
        (size,) = struct.unpack_from("<I", content, start + 4)
        struct.pack_into("<I4sI", content, start + 4, 0, b"JUNK", size + size % 2 - 8)
        struct.pack_into("<I", content, entry + 12, 0)
    assert content[index + 8 :][:4] == b"00dc"
    return bytes(content)


def test_tags_and_chapters_go_along(tmp_path):
    tags = {"title": "First steps", "creation_time": "2019-05-01T10:00:00Z", "com.maker.model": "X1"}
    record(tmp_path / "a.mp4", tags=tags)
    written, _ = copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    with av.open(str(written.path)) as container:
        assert tags.items() <= container.metadata.items()
    written, _ = copy(tmp_path / "a.mp4", tmp_path / "c.mp4", strip=True)
    with av.open(str(written.path)) as container:
        assert not tags.keys() & container.metadata.keys()
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "d.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        base = Fraction(1, 1000)
        times = ((1, 0, 200, "Way"), (2, 200, 400, "Door"))
        target.set_chapters(
            [{"id": i, "start": a, "end": b, "time_base": base, "metadata": {"title": t}} for i, a, b, t in times]
        )
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    written, _ = copy(tmp_path / "d.mkv", tmp_path / "e.mp4")
    with av.open(str(written.path)) as container:
        way, door = container.chapters()
        assert (way["metadata"]["title"], door["metadata"]["title"]) == ("Way", "Door")
        assert 0 < door["start"] * door["time_base"] <= 0.2
    assert any(stream.type == "data" for stream in av.open(str(written.path)).streams)
    _, notes = copy(written.path, tmp_path / "f.mp4")
    assert not any("data track" in note for note in notes)


@pytest.mark.parametrize(
    ("codec", "pixels", "target", "depth", "chroma"),
    [
        ("libx264", "yuv420p10le", "h264", 10, "420"),
        ("libx265", "yuv420p12le", "h264", 10, "420"),
        ("libx265", "yuv420p12le", "hevc", 12, "420"),
        ("libx264", "yuv422p", "h264", 8, "422"),
        ("ffv1", "bgr0", "ffv1", 8, "444"),
        ("libx264", "yuv444p", "av1", 8, "420"),
    ],
)
def test_bits_and_chroma_as_far_as_the_codec_holds_them(tmp_path, codec, pixels, target, depth, chroma):
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    record(tmp_path / "a.mkv", codec, pixels, 3, options=quiet)
    written, notes = copy(tmp_path / "a.mkv", tmp_path / "b.mkv", codec=target)
    assert (written.info.bit_depth, written.info.chroma) == (depth, chroma)
    told = ("12" in pixels and depth == 10) or (target == "av1" and "444" in pixels)
    assert bool(notes) == told
    assert error(next(iter(written)), next(iter(VideoFile(tmp_path / "a.mkv")))) < 0.01


def test_the_chroma_of_pixel_formats_of_all_names():
    found = {chroma: [] for chroma in ("420", "422", "444")}
    names = "gray ya8 nv12 yuv410p nv16 y210le yuv411p yuyv422 nv24 yuv440p vuya pal8 rgb8 gbrap x2rgb10le"
    for name in names.split():
        found[video._chroma_of(av.VideoFormat(name, 64, 64))].append(name)
    assert found["420"] == ["gray", "ya8", "nv12", "yuv410p"]
    assert found["422"] == ["nv16", "y210le", "yuv411p", "yuyv422"]
    assert len(found["444"]) == 7


def test_joined_recordings_go_on_where_their_times_start_again(tmp_path):
    with av.open(str(tmp_path / "a.ts"), "w") as container:
        film, sound = container.add_stream("mpeg2video", rate=25), container.add_stream("mp2", rate=48000)
        film.width, film.height = 64, 48
        for number in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * number, np.uint8), format="rgb24")
            frame.pts = number
            container.mux(film.encode(frame))
            part = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1920), np.int16), format="s16", layout="stereo")
            part.pts, part.sample_rate = 1920 * number, 48000
            container.mux(sound.encode(part))
        container.mux([*film.encode(), *sound.encode()])
    content = (tmp_path / "a.ts").read_bytes()
    (tmp_path / "b.ts").write_bytes(content * 3)
    written, notes = copy(tmp_path / "b.ts", tmp_path / "c.mkv")
    assert notes == ()
    assert len(list(written)) == 75
    steps = [later - time for time, later in zip(written.times, written.times[1:], strict=False)]
    assert steps == pytest.approx([1 / 25] * 74, abs=0.002)
    with av.open(str(tmp_path / "c.mkv")) as container:
        heard = [packet.pts * packet.time_base for packet in container.demux(audio=0) if packet.size]
    assert np.diff(np.array(heard, float)).max() < 0.03
    assert 2.9 < heard[-1] - heard[0] < 3.1


def test_times_below_zero_are_counted_back(tmp_path):
    class Frame:
        def __init__(self, pts):
            self.pts, self.time_base = pts, Fraction(1, 1000)

    frames = with_early_times(map(Frame, (None, None, 0, 40, None)), 3600)
    assert [frame.pts for frame in frames] == [-80, -40, 0, 40, None]
    assert [frame.pts for frame in with_early_times(map(Frame, (None, None)), 3600)] == [None, None]
    assert [ticks for _, ticks in timed(map(Frame, (-80, -40, 0)), Fraction(0), 3600)] == [0, 3600, 7200]


@pytest.mark.parametrize(("name", "options"), [("a.avi", {"bf": "3"}), ("b.avi", {"bf": "0"})])
def test_frames_of_avi_are_in_order_and_evenly_spaced(tmp_path, name, options):
    record(tmp_path / name, options=options)
    video = VideoFile(tmp_path / name)
    levels = [frame[:, :, -8:].mean().item() for frame in video]
    assert levels == sorted(levels)
    assert [float(t) for t in video.times] == pytest.approx([i / 25 for i in range(12)], abs=0.05)
    steps = {b - a for a, b in zip(video.times, video.times[1:], strict=False)}
    assert steps == {Fraction(1, 25)}


def test_color_tags_of_high_dynamic_range_are_kept(tmp_path):
    record(
        tmp_path / "a.mkv",
        "libx264",
        "yuv420p10le",
        3,
        options={
            "colorprim": "bt2020",
            "transfer": "smpte2084",
            "colormatrix": "bt2020nc",
            "x264-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc",
        },
    )
    video = VideoFile(tmp_path / "a.mkv")
    assert video.info.colors == (9, 9, 16)
    assert "high dynamic range (PQ)" in video.notes[0]
    assert copy(tmp_path / "a.mkv", tmp_path / "b.mkv")[0].info.colors == (9, 9, 16)


@pytest.mark.parametrize(
    ("name", "container", "codec"),
    [
        ("a.MTS", "mpegts", "libx264"),
        ("a.mpg", "mpeg", "mpeg2video"),
        ("a.3gp", "3gp", "libx264"),
        ("a.flv", "flv", "flv"),
        ("a.wmv", "asf", "wmv2"),
        ("a.h264", "h264", "libx264"),
        ("a.ivf", "ivf", "libvpx-vp9"),
        ("a.nut", "nut", "ffv1"),
        ("a.m4v", "m4v", "mpeg4"),
    ],
)
def test_videos_are_read_by_content(tmp_path, name, container, codec):
    record(tmp_path / name, codec, count=4, format=container, size=(96, 128))
    (tmp_path / name).rename(tmp_path / "film")
    assert len(list(VideoFile(tmp_path / "film"))) == 4
    assert VideoFile(tmp_path / "film").times == []


def test_streams_without_a_container_are_timed_by_their_rate(tmp_path):
    for name, codec, options in (("a.h264", "libx264", {}), ("a.hevc", "libx265", {"x265-params": "log-level=none"})):
        record(tmp_path / name, codec, count=5, format=name[2:], options=options)
        assert detect_format((tmp_path / name).read_bytes()).kind == "video"
        written, notes = copy(tmp_path / name, tmp_path / "b.mkv")
        assert len(list(written)) == 5
        assert written.times == [Fraction(number, 25) for number in range(5)]
        assert notes == ()


@pytest.mark.thorough
def test_nonsense_rates_and_alpha_in_packets_of_its_own(tmp_path):
    record(tmp_path / "a.dv", "dvvideo", format="dv", size=(576, 720))
    video = VideoFile(tmp_path / "a.dv")
    assert video.info.frame_rate == 25
    written, _ = copy(tmp_path / "a.dv", tmp_path / "b.mp4")
    assert len(list(written)) == 12
    record(tmp_path / "a.webm", "libvpx-vp9", "yuva420p")
    assert VideoFile(tmp_path / "a.webm").notes == ["alpha channel left out"]
    record(tmp_path / "a.nut", "rawvideo", "ya8")
    assert VideoFile(tmp_path / "a.nut").notes == ["alpha channel left out"]


def test_names_with_a_colon_are_files(tmp_path):
    record(tmp_path / "a.mkv", count=2)
    (tmp_path / "a.mkv").rename(tmp_path / "http:x.mkv")
    assert len(list(VideoFile(tmp_path / "http:x.mkv"))) == 2


def test_frames_are_not_gathered(tmp_path):
    """At no time do more than a few decoded frames live, whatever the length."""
    import weakref

    record(tmp_path / "a.mkv", count=80)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    video = VideoFile(tmp_path / "a.mkv")

    def frames():
        nonlocal most
        for frame in video:
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    write_video(tmp_path / "b.mkv", frames(), like=video)
    assert most <= 3


@pytest.mark.parametrize(
    ("pts", "expected"),
    [
        ((None, 7, 3), (0, 3000, 6000)),  # AVI with frames reordered: times of some are no times
        ((-2, 0, 1), (0, 6000, 9000)),
        ((0, 1, None, 3), (0, 3000, 6000, 9000)),
        ((0, 1, 1, 2), (0, 3000, 3001, 6000)),
        ((90, 91, 0, 1), (270000, 273000, 276000, 279000)),  # joined files
    ],
)
def test_times_of_frames_increase(pts, expected):
    frames = [types.SimpleNamespace(pts=time, time_base=Fraction(1, 30)) for time in pts]
    assert tuple(time for _, time in timed(iter(frames), Fraction(0), 3000)) == expected
