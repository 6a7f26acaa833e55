"""The estimator: readings near the truth, any size, no side effects."""

import pytest
import torch
from _degradation_base import seeded

from tta_restore.data.synthetic import defocus, photos
from tta_restore.degradations import (
    Blur,
    Clip,
    Compose,
    Estimator,
    Jpeg,
    Noise,
    Quantize,
    Reading,
    Resize,
    quality_tables,
)
from tta_restore.degradations import estimator as estimator_module
from tta_restore.degradations import lens as optics
from tta_restore.degradations.estimator import _below
from tta_restore.degradations.noise_correlation import estimate_noise_correlation
from tta_restore.models.defocus.estimator import DefocusEstimator


@pytest.fixture(scope="module")
def estimator():
    return Estimator(num_candidates=4)


def frame(blur=0.0, noise=0.0, quality=None, name="grace_hopper"):
    image = photos.load(name)[None, :, 40:232, 60:252]
    items = [Blur(radius=blur, lens="gaussian")] if blur else []
    items += [Noise(noise / 255), Clip(), Quantize()] + ([Jpeg(quality)] if quality else [])
    camera = Compose(items)
    return camera.apply(image, camera.sample(seeded(), 1), seeded())


@pytest.mark.parametrize(("noise", "blur"), [(5, 0.0), (15, 1.5), (30, 0.0)])
def test_noise_is_read(estimator, noise, blur):
    found = estimator.read(frame(blur, noise))
    assert found.mean["noise_std"] * 255 == pytest.approx(noise, rel=0.25)
    assert found.uncertainty["noise_std"] < found.mean["noise_std"]


@pytest.mark.thorough
@pytest.mark.parametrize(("noise", "blur"), [(5, 2.0), (15, 2.0)])
def test_gray_noise_is_not_taken_for_more_or_for_sharpness(estimator, noise, blur):
    image = photos.load("grace_hopper")[None, :, 40:232, 60:252].mean(1, keepdim=True)
    camera = Compose([Blur(radius=blur, lens="gaussian"), Noise(noise / 255), Clip(), Quantize()])
    gray = camera.apply(image, camera.sample(seeded(), 1), seeded())
    found, same = estimator.read(gray), estimator.read(gray.expand(-1, 3, -1, -1))
    assert found.mean == pytest.approx(same.mean)
    assert found.mean["noise_std"] * 255 == pytest.approx(noise, rel=0.12)
    assert found.mean["blur_radius"] == pytest.approx(blur, rel=0.25)


@pytest.mark.thorough
@pytest.mark.parametrize("between", [0.6, 1.0])
@pytest.mark.parametrize(("noise", "blur"), [(8, 2.0), (20, 2.0)])
def test_noise_that_channels_share_is_read_as_other_noise_is(estimator, noise, blur, between):
    image = 0.6 * photos.load("grace_hopper")[None, :, 40:232, 60:252] + 0.2

    def read(correlation):
        items = [Blur(radius=blur, lens="gaussian"), Noise(noise / 255, channel_correlation=correlation)]
        camera = Compose([*items, Clip(), Quantize()])
        return estimator.read(camera.apply(image, camera.sample(seeded(), 1), seeded()))

    found, independent = read(between), read(0.0)
    assert found.between_channels == pytest.approx(between, abs=0.08)
    assert independent.between_channels == 0
    assert found.mean["jpeg_quality"] == 100
    assert found.mean["noise_std"] == pytest.approx(independent.mean["noise_std"], rel=0.15)
    assert found.mean["blur_radius"] == pytest.approx(independent.mean["blur_radius"], rel=0.25)


def test_noise_is_read_the_same_with_another_defocus_estimator(estimator):
    """Its window layers are none of the noise's business: a custom estimator may read windows otherwise."""
    other = DefocusEstimator()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    image = frame(1.5, 15)
    assert torch.equal(Estimator(defocus=other).read(image).noise, estimator.read(image).noise)


def test_a_defocus_estimator_that_is_none_is_refused():
    with pytest.raises(TypeError, match="Estimator: expected defocus to be a DefocusEstimator or None, got 'lens'"):
        Estimator(defocus="lens")


@pytest.mark.thorough
def test_statistics_know_the_noise_that_channels_share(estimator, monkeypatch):
    seen = []
    original = estimator_module.frame_statistics

    def record(*arguments, **options):
        seen.append(options["noise_in_mean"])
        return original(*arguments, **options)

    monkeypatch.setattr(estimator_module, "frame_statistics", record)
    image = 0.6 * photos.load("grace_hopper")[None, :, 40:168, 40:168] + 0.2
    for correlation in (1.0, 0.0):
        camera = Compose([Noise(15 / 255, channel_correlation=correlation), Clip(), Quantize()])
        estimator.read(camera.apply(image, camera.sample(seeded(), 1), seeded()))
    assert seen == pytest.approx([3**0.5, 1.0], rel=0.02)


