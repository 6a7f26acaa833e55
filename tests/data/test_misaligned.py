"""Misaligned pairs made of sharp pictures, folders of data sets."""

import pytest
import torch

from tta_restore import ops
from tta_restore.data.datasets.layouts import find_pairs
from tta_restore.data.datasets.misaligned import FolderPairs, GeneratedPairs, Misalignment, load_sharp_images
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.degradations import Noise
from tta_restore.degradations import lens as optics

TINY = optics.Lens("disk", optics.disk, (0.1, 0.2))  # smaller than a pixel: no blur


def source(misalignment, lens=lambda generator: TINY, size=96):
    axis = torch.arange(200) * 0.2  # smooth, so that interpolation does not hide what is tested
    down = axis[:, None]
    waves = torch.stack([axis.sin() * (1.3 * down).cos(), (axis + down).sin(), axis.cos() + 0 * down])
    return GeneratedPairs(waves[None] / 2 + 0.5, size=size, lens=lens, misalignment=misalignment)


@pytest.mark.parametrize("kind", ["shift", "zoom", "rotation", "local", "all"])
def test_true_flow_aligns_the_pair(kind):
    none = {"shift": 0.0, "zoom": 0.0, "rotation": 0.0, "local": 0.0}
    most = {"shift": 5.0, "zoom": 0.03, "rotation": 0.03, "local": 2.0}
    pair = source(Misalignment(**(most if kind == "all" else none | {kind: most[kind]})))(2, torch.Generator())
    warped = ops.flow_warp(pair.sharp, pair.flow, padding_mode="border")
    inner = (..., slice(14, -14), slice(14, -14))
    left = (warped - pair.aligned)[inner].abs().mean()
    assert left < 0.3 * (pair.sharp - pair.aligned)[inner].abs().mean()
    assert left < 0.004
    assert (pair.blurry - pair.aligned).abs().mean() < 0.02  # noise and rounding alone: no blur here


def test_no_misalignment_is_none():
    pair = source(Misalignment(0, 0, 0, 0))(1, torch.Generator().manual_seed(1))
    torch.testing.assert_close(pair.sharp, pair.aligned, atol=2e-5, rtol=0)
    assert pair.flow.abs().max() < 1e-4


def test_pairs_repeat_with_their_generator_and_have_their_size():
    make = source(Misalignment(), lens=optics.random_lens, size=64)
    one, again, other = (make(2, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert one.blurry.shape == one.sharp.shape == one.aligned.shape == (2, 3, 64, 64)
    assert one.flow.shape == (2, 2, 64, 64)
    assert torch.equal(one.blurry, again.blurry)
    assert torch.equal(one.flow, again.flow)
    assert not torch.equal(one.blurry, other.blurry)


def test_refusals():
    with pytest.raises(ValueError, match=r"images \(N, 3, S, S\) with S >= "):
        GeneratedPairs(torch.rand(1, 3, 64, 64), size=64)
    with pytest.raises(ValueError, match="zoom to be a number >= 0"):
        Misalignment(zoom=-1)
    with pytest.raises(ValueError, match="at least one pair"):
        FolderPairs([])


def put(path, size=(20, 24), value=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, Image(torch.full((3, *size), value)))


@pytest.mark.parametrize(
    ("layout", "split", "blurry", "sharp"),
    [
        ("sdd", "train", "train_patches/blur", "train_patches/gt"),
        ("sdd", "test", "test/blur", "test/gt"),
        ("dpdd", "train", "train_c/source", "train_c/target"),
        ("dpdd", "val", "val/source", "val/target"),
        ("realdof", "test", "source", "target"),
        ("ded", "test", "test/blur", "test/gt"),
        ("folders", "train", "blurry", "sharp"),
    ],
)
def test_layouts(tmp_path, layout, split, blurry, sharp):
    for i in range(3):
        put(tmp_path / blurry / f"{i}.png", value=0.2)
        put(tmp_path / sharp / f"{i}.png", value=0.8)
    pairs = find_pairs(tmp_path, layout, split)
    assert [(a.parent, b.parent) for a, b in pairs] == [(tmp_path / blurry, tmp_path / sharp)] * 3
    assert all(a.stem == b.stem for a, b in pairs)
    pair = FolderPairs(pairs, size=16)(4, torch.Generator().manual_seed(0))
    assert pair.blurry.shape == pair.sharp.shape == (4, 3, 16, 16)
    assert pair.blurry.mean() < 0.3 < 0.7 < pair.sharp.mean()
    assert pair.aligned is None
    assert pair.flow is None


def test_names_of_other_data_pair_by_order(tmp_path):
    for i in range(2):
        put(tmp_path / f"blurry/a{i}.png")
        put(tmp_path / f"sharp/b{i}.png")
    assert [(a.stem, b.stem) for a, b in find_pairs(tmp_path, "folders")] == [("a0", "b0"), ("a1", "b1")]


def test_clear_errors(tmp_path):
    with pytest.raises(ValueError, match="expected train_patches/blur and train_patches/gt in it for sdd"):
        find_pairs(tmp_path / "nowhere", "sdd")
    with pytest.raises(ValueError, match="layout to be one of 'sdd'"):
        find_pairs(tmp_path, "gopro")
    with pytest.raises(ValueError, match="split of realdof to be one of 'test'"):
        find_pairs(tmp_path, "realdof", "train")
    (tmp_path / "blurry").mkdir()
    (tmp_path / "sharp").mkdir()
    with pytest.raises(ValueError, match="blurry: no images there"):
        find_pairs(tmp_path, "folders")
    put(tmp_path / "blurry/1.png")
    put(tmp_path / "blurry/2.png")
    put(tmp_path / "sharp/1.png")
    with pytest.raises(ValueError, match="2 blurry and 1 sharp files do not pair up; without a partner: 2"):
        find_pairs(tmp_path, "folders")
    put(tmp_path / "sharp/2.png", size=(10, 10))
    with pytest.raises(ValueError, match="expected one size"):
        FolderPairs(find_pairs(tmp_path, "folders"), size=8)(16, torch.Generator())
    put(tmp_path / "sharp/2.png")
    with pytest.raises(ValueError, match="smaller than a crop of 64"):
        FolderPairs(find_pairs(tmp_path, "folders"), size=64)(1, torch.Generator())


def test_a_folder_of_sharp_pictures(tmp_path):
    put(tmp_path / "a/one.png", size=(40, 70))
    put(tmp_path / "two.jpg", size=(32, 32))
    put(tmp_path / "small.png", size=(10, 10))
    assert load_sharp_images(tmp_path, size=32).shape == (3, 3, 32, 32)
    with pytest.raises(ValueError, match="at least 64 x 64 pixels, found 3 files"):
        load_sharp_images(tmp_path, size=64)


def test_degradations_take_the_place_of_lenses():
    axis = torch.arange(200) * 0.2
    images = (axis.sin() * axis[:, None].cos() / 2 + 0.5).expand(1, 3, -1, -1)
    noise = GeneratedPairs(images, size=64, degradations=[Noise(read_std=0.1)])
    pair = noise(2, torch.Generator().manual_seed(0))
    assert (pair.blurry - pair.aligned).std() == pytest.approx(0.1, abs=0.02)  # and no blur
    assert (pair.sharp - pair.aligned).abs().mean() > 0.02  # misaligned as before
