"""EXIF blocks: what is changed of them, and maker notes that point to bytes elsewhere."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from tta_restore.data.io import exif
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image

NAME, VALUES = b"Caf\xe9 Ltd\0", b"values of a maker"


def make_block(order, maker, *, orientation=6, is_absolute=True):
    """Return a block with a maker note whose one value is found from the start of the block, or of the note."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    note_at = 80
    size = len(maker) + 18 + len(VALUES)
    target = len(maker) + 18 + (note_at if is_absolute else 0)
    note = maker + struct.pack(f"{order}HHHII", 1, 7, 7, len(VALUES), target) + bytes(4) + VALUES
    first = struct.pack(f"{order}HHHII", 3, 0x010F, 2, len(NAME), note_at + size)
    first += struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0) + struct.pack(f"{order}HHII", 0x8769, 4, 1, 50)
    inner = struct.pack(f"{order}HHHII", 1, 0x927C, 7, size, note_at) + bytes(4)
    head = mark + struct.pack(f"{order}I", 8) + (first + bytes(4)).ljust(42, b"\0") + inner
    return b"Exif\0\0" + head.ljust(note_at, b"\0") + note + NAME


def entry(data, order, at, wanted):
    """Return type, number and place of the values of an entry."""
    (count,) = struct.unpack_from(f"{order}H", data, at)
    for place in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number, target = struct.unpack_from(f"{order}HHII", data, place)
        if tag == wanted:
            return kind, number, target
    raise KeyError(wanted)


def note_of(data):
    """Return maker note, its place and the name of the maker in a block or a TIFF file."""
    order = "<" if data[:2] == b"II" else ">"
    (first,) = struct.unpack_from(f"{order}I", data, 4)
    _, length, at = entry(data, order, first, 0x010F)
    _, size, place = entry(data, order, entry(data, order, first, 0x8769)[2], 0x927C)
    return data[place : place + size], place, data[at : at + length]


@pytest.mark.parametrize("order", ["<", ">"])
def test_nothing_but_the_orientation_of_a_block_changes(order):
    notes = []
    block, orientation = exif.reset_orientation(make_block(order, b""), notes)
    assert (block, orientation, notes) == (make_block(order, b"", orientation=1), 6, [])


def test_the_preview_of_the_old_samples_is_left_out():
    stream = io.BytesIO()
    PilImage.fromarray(np.zeros((4, 4, 3), np.uint8)).save(stream, "JPEG")
    preview = stream.getvalue()
    whole = make_block("<", b"")[6:]
    entries = struct.pack("<HHHII", 2, 0x0201, 4, 1, len(whole) + 30) + struct.pack("<HHII", 0x0202, 4, 1, len(preview))
    linked = bytearray(whole + entries + bytes(4) + preview)
    linked[46:50] = struct.pack("<I", len(whole))
    block, _ = exif.reset_orientation(bytes(linked), [])
    assert block == make_block("<", b"", orientation=1) + entries + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("maker", "is_absolute"),
    [(b"", True), (b"Panasonic\0\0\0", True), (b"SONY DSC \0\0\0", True), (b"FUJIFILM", False)],
)
def test_maker_notes_and_their_values_reach_every_format(order, maker, is_absolute, tmp_path):
    given = make_block(order, maker, is_absolute=is_absolute)
    image = Image(torch.rand(3, 4, 5), exif=exif.reset_orientation(given, [])[0])
    for name in ("a.jpg", "a.png", "a.webp", "a.avif", "a.tif"):
        assert write_image(tmp_path / name, image) == ()
        blocks = [read_image(tmp_path / name).exif.removeprefix(b"Exif\0\0")]
        if name == "a.tif":
            blocks.append((tmp_path / name).read_bytes())
        for data in blocks:
            note, place, name_of_maker = note_of(data)
            target = struct.unpack_from(f"{order}I", note, len(maker) + 10)[0] + (0 if is_absolute else place)
            assert data[target : target + len(VALUES)] == VALUES
            assert name_of_maker == NAME


def test_exif_behind_the_samples_of_a_png_file_is_read(tmp_path):
    stream = io.BytesIO()
    PilImage.fromarray(np.zeros((4, 6, 3), np.uint8)).save(stream, "PNG", exif=make_block("<", b""))
    content = stream.getvalue()
    at = content.index(b"eXIf") - 4
    end = at + 12 + struct.unpack_from(">I", content, at)[0]
    (tmp_path / "a.png").write_bytes(content[:at] + content[end:-12] + content[at:end] + content[-12:])
    image = read_image(tmp_path / "a.png")
    assert image.pixels.shape == (3, 6, 4)
    assert image.exif == make_block("<", b"", orientation=1)