def test_shared_noise_is_not_read_from_compressed_frames(estimator):
    """Compression removes the noise of colors, so that independent noise looks shared afterwards."""
    image = 0.6 * photos.load("grace_hopper")[None, :, 40:232, 60:252] + 0.2
    camera = Compose([Noise(15 / 255, channel_correlation=1.0), Clip(), Quantize(), Jpeg(quality=90)])
    frame = camera.apply(image, camera.sample(seeded(), 1), seeded())
    assert estimate_noise_correlation(frame[0]).between_channels > 0.9
    found = estimator.read(frame)
    assert found.mean["jpeg_quality"] < 95
    assert found.between_channels == 0


@pytest.mark.parametrize(("level", "shot"), [(10, 0.0), (20, 0.0), (2, 0.02)])
def test_noise_that_neighbors_share_is_read_as_strong_as_it_is(estimator, level, shot):
    image = 0.6 * photos.load("grace_hopper")[None, :, 40:232, 60:252] + 0.2
    camera = Compose([Noise(level / 255, shot, correlation=0.7), Clip(), Quantize()])
    found = estimator.read(camera.apply(image, camera.sample(seeded(), 1), seeded()))
    assert found.between_pixels == pytest.approx(0.7, abs=0.06)
    assert float(found.correlation[1]) == 1
    assert found.mean["noise_shot"] == pytest.approx(shot, rel=0.3)
    total = (found.mean["noise_std"] ** 2 + found.mean["noise_shot"] * float(image.mean())) ** 0.5
    assert total == pytest.approx(((level / 255) ** 2 + shot * float(image.mean())) ** 0.5, rel=0.1)


def test_the_filter_of_noise_is_not_read_from_compressed_frames(estimator):
    image = 0.6 * photos.load("grace_hopper")[None, :, 40:232, 60:252] + 0.2
    camera = Compose([Noise(20 / 255, correlation=0.6), Clip(), Quantize(), Jpeg(quality=93)])
    found = estimator.read(camera.apply(image, camera.sample(seeded(), 1), seeded()))
    assert found.mean["jpeg_quality"] < 95
    assert found.correlation.tolist() == [0, 0]


@pytest.mark.thorough
def test_white_noise_is_known_and_gray_frames_do_not_show_it(estimator):
    image = 0.6 * photos.load("grace_hopper")[None, :, 40:168, 40:168] + 0.2
    camera = Compose([Noise(15 / 255), Clip(), Quantize()])
    for frame, known in ((image, 1), (image.mean(1, keepdim=True), 0)):
        found = estimator.read(camera.apply(frame, camera.sample(seeded(), 1), seeded()))
        assert found.correlation.tolist() == [0, known]


def test_spectra_of_gray_noise_are_those_of_color_noise(estimator):
    noise = 0.5 + 10 / 255 * torch.randn(2, 3, 96, 96, generator=seeded())
    gray = torch.stack([noise[0], noise[0, :1].expand(3, -1, -1)])
    color, equal = estimator.defocus.spectra(gray, 10 / 255).mean((1, 2, 3, 4))
    assert equal == pytest.approx(float(color), abs=0.03)


def test_more_blur_is_read_as_more(estimator):
    radii = [estimator.read(frame(blur, 1.0)).mean["blur_radius"] for blur in (0.0, 1.5, 3.5)]
    assert radii[0] < radii[1] < radii[2]
    assert radii[2] == pytest.approx(3.5, rel=0.4)


def test_jpeg_is_read_blind_or_from_the_file(estimator):
    image = frame(1.0, 2.0, 40)
    assert estimator.read(image).mean["jpeg_quality"] == 40
    tables = quality_tables(torch.tensor([73.0]))[0]
    found = estimator.read(image, tables=tables)
    assert found.mean["jpeg_quality"] == 73
    assert torch.equal(found.tables, tables)


@pytest.mark.thorough
def test_any_size_and_one_channel(estimator):
    for shape in ((3, 20, 31), (1, 40, 33), (2, 3, 64, 48), (3, 800, 20)):
        found = estimator.read(torch.rand(shape, generator=seeded()))
        assert all(torch.isfinite(torch.tensor(list(found.mean.values()))))
        assert found.frames == (2 if len(shape) == 4 else 1)
        assert found.pupils.shape[0] == 4


