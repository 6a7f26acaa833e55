"""ReblurConsistency: its blur map, what holds it back at any learning rate, what it refuses."""

import pytest
import torch

from tta_restore.adapters import ReblurConsistency
from tta_restore.adapters.methods.defocus import _seed_table, reblur
from tta_restore.data.synthetic import defocus, photos
from tta_restore.models import RestorerSpec, as_restorer, create_model


def specialist():
    return create_model("lens_unet", checkpoint="specialist").eval()


def stream(count, size=64):
    return defocus.defocus_stream([defocus.DEV[3]], photos.DEV[:1], frames_per_lens=count, size=size, seed=3)


def test_seeds_are_the_aperture_at_its_radius():
    """A disk's seeds make kernels as large as the disk, up to what its first power of the distance loses."""
    from tta_restore import ops

    axis = torch.linspace(-2, 2, 23)
    picture = (axis.square() + axis[:, None].square() <= 2).float()  # root mean square radius 1
    seeds = _seed_table(picture / picture.sum(), reach=2.0)
    kernels = ops.isotropic_kernels(seeds.T[None, :, :, None], 17)[0, :, :, 0].T.view(-1, 17, 17)
    steps = torch.arange(17.0) - 8
    size = (kernels * (steps.square() + steps[:, None].square())).sum((1, 2)).sqrt()
    radii = torch.logspace(torch.tensor(0.15).log10(), torch.tensor(7.0).log10(), len(size))
    chosen = (radii > 1.2) & (radii < 4.5)
    assert ((size / radii)[chosen] - 1).abs().max() < 0.2


def test_the_sharp_frame_reblurred_is_nearer_to_the_frame_than_itself():
    (frame,) = stream(1, size=128)
    adapter = ReblurConsistency(specialist())
    x, sharp = frame.blurry[None], frame.sharp[None]
    again = reblur(sharp, adapter.blur_map(x))
    inner = (..., slice(8, -8), slice(8, -8))
    assert (again - x)[inner].abs().mean() < 0.6 * (sharp - x)[inner].abs().mean()


@pytest.mark.thorough
@pytest.mark.parametrize("lr", [1e-4, 1e-2, 1.0])
def test_what_is_given_stays_near_the_source_at_any_learning_rate(lr):
    adapter = ReblurConsistency(specialist(), lr=lr, steps=2, views="identity", trust_radius=0.4)
    for frame in stream(3):
        x = frame.blurry[None]
        given, source = adapter(x), as_restorer(adapter.restorer.module)(x)
        assert given.isfinite().all()
        rms = [change.square().mean().sqrt() for change in (given - source, source - x)]
        assert rms[0] <= 0.4 * rms[1] * 1.001
        if lr == 1.0:
            assert torch.equal(given, source)  # what such a rate makes meets the frame worse than the source does
        torch.testing.assert_close(adapter.predict(x), given)


@pytest.mark.thorough
def test_without_the_ball_a_high_rate_leaves_it():
    """Otherwise the test above would hold for an adapter that does nothing."""
    adapter = ReblurConsistency(
        specialist(), lr=1e-2, steps=2, views="identity", trust_radius=None, null_space_weight=0.0
    )
    frames = stream(2)
    for frame in frames:
        given = adapter(frame.blurry[None])
    x = frames[-1].blurry[None]
    source = as_restorer(adapter.restorer.module)(x)
    assert (given - source).square().mean() > (0.4 * (source - x)).square().mean()


@pytest.mark.thorough
def test_it_brings_the_restoration_nearer_to_the_frame():
    (frame,) = stream(1)
    adapter = ReblurConsistency(specialist(), steps=1, null_space_weight=0.0, lr=1e-4)
    losses = []
    for _ in range(6):
        adapter(frame.blurry[None])
        losses.append(adapter.report.metrics["reblur_loss"])
    assert losses[-1] < losses[0]


def test_refusals():
    with pytest.raises(ValueError, match="trust_radius to be a number > 0 or None, got -1"):
        ReblurConsistency(specialist(), trust_radius=-1)
    with pytest.raises(ValueError, match=r"ema to be a number in \[0, 1\]"):
        ReblurConsistency(specialist(), ema=2)
    with pytest.raises(TypeError, match="border to be an integer"):
        ReblurConsistency(specialist(), border=1.5)
    doubles = as_restorer(torch.nn.Upsample(scale_factor=2), RestorerSpec(scale=2))
    with pytest.raises(ValueError, match="scale 1"):
        ReblurConsistency(doubles, select=None)
