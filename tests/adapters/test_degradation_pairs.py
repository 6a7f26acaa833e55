"""DegradationPairs: it gains where the frame differs from training, harms nowhere, and ends when it is done."""

import dataclasses
import math
import re
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_restore._core.progress import no_progress
from tta_restore.adapters import DegradationPairs, Processes, SelfEnsemble, calibrate, create_adapter, recommended
from tta_restore.adapters.methods import _blend, _trust
from tta_restore.adapters.methods._pair_sampler import PairSampler, _common_pupils, _hedged, patch_size_for
from tta_restore.data.synthetic import dead_leaves, defocus, photos
from tta_restore.degradations import Clip, Compose, Degradation, Estimator, Jpeg, Noise, Parameters, Quantize, Reading
from tta_restore.degradations import lens as optics
from tta_restore.degradations.degradation import quantity
from tta_restore.degradations.noise_correlation import haar_energies
from tta_restore.metrics import psnr
from tta_restore.models import RestorerSpec, SizeRequirements, as_restorer, create_model


class Filter(nn.Module):
    """One 5 x 5 filter for all channels: ``strength`` of the smoothing at the start."""

    def __init__(self, strength: float = 0.0, gain: float = 30.0) -> None:
        super().__init__()
        axis = torch.arange(5.0) - 2
        bell = torch.exp(-axis.square() / 2)
        smooth = bell[:, None] * bell / bell.sum() ** 2
        identity = torch.zeros(5, 5)
        identity[2, 2] = 1
        self.weight = nn.Parameter(((1 - strength) * identity + strength * smooth) / gain)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
        return F.conv2d(padded, (self.weight * self.gain).expand(3, 1, 5, 5), groups=3)


class Upscaler(Filter):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(super().forward(x), scale_factor=2, mode="bicubic")


DENOISE = RestorerSpec(in_channels=3, task="denoise")


@cache
def _frame(noise: float, seed: int = 3, size: int = 80) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sharp = F.avg_pool2d(dead_leaves.tile(size + 2, generator)[None], 3, stride=1)  # as soft as a photo
    noisy = sharp + noise / 255 * torch.randn(sharp.shape, generator=generator)
    return (noisy.clamp(0, 1) * 255).round() / 255, sharp


def _gain(adapter: DegradationPairs, x: Tensor, y: Tensor) -> float:
    plain = SelfEnsemble(adapter.restorer)(x)
    return float(psnr(adapter(x).clamp(0, 1), y) - psnr(plain.clamp(0, 1), y))


def test_it_learns_noise_that_the_restorer_does_not_know():
    x, y = _frame(25)
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=48)
    assert _gain(adapter, x, y) > 2
    assert adapter.report.updated
    assert adapter.report.metrics["trust"] > 0.8
    assert abs(adapter.report.metrics["noise"] - 25) < 6


def test_a_model_that_diverges_at_large_rates_gets_a_small_one():
    x, y = _frame(25)
    adapter = DegradationPairs(Filter(gain=3000.0), spec=DENOISE, steps=48)
    assert _gain(adapter, x, y) > 0
    assert adapter.report.metrics["rate"] < 1e-3
    assert any("learning rate" in remark for remark in adapter.report.messages)


def test_the_input_is_a_candidate():
    """A smoothing restorer spoils a frame without noise."""
    x, y = _frame(0)
    adapter = DegradationPairs(Filter(strength=1.0), spec=DENOISE, steps=12, lr=1e-5)
    assert _gain(adapter, x, y) > 3
    assert adapter.report.metrics["input_weight"] > 0.5


def test_degradations_that_are_not_estimated_do_not_make_the_input_look_clean():
    """Stripes are neither noise nor blur; a smoothing restorer removes them."""
    clean, _ = _frame(0)
    stripes = clean + 0.06 * torch.sin(torch.arange(clean.shape[-2]) * 2.1)[:, None]
    adapter = DegradationPairs(Filter(strength=1.0), spec=DENOISE, steps=12, lr=1e-5)
    adapter(stripes.clamp(0, 1))
    assert adapter.report.metrics["explained"] == 0
    assert (adapter.report.metrics["input_weight"], adapter.report.metrics["trust"]) == (0, 0)
    assert any("neither the noise nor the compression" in message for message in adapter.report.messages)


@pytest.mark.parametrize("part", [1.0, 0.25])
def test_a_student_has_at_most_the_part_of_the_weight_that_is_explained(monkeypatch, part):
    """The source is the identity: that it removes nothing must not make the limits undefined."""
    monkeypatch.setattr(_trust, "explained", lambda *_: part)
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=24)
    adapter(_frame(20)[0])
    metrics = adapter.report.metrics
    assert math.isfinite(metrics["structure_excess"])
    assert metrics["trust"] == (pytest.approx(0.25) if part < 1 else pytest.approx(0.9, abs=0.1))


def test_what_explains_a_frame():
    clean = F.avg_pool2d(dead_leaves.tile(200, torch.Generator().manual_seed(2))[None], 3, stride=1)
    reading = Estimator().read(clean)
    generator = torch.Generator().manual_seed(1)

    def noisy(std, kernel=1):
        noise = torch.randn(1, 3, 198 + kernel - 1, 198 + kernel - 1, generator=generator)
        return clean + std / 255 * F.avg_pool2d(noise, kernel, stride=1)

    def explained(frame, std, removed=(4.0, 8.0)):
        read = dataclasses.replace(
            reading,
            noise=torch.tensor([math.log(std / 255), 0.1]),
            shot=torch.zeros(2),
            jpeg=torch.tensor([0.0, 100, 1]),
        )
        return _trust.explained(read, frame, removed)

    assert explained(clean, 0.5) == 1
    assert explained(noisy(10), 10) == explained(noisy(30), 30) == 1
    assert explained(noisy(10), 1) == 0  # noise that was not read
    assert explained(noisy(30, kernel=2), 2) == 0  # correlated, as film grain is, and read as less
    texture = clean + 0.1 * torch.linspace(0, 1, 198) * torch.randn(clean.shape, generator=generator)
    assert explained(texture, 0.5) == 1  # differs from place to place
    assert explained(clean, 0.5, removed=(7.6, 8.0)) == pytest.approx(0.55, abs=0.01)  # more than from pairs
    assert explained(noisy(30), 30, removed=(7.6, 8.0)) == 1  # of which noise is most
    assert explained(torch.rand(1, 3, 47, 48), 0.5) == 1  # too small to show it
    photons = dataclasses.replace(reading, noise=torch.tensor([math.log(1 / 255), 0.1]), shot=torch.tensor([0.004, 0]))
    bright = 0.5 + 0.045 * torch.randn(1, 3, 96, 96, generator=generator)
    assert _trust.explained(photons, bright, (4.0, 8.0)) == 1  # noise that grows with brightness is read, too


def test_what_fits_already_is_not_harmed():
    x, _ = _frame(15)
    first = DegradationPairs(Filter(), spec=DENOISE, steps=48, lr=1e-2)
    first(x)
    adapter = DegradationPairs(first.export("teacher"), spec=DENOISE, steps=96)
    assert _gain(adapter, *_frame(15, seed=3)) > -0.1
    assert adapter.report.steps < 96


@pytest.mark.thorough
def test_a_wrong_estimate_is_contradicted_by_the_frame():
    """Pairs with four times the noise speak for strong smoothing; the frame itself does not."""
    x, y = _frame(6)

    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Estimator()

        def read(self, frame: Tensor):
            return self.inner.read(_frame(25)[0])

        def candidates(self, statistics: Tensor) -> Tensor:
            return self.inner.candidates(statistics)

    assert _gain(DegradationPairs(Filter(0.3), Wrong(), spec=DENOISE, steps=48), x, y) > -0.3


@pytest.mark.thorough
def test_it_ends_when_nothing_is_gained_and_wakes_when_the_camera_changes():
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=36, read_interval=1)
    for seed in range(8):
        adapter(_frame(20, seed)[0])
        if adapter.phase == "steady":
            break
    assert adapter.phase == "steady"
    adapter(_frame(20, 20)[0])
    assert adapter.report.steps == 0
    adapter(_frame(3, 21)[0])
    assert adapter.report.metrics["changed"] == 1
    assert adapter.report.steps > 0
    assert adapter.phase == "calibrating"


@pytest.mark.thorough
@pytest.mark.parametrize("task", [None, "denoise"])
def test_upscalers_are_served(task):
    _, y = _frame(20, size=96)
    small = F.interpolate(y, scale_factor=0.5, mode="bicubic", antialias=True)
    small = (small + 20 / 255 * torch.randn(small.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    adapter = recommended(Upscaler(), task=task, steps=36)
    assert isinstance(adapter, DegradationPairs)
    assert _gain(adapter, small, y) > 0.2


class GrayFilter(Filter):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), (self.weight * self.gain)[None, None])


@pytest.mark.parametrize("make", [recommended, DegradationPairs])
def test_models_of_one_channel_are_served_without_a_spec(make):
    x, y = (image.mean(1, keepdim=True) for image in _frame(40))
    adapter = make(GrayFilter(), steps=48)
    assert isinstance(adapter, DegradationPairs)
    assert _gain(adapter, x, y) > 0.5
    assert adapter.competence().scale == 1


def test_a_spec_is_taken_instead_of_trials():
    class Never(Filter):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-1] % 48 == 0, "not tried"
            return super().forward(x)

    adapter = recommended(Never(), spec=RestorerSpec(in_channels=3, size=SizeRequirements(48, 48), task="denoise"))
    assert isinstance(adapter, DegradationPairs)
    assert adapter.restorer.spec.size.multiple_of == 48


