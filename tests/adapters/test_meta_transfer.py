"""MetaTransfer on clips: it is the inner loop on mined patches; short, flat, still and odd clips; models of clips."""

import pytest
import torch
import torch.nn.functional as F
from adapters.recipes import Smear
from adapters.test_inner_loop import OneConvolution, TinyCritic, loop_over
from torch import nn

from tta_restore import models
from tta_restore.adapters import MetaTransfer, create_adapter
from tta_restore.adapters.methods.discriminator import DiscriminatorTrainer
from tta_restore.adapters.methods.inner_loop import InnerSample
from tta_restore.adapters.methods.meta_transfer import keep_sharp_frames
from tta_restore.data.datasets.mining import mine_patches
from tta_restore.data.synthetic import photos
from tta_restore.data.synthetic.camera_shake import ShakenClips
from tta_restore.degradations.motion import CameraShake
from tta_restore.models import RestorerSpec

SPEC = RestorerSpec()


def clip(length=7, height=24, width=31, *, seed=0):
    """A still noise picture, blurred except at one moment."""
    sharp = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    soft = F.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False)
    frames = [sharp if t == length // 2 else 0.5 * (soft + soft.roll(t, -1)) for t in range(length)]
    return torch.cat(frames)


def networks():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return OneConvolution().eval(), Smear().eval(), TinyCritic().eval()


def make(*modules, **options):
    modules = modules or networks()
    settings = {
        "num_patches": 3,
        "patch_size": 16,
        "lr": 2e-3,
        "reblur_lr": 1e-3,
        "discriminator_lr": 1e-4,
        "spec": SPEC,
    }
    return MetaTransfer(*modules, **settings | options)


@pytest.mark.parametrize("order", ["ours", "official"])
@pytest.mark.parametrize("real", ["neighbor", "blurriest"])
def test_a_clip_is_the_inner_loop_on_its_patches(order, real):
    restorer, reblur, discriminator = networks()
    adapter = make(restorer, reblur, discriminator, variant=order, real_source=real, num_epochs=2, seed=3)
    x = clip()
    generator = adapter.state.generator()
    mined = mine_patches(x, 3, 16, generator=generator, num_frames=3)
    items = [InnerSample(patch.clip, patch.blurred) for patch in mined]
    loop = loop_over(restorer, reblur, DiscriminatorTrainer(discriminator, lr=1e-4), adapter.inner)
    loop.run(items, generator)
    out = adapter(x)
    assert adapter.report.steps == 12
    assert adapter.report.metrics["patches"] == 3
    assert adapter.report.metrics["gain"] > 1
    for name, weight in loop.restorer_weights.items():
        torch.testing.assert_close(adapter.student[name], weight, atol=1e-7, rtol=0)
        assert not torch.equal(weight, dict(restorer.named_parameters())[name])
    with torch.no_grad():
        expected = torch.cat([torch.func.functional_call(restorer, adapter.student, (frame,)) for frame in x.split(1)])
    torch.testing.assert_close(out, expected)
    assert adapter.report.messages == ()


def test_every_clip_starts_afresh_and_leaves_the_networks_alone():
    modules = networks()
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    flags = [[p.requires_grad for p in module.parameters()] for module in modules]
    adapter = make(*modules, num_patches=1, patch_size=64, real_source="blurriest")  # nothing is drawn at random
    adapter(clip(seed=1))
    out = adapter(clip(seed=2))
    assert torch.equal(out, make(num_patches=1, patch_size=64, real_source="blurriest")(clip(seed=2)))
    for module, state in zip(modules, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert [[p.requires_grad for p in module.parameters()] for module in modules] == flags
    assert all(p.grad is None for module in modules for p in module.parameters())


@pytest.mark.parametrize("length", [1, 2])
def test_short_clips_are_adapted_on_and_said_to_be_short(length):
    adapter = make(min_sharpness_gain=0.0)
    x = clip(9)[3 : 3 + length]
    assert adapter(x).shape == x.shape
    assert adapter.report.updated
    assert any(("one frame" if length == 1 else "2 frames, fewer than 3") in r for r in adapter.report.messages)


@pytest.mark.parametrize("kind", ["flat", "still"])
def test_clips_without_a_sharp_moment_are_given_as_the_source_does(kind):
    restorer, *others = networks()
    x = clip()[:1].expand(6, -1, -1, -1).clone() if kind == "still" else torch.full((6, 3, 24, 24), 0.5)
    adapter = make(restorer, *others)
    out = adapter(x)
    assert not adapter.report.updated
    assert adapter.report.skipped_because == "no location of the clip is sharp in one frame and blurred in another"
    assert "3 of 3 locations left out" in adapter.report.messages[-1]
    with torch.no_grad():
        torch.testing.assert_close(out, restorer(x))


def test_places_without_detail_are_left_out():
    x = clip(7, 16, 64)
    x[..., 32:] = 0.25
    adapter = make(patch_sampling="tile", num_patches=4)
    adapter(x)
    assert adapter.report.metrics["patches"] == 2
    assert adapter.report.steps == 4
    assert adapter.report.messages[-1].startswith("2 of 4 locations left out: flat, or no frame is sharper by 0.5 dB")


def test_small_frames_give_small_patches():
    adapter = make(patch_size=256)
    x = clip(5, 19, 23)
    assert adapter(x).shape == x.shape
    assert adapter.report.messages == ("patches of 19 x 23: the frames are smaller than 256",)


class OfThree(nn.Module):
    """Restores the middle one of three frames, and says how sharp its neighbors are."""

    spec = RestorerSpec(frames=3)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(9, 3, 3, padding=1)

    def forward(self, x):
        return {"image": x[:, 1] + 0.1 * self.conv(x.flatten(1, 2)), "brightness": x.mean((2, 3, 4))}


class OfAll(nn.Module):
    spec = RestorerSpec(frames=None)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 3, padding=1)

    def forward(self, x):
        return x + 0.1 * self.conv(x.transpose(1, 2)).transpose(1, 2)


def test_models_of_some_frames_are_given_the_frames_around_each():
    torch.manual_seed(0)
    restorer = OfThree().eval()
    _, reblur, critic = networks()
    adapter = make(restorer, reblur, critic, spec=None)
    x = clip()
    plain = adapter.predict(x)
    with torch.no_grad():
        expected = restorer(torch.stack([x[[0, 0, 1]], x[[0, 1, 2]]]))
    torch.testing.assert_close(plain["image"][:2], expected["image"])
    torch.testing.assert_close(plain["brightness"][:2], expected["brightness"])
    out = adapter(x)
    assert adapter.report.updated
    assert out["image"].shape == x.shape
    assert not torch.equal(out["image"], plain["image"])


def test_models_of_whole_clips_are_given_the_whole():
    torch.manual_seed(0)
    restorer = OfAll().eval()
    adapter = make(restorer, *networks()[1:], spec=None)
    x = clip()
    with torch.no_grad():
        torch.testing.assert_close(adapter.predict(x), restorer(x[None]))
    assert adapter(x).shape == (1, *x.shape)
    assert adapter.report.updated


class Stages(OneConvolution):
    def forward(self, x):
        y = super().forward(x)
        return [F.avg_pool2d(y, 2), y + 0.1, y]


def test_all_outputs_of_a_model_are_learned_from():
    seen = {}
    for outputs in ("main", "all"):
        sizes = []

        def distance(image, target, sizes=sizes):
            sizes.append(tuple(image.shape[-2:]))
            return F.l1_loss(image, target)

        adapter = make(Stages(), *networks()[1:], outputs=outputs, distance=distance, num_patches=1)
        adapter(clip())
        seen[outputs] = sizes
    assert seen["main"] == [(16, 16)] * 2
    assert seen["all"] == [(16, 16), (8, 8), (16, 16)] * 2


def test_it_learns_to_undo_the_reblurring():
    class Box(nn.Module):
        num_frames = 3

        def forward(self, x):
            return F.avg_pool2d(x[:, 1], 3, 1, 1, count_include_pad=False)

    restorer, *_ = networks()
    nn.init.zeros_(restorer.conv.weight)
    nn.init.zeros_(restorer.conv.bias)
    adapter = make(restorer, Box(), num_patches=4, num_epochs=20, lr=5e-3, distance=F.mse_loss)
    blocks = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sharp = F.interpolate(blocks, scale_factor=4, mode="bilinear")
    blurred = F.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False)
    adapter.adapt(torch.cat([blurred, blurred, sharp, blurred, blurred]))
    before, after = F.mse_loss(blurred, sharp), F.mse_loss(adapter.predict(blurred), sharp)
    assert after < 0.8 * before


