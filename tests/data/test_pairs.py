"""Aligned pairs: layouts with views, 8 and 16 bit, crops that lie on each other, and what a lens makes of a picture."""

import pytest
import torch
import torch.nn.functional as F

from tta_restore.data.datasets.augmentation import Augmentation
from tta_restore.data.datasets.layouts import PairFiles, find_files, find_pairs, folder_frames
from tta_restore.data.datasets.pairs import DegradedPairs, FolderCrops, LensPairs, read_images, simulate_dual_pixel
from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.degradations import Blur, Noise, Resize
from tta_restore.degradations import lens as optics


def put(path, pixels=None, bit_depth=8):
    pixels = torch.full((3, 20, 24), 0.5) if pixels is None else pixels
    write_image(path, Image(pixels), bit_depth=bit_depth)


@pytest.fixture
def dpdd(tmp_path):
    """As the data set is: pictures of a scene have numbers of their own."""
    generator = torch.Generator().manual_seed(0)
    for i in (9, 10):
        for offset, folder in enumerate(("train_c/target", "train_c/source", "train_r/source", "train_l/source")):
            picture = torch.rand(3, 20, 24, generator=generator)
            put(tmp_path / folder / f"1P0A{100 * offset + i}.png", picture, bit_depth=16)
    return tmp_path


def test_views_are_found_and_cropped_alike(dpdd):
    files = find_files(dpdd, "dpdd", "train", views=True)
    assert [entry.blurry.name for entry in files] == ["1P0A109.png", "1P0A110.png"]
    first = files[0]
    assert (first.sharp.name, first.right.name, first.left.name) == ("1P0A9.png", "1P0A209.png", "1P0A309.png")
    assert first.right.parent.parent.name == "train_r"
    whole = read_images(first)
    assert whole.shape == (4, 3, 20, 24)
    pair = FolderCrops(files[:1], size=16, augmentation=None)(2, torch.Generator().manual_seed(0))
    for crop in (torch.stack([t[0] for t in (pair.blurry, pair.sharp, pair.right, pair.left)]),):
        windows = whole.unfold(2, 16, 1).unfold(3, 16, 1)
        assert (windows == crop[:, :, None, None]).flatten(4).all(-1).all(1).all(0).sum() == 1
    assert find_files(dpdd, "dpdd", "train")[0].right is None