class NonBlind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return self.conv(x) * sigma


@pytest.mark.parametrize(("model", "words"), [
    (nn.Conv2d(4, 4, 1), "takes frames of 4 channels, and pairs have 1 or 3"),
    (nn.Identity(), "has no weights to adapt"), (lambda x: x, "has no weights to adapt"),
    (NonBlind(), "no frame suits NonBlind; it also takes sigma; wrap it in a module that passes it on"),
    (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)), "returns no image"),
    (as_restorer(nn.Conv3d(3, 3, 1), RestorerSpec(frames=5)), "takes clips, to which MetaTransfer adapts"),
])  # fmt: skip
def test_what_cannot_be_adapted_to_gets_a_self_ensemble_and_a_word(model, words):
    with pytest.warns(UserWarning, match=f"recommended: .*{words}: SelfEnsemble restores without adapting"):
        assert type(recommended(model)) is SelfEnsemble


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_torchscript_program_gets_a_self_ensemble_and_a_word():
    model = torch.jit.trace(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 8, 8))
    with pytest.warns(UserWarning, match="recommended: TorchScript hides the weights of a model; pass the module that"):
        assert type(recommended(model)) is SelfEnsemble


def test_other_channels_have_no_competence():
    with pytest.raises(ValueError, match="in_channels = 4|expected a restorer with 1 or 3 channels, got one with 4"):
        DegradationPairs(nn.Conv2d(4, 4, 1)).competence()


def test_calibration_exports_the_models_own_keys():
    model = Filter()
    report = calibrate(model, [_frame(20, seed)[0][0] for seed in range(3)], spec=DENOISE, steps=36)
    assert report.worthwhile
    assert report.verdict.startswith("worth using")
    assert report.model.state_dict().keys() == model.state_dict().keys()
    x, y = _frame(20, 9)
    with torch.no_grad():
        assert psnr(report.model(x), y) > psnr(model(x), y) + 2
    assert "degradation" in str(report)
    assert torch.equal(model.weight, Filter().weight)


@pytest.mark.thorough
def test_calibration_takes_all_frames_for_those_of_one_camera():
    noisy = [_frame(sigma, seed)[0] for seed, sigma in enumerate((10, 40))]
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=4)
    assert [adapter.adapt(x).metrics["changed"] for x in noisy] == [0, 1]
    report = adapter.calibrate(noisy)  # the first one is of another camera than the last one above
    (message,) = [message for message in report.messages if "changed" in message]
    assert message.startswith("frame 1: ")
    assert "earlier camera" in message
    assert len(adapter.memory["readings"]) == 3  # with the one from before


@pytest.mark.thorough
def test_calibration_keeps_the_original_where_nothing_is_gained():
    model = Filter()
    report = calibrate(model, [_frame(0, seed)[0] for seed in range(2)], spec=DENOISE, steps=12)
    assert not report.worthwhile
    assert "keep the original" in report.verdict
    assert torch.equal(report.model.weight, model.weight)


def test_calibration_refuses_nothing_to_learn_from():
    with pytest.raises(ValueError, match="at least one frame"):
        calibrate(Filter(), [], spec=DENOISE)
    with pytest.raises(ValueError, match="weights to adapt"):
        calibrate(SelfEnsemble(Filter()), [_frame(5)[0]])
    with pytest.raises(ValueError, match='expected budget such as "60s"'):
        calibrate(Filter(), [_frame(5)[0]], budget="soon")


def test_an_adapter_is_alone_again_after_a_shared_calibration():
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=4)
    with pytest.raises(ValueError, match="process group"):  # none was joined
        calibrate(adapter, [_frame(20)[0]], processes=Processes(0, 2))
    assert adapter.processes == Processes()
    adapter(_frame(20)[0])
    assert adapter.report.steps > 0
    with pytest.raises(ValueError, match="calibrate: expected batch_size >= 99 processes, got"):
        calibrate(adapter, [_frame(20)[0]], processes=Processes(0, 99))


def test_frozen_adapters_take_no_steps():
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=24)
    adapter(_frame(20)[0])
    adapter.freeze()
    expected = adapter.predict(_frame(20, 5)[0])
    assert torch.equal(adapter(_frame(20, 5)[0]), expected)
    assert adapter.report.steps == 0
    adapter.thaw()
    adapter(_frame(20, 6)[0])
    assert adapter.report.steps > 0


def test_a_budget_limits_the_steps():
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=500, budget="0.05s")
    adapter(_frame(20)[0])
    assert adapter.report.steps < 100
    with pytest.raises(ValueError, match='expected budget such as "60s" or "10x"'):
        DegradationPairs(Filter(), budget="10 minutes")


def test_saved_states_continue_exactly(tmp_path):
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=12)
    adapter(_frame(20)[0])
    adapter.save(tmp_path / "state.safetensors")
    twin = create_adapter("degradation_pairs", Filter(), spec=DENOISE, steps=12)
    twin.load(tmp_path / "state.safetensors")
    frame = _frame(20, 7)[0]
    assert torch.equal(adapter(frame), twin(frame))


def test_patches_suit_the_model():
    assert patch_size_for(SizeRequirements(minimum=64, multiple_of=64), 1) == 64
    assert patch_size_for(SizeRequirements(multiple_of=8), 4) == 32
    assert patch_size_for(SizeRequirements(), 1, 50) == 50


def test_targets_are_sharp_only_for_restorers_that_remove_blur():
    reading = Estimator().read(_frame(5)[0])
    for scale in (1, 2):
        sampler = PairSampler(scale=scale, sharpens=True, motion=False, channels=3, patch_size=32)
        degraded, target = sampler.draw(reading, None, 3, torch.Generator().manual_seed(0))
        assert degraded.shape == (3, 3, 32, 32)
        assert target.shape == (3, 3, 32 * scale, 32 * scale)


def test_held_out_material_is_not_trained_on():
    sampler = PairSampler(scale=1, sharpens=False, motion=False, channels=3, patch_size=32)
    seen = {held: sampler._material(held, torch.Generator().manual_seed(0), 64) for held in (False, True)}
    rows = {held: {tuple(patch.flatten()[:50].tolist()) for patch in patches} for held, patches in seen.items()}
    assert not rows[False] & rows[True]


def test_weights_minimize_the_error_on_pairs():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(4, 3, 16, 16, generator=generator) * 0.5 + 0.25
    first, second, third = (0.1 * torch.randn(target.shape, generator=generator) for _ in range(3))
    risk = _blend.pair_risk((target + 10 * third, target + first, target + second), target)[:, None]
    weights = _blend.grid()[_blend.choose(risk, None)]
    assert weights[0] <= 0.05
    assert 0.35 <= weights[1] <= 0.65  # independent errors of like size: half of each
    none, student = torch.zeros(len(_blend.grid())), _blend.grid()[:, 2]
    assert _blend.grid()[_blend.choose(risk, None, max_student=0.2)][2] <= 0.2 + 1e-6
    for vetoed in (
        _blend.FrameRisk(torch.where(student > 0.1, 1.0, -1.0), none, 1.0, none),
        _blend.FrameRisk(none - 1, none, 1.0, torch.where(student > 0.1, 2.0, 0.0)),
    ):
        assert _blend.grid()[_blend.choose(risk, vetoed)][2] <= 0.1
    worse = _blend.pair_risk((target + 10 * third, target + first, target + 3 * second), target)[:, None]
    cautious = _blend.grid()[_blend.choose(torch.cat([risk, worse], 1), None)]
    assert 0.05 <= cautious[2] <= 0.15  # independent errors of three times the size: a tenth
    rarely = _blend.grid()[_blend.choose(risk, None, others=[(worse[:, 0], 0.1)])]
    surely = _blend.grid()[_blend.choose(risk, None, others=[(worse[:, 0], 0.5), (worse[:, 0], 0.5)])]
    assert cautious[2] - 0.05 <= surely[2] < rarely[2] < weights[2]


def test_pairs_that_are_like_the_frame_decide():
    """A student that gains on smooth pairs and loses on detailed ones gets no weight on a frame with detail."""
    target = torch.full((8, 3, 16, 16), 0.5)
    signs = (torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) > 0.5).float() * 2 - 1
    detailed = torch.arange(8)[:, None, None, None] >= 6
    source = target + signs * torch.where(detailed, 0.1, 0.01)
    student = target + signs * torch.where(detailed, 0.13, 0.004)
    candidates = (target + signs, source, student)
    changes = (student - source).square().mean((1, 2, 3))
    chosen = {}
    for name, level in (("detailed", changes[-1]), ("smooth", changes[0])):
        like = _blend.likeness(level.expand(5), changes)
        assert abs(float(like.mean()) - 1) < 1e-6
        assert bool((like[6:] > 3.9).all()) == (name == "detailed")
        risk = _blend.pair_risk(candidates, target, like)[:, None]
        assert abs(float(risk[_blend.grid()[:, 1] == 1].mean()) - 1) < 1e-6  # relative to the source
        chosen[name] = float(_blend.grid()[_blend.choose(risk, None)][2])
    assert chosen == {"detailed": 0.0, "smooth": 1.0}
    alike = _blend.grid()[_blend.choose(_blend.pair_risk(candidates, target)[:, None], None)]
    assert alike[2] > 0.5  # most pairs are smooth


