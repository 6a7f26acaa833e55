import re

import hypothesis
import pytest
import torch
from adapters.zoo import UNet, build
from hypothesis import strategies as st
from torch import nn

from tta_restore._core import progress
from tta_restore.adapters import Adapter, CenterCrop, SelfEnsemble, SiamCTTA, Tiles
from tta_restore.adapters.views import OFFICIAL_REGION
from tta_restore.models import RestorerSpec, SizeRequirements


@pytest.mark.parametrize(("size", "expected"), [
    ((1120, 1680), (1120, 1120)), ((1680, 1120), None), ((1536, 2320), (1120, 1120)), ((688, 1008), None),
    ((1088, 1920), (1088, 1120)), ((1080, 1920), (1072, 1120)), ((720, 1280), (720, 1120)), ((640, 1200), (640, 1120)),
    ((2160, 3840), (1120, 1120)), ((16, 1200), (16, 1120)), ((9, 1200), (9, 1120)),
])  # fmt: skip
def test_the_released_rule_on_real_sizes_never_leaves_the_frame(size, expected):
    image = torch.empty(1, 1, *size)
    region = OFFICIAL_REGION(image, SizeRequirements(multiple_of=16))
    assert (region is image) if expected is None else (tuple(region.shape[-2:]) == expected)


@hypothesis.given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 60), st.sampled_from([1, 2, 8]))
def test_crops_are_central_legal_and_never_empty(height, width, size, multiple):
    image = torch.arange(float(height * width)).view(1, 1, height, width)
    region = CenterCrop(size)(image, SizeRequirements(multiple_of=multiple))
    if height <= size and width <= size:
        assert region is image
        return
    for cropped, side in zip(region.shape[-2:], (height, width), strict=True):
        assert 1 <= cropped <= side
        assert cropped % multiple == 0 or cropped == side < multiple
        assert cropped <= max(size, multiple)
    top, left = divmod(int(region.flatten()[0]), width)
    assert abs(2 * top + region.shape[-2] - height) <= 1
    assert abs(2 * left + region.shape[-1] - width) <= 1


def test_large_frames_are_adapted_on_their_crop_and_restored_whole():
    seen = []

    class Watching(nn.Conv2d):
        def forward(self, x):
            seen.append(tuple(x.shape[-2:]))
            return super().forward(x)

    adapter = SiamCTTA(
        Watching(3, 3, 3, padding=1),
        select="all",
        region=CenterCrop(16, min_size=(30, 30)),
        spec=RestorerSpec(),
        lr=0.1,
    )
    small, large = torch.rand(1, 3, 30, 20), torch.rand(1, 3, 24, 40)
    before = adapter.predict(small)
    assert torch.equal(adapter(small), before)  # the teacher of before the update
    seen.clear()
    before = adapter.predict(large)
    seen.clear()
    after = adapter(large)
    assert after.shape == large.shape
    assert not torch.equal(after, before)  # the teacher of after it
    assert seen == [(16, 16)] * 5 + [(24, 40), (40, 24)] * 2
    seen.clear()
    SiamCTTA(adapter.restorer, select="all", region="full")(large)
    assert set(seen) == {(24, 40), (40, 24)}


class Local(nn.Module):
    """Sees two pixels around; at a scale of two if asked."""

    def __init__(self, scale=1):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 3 * scale**2, 5, padding=2, padding_mode="reflect"), scale

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.conv(x), self.scale)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [(40, 52), (33, 17), (90, 31), (32, 32)])
@pytest.mark.parametrize("tiles", [Tiles(32, 8), Tiles(24, 12), Tiles(20, 9)])
def test_tiles_give_what_the_whole_image_gives(scale, size, tiles):
    net, x = Local(scale), torch.rand(2, 3, *size)
    spec = RestorerSpec(scale=scale)
    whole, tiled = Adapter(net, spec=spec)(x), Adapter(net, spec=spec, tiles=tiles)(x)
    torch.testing.assert_close(tiled, whole, atol=1e-6, rtol=0)


@hypothesis.given(st.integers(1, 300), st.integers(2, 64), st.floats(0, 0.5), st.sampled_from([1, 2, 8]))
def test_tile_weights_add_up_to_one_and_cover_everything(side, size, share, multiple):
    side = -(-side // multiple) * multiple
    tiles = Tiles(size, int(size * share))
    total = torch.zeros(side)
    spans = tiles._spans(side, tiles.sides[0], multiple)
    for start, end, weight in spans:
        assert 0 <= start < end <= side
        assert (end - start) % multiple == 0
        assert start % multiple == 0
        assert end - start <= max(size, multiple)
        assert weight.min() >= 0
        total[start:end] += weight
    torch.testing.assert_close(total, torch.ones(side))
    assert len(spans) == 1 or side > size // multiple * multiple


def test_memory_and_work_do_not_grow_with_the_image():
    largest = []

    class Watching(UNet):
        def forward(self, x):
            largest.append(x.shape[-2] * x.shape[-1])
            return super().forward(x)

    spec = RestorerSpec(size=SizeRequirements(multiple_of=8))
    adapter = SelfEnsemble(Watching(), spec=spec, tiles=Tiles(64, 16))
    adapter.predict(torch.rand(1, 3, 8, 8))  # the first call also tries whether the model can be copied
    largest.clear()
    assert adapter(torch.rand(1, 3, 301, 203)).shape == (1, 3, 301, 203)
    assert max(largest) == 64 * 64
    assert len(largest) == 6 * 4 * 4  # rows, columns, views


def test_the_rest_of_the_output_is_the_first_tiles():
    adapter = Adapter(build("dict"), spec=RestorerSpec(), tiles=Tiles(16, 4))
    output = adapter(torch.rand(1, 3, 40, 24))
    assert output["image"].shape == (1, 3, 40, 24)
    assert output["features"].shape == (1, 12, 16, 16)


def test_settings_are_checked():
    for arguments in [(0, 0), (10, 6), (10, -1)]:
        with pytest.raises(ValueError, match="Tiles: expected"):
            Tiles(*arguments)
    with pytest.raises(ValueError, match="CenterCrop: expected size to be an integer >= 1"):
        CenterCrop(0)


def test_the_tiles_of_a_large_image_are_counted_by_choice(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_INTERVAL", 1e-9)  # a line for every tile
    adapter = Adapter(nn.Conv2d(3, 3, 3, padding=1), select=None, spec=RestorerSpec(), tiles=Tiles(16, overlap=4))
    image = torch.rand(1, 3, 24, 24)
    quiet = adapter.predict(image)
    assert not capsys.readouterr().err
    adapter.show_progress = True
    assert torch.equal(adapter.predict(image), quiet)
    lines = capsys.readouterr().err.splitlines()
    assert any(
        re.fullmatch(r"tiles: 3 of 4 after [\d:]+, (about [\d:]+|estimating the time) left", line) for line in lines
    )
