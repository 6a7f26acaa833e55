"""Noise: the level that was asked for, signal dependence, correlation without a change of variance."""

import pytest
import torch
from _degradation_base import DegradationTests, seeded

from tta_restore.degradations import Noise, NoiseParameters


class TestNoise(DegradationTests):
    random = True

    def degradations(self):
        return [
            Noise(), Noise(read_std=0.02, shot=(0.0, 0.02)), Noise(correlation=(0.3, 1.2)), Noise(linear=True),
            Noise(channel_correlation=(0.2, 1.0)), Noise(correlation=0.7, channel_correlation=0.5),
        ]  # fmt: skip

    def bad(self):
        return [
            ({"read_std": -0.1}, ValueError, "Noise: expected read_std to be a number in"),
            ({"read_std": (0.2, 0.1)}, ValueError, "low <= high"),
            ({"shot": 2.0}, ValueError, "Noise: expected shot"),
            ({"channel_correlation": 1.5}, ValueError, "Noise: expected channel_correlation to be a number in"),
            ({"correlation": "wide"}, TypeError, "Noise: expected correlation to be a number"),
        ]


def noisy(level, read=0.0, shot=0.0, correlation=0.0, **options):
    flat = torch.full((1, 3, 160, 160), level)
    parameters = NoiseParameters(torch.tensor([read]), torch.tensor([shot]), torch.tensor([correlation]))
    return Noise(**options).apply(flat, parameters, seeded(1)) - level


@pytest.mark.parametrize("read", [1 / 255, 15 / 255, 50 / 255])
def test_the_level_is_the_one_asked_for(read):
    assert noisy(0.5, read).std() == pytest.approx(read, rel=0.02)
    assert noisy(0.5, read).mean().abs() < read / 50


def test_shot_noise_grows_with_the_value():
    for level in (0.1, 0.4, 0.9):
        expected = (0.02**2 + 0.01 * level) ** 0.5
        assert noisy(level, 0.02, 0.01).std() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("correlation", [1.0, 2.0])
def test_correlation_keeps_the_variance(correlation):
    found = noisy(0.5, 0.1, correlation=correlation)
    assert found.std() == pytest.approx(0.1, rel=0.06)
    neighbors = (found[..., 1:] * found[..., :-1]).mean() / found.square().mean()
    # a Gaussian filter of standard deviation s correlates neighbors by exp(-1 / (4 s^2))
    assert float(neighbors) == pytest.approx(torch.exp(torch.tensor(-1 / (4 * correlation**2))).item(), abs=0.06)
    white = noisy(0.5, 0.1)
    assert abs(float((white[..., 1:] * white[..., :-1]).mean() / white.square().mean())) < 0.02


@pytest.mark.parametrize("grain", [0.0, 1.0])
@pytest.mark.parametrize("between", [0.0, 0.5, 1.0])
def test_channels_correlate_as_asked(between, grain):
    parameters = NoiseParameters(torch.tensor([0.1]), torch.zeros(1), torch.tensor([grain]), torch.tensor([between]))
    found = Noise().apply(torch.full((1, 3, 200, 200), 0.5), parameters, seeded(1))[0] - 0.5
    expected = torch.full((3, 3), between).fill_diagonal_(1.0)
    torch.testing.assert_close(torch.corrcoef(found.flatten(1)), expected, atol=0.03, rtol=0)
    assert found.std() == pytest.approx(0.1, rel=0.03)
    assert torch.equal(found[0], found[2]) == (between == 1)


def test_independent_noise_is_drawn_as_if_channels_could_not_correlate():
    first, second = (
        Noise().apply(
            torch.full((1, 3, 8, 8), 0.5),
            NoiseParameters(*(torch.zeros(1) + 0.1,) * 2, torch.zeros(1), given),
            seeded(),
        )
        for given in (None, torch.zeros(1))
    )
    assert torch.equal(first, second)
    assert Noise().sample(seeded(), 2).channel_correlation is None


def test_batches_with_and_without_a_correlation_of_channels_are_concatenated():
    plain, shared = (Noise(channel_correlation=value).sample(seeded(), 2) for value in (0.0, 0.5))
    assert NoiseParameters.cat([plain, plain]).channel_correlation is None
    both = NoiseParameters.cat([plain, shared])
    torch.testing.assert_close(both.channel_correlation, torch.tensor([0.0, 0.0, 0.5, 0.5]))
    assert NoiseParameters.from_dict(both.to_dict()).channel_correlation.tolist() == [0.0, 0.0, 0.5, 0.5]


def test_images_of_a_batch_correlate_each_in_its_own_way():
    parameters = NoiseParameters(torch.full((2,), 0.1), torch.zeros(2), torch.zeros(2), torch.tensor([0.0, 1.0]))
    found = Noise().apply(torch.full((2, 3, 96, 96), 0.5), parameters, seeded()) - 0.5
    assert float(torch.corrcoef(found[0].flatten(1))[0, 1].abs()) < 0.05
    torch.testing.assert_close(found[1, 0], found[1, 1])


def test_images_of_a_batch_have_their_own_grain():
    parameters = NoiseParameters(torch.full((2,), 0.1), torch.zeros(2), torch.tensor([0.0, 1.5]))
    found = Noise().apply(torch.full((2, 3, 96, 96), 0.5), parameters, seeded()) - 0.5
    neighbors = (found[..., 1:] * found[..., :-1]).mean((1, 2, 3)) / found.square().mean((1, 2, 3))
    assert abs(neighbors[0]) < 0.05
    assert neighbors[1] > 0.8


def test_linear_noise_is_stronger_in_the_shadows():
    dark, bright = (noisy(level, 0.01, linear=True).std() for level in (0.1, 0.9))
    assert dark > 3 * bright


def test_a_step_of_distance_is_a_fifth():
    first, second = (
        NoiseParameters(torch.tensor([value]), torch.zeros(1), torch.zeros(1)) for value in (30 / 255, 36 / 255)
    )
    assert float(Noise().distance(first, second)) == pytest.approx(1.0, abs=0.05)


def test_channels_that_correlate_are_far_from_those_that_do_not():
    def parameters(std, between):
        return NoiseParameters(torch.tensor([std]), torch.zeros(1), torch.zeros(1), torch.tensor([between]))

    strong, weak = (
        float(Noise().distance(parameters(std, 0.0), parameters(std, 0.6))) for std in (20 / 255, 0.1 / 255)
    )
    assert strong == pytest.approx(2.0, rel=0.05)
    assert weak < 0.5  # noise that cannot be seen


def test_levels_are_drawn_over_the_whole_range():
    drawn = Noise(read_std=(1 / 255, 50 / 255)).sample(seeded(), 4000).read_std * 255
    assert 1 <= drawn.min() < 1.1
    assert 45 < drawn.max() <= 50
    assert drawn.median() == pytest.approx(8.2, rel=0.1)  # log-uniform over value + 0.5


def test_parameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"NoiseParameters: expected read_std .* in \[0, 1\]"):
        NoiseParameters(torch.tensor([-1.0]), torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match=r"expected shot \(N,\) with N = 2"):
        NoiseParameters(torch.zeros(2), torch.zeros(1), torch.zeros(2))
    with pytest.raises(ValueError, match="in"):
        NoiseParameters(torch.tensor([float("nan")]), torch.zeros(1), torch.zeros(1))