def test_pairs_unlike_the_frame_still_count():
    """The nearest ones do, however far they are, and pairs without any change are no error."""
    like = _blend.likeness(torch.tensor([1.0]), torch.tensor([1e-6, 1e-4, 0.0]))
    assert like.isfinite().all()
    assert float(like[1]) > 2.9
    none = _blend.likeness(torch.zeros(2), torch.zeros(3))
    assert torch.allclose(none, torch.ones(3, dtype=none.dtype))


def test_the_error_on_a_frame_needs_no_reference_but_the_noise():
    """True differences of errors are found; where the noise may be larger, restorations that leave it are doubted."""
    generator = torch.Generator().manual_seed(0)
    sharp = torch.full((1, 3, 96, 96), 0.5)
    y = sharp + 0.05 * torch.randn(sharp.shape, generator=generator)

    def restore(x, kept):
        return sharp + kept * (x - sharp)

    def risk(level, log_std):
        z = level * torch.randn(y.shape, generator=generator)
        noises = [z, -z]
        candidates = [tuple(restore(y + 0.3 * one, kept) for kept in (1.0, 0.4, 0.1)) for one in noises]
        return _blend.frame_risk(candidates, noises, y, strength=0.3, log_std=log_std)

    rows = [int((_blend.grid()[:, index] == 1).nonzero()) for index in range(3)]
    certain = risk(0.05, 0.0)
    # errors inside of the border, with the noise that was added
    error = [(restore(y, kept) - sharp)[..., 8:-8, 8:-8].square().mean() for kept in (1.0, 0.4, 0.1)]
    added = [(0.3 * 0.05 * kept) ** 2 for kept in (1.0, 0.4, 0.1)]
    for row, one, more in zip(rows, error, added, strict=True):
        assert float(certain.difference[row]) == pytest.approx(float(one - error[1]) + more - added[1], abs=6e-5)
    assert certain.doubt.abs().max() == 0
    assert certain.excluded[rows[0]]
    assert not certain.excluded[rows[2]]
    # half of the noise was read: the input looks good, and is doubted as the reading is
    assert not risk(0.02, 0.0).excluded[rows[0]]
    doubted = risk(0.02, 1.0)
    assert doubted.excluded[rows[0]]
    assert float(doubted.doubt[rows[0]]) == pytest.approx(2 * 0.02**2 * math.expm1(3) * 0.6, rel=0.05)
    assert not doubted.excluded[rows[1]]


def test_noise_that_may_be_there_counts():
    reading = dataclasses.replace(Estimator().read(_frame(0)[0]), noise=torch.tensor([math.log(1.6 / 255), 0.3]))
    assert not _trust.is_noisy(reading)
    assert _trust.is_noisy(reading, doubt=1.0)
    assert not _trust.is_noisy(dataclasses.replace(reading, noise=torch.tensor([math.log(1.6 / 255), 0.2])), doubt=1.0)


def test_frames_that_show_no_blur_earn_no_trust_in_it():
    reading = dataclasses.replace(Estimator().read(_frame(0)[0]), blur=torch.tensor([math.log(0.3), 1.1]))
    assert _trust.max_input([reading], scale=1) == 0
    options = {"sharpens": True, "scale": 1, "denoises": False}
    assert _trust.max_student(9.0, [reading], **options) == 0
    assert _trust.max_input([dataclasses.replace(reading, blur=torch.tensor([math.log(0.3), 0.5]))], scale=1) == 1


def test_what_else_a_frame_may_be():
    """The blur may be what the second estimator reads, or weaker by two deviations, or only soft content."""
    reading = dataclasses.replace(
        Estimator().read(_frame(0)[0]),
        blur=torch.tensor([math.log(2.0), 0.2]),
        even_blur=torch.tensor([1.0, math.log(3.0), 0.3]),
    )

    def radii(reading, deblurs=True):
        possible = _trust.hypotheses(reading, deblurs=deblurs)
        assert all(one.uncertainty["blur_radius"] == one.uncertainty["noise_std"] == 0 for one in possible)
        return pytest.approx([one.mean["blur_radius"] for one in possible])

    assert radii(reading) == [2.0, 3.0]
    assert [2.0, 2.0 * math.exp(-0.2), 2.0 * math.exp(0.2)] == radii(reading, deblurs=False)
    for even in ([1.0, math.log(1.5), 0.3], [-1.0, math.log(3.0), 0.3], [0.0, 0.0, 0.0]):  # less, no blur, unread
        assert radii(dataclasses.replace(reading, even_blur=torch.tensor(even))) == [2.0]
    small = dataclasses.replace(reading, blur=torch.tensor([0.0, 0.2]))
    other, shares = zip(*_trust.other_blur([small, small]), strict=True)
    assert [one.mean["blur_radius"] for one in other] == pytest.approx([math.exp(0.2 * s) for s in (-2, -1, 1)] + [0.2])
    blurred = 1 / (1 + math.exp(-2.0))
    assert shares == pytest.approx([0.35 * blurred, 0.25 * blurred, 0.15 * blurred, 1 - blurred])
    noisy = dataclasses.replace(
        small, noise=torch.tensor([math.log(5.5 / 255), 0.1]), jpeg=torch.tensor([0.0, 100.0, 1])
    )
    assert _trust.other_blur([noisy, noisy])[0][1] == pytest.approx(0.5 * shares[0])  # it removes noise, too
    assert _trust.other_blur([noisy, small])[0][1] == pytest.approx(shares[0])  # the weaker noise counts
    camera = dataclasses.replace(small, even_blur=torch.tensor([-4.0, math.log(3.0), 0.3]), frames=2)
    assert _trust.probability_of_blur([small, camera]) == pytest.approx(1 - blurred)
    assert _trust.probability_of_blur([reading, reading]) == pytest.approx(1 - (1 - blurred) / 2)  # of 2 pixels
    unread = dataclasses.replace(reading, even_blur=torch.zeros(3))
    assert _trust.probability_of_blur([unread, unread]) == 1


@pytest.mark.parametrize(("task", "odds"), [("defocus", 6.0), ("defocus", -2.0), ("denoise", None)])
def test_a_frame_may_be_soft_by_itself(monkeypatch, task, odds):
    """Pairs with other blur count for the student of a lens, those without any as far as the frame has none."""
    read = Estimator().read(_frame(5)[0])
    if odds is not None:
        even = torch.cat([torch.tensor([odds]), read.even_blur[1:]])
        monkeypatch.setattr(Estimator, "read", lambda *_: dataclasses.replace(read, even_blur=even))
    choose, asked = _blend.choose, []

    def record(pairs, frame, **options):
        asked.append((pairs, options["others"]))
        return choose(pairs, frame, **options)

    monkeypatch.setattr(_blend, "choose", record)
    metrics = DegradationPairs(Filter(), spec=DENOISE, task=task, steps=1, lr=1e-4).adapt(_frame(5)[0]).metrics
    ((pairs, others),) = asked
    assert len(others) == 4 * (task == "defocus")
    if odds is not None:
        assert metrics["blurred"] == pytest.approx(1 / (1 + math.exp(-odds - 1)))
        assert others[-1][1] == pytest.approx(1 - metrics["blurred"])
        assert all(risk.shape == pairs[:, 0].shape for risk, _ in others)


def test_what_no_one_can_use_is_refused():
    for options, words in (({"task": "fog"}, "task"), ({"batch_size": 0}, "batch_size"), ({"lr": 0.0}, "lr")):
        with pytest.raises(ValueError, match=f"DegradationPairs: expected {words}"):
            DegradationPairs(Filter(), **options)
    with pytest.raises(ValueError, match="expected frames"):
        DegradationPairs(nn.Conv2d(4, 4, 1))(torch.rand(1, 4, 64, 64))


@pytest.mark.parametrize(
    ("task", "blur", "quality", "lead", "share"),
    [
        ("denoise", 0.3, 100, 0.4, 1.0),
        ("denoise", 0.3, 100, 0.1, 0.5),
        ("denoise", 0.3, 100, -1.0, 0.0),
        ("denoise", 0.3, 40, 0.4, 0.3),
        ("denoise", 0.3, 40, 0.2, 0.0),
        ("jpeg", 0.3, 40, 0.4, 0.3),
        ("jpeg", 0.3, 100, 1.3, 0.0),
        ("jpeg", 0.3, 100, 1.8, 1.0),
        ("defocus", 2.5, 100, 2.0, 0.5),
        ("defocus", 2.5, 100, 0.2, 0.25),
        ("defocus", 0.5, 100, 2.0, 0.5),
        ("defocus", 2.5, 40, 2.0, 0.4),
        ("defocus", 0.9, 40, 2.0, 0.15),
        ("sr", 0.9, 100, 2.0, 0.75),
        ("sr", 0.9, 40, 2.0, 0.375),
    ],
)
def test_trust_grows_with_the_lead_and_falls_with_what_is_read_badly(task, blur, quality, lead, share):
    reading = dataclasses.replace(
        Estimator().read(_frame(0)[0]),
        blur=torch.tensor([math.log(blur), 0.1]),
        jpeg=torch.tensor([float(quality < 100), quality, 1.0]),
    )
    sharpens = task in ("defocus", "sr")
    options = {"sharpens": sharpens, "scale": 2 if task == "sr" else 1, "denoises": task == "denoise"}
    assert _trust.max_student(lead, [reading], **options) == pytest.approx(share, abs=1e-3)
    if not sharpens and quality < 100:  # much noise in a compressed frame may be texture
        for noise, kept in ((10, task == "denoise"), (20, 0.5 * (task == "denoise")), (30, 0)):
            noisy = dataclasses.replace(reading, noise=torch.tensor([math.log(noise / 255), 0.1]))
            assert _trust.max_student(lead, [noisy], **options) == pytest.approx(share * kept, abs=1e-3)
    sharp, blurred = (0.8, 1.2) if quality == 100 else (0.6, 0.85)
    plain = min(max((blurred - blur) / (blurred - sharp), 0), 1)
    assert _trust.max_input([reading], scale=1) == pytest.approx(plain, abs=1e-3)
    if sharpens and quality == 100:  # noise is seen on the frame itself
        noisy = dataclasses.replace(reading, noise=torch.tensor([math.log(5 / 255), 0.1]))
        assert _trust.max_student(2.0, [noisy], **options) == 1


