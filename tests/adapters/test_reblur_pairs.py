"""ReblurPairs: what it learns, when it starts over, what it refuses."""

import math

import pytest
import torch
from torch import nn

from tta_restore.adapters import ReblurPairs, SelfEnsemble
from tta_restore.adapters.methods import reblur_pairs
from tta_restore.adapters.methods.reblur_pairs import _FULL_LEAD, _material
from tta_restore.data.synthetic import dead_leaves, defocus, photos
from tta_restore.degradations import lens as optics
from tta_restore.metrics import psnr
from tta_restore.models import RestorerSpec, as_restorer, create_model


def _specialist() -> nn.Module:
    return create_model("lens_unet", checkpoint="specialist").eval()


def _frames(lens: optics.Lens, count: int, seed: int = 11) -> list[defocus.DefocusFrame]:
    return defocus.defocus_stream([lens], photos.DEV[:2], frames_per_lens=count, size=128, seed=seed)


def test_it_learns_a_lens_that_the_restorer_never_saw():
    frames = _frames(optics.Lens("ring", optics.ring(0.5), (2.5, 4.0)), 3)
    model = _specialist()
    adapter, frozen = ReblurPairs(model, steps=24), SelfEnsemble(model)
    gains = []
    for frame in frames:
        x, y = frame.blurry[None], frame.sharp[None]
        gains.append(float(psnr(adapter(x).clamp(0, 1), y) - psnr(frozen(x).clamp(0, 1), y)))
    assert sum(gains) / len(gains) > 0.5
    assert adapter.report.updated
    assert adapter.report.steps == 24


def test_pairs_are_photographs_through_the_estimated_lens():
    """With a narrow estimate the pair is the sharp patch blurred by that kernel, and nothing else."""
    adapter = ReblurPairs(
        _specialist(), batch_size=2, patch_size=32, noise_std=0.0, sharp_images=torch.full((1, 3, 64, 64), 0.5)
    )
    picture = torch.zeros(23, 23)
    picture[11, 11] = 1
    with adapter._working_on(adapter.state.view()):
        blurry, sharp = adapter._pair(picture[None], torch.full((8, 2), 0.05), torch.zeros(8, 1))
    assert blurry.shape == sharp.shape == (2, 3, 32, 32)
    assert (blurry - sharp).abs().max() <= 0.5 / 255 + 1e-5