def test_the_networks_of_the_paper_run_together():
    reblur = models.create_model("video_reblur", num_layers=1, base_channels=2)
    critic = models.create_model("patch_critic", base_channels=2)
    adapter = create_adapter(
        "meta_transfer",
        networks()[0],
        reblur,
        critic,
        num_patches=2,
        patch_size=32,
        adversarial_kind="least_squares",
        spec=SPEC,
    )
    assert adapter.num_frames == 5
    assert adapter(clip(6, 40, 45)).isfinite().all()
    assert adapter.report.updated
    assert {"adversarial_loss", "cycle_loss", "deblur_loss"} <= adapter.report.metrics.keys()
    assert "2 steps of the reblurrer" in str(adapter.plan())


@pytest.mark.filterwarnings("ignore:.*no step was taken on a frame")
def test_a_gradient_that_is_no_number_is_refused():
    class Broken(Smear):
        def forward(self, x):
            return super().forward(x) * torch.tensor(float("nan"))

    restorer, _, critic = networks()
    adapter = make(restorer, Broken(), critic)
    x = clip()
    out = adapter(x)
    assert not adapter.report.updated
    assert "nan" in adapter.report.skipped_because
    with torch.no_grad():
        torch.testing.assert_close(out, restorer(x))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_patches": 0}, "num_patches to be an integer >= 1"),
        ({"patch_sampling": "grid"}, "patch_sampling to be one of 'random', 'tile'"),
        ({"min_sharpness_gain": -1.0}, "min_sharpness_gain to be a number >= 0, got -1.0"),
        ({"discriminator_clip": 0.0}, "discriminator_clip to be a number > 0 or None, got 0.0"),
        ({"outputs": "first"}, "outputs to be one of 'main', 'all'"),
        ({"num_frames": 4}, "num_frames to be an odd integer"),
        ({"steps": 3}, "its steps follow from num_patches and num_epochs"),
        ({"adversarial_kind": "hinge"}, "adversarial_kind to be one of"),
    ],
)
def test_settings_out_of_range_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        MetaTransfer(*networks(), **bad)