@pytest.mark.parametrize("task", ["denoise", "defocus"])
def test_merged_weights_have_a_lead_of_their_own(monkeypatch, task):
    """A change of the camera is noticed by what they would lose, not by what the student had gained."""
    monkeypatch.setattr(_blend, "choose", lambda *a, **options: _blend.grid().tolist().index([0.0, 0.8, 0.2]))
    spec = RestorerSpec(in_channels=3, task=task)
    adapter = DegradationPairs(Filter(), spec=spec, steps=24, lr=1e-2, calibration_frames=1)
    student = adapter.adapt(_frame(20)[0]).metrics["lead"]
    assert adapter.phase == "steady"
    assert adapter.memory["weights"] == [0.0, 0.0, 1.0]
    assert 0 < adapter.memory["lead"] == adapter.memory["exported_lead"] < 0.7 * student


@pytest.mark.thorough
def test_a_lens_that_the_student_fails_on_is_a_change(monkeypatch):
    """The second doubtful frame of a steady camera makes it calibrate again; the first one is trusted less."""
    model = create_model("lens_unet", checkpoint="specialist").eval()
    options = {"calibration_frames": 1, "change_threshold": 100.0, "read_interval": 1}
    adapter = DegradationPairs(model, task="defocus", steps=4, lr=1e-3, views="identity", batch_size=2, **options)
    ring, disk = (optics.Lens(n, f, (2.8, 3.4)) for n, f in (("ring", optics.ring(0.6)), ("disk", optics.disk)))
    stream = defocus.defocus_stream([ring, disk], photos.DEV[:1], frames_per_lens=3, size=112, seed=4)
    adapter.adapt(stream[0].blurry[None])
    assert adapter.phase == "steady"
    adapter.memory["lead"] = 4.0
    leads = {"pooled": 4.0, "frame": 1.0}

    states = []

    def hold_out(frame, reading):
        states.append(adapter.generator.get_state())
        original(frame, reading)
        return leads["frame" if reading is frame.scratch["read"] else "pooled"]

    original = adapter._hold_out
    monkeypatch.setattr(adapter, "_hold_out", hold_out)
    first = adapter.adapt(stream[3].blurry[None])
    assert first.steps == 0
    assert first.metrics["trust"] <= adapter.memory["weights"][2]
    assert len(states) == 2
    assert torch.equal(*states)  # the same sharp material for both estimates
    assert any("may have changed" in message for message in first.messages)
    leads["pooled"] = 1.5  # the scene: under the estimate of the camera the student leads by as little
    scene = adapter.adapt(stream[1].blurry[None])
    assert scene.steps == 0
    assert not scene.messages
    assert scene.metrics["lead_on_frame"] == 1.0
    leads.update(pooled=0.0, frame=0.0)  # on this scene the student leads by nothing at all
    adapter.memory["weights"] = [0.0, 0.5, 0.5]
    lost = adapter.adapt(stream[2].blurry[None])
    assert lost.metrics["trust"] == 0.5  # as frames between two estimates get: films do not flicker
    assert not lost.messages
    leads.update(pooled=4.0, frame=1.0)
    assert adapter.adapt(stream[3].blurry[None]).metrics["changed"] == 0
    assert adapter.adapt(stream[4].blurry[None]).metrics["changed"] == 1


@pytest.mark.thorough
def test_an_earlier_camera_is_not_adapted_to_again():
    model = create_model("small_unet", checkpoint="denoiser").eval()
    adapter = DegradationPairs(model, task="denoise", steps=12, calibration_frames=1, lr=1e-3)
    sharp = photos.load("grace_hopper")[None, :, 100:196, 100:196]
    generator = torch.Generator().manual_seed(0)

    def frame(std):
        return (sharp + std / 255 * torch.randn(sharp.shape, generator=generator)).clamp(0, 1)

    first = adapter.adapt(frame(40))
    learned = adapter.memory["lead"]
    second = adapter.adapt(frame(4))
    assert first.steps == second.steps == 12
    assert second.metrics["changed"] == 1
    again = adapter.adapt(frame(40))
    assert again.metrics["changed"] == 1
    assert again.steps == 0
    assert any("earlier camera" in message for message in again.messages)
    assert adapter.phase == "steady"
    assert adapter.memory["lead"] == learned
    assert len(adapter.memory["readings"]) == 1
    assert adapter.adapt(frame(40)).steps == 0


def test_content_in_the_residual_is_not_trusted_as_noise():
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((2, 3, 48, 48), 0.5)
    noise = 0.1 * torch.randn(flat.shape, generator=generator)
    strokes = noise.clone()
    strokes[..., 8:40:8, :] -= 0.4  # lines that a restorer smooths away, equal in all channels
    expected = _trust.residual_correlation(flat + noise, flat)
    assert _trust.structure_excess((flat + noise, flat), expected) == pytest.approx(-1 / 48)  # the standard error
    assert _trust.structure_share(_trust.structure_excess((flat + strokes, flat), expected), 2.0, scale=1) == 0
    for excess, lead, share in ((0.05, 1.0, 1.0), (0.075, 1.0, 0.5), (0.15, 2.0, 0.5), (0.05, 0.25, 0), (0.01, -1, 0)):
        assert _trust.structure_share(excess, lead, scale=1) == pytest.approx(share)
        assert _trust.structure_share(excess, lead, scale=2) <= share
    gray = tuple(image.mean(1, keepdim=True) for image in (flat + strokes, flat))
    assert _trust.structure_excess(gray, _trust.residual_correlation((flat + noise)[:, :1], flat[:, :1])) > 0.2


def _gray_frame(noise: float, seed: int = 3) -> tuple[Tensor, Tensor]:
    """A frame of a gray camera, which its file stores in three equal channels."""
    x, y = _frame(noise, seed)
    return x[:, :1].expand(-1, 3, -1, -1).clone(), y[:, :1].expand(-1, 3, -1, -1)


def _shared_frame(noise: float, seed: int = 3) -> tuple[Tensor, Tensor]:
    """A photograph in color with noise that is the same in all channels; its values are far from black and white."""
    sharp = 0.6 * photos.load("grace_hopper")[None, :, 40:168, 40:168] + 0.2
    noisy = sharp + noise / 255 * torch.randn(sharp[:, :1].shape, generator=torch.Generator().manual_seed(seed))
    return (noisy.clamp(0, 1) * 255).round() / 255, sharp


@pytest.mark.thorough
def test_frames_whose_channels_share_their_noise_are_adapted_to_with_such_noise():
    x, y = _shared_frame(30)
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=48, lr=1e-2)
    assert _gain(adapter, x, y) > 1
    assert adapter.reading.between_channels > 0.9
    assert adapter.report.metrics["trust"] > 0.5
    assert not adapter.memory["gray"]
    other = DegradationPairs(Filter(), spec=DENOISE, steps=48, lr=1e-2)
    other.load_state_dict(adapter.state_dict())
    assert other.reading.between_channels == adapter.reading.between_channels


@pytest.mark.thorough
def test_pairs_share_the_noise_that_channels_share():
    sampler = PairSampler(scale=1, sharpens=False, motion=False, channels=3, patch_size=32)
    for x, least, most in ((_shared_frame(20)[0], 0.9, 1.0), (_frame(20)[0], -0.1, 0.1)):
        degraded, sharp = sampler.draw(Estimator().read(x), None, 8, torch.Generator().manual_seed(0))
        noise = (degraded - sharp).movedim(1, 0).flatten(1)
        assert least < float(torch.corrcoef(noise)[0, 1]) < most
        assert not torch.equal(sharp[:, 0], sharp[:, 1])


def test_shown_noise_may_be_removed_by_models_that_were_not_made_for_it():
    shown, other = (Estimator().read(make(20)[0]) for make in (_shared_frame, _frame))
    options = {"sharpens": False, "scale": 1}
    assert _trust.max_student(0.8, [shown, shown], denoises=False, **options) == 1
    for readings in ([other, other], [shown, other]):
        assert _trust.max_student(0.8, readings, denoises=False, **options) == 0
        assert _trust.max_student(0.8, readings, denoises=True, **options) == 1


def test_what_the_source_removes_does_not_speak_against_noise_that_is_shown(monkeypatch):
    found = {"source": 0.3, "teacher": 0.0}
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=24, lr=1e-2, calibration_frames=1)
    monkeypatch.setattr(_trust, "weighs_content", lambda *_, **__: False)
    for x, shown in ((_shared_frame(30)[0], True), (_frame(40)[0], False)):
        roles = iter(found)
        monkeypatch.setattr(DegradationPairs, "_structure_excess", lambda *_, roles=roles: found[next(roles)])
        adapter.reset()
        adapter.adapt(x)
        assert (adapter.report.metrics["trust"] > 0.5) == shown
        assert adapter.report.metrics["structure_excess"] == (0.0 if shown else 0.3)


