"""Side data of videos: carried over where the format can hold it, otherwise named as lost."""

from __future__ import annotations

import gc

import pytest
import torch

from tta_restore.data.io.side_data import Hdr10
from tta_restore.data.io.video import VideoFile
from tta_restore.data.io.video_writer import write_video

av = pytest.importorskip("av")
np = pytest.importorskip("numpy")

RED = torch.tensor([0.7, 0.2, 0.3]).view(3, 1, 1).expand(3, 64, 64)
DISPLAY = "G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(10000000,50)"
HDR10 = Hdr10(
    primaries=((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),
    white_point=(0.3127, 0.329),
    luminance=(0.005, 1000.0),
    light_level=(1000, 400),
)


def encode(path, count=3, codec="libx264", options=None, pixels="yuv420p", prepare=None, picture=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width = stream.height = 64
        stream.pix_fmt = pixels
        if prepare is not None:
            prepare(container, stream)
        for number in range(count):
            array = np.full((64, 64, 3), 40 * number, np.uint8) if picture is None else picture
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("codec", "suffix"), [("h264", ".mkv"), ("hevc", ".mp4"), ("av1", ".mp4")])
def test_hdr10_metadata_are_kept(tmp_path, codec, suffix):
    options = {"x265-params": f"log-level=none:master-display={DISPLAY}:max-cll=1000,400"}
    video = VideoFile(encode(tmp_path / "a.mp4", codec="libx265", options=options, pixels="yuv420p10le"))
    assert video.info.hdr10 == HDR10
    assert write_video(tmp_path / f"b{suffix}", iter(video), like=video, codec=codec) == ()
    kept = VideoFile(tmp_path / f"b{suffix}").info.hdr10
    assert kept.light_level == (1000, 400)
    for found, expected in zip(kept.primaries, HDR10.primaries, strict=True):
        assert found == pytest.approx(expected, abs=2e-5)
    assert kept.white_point == pytest.approx(HDR10.white_point, abs=2e-5)
    assert kept.luminance == pytest.approx(HDR10.luminance, abs=1e-4)


def test_a_codec_that_cannot_hold_hdr10_metadata_says_so(tmp_path):
    options = {"x265-params": "log-level=none:max-cll=1000,400"}
    video = VideoFile(encode(tmp_path / "a.mp4", codec="libx265", options=options))
    assert video.info.hdr10 == Hdr10(light_level=(1000, 400))
    [note] = write_video(tmp_path / "b.mkv", iter(video), like=video, codec="ffv1")
    assert note.startswith("HDR10 metadata left out")


def captions(number):
    """SEI unit with one pair of CEA-608 bytes."""
    content = bytes([0xB5, 0, 0x31, *b"GA94", 3, 0x41, 0xFF, 0xFC, 0x94, 0x20 + number % 2, 0xFF])
    return b"\0\0\0\1\x06\x04" + bytes([len(content)]) + content + b"\x80"


@pytest.mark.parametrize("start", [0, 6])
def test_closed_captions_are_named_wherever_they_begin(tmp_path, start):
    context = av.CodecContext.create("libx264", "w")
    context.width = context.height = 64
    context.pix_fmt, context.framerate = "yuv420p", 25
    context.options = {"bf": "0", "tune": "zerolatency"}
    content = b""
    for number in range(9):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * number, np.uint8), format="rgb24")
        for packet in context.encode(frame):
            data = bytes(packet)
            at = max(data.find(b"\0\0\1\x65"), data.find(b"\0\0\1\x41"))
            at = at if at >= 0 else data.find(b"\0\0\1\x61")
            content += data[:at] + (captions(number) if number >= start else b"") + data[at:]
    (tmp_path / "a.h264").write_bytes(content)
    video = VideoFile(tmp_path / "a.h264")
    expected = "closed captions within the frames left out"
    assert (expected in video.notes) == (start == 0)
    notes = write_video(tmp_path / "b.mp4", iter(video), like=video)
    assert (expected in notes) == (start > 0)


@pytest.mark.parametrize("mirror", [{}, {"hflip": True}, {"vflip": True}])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_turned_and_mirrored_as_the_display_matrix_demands(tmp_path, degrees, mirror):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :32], picture[:32, 32:], picture[32:, :32] = 200, 140, 80
    prepare = lambda container, stream: stream.set_display_rotation(degrees, **mirror)  # noqa: E731
    video = VideoFile(encode(tmp_path / "a.mp4", prepare=prepare, picture=picture))
    expected = np.rot90(picture, degrees // 90)
    expected = expected[:, ::-1] if "hflip" in mirror else expected[::-1] if "vflip" in mirror else expected
    restored = next(iter(video)).mul(255).permute(1, 2, 0).numpy()
    for y in (16, 48):
        for x in (16, 48):
            assert restored[y, x] == pytest.approx(expected[y, x], abs=4)


def test_attached_fonts_and_tags_of_the_film_are_kept(tmp_path):
    def prepare(container, stream):
        container.add_attachment("Title.ttf", "font/ttf", b"glyphs")
        stream.metadata["language"], stream.metadata["title"] = "fra", "Director's cut"

    video = VideoFile(encode(tmp_path / "a.mkv", prepare=prepare))
    assert write_video(tmp_path / "b.mkv", iter(video), like=video) == ()
    with av.open(str(tmp_path / "b.mkv")) as container:
        [font] = [stream for stream in container.streams if stream.type == "attachment"]
        assert (font.name, font.mimetype, bytes(font.data)) == ("Title.ttf", "font/ttf", b"glyphs")
        tags = container.streams.video[0].metadata
        assert (tags["language"], tags["title"]) == ("fra", "Director's cut")
    assert write_video(tmp_path / "c.mp4", iter(video), like=video) == (
        "attached file left out: Title.ttf; .mkv holds them",
    )
    write_video(tmp_path / "d.mkv", iter(video), like=video, strip=True)
    with av.open(str(tmp_path / "d.mkv")) as container:
        assert "title" not in container.streams.video[0].metadata


def test_timecodes_of_a_camera_are_kept(tmp_path):
    prepare = lambda container, stream: stream.metadata.update({"timecode": "10:20:30:05"})  # noqa: E731
    encode(tmp_path / "a.mov", prepare=prepare)
    video = VideoFile(tmp_path / "a.mov")
    assert write_video(tmp_path / "b.mov", iter(video), like=video) == ()
    with av.open(str(tmp_path / "b.mov")) as container:
        assert container.streams.video[0].metadata["timecode"] == "10:20:30:05"
        assert [stream.type for stream in container.streams] == ["video", "data"]


@pytest.mark.thorough
def test_decoded_frames_are_freed_one_by_one(tmp_path):
    """Not only by the garbage collector, which may come after hundreds of frames."""
    film = VideoFile(encode(tmp_path / "film.mkv", 16, picture=np.full((64, 64, 3), 90, np.uint8)))
    gc.collect()
    gc.disable()
    try:
        alive = [sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) for _ in film]
    finally:
        gc.enable()
    assert len(alive) == 16
    assert max(alive) < 10
