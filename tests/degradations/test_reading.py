"""Readings: pooled, drawn from, saved, compared."""

import json
import math
from dataclasses import replace

import pytest
import torch
from _degradation_base import seeded, tensors_of

from tta_restore.degradations import Blur, Clip, Estimator, Jpeg, Noise, Quantize, Reading, Resize, quality_tables
from tta_restore.degradations.blur import PUPIL_SIZE


def reading(noise=5 / 255, blur=1.5, jpeg=(1.0, 60.0, 2.0), deviation=0.2, **changes):
    pupils = torch.ones(3, PUPIL_SIZE, PUPIL_SIZE)
    values = {
        "noise": torch.tensor([noise, 1.0]).log() + torch.tensor([0.0, deviation]),
        "shot": torch.zeros(2),
        "blur": torch.tensor([blur, 1.0]).log() + torch.tensor([0.0, deviation]),
        "jpeg": torch.tensor(jpeg),
        "tables": None,
        "pupils": pupils / pupils.sum((1, 2), keepdim=True),
        "radii": torch.tensor([[0.8, 1.0], [1.0, 1.25]]),
        "weights": torch.tensor([1.0, 2.0]),
        "statistics": torch.ones(1, 7),
        "asymmetry": torch.zeros(2, 2),
    }
    return Reading(**(values | changes))


def test_mean_and_uncertainty_have_units():
    found = reading()
    assert found.mean == pytest.approx(
        {"noise_std": 5 / 255, "noise_shot": 0.0, "blur_radius": 1.5, "jpeg_quality": 60.0}, rel=1e-5
    )
    assert found.uncertainty["blur_radius"] == pytest.approx(0.3)
    assert reading(jpeg=(0.1, 60.0, 2.0)).mean["jpeg_quality"] == 100


def test_draws_vary_as_far_as_the_uncertainty():
    drawn = reading().sample(seeded(), 800, varying=False)
    blur, noise, *_, jpeg = drawn.parts
    assert float(blur.radius.log().mean()) == pytest.approx(torch.tensor(1.5).log().item(), abs=0.03)
    assert float(blur.radius.log().std()) == pytest.approx(0.2, rel=0.1)
    assert float(noise.read_std.log().std()) == pytest.approx(0.2, rel=0.1)
    assert float(jpeg.quality.mean()) == pytest.approx(60, abs=1)
    assert (jpeg.applied == 1).all()
    exact = reading().sample(seeded(), 5, varying=False, spread=0.0)
    torch.testing.assert_close(exact.parts[0].radius, torch.full((5, 1), 1.5))


def test_the_radius_varies_between_neighboring_places():
    blur = reading().sample(seeded(), 400, ["blur"], spread=0.0).parts[0]
    ratio = blur.radius[:, -1] / blur.radius[:, 0]
    torch.testing.assert_close(ratio, torch.full((400,), 1.25))
    second = (blur.radius[:, 0] > 1.3).float().mean()
    assert float(second) == pytest.approx(2 / 3, abs=0.08)  # the second pair has twice the weight


def test_degradation_and_sample_go_together():
    found = reading()
    images = torch.rand(2, 3, 64, 64, generator=seeded())
    kinds = {
        (): [Clip, Quantize],
        ("noise",): [Noise, Clip, Quantize],
        ("blur", "noise", "jpeg"): [Blur, Noise, Clip, Quantize, Jpeg],
    }
    for include, expected in kinds.items():
        camera = found.degradation(include)
        assert [type(item) for item in camera.degradations] == expected
        parameters = found.sample(seeded(), 2, include)
        assert camera.apply(images, parameters, seeded()).shape == images.shape
    camera = found.degradation(scale=2)
    assert isinstance(camera.degradations[1], Resize)
    assert camera.apply(images, found.sample(seeded(), 2, scale=2), seeded()).shape == (2, 3, 32, 32)
    one, two = (found.sample(seeded(), 1, scale=scale, spread=0.0, varying=False).parts[0] for scale in (1, 2))
    torch.testing.assert_close(two.radius, 2 * one.radius)
    with pytest.raises(ValueError, match="sample: expected include to be one of 'blur', 'noise', 'jpeg'"):
        found.sample(seeded(), 1, ["motion"])


def test_blur_that_is_not_there_is_not_applied():
    blur = reading(blur=0.2).sample(seeded(), 20, ["blur"], varying=False).parts[0]
    center = blur.kernels.shape[-1] // 2
    assert (blur.kernels[:, 0, center, center] == 1).all()