def test_content_that_channels_share_is_what_they_remove_together():
    generator = torch.Generator().manual_seed(0)
    content = 0.1 * torch.randn(2, 1, 64, 64, generator=generator)
    noise = 0.2 * torch.randn(2, 3, 64, 64, generator=generator)
    x = 0.5 + content + noise
    removed = _trust.shared_removal(x, [x - noise, x - noise - content, x - 0.5 * content])
    expected = 0.01 * torch.tensor([[0, 0, 0], [0, 1, 0.5], [0, 0.5, 0.25]])
    torch.testing.assert_close(removed, expected, atol=1.5e-3, rtol=0)


def test_the_risk_of_removed_content_grows_with_the_weights_of_those_that_remove_it():
    grid = _blend.grid()
    risk = _blend.content_risk(torch.tensor([[0.0, 0.0], [0.0, 0.01]]), 0.04)
    torch.testing.assert_close(risk, _blend._CONTENT * 0.25 * grid[:, 2].square())
    both = _blend.content_risk(torch.tensor([[0.01, 0.01], [0.01, 0.01]]), 0.04)
    torch.testing.assert_close(both, _blend._CONTENT * 0.25 * (1 - grid[:, 0]).square())
    assert not _blend.content_risk(torch.tensor([[-0.01, 0.0], [0.0, -0.01]]), 0.04).any()  # less than on pairs


@pytest.mark.thorough
def test_a_student_far_ahead_is_weighed_against_the_content_that_it_removes(monkeypatch):
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=48, lr=1e-2, calibration_frames=1)
    x, other = _frame(40)[0], _frame(40, seed=4)[0]
    monkeypatch.setattr(DegradationPairs, "_structure_excess", lambda *_: 1.0)  # more than any lead outweighs
    trust = {}
    for content in (0.0, 0.003, 0.1):
        covariances = content * torch.tensor([[0.0, 0.0], [0.0, 1.0]])
        monkeypatch.setattr(
            _trust, "shared_removal", lambda x, restored, found=covariances: found if len(x) == 1 else torch.zeros(2, 2)
        )
        adapter.reset()
        adapter.adapt(x)
        assert adapter.report.metrics["lead"] >= 2
        assert "counts as an error of the output" in str(adapter.report.messages)
        assert adapter.phase == "steady"
        found = [adapter.report.metrics["trust"]]
        adapter(other)
        trust[content] = [*found, adapter.report.metrics["trust"]]
    assert min(trust[0.0]) > 0.9
    assert all(0.2 < one < 0.95 for one in trust[0.003])
    assert trust[0.1][0] < 0.2
    monkeypatch.setattr(_trust, "weighs_content", lambda *_, **__: False)
    adapter.reset()
    adapter.adapt(x)
    assert adapter.report.metrics["trust"] == 0


@pytest.mark.parametrize(
    ("noise", "lead", "explained", "weighs"),
    [(15, 2.0, 1.0, True), (15, 1.9, 1.0, False), (15, 3.0, 0.8, False), (1, 3.0, 1.0, False)],
)
def test_content_is_weighed_where_the_student_is_far_ahead_on_noise_that_is_explained(noise, lead, explained, weighs):
    noise_of = torch.tensor([math.log(noise / 255), 0.1])
    reading = dataclasses.replace(Estimator().read(_frame(0)[0]), noise=noise_of)
    assert _trust.weighs_content(reading, lead, explained) == weighs


def _filtered_frame(noise: float, pixels: float = 0.7, seed: int = 3) -> tuple[Tensor, Tensor]:
    """A photograph with noise that correlates between pixels, as demosaicking leaves it."""
    sharp = 0.6 * photos.load("grace_hopper")[None, :, 40:168, 40:168] + 0.2
    camera = Compose([Noise(noise / 255, correlation=pixels), Clip(), Quantize()])
    generator = torch.Generator().manual_seed(seed)
    return camera.apply(sharp, camera.sample(generator, 1), generator), sharp


@pytest.mark.thorough
def test_frames_whose_noise_correlates_between_pixels_are_adapted_to_with_such_noise():
    x, y = _filtered_frame(30)
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=48, lr=1e-2)
    assert _gain(adapter, x, y) > 1
    assert adapter.reading.between_pixels == pytest.approx(0.7, abs=0.06)
    assert adapter.report.metrics["trust"] > 0.5
    assert adapter.report.metrics["noise_filter"] == adapter.reading.between_pixels
    other = DegradationPairs(Filter(), spec=DENOISE, steps=48, lr=1e-2)
    other.load_state_dict(adapter.state_dict())
    assert other.reading.between_pixels == adapter.reading.between_pixels
    assert other.memory["filtered"]


def _neighbors(noise: Tensor) -> float:
    return float((noise[..., 1:] * noise[..., :-1]).mean() / noise.square().mean())


@pytest.mark.thorough
def test_pairs_and_the_test_on_the_frame_have_the_correlation_of_its_noise(monkeypatch):
    sampler = PairSampler(scale=1, sharpens=False, motion=False, channels=3, patch_size=32)
    noises = []
    monkeypatch.setattr(_blend, "frame_risk", lambda candidates, noises_, *_, **__: noises.append(noises_[0]))
    for x, expected in ((_filtered_frame(20)[0], 0.54), (_frame(20)[0], 0.0)):
        reading = Estimator().read(x)
        degraded, sharp = sampler.draw(reading, None, 8, torch.Generator().manual_seed(0))
        assert _neighbors(degraded - sharp) == pytest.approx(expected, abs=0.08)
        DegradationPairs(Filter(), spec=DENOISE, steps=1).adapt(x)
        assert _neighbors(noises.pop()) == pytest.approx(expected, abs=0.08)


@pytest.mark.thorough
@pytest.mark.parametrize(("student", "source", "trusted"), [
    (0.3, 0.32, True), (0.3, 0.3, True), (0.3, 0.1, False), (0.3, -0.5, False), (0.0, -0.5, True),
])  # fmt: skip
def test_a_student_for_filtered_noise_may_remove_as_much_content_as_the_source(monkeypatch, student, source, trusted):
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=24, lr=1e-2, calibration_frames=1)
    x, found = _filtered_frame(30)[0], iter([source, student])
    monkeypatch.setattr(DegradationPairs, "_structure_excess", lambda *_: next(found))
    adapter.adapt(x)
    assert (adapter.report.metrics["trust"] > 0.5) == trusted
    assert adapter.report.metrics["structure_excess"] == pytest.approx(student - max(source, 0.0))
    assert adapter.phase == "steady"
    adapter.memory["weights"] = [0.0, 0.0, 1.0]
    found = iter([student, source])  # the source is asked only where it matters
    adapter(x)
    assert (adapter.report.metrics["trust"] > 0.5) == trusted
    assert (next(found, None) is None) == (student > 0)
    adapter.memory["filtered"], found = False, iter([student])
    adapter(x)
    assert (adapter.report.metrics["trust"] > 0.5) == (student == 0)


def test_a_source_that_removes_no_content_excuses_none():
    assert _trust.excess_over(0.2, 0.3) == pytest.approx(0.1)
    assert _trust.excess_over(-0.5, 0.3) == 0.3


@pytest.mark.thorough
def test_filtered_noise_that_channels_share_is_judged_as_other_noise_without_color(monkeypatch):
    """On frames without steps, too: the student is compared with the source once, not twice."""
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=24, lr=1e-2, calibration_frames=1)
    x = _filtered_frame(30)[0]
    adapter.adapt(x)
    adapter.memory.update(shared=True, weights=[0.0, 0.0, 1.0], correlation=[0.0] * 4)
    seen = []
    monkeypatch.setattr(DegradationPairs, "_structure_excess", lambda *_: 0.3)
    monkeypatch.setattr(_trust, "colorless_share", lambda student, source, lead: seen.append((student, source)) or 0.5)
    adapter(x)
    assert seen == [(0.3, -math.inf), (0.3, 0.3)]


@pytest.mark.thorough
def test_frames_of_a_camera_that_do_not_show_its_filter_are_read_with_it(monkeypatch):
    pooled = Estimator().read(_filtered_frame(30)[0])
    shift = 0.5 * math.log(float(haar_energies(pooled.between_pixels)[0]))

    def hidden(times=1.0, shown=0.0):
        noise = pooled.noise + torch.tensor([shift + math.log(times), 0.0])
        return dataclasses.replace(pooled, noise=noise, correlation=torch.tensor([0.0, shown]))

    found = _trust.with_filter_of(pooled, hidden(), 1.0)
    torch.testing.assert_close(found.noise, pooled.noise)
    assert found.between_pixels == pooled.between_pixels
    for other in (hidden(times=2.0), hidden(shown=1.0), pooled):  # another camera, white noise, shown
        assert _trust.with_filter_of(pooled, other, 1.0) is other
    unknown = dataclasses.replace(pooled, correlation=torch.zeros(2))
    assert _trust.with_filter_of(unknown, hidden(), 1.0).between_pixels == 0

    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=12, calibration_frames=1)
    x = _filtered_frame(30)[0]
    adapter.adapt(x)
    monkeypatch.setattr(adapter.estimator, "read", lambda _: hidden())
    adapter.adapt(x)
    assert adapter.phase == "steady"
    assert adapter.report.metrics["distance"] < 0.5
    adapter.adapt(x.mean(1, keepdim=True).expand_as(x))  # a gray camera has noise of its own
    assert adapter.report.metrics["noise"] == pytest.approx(255 * hidden().mean["noise_std"])