def test_networks_that_are_none_are_named():
    restorer, reblur, _ = networks()
    with pytest.raises(TypeError, match="MetaTransfer: expected reblur to be a module, got str"):
        MetaTransfer(restorer, "video_reblur")
    with pytest.raises(TypeError, match="MetaTransfer: expected discriminator to be a module, got str"):
        MetaTransfer(restorer, reblur, "patch_critic")


def test_clips_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"expected clip of shape \(T, 3, H, W\) = \(any, 3, any, any\), got \(2, 1,"):
        make(spec=RestorerSpec())(torch.rand(2, 1, 16, 16))
    with pytest.raises(ValueError, match="scale 1, got scale 2"):
        make(spec=RestorerSpec(scale=2))(clip())


def test_patches_are_reblurred_as_at_other_moments_too():
    adapter = make(num_extra_times=2, num_patches=3)
    adapter(clip())
    assert adapter.report.steps == 2 * 3 * (1 + 2)
    assert adapter.cost().startswith("per clip 9 steps of the reblurrer")
    still = make(num_extra_times=2, num_patches=3, reblur_lr=0.0, skip_sharp_frames=True)
    still(clip())
    assert still.report.steps == 9
    assert (
        still.cost()
        == "per clip 9 steps of the restorer, on patches of 16 x 16; 1 forward per frame, 2 of the reblurrer"
    )