def test_sixteen_bits_are_kept_or_cut_as_published(dpdd):
    files = find_files(dpdd, "dpdd", "train")
    exact = read_image(files[0].blurry).pixels
    torch.testing.assert_close(read_images(files[0])[0], exact)
    cut = read_images(files[0], bit_depth=8)[0] * 255
    assert torch.equal(cut.round(), ((exact * 65535).round() // 256))
    torch.testing.assert_close(cut, cut.round(), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="bit_depth to be 8 or None, got 12"):
        read_image(files[0].blurry).as_rgb(bit_depth=12)


def test_what_is_missing_is_said_before_anything_is_read(dpdd, tmp_path):
    (dpdd / "train_l/source/1P0A310.png").unlink()
    with pytest.raises(ValueError, match=r"train_l/source: 2 blurry and 1 sharp files do not pair up"):
        find_files(dpdd, "dpdd", "train", views=True)
    for path in (dpdd / "train_l/source").iterdir():
        path.unlink()
    (dpdd / "train_l/source").rmdir()
    with pytest.raises(ValueError, match="expected train_c/source and train_c/target and train_r/source and train_l"):
        find_files(dpdd, "dpdd", "train", views=True)
    with pytest.raises(ValueError, match="realdof has no dual-pixel views"):
        find_files(dpdd, "realdof", "test", views=True)
    with pytest.raises(ValueError, match=r"expected test_c/source and test_c/target or .* found: train_c, train_l"):
        find_files(dpdd, "dpdd", "test")


def test_data_sets_without_originals(tmp_path):
    for i in (2, 10):
        put(tmp_path / f"CUHK/image/out_of_focus{i}.jpg")
        put(tmp_path / f"CUHK/gt/out_of_focus{i}.png")  # masks of what is blurred, not sharp pictures
        put(tmp_path / f"PixelDP/test_c/source/{i}.png")
        put(tmp_path / f"flat/{i}.png")
    files = find_files(tmp_path / "CUHK", "cuhk", "test")
    assert [(entry.blurry.name, entry.sharp) for entry in files] == [
        ("out_of_focus2.jpg", None),
        ("out_of_focus10.jpg", None),
    ]
    assert len(find_files(tmp_path / "flat", "pixeldp", "test")) == 2
    frames = folder_frames({"CUHK": tmp_path / "CUHK", "PixelDP": tmp_path / "PixelDP"})
    assert [frame.sharp_path for frame in frames] == [None] * 4
    with pytest.raises(ValueError, match="images of cuhk have no sharp originals"):
        find_pairs(tmp_path / "CUHK", "cuhk", "test")
    with pytest.raises(ValueError, match=r"out_of_focus2.jpg has no sharp original to train on"):
        FolderCrops(files)


def test_pictures_of_a_pair_are_of_one_size(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png", torch.zeros(3, 10, 10))
    with pytest.raises(ValueError, match=r"a.png: expected one size .* a.png \(20, 24\), b.png \(10, 10\)"):
        read_images(PairFiles(tmp_path / "a.png", tmp_path / "b.png"))
    files = [PairFiles(tmp_path / "a.png", tmp_path / "a.png")]
    with pytest.raises(ValueError, match="smaller than a crop of 32"):
        FolderCrops(files, size=32)(1, torch.Generator())
    with pytest.raises(ValueError, match="at least one pair"):
        FolderCrops([])


@pytest.mark.parametrize("views", [False, True])
def test_generated_pairs(views):
    pictures = torch.rand(2, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    source = LensPairs(pictures, size=40, views=views)
    pair = source(3, torch.Generator().manual_seed(1))
    again = source(3, torch.Generator().manual_seed(1))
    for name in ("blurry", "sharp", "right", "left") if views else ("blurry", "sharp"):
        assert getattr(pair, name).shape == (3, 3, 40, 40)
        assert torch.equal(getattr(pair, name), getattr(again, name))
    assert (pair.right is None) == (not views)
    assert pair.blurry.std() < 0.9 * pair.sharp.std()
    with pytest.raises(ValueError, match="S >= 56"):
        LensPairs(pictures[..., :50, :50], size=40)


def test_views_lie_on_both_sides_of_the_picture():
    """A bright point: the views show it left and right of where the picture has it, and both together are it."""
    point = torch.zeros(1, 3, 56, 56)
    point[..., 28, 28] = 1
    lens = optics.Lens("disk", optics.disk, (5.0, 5.0))
    pair = simulate_dual_pixel(point, [lens], torch.Generator().manual_seed(0))
    axis = torch.arange(40.0)

    def center(picture):
        light = F.relu(picture[0, 0] - 0.02)
        return float((light.sum(0) * axis).sum() / light.sum())

    assert center(pair.blurry) == pytest.approx(20, abs=0.3)
    assert center(pair.right) - center(pair.blurry) == pytest.approx(2.1, abs=0.5)  # half a disk's: 4 / (3 pi) radii
    assert center(pair.blurry) - center(pair.left) == pytest.approx(2.1, abs=0.5)


def test_augmentation_is_used(tmp_path):
    put(tmp_path / "a.png", torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0)))
    files = [PairFiles(tmp_path / "a.png", tmp_path / "a.png")]
    pair = FolderCrops(files, size=16, augmentation=Augmentation(noise_prob=0, scale_prob=0, gray_prob=1))(
        1, torch.Generator()
    )
    assert torch.equal(pair.blurry[:, 0], pair.blurry[:, 2])


def test_degraded_pairs_carry_one_of_the_degradations_each():
    sharp = torch.rand(3, 3, 90, 90, generator=torch.Generator().manual_seed(0))
    source = DegradedPairs(sharp, degradations=[Noise(read_std=0.3), Blur(radius=3.0, lens="gaussian")], size=32)
    pair = source(16, torch.Generator().manual_seed(1))
    again = source(16, torch.Generator().manual_seed(1))
    assert torch.equal(pair.blurry, again.blurry)
    assert pair.blurry.shape == pair.sharp.shape == (16, 3, 32, 32)
    assert pair.right is None
    assert 0 <= pair.blurry.min() < pair.blurry.max() <= 1
    ratio = pair.blurry.std((1, 2, 3)) / pair.sharp.std((1, 2, 3))
    noisy, soft = (ratio > 1).sum(), (ratio < 0.6).sum()
    assert noisy + soft == 16
    assert min(noisy, soft) > 0
    with pytest.raises(ValueError, match="S >= 80 for pairs of 32 pixels"):
        DegradedPairs(sharp[..., :70], degradations=[Noise()], size=32)
    with pytest.raises(ValueError, match="at least one degradation"):
        DegradedPairs(sharp, degradations=[])
    with pytest.raises(ValueError, match="images of the same size from Resize"):
        DegradedPairs(sharp, degradations=[Resize(2)], size=32)(1, torch.Generator())