def test_filtered_noise_explains_what_smooth_blocks_hold():
    x = _filtered_frame(30)[0]
    reading = Estimator().read(x)
    assert _trust.explained(reading, x, (4.0, 8.0)) == 1
    for part, low, high in ((0.5, 0.5, 0.75), (0.1, 0.0, 0.0)):  # of the noise is read
        weaker = dataclasses.replace(reading, noise=reading.noise + torch.tensor([math.log(part), 0.0]))
        assert low <= _trust.explained(weaker, x, (4.0, 8.0)) <= high


@pytest.mark.thorough
def test_gray_frames_are_adapted_to_with_gray_noise():
    x, y = _gray_frame(40)
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=48)
    assert _gain(adapter, x, y) > 1
    assert adapter.report.metrics["trust"] > 0.5
    assert abs(adapter.report.metrics["structure_excess"]) < 0.1
    assert adapter.memory["gray"]


def test_pairs_of_gray_frames_have_equal_channels():
    reading = Estimator().read(_gray_frame(20)[0])
    for gray in (True, False):
        sampler = PairSampler(scale=1, sharpens=True, motion=False, channels=3, patch_size=32, gray=gray)
        for image in sampler.draw(reading, None, 3, torch.Generator().manual_seed(0)):
            assert image.shape[1] == 3
            assert torch.equal(image[:, 0], image[:, 1]) == gray


@pytest.mark.parametrize(("student", "source", "lead", "share"), [
    (0.02, -1.0, 2.0, 1), (0.03, -1.0, 2.0, 0.5), (0.04, -1.0, 2.0, 0), (0.01, 0.0, 0.5, 0), (-0.01, -1.0, 0.0, 0),
    (0.1, 0.106, 0.1, 1), (0.1, 0.104, 0.1, 0),
])  # fmt: skip
def test_how_much_content_a_student_may_remove_where_there_is_no_color(student, source, lead, share):
    assert _trust.colorless_share(student, source, lead) == pytest.approx(share)


def test_frames_that_are_not_read_do_not_pool_readings(monkeypatch):
    x = _shared_frame(30)[0]
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=12, lr=1e-2, calibration_frames=1, read_interval=8)
    adapter.adapt(x)
    assert adapter.phase == "steady"
    assert adapter.memory["shared"]
    adapter.memory["interval"] = 8
    pooled = []
    monkeypatch.setattr(DegradationPairs, "_pooled", lambda *_: pooled.append(1))
    adapter(x)
    assert not pooled


@pytest.mark.parametrize(("make", "key"), [(_shared_frame, "shared"), (_filtered_frame, "filtered")])
def test_an_earlier_camera_is_known_to_correlate_its_noise(monkeypatch, make, key):
    monkeypatch.setattr("tta_restore.adapters.methods.degradation_pairs._MARGIN", 100.0)  # cameras start anew
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=12, calibration_frames=1)
    adapter.adapt(make(20)[0])
    assert adapter.memory[key]
    adapter.adapt(_frame(60)[0])
    assert not adapter.memory[key]
    again = adapter.adapt(make(20)[0])
    assert any("earlier camera" in message for message in again.messages)
    assert again.steps == 0
    assert adapter.memory[key]


def test_how_uneven_a_frame_without_color_may_be(monkeypatch):
    found = {0.0: 1.1, 1.0: 1.175, 2.0: 1.3}
    monkeypatch.setattr(_trust, "unevenness", lambda image: found[float(image.mean())])
    frames = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    assert [_trust.even_share(frame[None]) for frame in frames] == pytest.approx([1.0, 0.5, 0.0])
    assert _trust.even_share(frames) == 0


@pytest.mark.parametrize(
    "make", [_gray_frame, *(pytest.param(f, marks=pytest.mark.thorough) for f in (_shared_frame, _frame))]
)
def test_content_in_most_of_a_frame_without_color_is_not_trusted_as_noise(monkeypatch, make):
    x = make(40)[0]
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=48, lr=1e-2, calibration_frames=1)
    assert adapter.adapt(x).metrics["trust"] > 0.5
    trusted = adapter.memory["weights"][2]
    monkeypatch.setattr(_trust, "unevenness", lambda _: 1.175)
    adapter(x)
    assert adapter.report.metrics["trust"] == pytest.approx(trusted * (1.0 if make is _frame else 0.5))
    filled = any("content fills most of the frame" in message for message in adapter.report.messages)
    assert filled == (make is not _frame)
    adapter.reset()
    monkeypatch.setattr(_trust, "unevenness", lambda _: 1.3)
    report = adapter.adapt(x)
    assert (report.metrics["trust"] > 0.5) == (make is _frame)
    assert any("content fills" in message for message in report.messages) == (make is not _frame)


@pytest.mark.parametrize(
    "color", ["equal", *(pytest.param(c, marks=pytest.mark.thorough) for c in ("one", "shared", "color"))]
)
def test_a_student_that_removes_more_content_than_the_source_is_not_used_on_gray_frames(monkeypatch, color):
    """The channels of a gray frame correlate whether what is removed is noise or content."""
    model, channels = (GrayFilter(), 1) if color == "one" else (Filter(), 3)
    spec = dataclasses.replace(DENOISE, in_channels=channels)
    adapter = DegradationPairs(model, spec=spec, steps=48, lr=1e-2, calibration_frames=1)
    x = {"color": _frame, "shared": _shared_frame}.get(color, _gray_frame)(40)[0][:, :channels]
    adapter.adapt(x)
    assert adapter.report.metrics["trust"] > 0.5
    assert adapter.phase == "steady"

    of_source = 0.0

    def excess(self, frame, restored, expected):
        return 0.08 if list(expected) == self.memory["correlation"][2:] else of_source

    monkeypatch.setattr(DegradationPairs, "_structure_excess", excess)
    adapter(x)
    share = 1.0 if color == "color" else 0.0
    assert adapter.report.metrics["trust"] == pytest.approx(share * adapter.memory["weights"][2])
    of_source = 0.2  # which then removes more
    adapter(x)
    assert adapter.report.metrics["trust"] == pytest.approx(adapter.memory["weights"][2])
    adapter.reset()
    found = iter((0.0, 0.08))  # of the source and the student
    monkeypatch.setattr(DegradationPairs, "_structure_excess", lambda *_: next(found))
    adapter.adapt(x)
    assert (adapter.report.metrics["trust"] > 0.5) == (color == "color")


@pytest.mark.thorough
def test_a_camera_that_a_new_one_starts_from_is_not_forgotten(monkeypatch):
    monkeypatch.setattr("tta_restore.adapters.methods.degradation_pairs._MARGIN", -100.0)  # always from earlier weights
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=12, calibration_frames=1)
    assert adapter.adapt(_frame(25, 4)[0]).steps > 0
    changed = adapter.adapt(_frame(60, 4)[0])
    assert changed.steps > 0
    assert any("starts from earlier weights" in message for message in changed.messages)
    again = adapter.adapt(_frame(25, 4)[0])
    assert again.steps == 0
    assert any("earlier camera" in message for message in again.messages)


@pytest.mark.parametrize(("frame", "low", "high"), [(_gray_frame, 1, 1), (_shared_frame, 0.9, 1), (_frame, -0.1, 0.1)])
def test_the_test_on_a_frame_adds_noise_like_its_own(monkeypatch, frame, low, high):
    """Independent noise where channels share it would favor what removes that."""
    added = []
    risk = _blend.frame_risk

    def record(candidates, noises, *arguments, **options):
        added.extend(noises)
        return risk(candidates, noises, *arguments, **options)

    monkeypatch.setattr(_blend, "frame_risk", record)
    DegradationPairs(Filter(), spec=DENOISE, steps=1, lr=1e-4).adapt(frame(25)[0])
    assert len(added) == 2
    for noise in added:
        assert low - 1e-6 <= float(torch.corrcoef(noise[0].flatten(1))[0, 2]) <= high + 1e-6


@pytest.mark.thorough
def test_a_gray_frame_is_not_of_an_earlier_color_camera(monkeypatch):
    monkeypatch.setattr("tta_restore.adapters.methods.degradation_pairs._MARGIN", 100.0)  # cameras start anew
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=12, calibration_frames=1)
    for noise in (25, 60):
        assert adapter.adapt(_frame(noise, 4)[0]).steps > 0
    assert adapter.adapt(_gray_frame(25, 4)[0]).steps > 0
    again = adapter.adapt(_frame(25, 4)[0])
    assert again.steps == 0
    assert any("earlier camera" in message for message in again.messages)


def test_gray_and_color_frames_are_different_cameras():
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=12, calibration_frames=1, read_interval=8)
    color, gray = _frame(25, 4)[0], _gray_frame(25, 5)[0]
    adapter.adapt(color)
    assert adapter.phase == "steady"
    assert not adapter.adapt(color).metrics["changed"]
    first = adapter.adapt(gray)  # at once, though the next estimate is not due
    assert first.metrics["changed"] == 1
    assert first.steps > 0
    assert adapter.memory["gray"]
    assert adapter.adapt(color).metrics["changed"] == 1
    assert not adapter.memory["gray"]


def test_uncertain_lenses_are_mixed_with_common_ones():
    reading = Estimator().read(_frame(1)[0])
    hedged = _hedged(reading)
    common = _common_pupils()
    assert len(hedged.pupils) == len(reading.pupils) + 2
    assert torch.equal(hedged.pupils[0], reading.pupils[0])
    assert torch.equal(hedged.pupils[1:3], common)
    twice = _hedged(dataclasses.replace(reading, frames=2))
    assert torch.equal(twice.pupils[[2, 4]], common)
    sure = _hedged(dataclasses.replace(reading, frames=20))
    assert torch.equal(sure.pupils[-2:], common)