def test_pooling_weights_by_confidence_and_keeps_what_frames_share():
    sure, unsure = reading(blur=1.0, deviation=0.1), reading(blur=4.0, deviation=1.0)
    pooled = Reading.pool([sure, unsure])
    assert pooled.mean["blur_radius"] == pytest.approx(1.0, rel=0.05)
    assert pooled.frames == 2
    many = Reading.pool([reading() for _ in range(50)])
    assert 0.4 * 0.3 < many.uncertainty["blur_radius"] < 0.7 * 0.3  # errors that frames share do not average out
    torch.testing.assert_close(many.statistics, torch.full((1, 7), 50.0))
    scattered = Reading.pool([reading(blur=value, deviation=0.05) for value in (0.5, 1.0, 2.0, 4.0)])
    assert scattered.uncertainty["blur_radius"] > 0.3 * scattered.mean["blur_radius"]
    step = Reading.pool([Reading.pool([sure, sure]), unsure])
    assert step.frames == 3
    apart = [reading(blurred=torch.tensor(value)) for value in (0.0, 0.0, 0.6)]
    assert float(Reading.pool([Reading.pool(apart[:2]), apart[2]]).blurred) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="at least one reading"):
        Reading.pool([])


def test_frames_that_do_not_show_the_correlation_of_channels_do_not_lower_it():
    shown = [reading(channel_correlation=torch.tensor([value, 1.0])) for value in (0.4, 0.8)]
    unknown = reading()
    assert unknown.between_channels == 0
    assert Reading.pool(shown).between_channels == pytest.approx(0.6)
    pooled = Reading.pool([Reading.pool([*shown, unknown]), unknown])
    assert pooled.between_channels == pytest.approx(0.6)
    torch.testing.assert_close(pooled.channel_correlation, torch.tensor([0.6, 0.5]))
    assert Reading.pool([pooled, unknown]).between_channels == 0  # fewer than half of them
    drawn = pooled.sample(seeded(), 4, ["noise"]).parts[0]
    torch.testing.assert_close(drawn.channel_correlation, torch.full((4,), 0.6))
    assert unknown.sample(seeded(), 4, ["noise"]).parts[0].channel_correlation is None
    again = Reading.from_tensors(pooled.tensors())
    assert again.between_channels == pooled.between_channels
    old = {name: value for name, value in reading().tensors().items() if not name.endswith("correlation")}
    assert Reading.from_tensors(old).between_channels == Reading.from_tensors(old).between_pixels == 0  # from before


def test_white_noise_is_another_camera_than_filtered_noise():
    def shown(pixels, noise=20.0, certain=1.0):
        return reading(noise / 255, correlation=torch.tensor([pixels, certain]))

    assert shown(0.0).distance(shown(0.7)) > 2.5 > shown(0.0).distance(shown(0.5)) > 1
    assert shown(0.6).distance(shown(0.7)) < 0.5
    assert shown(0.0).distance(shown(0.7, certain=0.0)) == 0  # it is not known
    assert shown(0.0, noise=0.1).distance(shown(0.7, noise=0.1)) < 0.5  # noise that cannot be seen


def test_the_parts_that_are_compared():
    one = reading(code=torch.tensor([1.0, 0.0, 0.0]))
    noisier, softer, other = (
        reading(noise=15 / 255, code=one.code),
        reading(blur=3.0, code=one.code),
        reading(code=torch.tensor([0.8, 0.6, 0.0])),
    )
    assert one.distance(noisier, ["blur", "jpeg"]) == one.distance(softer, ["noise", "jpeg"]) == 0
    assert one.distance(noisier, ["noise"]) == one.distance(noisier) > 2
    assert one.distance(softer, ["blur"]) == one.distance(softer) > 1.5
    assert one.distance(other) == one.distance(other, ["blur"]) == pytest.approx(0.2 / 0.144, rel=1e-4)
    small = [replace(found, blur=torch.tensor([math.log(0.5), 0.2])) for found in (one, other)]
    assert small[0].distance(small[1]) == pytest.approx(0.1 / 0.144, rel=1e-4)  # its shape is hardly visible
    assert one.distance(reading()) == 0  # nothing is known of the shape
    with pytest.raises(ValueError, match="include"):
        one.distance(other, ["lens"])


def test_codes_of_lenses_are_pooled():
    first, second = (reading(code=torch.tensor([value, 0.0])) for value in (1.0, 2.0))
    assert Reading.pool([Reading.pool([first, first]), second]).code.tolist() == pytest.approx([4 / 3, 0.0])

    class Pooling:
        def candidates(self, statistics, asymmetry, frames):
            return first.pupils

        def code(self, statistics):
            return statistics[0, :2]

    assert Reading.pool([first, second], Pooling()).code.tolist() == [2.0, 2.0]