def test_radii_are_drawn_as_far_from_those_read_as_the_estimator_is_unsure():
    sharp = torch.rand(1, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    bell = torch.exp(-torch.linspace(-2.3, 2.3, 23).square())
    picture, changes = bell[:, None] * bell / bell.sum() ** 2, {}
    for error in (0.0, 0.5):
        adapter = ReblurPairs(_specialist(), batch_size=64, patch_size=32, noise_std=0.0, sharp_images=sharp)
        with adapter._working_on(adapter.state.view()):
            pair = adapter._pair(picture[None], torch.full((8, 2), 1.5), torch.full((8, 1), error))
        changes[error] = (pair[0] - pair[1]).square().mean((1, 2, 3)).sqrt()  # grows with the radius
    assert changes[0.5].std() > 2 * changes[0.0].std()
    assert changes[0.5].min() < changes[0.0].min()


def test_most_of_the_material_is_soft():
    material = _material().float()
    leaves = dead_leaves.bank(48, 96, torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    crisp = ((material / 255 - leaves).abs() <= 0.5 / 255 + 1e-6).flatten(1).all(1)
    assert 8 < crisp.sum() < 32  # a fifth of 96 was left as it was


def test_some_sharp_patches_are_of_the_scene():
    white, black, picture = torch.ones(1, 3, 80, 80), torch.zeros(1, 3, 64, 70), torch.full((1, 23, 23), 1 / 23**2)
    for scene, batch, rounds, expected in (
        (0.25, 4, 3, {1}),
        (0.5, 4, 3, {2}),
        (1.0, 3, 1, {3}),
        (0.25, 1, 40, {0, 1}),
    ):
        adapter = ReblurPairs(_specialist(), sharp_images=white, scene_fraction=scene, batch_size=batch)
        with adapter._working_on(adapter.state.view()):
            lent = [
                int((adapter._pair(picture, torch.ones(4, 2), torch.zeros(4, 1), black)[1].amax((1, 2, 3)) == 0).sum())
                for _ in range(rounds)
            ]
        assert set(lent) == expected
    assert 3 <= sum(lent) <= 20  # a quarter of 40
    with pytest.raises(ValueError, match=r"expected scene_fraction to be a number in \[0, 1\], got 2"):
        ReblurPairs(_specialist(), scene_fraction=2)


def test_the_scene_is_what_the_source_restores():
    model, frame = _specialist(), _frames(defocus.SOURCE, 1)[0].blurry[None]
    for scene, x, expected in (
        (0.25, frame, SelfEnsemble(model)(frame).clamp(0, 1)),
        (0.0, frame, None),
        (0.25, frame[..., :63], None),  # a patch with its margin takes 64
    ):
        adapter = ReblurPairs(model, steps=1, warmup_multiplier=1, scene_fraction=scene)
        with adapter._session(x) as looked_at, adapter._working_on(adapter.state):
            adapter.begin_frame(looked_at)
        found = looked_at.scratch["scene"]
        assert found is None if expected is None else torch.equal(found, expected)


def test_consistency_with_the_frame_is_one_more_term():
    frame = _frames(defocus.SOURCE, 1)[0].blurry[None]
    losses, terms = [], []
    for weight in (0.0, 0.5, 1.0):
        adapter = ReblurPairs(_specialist(), steps=1, consistency_weight=weight)
        with adapter._session(frame) as looked_at, adapter._working_on(adapter.state):
            adapter.begin_frame(looked_at)
            losses.append(adapter.objective(looked_at).item())
            terms.append(looked_at.metrics.get("reblur_loss"))
    assert terms[0] is None
    assert terms[1] == terms[2] > 0
    assert losses[1] - losses[0] == pytest.approx((losses[2] - losses[0]) / 2, rel=1e-3)
    # at the start nothing differs from the source, so that what blurring hides adds its eps alone
    assert losses[2] - losses[0] == pytest.approx(terms[2] + 0.5 * 1e-3, rel=1e-2)
    adapter = ReblurPairs(_specialist(), steps=2, warmup_multiplier=1, consistency_weight=0.5)
    assert adapter(frame).isfinite().all()
    assert adapter.report.updated
    assert "and on the frame" in adapter.cost()
    with pytest.raises(ValueError, match="consistency_weight to be a number >= 0, got -1"):
        ReblurPairs(_specialist(), consistency_weight=-1.0)


def test_caution_counts_pairs_on_which_the_source_is_better_in_parts_of_its_error(monkeypatch):
    frame = _frames(defocus.SOURCE, 1)[0].blurry[None]
    student, source = (
        torch.tensor([0.10, 0.02]),
        torch.tensor([0.20, 0.01]),
    )  # half of a hard pair's, twice an easy one's
    for caution, expected in ((0.0, 0.06), (2.0, 0.06 + 2.0 * 0.105 * 0.5)):
        adapter = ReblurPairs(_specialist(), steps=1, no_harm_weight=caution)
        with adapter._session(frame) as looked_at, adapter._working_on(adapter.state):
            adapter.begin_frame(looked_at)
            errors = iter((student, source))
            monkeypatch.setattr(reblur_pairs, "_errors", lambda restored, sharp, errors=errors: next(errors))
            assert float(adapter.objective(looked_at)) == pytest.approx(expected)
            assert looked_at.scratch["lead"] == pytest.approx(20 * math.log10(0.105 / 0.06))


def test_a_student_that_goes_to_infinity_is_a_step_not_taken(monkeypatch):
    frame = _frames(defocus.SOURCE, 1)[0].blurry[None]
    adapter = ReblurPairs(_specialist(), steps=1, warmup_multiplier=1)
    adapter.adapt(frame)
    before = adapter.snapshot()
    errors = iter((torch.tensor([torch.inf], requires_grad=True), torch.tensor([0.1])))
    monkeypatch.setattr(reblur_pairs, "_errors", lambda restored, sharp: next(errors))
    report = adapter.adapt(frame)
    assert report.skipped_because == "loss is inf"
    for role, tensors in adapter.snapshot().items():
        assert all(torch.equal(tensor, before[role][name]) for name, tensor in tensors.items())


def test_the_teacher_goes_part_of_the_way():
    model, frame = _specialist(), _frames(defocus.SOURCE, 1)[0].blurry[None]
    adapter = ReblurPairs(model, steps=1, warmup_multiplier=1, ema=0.5)
    adapter.memory["lead"] = _FULL_LEAD  # of which half is kept: the first step starts level with the source
    adapter.adapt(frame)
    weights = dict(model.named_parameters())
    moved = 0.0
    for name, teacher in adapter.state.sets["teacher"].items():
        source, student = weights[name].detach(), adapter.state.sets["student"][name]
        # half of the average goes on, the other half is half of the way to the student
        torch.testing.assert_close(teacher, source + 0.25 * (student - source), atol=1e-6, rtol=1e-5)
        moved += float((teacher - source).abs().sum())
    assert moved > 0


def test_a_student_is_followed_by_as_much_as_it_leads():
    frame = _frames(defocus.SOURCE, 1)[0].blurry[None]
    shares = []
    for lead in (-3.0, 0.0, 1.0, 50.0):
        adapter = ReblurPairs(_specialist(), steps=1, warmup_multiplier=1)
        adapter.memory["lead"] = lead
        report = adapter.adapt(frame)
        assert report.metrics["lead"] == pytest.approx(0.9 * lead), "the first step starts level with the source"
        shares.append(report.metrics["share"])
    assert shares == pytest.approx([0.0, 0.0, 0.9 / _FULL_LEAD, 1.0])


def test_a_change_of_lens_starts_over_and_a_known_lens_is_remembered():
    first = optics.Lens("bubble", optics.ring(0.75), (3.0, 4.5))
    second = optics.Lens("core", optics.exponential, (2.5, 3.5))
    adapter = ReblurPairs(_specialist(), steps=1, warmup_multiplier=2, window=3)
    switches = []
    for lens in (first, second, first):
        for frame in _frames(lens, 3, seed=5):
            adapter.adapt(frame.blurry[None])
        switches.append(adapter.memory["switches"])
    assert switches[0] == 0, "a lens that stays is no change"
    assert switches[1] >= 1
    assert switches[2] > switches[1]
    never = ReblurPairs(_specialist(), steps=1, psf_change_threshold=None)
    for lens in (first, second):
        never.adapt(_frames(lens, 1)[0].blurry[None])
    assert never.memory["switches"] == 0


def test_after_a_change_of_lens_it_continues_from_what_restores_its_pairs_best():
    ring = optics.Lens("ring", optics.ring(0.65), (3.0, 4.5))
    adapter = ReblurPairs(_specialist(), steps=48, warmup_multiplier=1, psf_change_threshold=0.15)
    adapter.adapt(_frames(ring, 1)[0].blurry[None])
    learned, source = adapter.snapshot()["student"], adapter.source
    sharp = optics.Lens("disk", optics.disk, (0.8, 1.0))  # which the source knows and what was learned spoils
    for lens, expected, other in ((sharp, source, learned), (ring, learned, source)):
        frame = _frames(lens, 1)[0].blurry[None]
        with adapter._session(frame) as looked_at, adapter._working_on(adapter.state):
            adapter.switch = -1.0  # every frame is of a new lens
            adapter.begin_frame(looked_at)
            assert looked_at.metrics["lens_changed"] == 1
            assert all(torch.equal(tensor, expected[name]) for name, tensor in adapter.student.items())
            assert not all(torch.equal(tensor, other[name]) for name, tensor in adapter.student.items())
            assert (adapter.memory["lead"] > 0.3) == (expected is learned)
            assert adapter.state.updates == 0, "the schedule starts over"


def test_a_lens_is_new_only_when_nothing_that_fits_the_frame_is_near(monkeypatch):
    frames = _frames(optics.Lens("ring", optics.ring(0.75), (3.0, 3.5)), 2)
    adapter = ReblurPairs(_specialist(), steps=1, warmup_multiplier=1, psf_change_threshold=0.15)
    adapter.adapt(frames[0].blurry[None])
    pooled = adapter.aperture()
    far = torch.zeros_like(pooled)
    far[0, 0] = 1.0
    for fitting, changed in (([far, pooled, far], 0.0), ([far, far], 1.0)):
        monkeypatch.setattr(adapter.estimator, "candidates", lambda *a, fitting=fitting: torch.stack(fitting))
        assert adapter.adapt(frames[1].blurry[None]).metrics["lens_changed"] == changed


def test_gray_frames_and_batches_and_small_frames():
    class Gray(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return x + 0.1 * self.conv(x)

    adapter = ReblurPairs(Gray(), steps=1, warmup_multiplier=1)
    assert adapter(torch.rand(2, 1, 40, 36)).shape == (2, 1, 40, 36)
    assert adapter(torch.rand(1, 1, 9, 20)).shape == (1, 1, 9, 20)


def test_looking_at_kernels_changes_nothing():
    adapter = ReblurPairs(_specialist(), steps=1, warmup_multiplier=1)
    x = _frames(defocus.SOURCE, 1)[0].blurry[None]
    with pytest.raises(ValueError, match="no frame was seen yet"):
        adapter.aperture()
    adapter(x)
    before = adapter.state_dict()
    kernels = adapter.kernels(x)
    assert kernels.shape == (1, 4, 4, 17, 17)
    torch.testing.assert_close(kernels.sum((-2, -1)), torch.ones(1, 4, 4))
    after = adapter.state_dict()
    assert str(before) == str(after)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema": 1.5}, r"expected ema to be a number in \[0, 1\], got 1.5"),
        ({"restore": -0.1}, "expected restore"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "expected lr to be a number > 0, got 0.0"),
        ({"psf_change_threshold": 2.5}, r"expected psf_change_threshold to be a number in \[0, 2\], got 2.5"),
        ({"no_harm_weight": -1.0}, "expected no_harm_weight to be a number >= 0"),
        ({"sharp_images": torch.rand(2, 3, 50, 50)}, "S >= patch_size"),
        ({"select": "no_such_layer*"}, "no_such_layer"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        ReblurPairs(_specialist(), **options)


def test_models_it_cannot_make_pairs_for():
    upscale = as_restorer(nn.Upsample(scale_factor=2), RestorerSpec(scale=2))
    with pytest.raises(ValueError, match="scale"):
        ReblurPairs(upscale, select=None)(torch.rand(1, 3, 32, 32))
    wide = nn.Sequential(nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match="C of 1 or 3"):
        ReblurPairs(as_restorer(wide, RestorerSpec(in_channels=4, out_channels=4)))(torch.rand(1, 4, 32, 32))


def test_an_estimator_of_ones_own_is_used_and_left_as_it_was():
    estimator = create_model("lens_estimator", checkpoint="lens_estimator").train()
    before = {name: weight.clone() for name, weight in estimator.state_dict().items()}
    adapter = ReblurPairs(_specialist(), estimator, steps=1, warmup_multiplier=1)
    restored = adapter(_frames(defocus.SOURCE, 1)[0].blurry[None])
    assert not restored.requires_grad
    assert estimator.training
    assert all(weight.requires_grad and weight.grad is None for weight in estimator.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in estimator.state_dict().items())
    with pytest.raises(TypeError, match="ReblurPairs: expected sharp_images to be a torch.Tensor, got list"):
        ReblurPairs(_specialist(), estimator, sharp_images=[torch.rand(3, 96, 96)])


def test_its_plan_counts_one_moment_for_filters_and_two_for_biases():
    model = _specialist()
    expected = sum(tensor.numel() * 4 * (3 if tensor.ndim > 1 else 4) for tensor in model.parameters())
    adapter = ReblurPairs(model, steps=1, warmup_multiplier=1)
    assert adapter.plan().bytes == expected
    adapter.adapt(_frames(defocus.SOURCE, 1)[0].blurry[None])
    kept = [value for entry in adapter.state.optimizer.state.values() for value in entry.values() if value.ndim]
    tensors = [tensor for role in adapter.state.sets.values() for tensor in role.values()]
    assert sum(tensor.nbytes for tensor in (*kept, *tensors)) == expected