def _distances(monkeypatch, single: float, pair: float) -> None:
    """Let readings of single frames, and of two of them, be that far from those of a camera."""
    monkeypatch.setattr(Reading, "distance", lambda self, other, include=(): pair if self.frames > 1 else single)


@pytest.mark.thorough
@pytest.mark.parametrize("lead", [0.0, 0.25])
def test_a_camera_change_is_noticed_where_hardly_anything_was_learned(monkeypatch, lead):
    """Without a lead worth keeping, two frames at a smaller distance count as a change."""
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=4, lr=1e-6, calibration_frames=2)
    for seed in range(2):
        adapter.adapt(_frame(15, seed)[0])
    assert adapter.phase == "steady"
    adapter.memory["lead"] = lead
    _distances(monkeypatch, 1.5, 1.4)
    first, second = (adapter.adapt(_frame(15, seed)[0]) for seed in (5, 6))
    assert (first.steps, first.metrics["changed"]) == (0, 0)
    assert second.metrics["changed"] == 1
    assert len(adapter.memory["readings"]) == 2  # both are of the new camera
    adapter.adapt(_frame(15, 7)[0])
    assert adapter.phase == "steady"
    assert adapter.memory["vain"] == 1  # nothing was gained: larger distances count from now on
    assert [adapter.adapt(_frame(15, seed)[0]).metrics["changed"] for seed in range(3)] == [0, 0, 0]
    adapter.memory.update(lead=1.0, interval=1, vain=0)
    _distances(monkeypatch, 1.5, 2.4)  # of noise, with a lead
    assert [adapter.adapt(_frame(15, seed)[0]).metrics["changed"] for seed in range(4)] == [0, 0, 0, 0]


@pytest.mark.thorough
def test_two_frames_show_another_lens(monkeypatch):
    """Two frames together show what a single one does not, whatever was learned; they are adapted to together."""
    model = create_model("lens_unet", checkpoint="specialist").eval()
    stream = defocus.defocus_stream([defocus.SOURCE], photos.DEV[:1], frames_per_lens=7, size=96, seed=4)
    options = {"steps": 4, "lr": 1e-4, "views": "identity", "calibration_frames": 3, "read_interval": 1}
    adapter = DegradationPairs(model, task="defocus", **options)
    frames = [frame.blurry[None] for frame in stream]
    _distances(monkeypatch, 0.5, 0.9)
    for frame in frames[:3]:
        adapter.adapt(frame)
    assert adapter.phase == "steady"
    adapter.memory["lead"] = 2.0
    monkeypatch.setattr(
        adapter, "_hold_out", lambda frame, reading, original=adapter._hold_out: original(frame, reading) * 0
    )
    assert [adapter.adapt(frame).metrics["changed"] for frame in frames[3:5]] == [0, 0]
    _distances(monkeypatch, 0.5, 1.1)
    report = adapter.adapt(frames[5])
    assert report.metrics["changed"] == 1
    assert report.metrics["pair_distance"] == 1.1
    assert len(adapter.memory["readings"]) == 2
    _distances(monkeypatch, 0.5, 1.6)  # while it is adapted to, from two earlier frames on
    assert adapter.adapt(frames[6]).metrics["changed"] == 0
    assert adapter.adapt(frames[0]).metrics["changed"] == 1
    assert len(adapter.memory["known"][-1]["readings"]) == 2  # the frame before is not of the camera that was left


def test_adaptation_without_a_lead_ends_later():
    adapter = DegradationPairs(Filter(), spec=DENOISE)
    for lead, unimproved, ends in ((1.0, 1, False), (1.0, 2, True), (0.0, 2, False), (0.0, 3, True)):
        adapter.memory.update(lead=lead, unimproved=unimproved)
        assert adapter._is_complete() == ends


def test_errors_on_possible_degradations_are_compared_on_the_same_material(monkeypatch):
    measure, targets = _blend.pair_risk, []

    def record(candidates, target, likeness):
        targets.append(target)
        return measure(candidates, target, likeness)

    monkeypatch.setattr(_blend, "pair_risk", record)
    DegradationPairs(Filter(), spec=DENOISE, steps=1, lr=1e-4).adapt(_frame(25)[0])
    assert len(targets) >= 3
    assert torch.equal(targets[0], targets[1])
    assert torch.equal(targets[0], targets[2])


@pytest.mark.thorough
@pytest.mark.parametrize(("distance", "ends"), [(0.9, True), (1.1, False)])
def test_near_changes_do_not_keep_an_adapter_calibrating(monkeypatch, distance, ends):
    """Each frame costs the student its lead: after twice calibration_frames only distances above 1 are changes."""
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=1, lr=1e-6, calibration_frames=2, views="identity")
    monkeypatch.setattr(Reading, "distance", lambda self, other, include=(): distance)

    def hold_out(frame, reading):
        original(frame, reading)
        return 0.0 if reading is frame.scratch["read"] else 4.0

    original = adapter._hold_out
    monkeypatch.setattr(adapter, "_hold_out", hold_out)
    changes = []
    for seed in range(7):
        changes.append(adapter.adapt(_frame(15, seed)[0]).metrics["changed"])
        adapter.memory["lead"] = 4.0
    assert changes == ([0, 1, 1, 1, 0, 0, 0] if ends else [0, 1, 1, 1, 1, 1, 1])
    assert adapter.phase == ("steady" if ends else "calibrating")
    if ends:
        monkeypatch.setattr(Reading, "distance", lambda self, other, include=(): 9.0)
        assert adapter.adapt(_frame(15, 8)[0]).metrics["changed"] == 1
        assert adapter.memory["adapted_near"] == 1  # near changes count again


@pytest.mark.thorough
def test_the_residuals_of_source_and_student_both_count(monkeypatch):
    """Either of them may remove content; of an upscaler only the source is asked."""
    asked = []

    def excess(frame, pairs):
        asked.append(frame)
        return 9.0 if len(asked) % 2 == 0 else 0.0

    monkeypatch.setattr(_trust, "structure_excess", excess)
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=12, lr=1e-3)
    assert adapter.adapt(_frame(20)[0]).metrics["trust"] == 0
    assert len(asked) == 2
    assert adapter.report.metrics["structure_excess"] == 9
    limits = {}
    choose = _blend.choose
    monkeypatch.setattr(_blend, "choose", lambda *a, **options: limits.update(options) or choose(*a, **options))
    upscaler = DegradationPairs(Upscaler(), steps=12, lr=1e-3)
    upscaler.adapt(_frame(20, size=48)[0])
    assert len(asked) == 3
    assert limits["max_input"] == 1
    upscaler.reset()
    monkeypatch.setattr(_trust, "structure_excess", lambda frame, pairs: 9.0)
    upscaler.adapt(_frame(20, size=48)[0])
    assert limits["max_student"] == limits["max_input"] == 0  # pairs of a wrong noise say nothing of either
    assert "not trusted on this frame, because nothing in it shows" in " ".join(upscaler.report.messages)
    upscaler.reset()
    monkeypatch.setattr(_trust, "structure_excess", lambda frame, pairs: 0.0)
    monkeypatch.setattr(_trust, "max_input", lambda readings, scale: 0.25)
    upscaler.adapt(_frame(20, size=48)[0])
    assert limits["max_input"] == 0.25


@pytest.mark.parametrize(("task", "limit"), [("denoise", "explained"), ("defocus", "max_student")])
def test_no_step_is_taken_for_a_student_that_gets_no_weight(task, limit, monkeypatch):
    """The output is that of a student that would not be trusted, without the time of its steps."""
    x = _frame(25)[0]
    measured = getattr(_trust, limit)
    monkeypatch.setattr(_trust, limit, lambda *_, **options: 0.04)
    adapter = DegradationPairs(Filter(), spec=dataclasses.replace(DENOISE, task=task), steps=24, calibration_frames=3)
    before = {name: tensor.clone() for name, tensor in adapter.student.items()}
    adapter(x)
    metrics = adapter.report.metrics
    assert (metrics["taken"], metrics["trust"], metrics["rate"]) == (0, 0, 0)
    assert "nothing in it shows that the estimate is right" in " ".join(adapter.report.messages)
    assert "never got ahead" not in " ".join(adapter.report.messages)
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.student.items())
    assert (adapter.memory["unimproved"], adapter.memory["adapted"], adapter.phase) == (0, 1, "calibrating")
    monkeypatch.setattr(_trust, limit, measured if task == "denoise" else lambda *_, **options: 0.05)
    adapter(x)  # a frame that may earn it weight is adapted on
    assert adapter.report.metrics["taken"] > 0
    assert adapter.memory["rate"] > 0


@pytest.mark.thorough
def test_one_frame_does_not_decide_for_the_camera(monkeypatch):
    chosen = iter([[0.0, 0.2, 0.8], [0.0, 0.1, 0.9], [0.0, 1.0, 0.0]])
    monkeypatch.setattr(_blend, "choose", lambda *a, **options: _blend.grid().tolist().index(next(chosen)))
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=2, lr=1e-4, calibration_frames=9)
    monkeypatch.setattr(adapter, "_is_complete", lambda: False)
    trusted, weights = [], []
    for seed in range(3):
        trusted.append(adapter.adapt(_frame(40, seed)[0]).metrics["trust"])
        weights.append(adapter.memory["weights"][2])
    assert trusted == [0.8, 0.9, 0.0]
    assert weights == [0.8, 0.8, 0.8]