def test_frames_that_do_not_show_the_filter_of_the_noise_do_not_change_it():
    filtered, white = (reading(correlation=torch.tensor([value, 1.0])) for value in (0.8, 0.0))
    unknown = reading()
    assert (filtered.between_pixels, white.between_pixels, unknown.between_pixels) == (pytest.approx(0.8), 0, 0)
    pooled = Reading.pool([filtered, unknown])
    assert pooled.between_pixels == pytest.approx(0.8)
    assert Reading.pool([pooled, unknown]).between_pixels == 0  # fewer than half of them
    assert Reading.pool([filtered, white]).between_pixels == pytest.approx(0.4)
    torch.testing.assert_close(pooled.sample(seeded(), 4, ["noise"]).parts[0].correlation, torch.full((4,), 0.8))
    assert Reading.from_dict(pooled.to_dict()).between_pixels == pytest.approx(0.8)


def test_tables_of_files_are_kept_while_they_agree():
    first, second = quality_tables(torch.tensor([70.0, 40.0]))
    assert torch.equal(Reading.pool([reading(tables=first), reading(tables=first)]).tables, first)
    assert Reading.pool([reading(tables=first), reading(tables=second)]).tables is None
    drawn = reading(tables=first).sample(seeded(), 3, ["jpeg"]).parts[-1]
    assert torch.equal(drawn.tables, first.expand(3, 2, 64))


def test_saved_and_read_back():
    for found in (reading(), reading(tables=quality_tables(torch.tensor([70.0]))[0], frames=3)):
        for again in (
            Reading.from_dict(json.loads(json.dumps(found.to_dict()))),
            Reading.from_tensors(found.tensors()),
        ):
            assert again.mean == found.mean
            assert again.frames == found.frames
            one, two = (part.sample(seeded(), 3) for part in (found, again))
            assert all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(two), strict=True))
    with pytest.raises(TypeError, match="Reading has no nois"):
        Reading.from_tensors({"nois": torch.zeros(2)})


def test_distance_is_about_what_can_be_seen():
    base = reading()
    assert base.distance(base) == 0
    assert reading(noise=5.5 / 255).distance(base) < reading(noise=10 / 255).distance(base)
    assert reading(noise=0.1 / 255).distance(reading(noise=0.3 / 255)) < 1.2  # neither is visible
    sure = [reading(blur=value, deviation=0.05) for value in (1.5, 3.0)]
    unsure = [reading(blur=value, deviation=0.6) for value in (1.5, 3.0)]
    assert sure[0].distance(sure[1]) > 2.5
    assert unsure[0].distance(unsure[1]) < 1
    perhaps = [reading(blur=value, deviation=0.05, blurred=torch.tensor(0.0)) for value in (1.5, 3.0)]
    assert perhaps[0].distance(perhaps[1]) < 1.5  # either may be soft content
    assert reading(jpeg=(1.0, 20.0, 1.0)).distance(base) > 2


def test_pooling_keeps_the_spread_of_the_blur_over_frames():
    """Depth differs from frame to frame, so that more frames make the blur of the next one no more certain."""
    one = Estimator().read(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)))
    radii = (1.0, 2.0, 4.0)
    frames = [replace(one, blur=torch.tensor([math.log(r), 0.05])) for r in radii]
    pooled = Reading.pool(frames)
    assert float(pooled.blur[0]) == pytest.approx(math.log(2), abs=1e-3)
    assert float(pooled.blur[1]) == pytest.approx(torch.tensor(radii).log().std(correction=0).item(), rel=1e-3)


def test_even_blur_counts_as_far_as_the_odds_are_for_it():
    one = reading(even_blur=torch.tensor([4.0, math.log(0.8), 0.2]))
    assert one.with_even_blur().mean["blur_radius"] == pytest.approx(0.8)
    assert one.with_even_blur().uncertainty["blur_radius"] == pytest.approx(0.16)
    assert float(one.with_even_blur().blurred) == 4
    none = replace(one, even_blur=torch.tensor([-2.0, math.log(0.8), 0.2])).with_even_blur()
    assert none.mean["blur_radius"] == pytest.approx(0.25)
    doubtful = replace(one, even_blur=torch.tensor([0.0, math.log(0.8), 0.2])).with_even_blur()
    assert 0.25 < doubtful.mean["blur_radius"] < 0.8
    assert float(doubtful.blur[1]) > 0.5
    assert reading().with_even_blur().mean["blur_radius"] == pytest.approx(1.5)  # of an estimator that does not read it
    pooled = Reading.pool([one, replace(one, even_blur=torch.tensor([-8.0, 0.0, 0.4]))])
    assert float(pooled.even_blur[0]) == pytest.approx(-2)
    assert Reading.from_dict(pooled.to_dict()).with_even_blur().mean == pytest.approx(pooled.with_even_blur().mean)
