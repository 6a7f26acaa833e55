"""The objective of reblurring-guided learning: recorded training steps, stages, gradients."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tta_restore import losses, models, nn, ops
from tta_restore.data.datasets.misaligned import MisalignedPair
from tta_restore.engine.train.build import build_network, described
from tta_restore.engine.train.config import MisalignedSettings
from tta_restore.engine.train.misaligned import MisalignedObjective
from tta_restore.models.jdrl import BlurConditioned, JDRLReblur
from tta_restore.models.optical_flow import NetworkFlow

GOLDEN = Path(__file__).parents[1] / "golden/jdrl"


class Stub(torch.nn.Module):
    """The flow network of the recorded training steps."""

    def forward(self, first, second):
        return 0.5 * torch.nn.functional.avg_pool2d(first - second, 4)[:, :2]


def prefixed(recorded, prefix):
    return {name.removeprefix(prefix): t for name, t in recorded.items() if name.startswith(prefix)}


def recorded_objective(recorded, restorer, **settings):
    reblur = models.load_checkpoint(JDRLReblur(width=8), prefixed(recorded, "reblur."))
    released = MisalignedSettings.released(steps_per_epoch=1, **settings)
    return MisalignedObjective(restorer, reblur, flow=NetworkFlow(Stub()), settings=released)


def check_gradients(recorded, gradients, prefix):
    expected = prefixed(recorded, prefix)
    assert expected
    for name, want in expected.items():
        torch.testing.assert_close(gradients[name], want, atol=2e-4 * want.abs().max().item() + 1e-9, rtol=2e-3)


def deblurrer(recorded):
    restorer = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Sigmoid())
    restorer.load_state_dict(prefixed(recorded, "deblur."))
    return restorer


def test_recorded_first_epoch():
    recorded = load_file(GOLDEN / "g_trainstep_epoch00.safetensors")
    restorer = deblurrer(recorded)
    objective = recorded_objective(recorded, restorer)
    step = objective(MisalignedPair(recorded["im_b"], recorded["im_gt"]), 0)
    torch.testing.assert_close(step.tensors["restored"], recorded["deblurred"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(step.tensors["flow"], recorded["flow_blur_to_gt"], atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(step.tensors["warped"], recorded["warped_gt"], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(step.loss.double(), recorded["loss"], atol=1e-7, rtol=1e-6)
    step.loss.backward()
    check_gradients(recorded, {n: p.grad for n, p in restorer.named_parameters()}, "grad.deblur.")
    assert all(p.grad is None for p in objective.reblur.parameters())


FUSION_NAMES = {
    "gate.fc.0.weight": "se.fc.0.weight",
    "gate.fc.2.weight": "se.fc.2.weight",
    "adjust.weight": "adj.weight",
    "adjust.bias": "adj.bias",
}


def conditioned(recorded):
    fusion, estimator = nn.BlurMapFusion(), nn.BlurMapEstimator()
    fusion.load_state_dict({own: recorded[f"deblur.{name}"] for own, name in FUSION_NAMES.items()})
    models.load_checkpoint(estimator, prefixed(recorded, "pred."))
    return BlurConditioned(torch.nn.Sigmoid(), estimator=estimator, fusion=fusion)


def test_recorded_epoch_with_a_blur_map():
    recorded = load_file(GOLDEN / "j_trainstep_epoch07.safetensors")
    model = conditioned(recorded)
    fusion, estimator = model.fusion, model.estimator
    objective = recorded_objective(recorded, model, journal=True)
    step = objective(MisalignedPair(recorded["im_b"], recorded["im_gt"]), 7)
    torch.testing.assert_close(step.tensors["blur_map"], recorded["pred_core"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step.tensors["restored"], recorded["deblurred"], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(step.loss.double(), recorded["loss"], atol=1e-7, rtol=1e-6)
    step.loss.backward()
    found = {FUSION_NAMES[n]: p.grad for n, p in fusion.named_parameters()}
    check_gradients(recorded, found, "grad.deblur.")
    check_gradients(recorded, {n: p.grad for n, p in estimator.named_parameters()}, "grad.pred.")
    assert all(p.grad is None for p in objective.reblur.parameters())


def test_recorded_ramp():
    recorded = load_file(GOLDEN / "j_decay.safetensors")
    settings = MisalignedSettings.released(steps_per_epoch=1, journal=True)
    found = torch.tensor([settings.ramp(epoch) for epoch in recorded["epoch"].tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, recorded["factor"])
    assert settings.ramp(15) == 1


def test_joint_stage_is_the_published_sum():
    """No tensors of this stage were recorded where this was written: the sum is written out beside it."""
    recorded = load_file(GOLDEN / "g_trainstep_epoch00.safetensors")
    objective = recorded_objective(recorded, deblurrer(recorded))
    blurry, sharp = recorded["im_b"], recorded["im_gt"]
    step = objective(MisalignedPair(blurry, sharp), 15)
    step.loss.backward()
    found = [p.grad.clone() for p in objective.parameters()]
    objective.zero_grad()
    restored = objective.restorer(blurry)

    def warp(x, flow):
        return ops.flow_warp(x, flow, padding_mode="border", align_corners=False)

    there, back = objective.flow(restored, sharp), objective.flow(sharp, restored)
    mask, mask_back = losses.calibration_mask(there), losses.calibration_mask(back)
    reblurred = objective.reblur(restored, blurry)
    loss = (
        losses.charbonnier_loss(mask * restored, mask * warp(sharp, there))
        + losses.charbonnier_loss(mask_back * sharp, mask_back * warp(restored, back))
        + 0.5 * losses.charbonnier_loss(reblurred, blurry)
    )
    torch.testing.assert_close(step.loss, loss)
    loss.backward()
    for got, want in zip(found, [p.grad for p in objective.parameters()], strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)
        assert got.abs().sum() > 0


def warp_written_out(image, flow):
    """The released warp from its formula: position (p + flow) N / (N - 1) - 1/2, kept inside, bilinear."""
    height, width = image.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y = ((rows + flow[:, 1]) * height / (height - 1) - 0.5).clamp(0, height - 1)
    x = ((columns + flow[:, 0]) * width / (width - 1) - 0.5).clamp(0, width - 1)
    top, left = y.floor().long().clamp(max=height - 2), x.floor().long().clamp(max=width - 2)
    down, right = (y - top)[:, None], (x - left)[:, None]

    def pixel(dy, dx):  # of the one sample
        return image[:, :, top[0] + dy, left[0] + dx]

    upper = (1 - right) * pixel(0, 0) + right * pixel(0, 1)
    lower = (1 - right) * pixel(1, 0) + right * pixel(1, 1)
    return (1 - down) * upper + down * lower


def reblur_written_out(image, seeds, weights):
    """Every kernel made, every branch filtered, zeros outside, branches mixed."""
    out, first = weights[:, :1] * image, 0
    for n in range(1, 8):
        size = 2 * n + 1
        kernels = ops.isotropic_kernels(seeds[:, first : first + n + 1], size)
        first += n + 1
        patches = torch.nn.functional.unfold(image, size, padding=n).unflatten(1, (3, size * size))
        branch = (patches.unflatten(-1, image.shape[-2:]) * kernels[:, None]).sum(2)
        out = out + weights[:, n : n + 1] * branch
    return out


def distance(a, b):
    return ((a - b) ** 2 + 1e-6).sqrt().mean()


@pytest.mark.parametrize("epoch", [14, 15])
def test_recorded_modules_with_a_blur_map_beyond_the_recorded_epoch(epoch):
    """The journal's step from its description: the map's loss meets raw seeds, and nothing is detached."""
    recorded = load_file(GOLDEN / "j_trainstep_epoch07.safetensors")
    model = conditioned(recorded)
    objective = recorded_objective(recorded, model, journal=True)
    blurry, sharp = recorded["im_b"], recorded["im_gt"]
    step = objective(MisalignedPair(blurry, sharp), epoch)
    step.loss.backward()
    parameters = dict(objective.named_parameters())
    found = {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()}
    objective.zero_grad()
    predicted = model.estimator(blurry) * (0.001 + 0.999 * (epoch + 1) / 15 if epoch < 15 else 1)
    both = torch.cat((blurry, predicted), 1)
    gate = (model.fusion.gate.fc[2].weight @ (model.fusion.gate.fc[0].weight @ both.mean((2, 3))[0]).relu()).sigmoid()
    weight, bias = model.fusion.adjust.weight[:, :, 0, 0], model.fusion.adjust.bias
    restored = (torch.einsum("oc,bchw->bohw", weight, gate[:, None, None] * both) + bias[:, None, None]).sigmoid()
    if epoch < 15:
        loss = distance(restored, warp_written_out(sharp, objective.flow(blurry, sharp)))
    else:
        there, back = objective.flow(restored.detach(), sharp), objective.flow(sharp, restored.detach())
        mask, mask_back = losses.calibration_mask(there), losses.calibration_mask(back)
        inputs = torch.cat((restored, blurry), 1)
        seeds = objective.reblur.predictor.seed_trunk(inputs)
        weights = objective.reblur.predictor.weight_trunk(inputs).softmax(1)
        loss = distance(mask * restored, mask * warp_written_out(sharp, there))
        loss = loss + distance(mask_back * sharp, mask_back * warp_written_out(restored, back))
        loss = loss + 0.5 * distance(reblur_written_out(restored, seeds, weights), blurry)
        loss = loss + 0.5 * distance(predicted, seeds)
    torch.testing.assert_close(step.loss, loss, atol=1e-6, rtol=1e-6)
    loss.backward()
    for name, p in parameters.items():
        if p.grad is None:
            assert found[name] is None
            assert epoch < 15
            assert name.startswith("reblur.")
        else:
            torch.testing.assert_close(found[name], p.grad, atol=1e-6 + 2e-4 * p.grad.abs().max().item(), rtol=2e-3)


class Stages(torch.nn.Module):
    """A restorer of two stages, the last one first, in other units, and a small by-product."""

    spec = models.RestorerSpec(value_range=(-1.0, 1.0))

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

    def forward(self, x):
        early = self.first(x)
        return [self.second(early), early, early[..., ::2, ::2]]


def test_all_stages_are_compared_as_the_port_sums_them():
    torch.manual_seed(0)
    settings = MisalignedSettings.multi_stage(warm_up=1)
    objective = MisalignedObjective(Stages(), JDRLReblur(width=4), flow=NetworkFlow(Stub()), settings=settings)
    blurry, sharp = pair().blurry, pair().sharp
    step = objective(pair(), 1)
    assert set(step.parts) == {"pair", "edge", "reblur"}
    y1, y2 = ((y + 1) / 2 for y in objective.restorer(2 * blurry - 1)[:2])

    def warp(x, flow):
        return ops.flow_warp(x, flow, padding_mode="border", align_corners=False)

    there, back = objective.flow(y1.clamp(0, 1), sharp), objective.flow(sharp, y1.clamp(0, 1))
    mask, mask_back = (losses.calibration_mask(flow, tolerance=0.4) for flow in (there, back))
    target = mask * warp(sharp, there)
    loss = losses.charbonnier_loss(mask_back * warp(y1, back), mask_back * sharp)
    for y in (y1, y2):
        loss = loss + losses.charbonnier_loss(mask * y, target) + 0.05 * losses.edge_loss(mask * y, target)
        loss = loss + 0.5 * losses.charbonnier_loss(objective.reblur(y, blurry), blurry)
    torch.testing.assert_close(step.loss, loss)
    step.loss.backward()
    assert not silent(objective.restorer.second)
    early = objective(pair(), 0)
    assert set(early.parts) == {"pair", "edge"}
    torch.testing.assert_close(early.loss.detach(), early.parts["pair"] + early.parts["edge"])
    assert early.parts["pair"] > losses.charbonnier_loss(early.tensors["restored"], early.tensors["warped"])


def make(**settings):
    torch.manual_seed(0)
    restorer = torch.nn.Conv2d(3, 3, 3, padding=1)
    options = {"warm_up": 2, **settings}
    flow = NetworkFlow(Stub())
    return MisalignedObjective(restorer, JDRLReblur(width=4), flow=flow, settings=MisalignedSettings(**options))


def pair(**more):
    generator = torch.Generator().manual_seed(0)
    blurry, sharp = torch.rand(2, 2, 3, 32, 32, generator=generator)
    return MisalignedPair(blurry, sharp, **more)


def silent(module):
    return all(p.grad is None or not p.grad.any() for p in module.parameters())


def test_stages():
    objective = make(reblur_first=1)
    objective(pair(), 0).loss.backward()
    assert silent(objective.restorer)
    assert not silent(objective.reblur)
    objective.zero_grad()
    step = objective(pair(), 1)
    assert set(step.parts) == {"pair"}
    step.loss.backward()
    assert not silent(objective.restorer)
    assert silent(objective.reblur)
    step = objective(pair(), 3)
    assert set(step.parts) == {"pair", "reblur"}
    assert {"flow", "mask", "seeds", "weights", "reblurred", "warped"} <= set(step.tensors)
    torch.testing.assert_close(step.loss.detach(), step.parts["pair"] + step.parts["reblur"])
    plain = make(flow="pixel")
    assert set(plain(pair(), 100).parts) == {"pixel"}


def test_given_flow_is_used_and_must_be_there():
    objective = make(flow="given", mask_tolerance=None)
    with pytest.raises(ValueError, match="the pair brings none"):
        objective(pair(), 0)
    step = objective(pair(flow=torch.zeros(2, 2, 32, 32)), 5)
    torch.testing.assert_close(step.tensors["warped"], step.tensors["sharp"], atol=1e-6, rtol=1e-6)


def test_a_conditioned_restorer_learns_its_map():
    torch.manual_seed(0)
    restorer = BlurConditioned(models.create_model("jdrl_unet", width=2, prior=True), argument="blur_map")
    settings = MisalignedSettings(warm_up=0, map_detach=True)
    objective = MisalignedObjective(restorer, JDRLReblur(width=4), flow=NetworkFlow(Stub()), settings=settings)
    generator = torch.Generator().manual_seed(0)
    blurry, sharp = torch.rand(2, 1, 3, 24, 40, generator=generator)  # 24 is no multiple of 16: padded inside
    step = objective(MisalignedPair(blurry, sharp), 0)
    assert set(step.parts) == {"pair", "reblur", "blur_map"}
    assert step.tensors["restored"].shape == blurry.shape
    step.loss.backward()
    assert not silent(restorer.estimator)


def test_bfloat16_stays_near():
    exact, half = make(warm_up=0), make(warm_up=0, precision="bf16")
    one, other = exact(pair(), 0), half(pair(), 0)
    torch.testing.assert_close(one.loss, other.loss, rtol=0.02, atol=0)
    other.loss.backward()
    assert all(p.grad.isfinite().all() and p.dtype == torch.float32 for p in half.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warm_up": -1}, "warm_up to be a number >= 0"),
        ({"outputs": 2}, "outputs to be one of"),
        ({"flow": "raft"}, "flow to be one of"),
        ({"lr": 0}, "lr to be a number > 0"),
    ],
)
def test_settings_refuse(settings, message):
    with pytest.raises(ValueError, match=message):
        MisalignedSettings(**settings)


def test_the_one_branch_ablation_trains():
    torch.manual_seed(0)
    settings = MisalignedSettings(warm_up=0, border=0)
    objective = MisalignedObjective(
        models.create_model("jdrl_unet", width=2),
        JDRLReblur(width=2, one_branch=True),
        flow=NetworkFlow(Stub()),
        settings=settings,
    )
    step = objective(MisalignedPair(*torch.rand(2, 1, 3, 64, 64)), 0)
    step.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in objective.reblur.parameters())
    assert objective.picture(step).shape[0] == 3


@pytest.mark.parametrize("name", ["jdrl_unet", "lens_unet"])
def test_a_conditioned_restorer_is_described_by_a_registered_model(name):
    config = {"width": 2} if name == "jdrl_unet" else {"widths": (4, 4, 4), "blocks": 1}
    section = {"name": name, "blur_map": True, **config}
    trained = build_network(section, default="jdrl_unet")
    registered, options = described(section, default="jdrl_unet")
    models.load_checkpoint(models.create_model(registered, **options), trained.state_dict())