class Fade(nn.Module):
    """Blurs a patch where the frame after it is not the one before it."""

    num_frames = 3

    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        moves = ((x[:, 2] - x[:, 0]).abs().amax((1, 2, 3), keepdim=True) > 1e-6).to(x)
        soft = F.avg_pool2d(x[:, 1], 3, 1, 1, count_include_pad=False)
        return x[:, 1] + self.share * moves * (soft - x[:, 1])


def moving_clip(length=9, size=24):
    """Sharp and still at first, then blurred and moving."""
    sharp = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(5))
    soft = F.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False)
    return torch.cat([sharp if t < 4 else soft.roll(t, -1) for t in range(length)])


def test_patches_that_reblurring_leaves_alone_are_left_out():
    x, seen = moving_clip(), {}
    for min_blur_rms in (0.0, 0.01, 0.9):
        adapter = make(networks()[0], Fade(), min_blur_rms=min_blur_rms, num_extra_times=1, patch_size=24, seed=1)
        adapter(x)
        seen[min_blur_rms] = adapter.report
    assert seen[0.0].steps == 2 * 6
    assert 0 < seen[0.01].steps < 12
    assert seen[0.9].skipped_because == "reblurring changes no patch by 0.9"
    assert not seen[0.9].updated


class Unsharp(nn.Module):
    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x + self.share * (x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


def test_frames_that_are_sharp_are_left():
    x = moving_clip()
    plain, left = (make(Unsharp(), Fade(), skip_sharp_frames=flag, seed=2) for flag in (False, True))
    restored, kept = plain(x), left(x)
    assert torch.equal(kept[:3], x[:3])
    assert torch.equal(kept[4:], restored[4:])
    assert not torch.equal(restored[:3], x[:3])
    assert torch.equal(left.predict(x), kept)
    assert torch.equal(left.predict(x[4:5]), plain.predict(x[4:5]))  # one frame shows no motion


def test_a_reblurring_network_that_does_not_blur_keeps_no_frame_of_a_moving_clip():
    x = moving_clip()
    restored = x + 0.3 * (x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
    assert not keep_sharp_frames(x, restored, lambda clip: clip[:, 1], 3).any()


def test_kept_frames_are_reported():
    left = make(Unsharp(), Fade(), skip_sharp_frames=True, seed=2)
    left(moving_clip())
    assert left.report.metrics["frames_kept"] >= 3
    assert any("are returned as they were (skip_sharp_frames)" in message for message in left.report.messages)


@pytest.mark.thorough
def test_the_ends_of_a_clip_that_moves_are_no_sharp_frames():
    steady = CameraShake(pan=4.0, direction=0.5, variation=0.0)
    made = ShakenClips([("astronaut", photos.load("astronaut"))], [steady], frames=6, size=64, num_subframes=9)[0]
    blurred, sharp = (torch.stack(list(side)) for side in (made.blurry, made.originals()))
    reblur = models.create_model("motion_reblur", exposure=0.8)
    assert not keep_sharp_frames(blurred, sharp, reblur).any()
    resting = blurred[:1].expand(6, -1, -1, -1)
    assert keep_sharp_frames(resting, sharp, reblur).all()
    for length in (1, 2):  # no frame has two neighbors
        assert keep_sharp_frames(blurred[:length], sharp[:length], reblur).shape == (length,)


def test_noise_comes_from_the_seed():
    outs = [make(noise_std=noise, seed=seed)(clip()) for noise, seed in ((0.02, 1), (0.02, 1), (0.0, 1))]
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    with pytest.raises(ValueError, match="inner loop: expected noise_std to be a number >= 0, got -1"):
        make(noise_std=-1)