@pytest.mark.thorough
def test_content_that_a_steady_student_removes_is_kept():
    """A frame of a known camera with strokes as fine as its noise gets more of the source."""
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=24, lr=1e-3, calibration_frames=1)
    adapter.adapt(_frame(40)[0])
    assert adapter.phase == "steady"
    trust = adapter.memory["weights"][2]
    assert trust > 0
    like_it = _frame(40, seed=9)[0]
    adapter(like_it)
    assert adapter.report.metrics["trust"] == trust
    strokes = like_it.clone()
    strokes[..., ::4, :] = (strokes[..., ::4, :] - 0.45).clamp(0, 1)
    restored = adapter(strokes)
    assert adapter.report.metrics["trust"] < trust
    assert any("as fine as noise" in message for message in adapter.report.messages)
    weights = adapter.report.metrics["trust"]
    with torch.no_grad():
        parts = [adapter.ensemble(role, strokes).image for role in ("source", "teacher")]
    torch.testing.assert_close(restored, ((1 - weights) * parts[0] + weights * parts[1]).clamp(0, 1), atol=2e-3, rtol=0)


@pytest.mark.thorough
def test_residuals_of_compressed_frames_are_not_compared(monkeypatch):
    monkeypatch.setattr(_trust, "structure_excess", lambda frame, pairs: pytest.fail("the noise is not white"))
    frame = _frame(20, size=96)[0]
    jpeg = Jpeg(quality=50)
    compressed = jpeg.apply(frame, jpeg.sample(torch.Generator(), 1), torch.Generator())
    report = DegradationPairs(Filter(), spec=DENOISE, steps=12, lr=1e-3).adapt(compressed)
    assert report.metrics["jpeg_quality"] == 50


@pytest.mark.thorough
def test_progress_is_shown_off_a_terminal_too_and_not_where_it_is_switched_off(monkeypatch, capsys):
    adapter = DegradationPairs(Filter(), spec=DENOISE, steps=12)
    adapter.adapt(_frame(20)[0])
    assert capsys.readouterr().err == ""  # work of a moment
    monkeypatch.setattr("tta_restore._core.progress._INTERVAL", 1e-9)
    adapter.reset()
    report = adapter.adapt(_frame(20)[0])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > report.steps  # the trials of learning rates count
    done = [re.fullmatch(r"adapting, steps: (\d+) of \d+ after [\d:]+(, .* left)?", line)[1] for line in lines]
    assert done == sorted(done, key=int)
    adapter.reset()
    with no_progress():
        adapter.adapt(_frame(20)[0])
    adapter.show_progress = False
    adapter.reset()
    adapter.adapt(_frame(20)[0])
    assert capsys.readouterr().err == ""


def test_upscalers_need_frames_that_are_surely_blurred():
    options = {"sharpens": True, "scale": 2, "denoises": False}
    reading = dataclasses.replace(
        Estimator().read(_frame(0)[0]),
        noise=torch.tensor([math.log(1.75 / 255), 0.26]),
        jpeg=torch.tensor([0.0, 100.0, 1.0]),
    )
    for odds, share in ((2.0, 0.0), (3.0, 0.375), (4.0, 0.75), (9.0, 0.75)):
        one = dataclasses.replace(reading, blurred=torch.tensor(odds))
        assert _trust.max_student(1.7, [one], **options) == pytest.approx(share, abs=0.01)
        noisy = dataclasses.replace(one, noise=torch.tensor([math.log(2.5 / 255), 0.1]))
        assert _trust.max_input([one], scale=2) == 0  # its blur is what the pairs may be wrong about
        assert _trust.max_input([noisy], scale=2) == 1
        assert _trust.max_input([one, noisy], scale=2) == 0
    soft = dataclasses.replace(reading, blurred=torch.tensor(0.0))
    assert _trust.max_student(1.7, [soft, one], **options) == pytest.approx(0.75)  # the camera's other frames show it
    assert _trust.max_student(1.7, [one, soft], **options) == 0


class EvenBlurEstimator(Estimator):
    def read(self, frame, **options):
        reading = super().read(frame, **options)
        even = torch.tensor([5.0, math.log(0.8), 0.2])
        return dataclasses.replace(reading, blur=torch.tensor([math.log(2.0), 0.2]), even_blur=even)


@pytest.mark.parametrize(("make", "radius", "odds"), [(Filter, 2.0, 20.0), (Upscaler, 0.8, 5.0)])
def test_only_upscalers_take_blur_to_be_even(make, radius, odds):
    adapter = DegradationPairs(make(), EvenBlurEstimator(), task="sr" if make is Upscaler else "defocus", steps=0)
    report = adapter.adapt(_frame(5, size=64)[0])
    assert report.metrics["blur"] == pytest.approx(radius)
    assert float(adapter.reading.blurred) == pytest.approx(odds)


@pytest.mark.thorough
def test_upscalers_are_not_taught_to_sharpen_soft_noisy_frames(monkeypatch):
    reading = dataclasses.replace(
        Estimator().read(_frame(0)[0]),
        noise=torch.tensor([math.log(8 / 255), 0.1]),
        blur=torch.tensor([math.log(2.2), 0.5]),
        jpeg=torch.tensor([0.0, 100.0, 1.0]),
    )
    assert _trust.max_student(1.7, [reading], sharpens=True, scale=2, denoises=False) == 1
    assert _trust.plausible(reading, scale=1) is reading
    for radius, expected in ((2.2, 0.9), (0.5, 0.5)):
        one = dataclasses.replace(reading, blur=torch.tensor([math.log(radius), 0.5]))
        used = _trust.plausible(one, scale=2)
        assert used.mean["blur_radius"] == pytest.approx(expected)
        assert torch.equal(used.blur[1], one.blur[1])
        assert torch.equal(used.noise, one.noise)
    clean = dataclasses.replace(reading, noise=torch.tensor([math.log(1 / 255), 0.1]))
    assert _trust.plausible(clean, scale=2) is clean
    drawn = []
    draw = PairSampler.draw
    monkeypatch.setattr(PairSampler, "draw", lambda self, one, *a, **k: drawn.append(one) or draw(self, one, *a, **k))
    adapter = DegradationPairs(Upscaler(), spec=RestorerSpec(in_channels=3, scale=2), steps=4, views="identity")
    monkeypatch.setattr(adapter.estimator, "read", lambda frame: reading)
    adapter(_frame(8)[0])
    assert drawn
    assert max(one.mean["blur_radius"] for one in drawn) == pytest.approx(0.9)


@dataclasses.dataclass(frozen=True, eq=False)
class HazeParameters(Parameters):
    level: Tensor = quantity("fraction of gray", minimum=0, maximum=1)


@dataclasses.dataclass(frozen=True)
class Haze(Degradation):
    """Mixes an image with gray, and keeps every ``step``-th pixel."""

    level: tuple[float, float] = (0.35, 0.45)
    step: int = 1

    Parameters = HazeParameters

    def sample(self, generator, n):
        low, high = self.level
        return HazeParameters(low + (high - low) * torch.rand(n, generator=generator))

    def apply(self, sharp, parameters, generator):
        level = parameters.level.to(sharp).view(-1, 1, 1, 1)
        return (sharp * (1 - level) + 0.6 * level)[..., :: self.step, :: self.step]

    def distance(self, a, b):
        return (a.level - b.level).abs() / 0.05


@pytest.mark.thorough
def test_a_degradation_that_no_estimator_reads_is_adapted_to(tmp_path):
    sharp = photos.load(photos.DEV[0])[None, :, :96, :96]
    frame = sharp * 0.6 + 0.6 * 0.4
    net = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        net.weight.copy_(torch.eye(3)[..., None, None])
        net.bias.zero_()
    spec = RestorerSpec(task="any")
    own = DegradationPairs(net, spec=spec, degradation=Haze(), steps=48)
    report = own.adapt(frame)
    assert report.metrics["trust"] > 0.5
    assert psnr(own.predict(frame), sharp) > psnr(frame, sharp) + 2
    assert own.adapt(frame).metrics["changed"] == 0
    plain = DegradationPairs(net, spec=spec, steps=48)
    assert psnr(plain(frame), sharp) < psnr(frame, sharp) + 0.5  # the estimator knows nothing of it
    own.save(tmp_path / "state.safetensors")
    again = DegradationPairs(net, spec=spec, degradation=Haze(), steps=48)
    again.load(tmp_path / "state.safetensors")
    assert torch.equal(again.predict(frame), own.predict(frame))
    with pytest.raises(ValueError, match="degradation"):
        DegradationPairs(net, spec=spec, degradation=Haze((0.1, 0.2)), steps=48).load(tmp_path / "state.safetensors")


@pytest.mark.parametrize("step", [1, 2])
def test_a_degradation_for_an_upscaler_may_reduce_the_size_or_not(step):
    adapter = DegradationPairs(Upscaler(), degradation=Haze(step=step), steps=4)
    assert adapter(_frame(0)[0][..., :48, :48]).shape[-2:] == (96, 96)


def test_degradations_that_do_not_fit_are_told():
    with pytest.raises(TypeError, match="expected degradation to be a Degradation or None, got 'haze'"):
        DegradationPairs(Filter(), spec=DENOISE, degradation="haze")
    adapter = DegradationPairs(Filter(), spec=DENOISE, degradation=Haze(step=2))
    with pytest.raises(ValueError, match=r"expected Haze to return \(N, C, H, W\) = \(12, 3, 64, 64\)"):
        adapter(_frame(0)[0])