def test_reading_is_repeatable_and_changes_nothing(estimator):
    state, image = torch.get_rng_state(), frame(1.0, 5.0)
    kept = image.clone()
    first, second = estimator.read(image), estimator.read(image)
    assert all(torch.equal(a, b) for a, b in zip(first.tensors().values(), second.tensors().values(), strict=True))
    assert torch.equal(image, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in estimator.parameters())


def test_wrong_frames_are_refused(estimator):
    with pytest.raises(ValueError, match=r"Estimator.read: expected frame \(C, H, W\)"):
        estimator.read(torch.rand(4, 32, 32))
    with pytest.raises(ValueError, match="finite frame"):
        estimator.read(torch.full((3, 32, 32), float("nan")))
    with pytest.raises(TypeError, match="floating dtype"):
        estimator.read(torch.zeros(3, 32, 32, dtype=torch.uint8))


def test_visible_blur_is_read_without_a_large_bias():
    """The joint network alone reads these frames 35 % too small in the mean."""
    lenses = [defocus.DEV[4], defocus.DEV[2]]
    frames = defocus.defocus_stream(lenses, ("grace_hopper", "gravel"), frames_per_lens=2, size=144, seed=2101)
    axis = torch.arange(frames[0].kernels.shape[-1]) - frames[0].kernels.shape[-1] // 2
    squares = (axis.square() + axis[:, None].square()).float()
    errors = []
    for frame in frames:
        true = (frame.kernels * squares).sum((-1, -2)).sqrt().log().mean()
        errors.append(float(Estimator().read(frame.blurry).blur[0] - true))
    assert abs(sum(errors) / len(errors)) < 0.2
    assert max(map(abs, errors)) < 0.4


def test_noise_is_read_below_what_the_frame_can_have():
    """Mean and deviation of the estimate are those of its distribution below the bound."""
    samples = 1.0 + 0.5 * torch.randn(400_000, generator=seeded())
    for bound in (0.2, 1.0, 1.6, 5.0):
        kept = samples[samples < bound]
        found = _below(torch.tensor([1.0, 0.5]), torch.tensor(bound))
        torch.testing.assert_close(found, torch.stack([kept.mean(), kept.std()]), atol=0.01, rtol=0)
    torch.testing.assert_close(_below(torch.tensor([1.0, 0.5]), torch.tensor(float("inf"))), torch.tensor([1.0, 0.5]))
    assert float(_below(torch.tensor([1.0, 0.01]), torch.tensor(-3.0))[0]) == -3.0


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("radius", [0.8, 1.4, 2.5])
def test_even_blur_is_told_from_none_before_and_after_a_reduction(estimator, radius, scale):
    sharp = photos.load("grace_hopper")[None, :, 40 : 40 + 160 * scale, 60 : 60 + 160 * scale]
    reduction, noise = Resize(scale), Noise(1 / 255)
    for strength in (0.0, radius):
        blur = Blur(radius=strength * scale, lens="gaussian")
        x = blur.apply(sharp, blur.sample(seeded(), 1)) if strength else sharp
        x = reduction.apply(x, reduction.sample(seeded(), 1)) if scale > 1 else x
        found = estimator.read(noise.apply(x, noise.sample(seeded(), 1), seeded()).clamp(0, 1)).with_even_blur()
        if strength:
            assert float(found.blurred) > 1
            assert found.mean["blur_radius"] == pytest.approx(radius, rel=0.3)
        else:
            assert float(found.blurred) < -1
            assert found.mean["blur_radius"] == pytest.approx(0.25)


@pytest.mark.thorough
def test_two_frames_show_whether_the_lens_is_the_same(estimator):
    """Readings of one lens are nearer to each other than to those of another one, also with blur of the same size."""
    lenses = [
        optics.Lens(name, pupil, (2.0, 2.4)) for name, pupil in (("ring", optics.ring(0.7)), ("gauss", optics.gaussian))
    ]
    stream = defocus.defocus_stream(lenses, photos.DEV[:2], frames_per_lens=4, size=128, seed=1)
    pairs = [
        Reading.pool([estimator.read(found.blurry[None]) for found in stream[first : first + 2]], estimator)
        for first in range(0, 8, 2)
    ]
    same = [pairs[0].distance(pairs[1], ["blur"]), pairs[2].distance(pairs[3], ["blur"])]
    other = [one.distance(two, ["blur"]) for one in pairs[:2] for two in pairs[2:]]
    assert max(same) < 1 < min(other)
