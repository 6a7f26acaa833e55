"""Data sets in folders: the layouts they are handed out in, the order of frames, and what cannot be paired."""

import pytest
import torch

from tta_restore.data.datasets.layouts import folder_frames
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image


def put(path, value=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, Image(torch.full((3, 4, 6), value)))


def test_the_layouts_of_the_field(tmp_path):
    for i in (10, 2):
        put(tmp_path / "DPDD" / "source" / f"1P0A{i}.png", i / 20)
        put(tmp_path / "DPDD" / "target" / f"1P0A{i}.png", i / 40)
        put(tmp_path / "RTF" / "input" / f"{i}_blur.png")
        put(tmp_path / "RTF" / "gt" / f"{i}_sharp.png")
        put(tmp_path / "CUHK" / f"out_of_focus{i}.jpg")
    for k in range(3):
        put(tmp_path / "LFDOF" / "input" / "scene7" / f"{k}.png")
    put(tmp_path / "LFDOF" / "ground_truth" / "scene7.png")
    names = ["DPDD", "RTF", "LFDOF", "CUHK"]
    frames = folder_frames({name: tmp_path / name for name in names}, rounds=2)
    assert [frame.family for frame in frames] == (["DPDD"] * 2 + ["RTF"] * 2 + ["LFDOF"] * 3 + ["CUHK"] * 2) * 2
    first = frames[0]
    assert (first.photo, first.position) == ("1P0A2", 0)
    torch.testing.assert_close(first.blurry.mean(), torch.tensor(0.1), atol=2e-3, rtol=0)
    torch.testing.assert_close(first.sharp.mean(), torch.tensor(0.05), atol=2e-3, rtol=0)
    assert first.blurry.shape == (3, 4, 6)
    assert frames[2].sharp_path.name == "2_sharp.png"
    assert {frame.sharp_path.name for frame in frames[4:7]} == {"scene7.png"}
    assert frames[7].sharp_path is None
    with pytest.raises(ValueError, match="CUHK: .* has no sharp original"):
        _ = frames[7].sharp
    assert len(folder_frames({"LFDOF": tmp_path / "LFDOF"}, limit=2)) == 2


def test_what_cannot_be_paired_is_said(tmp_path):
    with pytest.raises(ValueError, match="A: there is no folder"):
        folder_frames({"A": tmp_path / "nowhere"})
    with pytest.raises(ValueError, match="A: no images below"):
        folder_frames({"A": tmp_path})
    put(tmp_path / "A" / "source" / "1.png")
    with pytest.raises(ValueError, match="A: .* holds source; expected folders of blurry and of sharp images"):
        folder_frames({"A": tmp_path / "A"})
    put(tmp_path / "A" / "target" / "2.png")
    put(tmp_path / "A" / "target" / "3.png")
    with pytest.raises(ValueError, match="1 blurry and 2 sharp files do not pair up; without a partner: 1, 2, 3"):
        folder_frames({"A": tmp_path / "A"})


def test_a_known_data_set_must_have_its_originals(tmp_path):
    put(tmp_path / "DPDD" / "test_c" / "source" / "1.png")
    put(tmp_path / "DPDD" / "test_c" / "target" / "1.png")
    assert len(folder_frames({"DPDD": tmp_path / "DPDD"})) == 1
    with pytest.raises(ValueError, match=r"DPDD: .* expected test_c/source and test_c/target or .*, found: DPDD$"):
        folder_frames({"DPDD": tmp_path})  # the folder above it
    assert folder_frames({"mine": tmp_path / "DPDD" / "test_c" / "source"})[0].sharp_path is None


def test_folders_of_unknown_names_are_not_taken_for_inputs(tmp_path):
    put(tmp_path / "mine" / "out_of_focus" / "1.png")
    assert len(folder_frames({"mine": tmp_path / "mine"})) == 1
    put(tmp_path / "mine" / "masks" / "1.png")
    with pytest.raises(ValueError, match="mine: .* holds images in masks, out_of_focus: which of them are inputs"):
        folder_frames({"mine": tmp_path / "mine"})
    put(tmp_path / "CUHK" / "1.jpg")
    put(tmp_path / "CUHK" / "results" / "1.jpg")
    with pytest.raises(ValueError, match=r"CUHK: .* holds images in \., results"):
        folder_frames({"CUHK": tmp_path / "CUHK"})
