"""The optimizer and eight recorded training steps of IFAN and its reblurring network."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from tta_restore import losses, models

GOLDEN = Path(__file__).parents[2] / "golden/ifan"


def optimizer(parameters, lr):
    """Torch's own RAdam, with decoupled decay, is the published optimizer."""
    return torch.optim.RAdam(parameters, lr=lr, weight_decay=0.01, decoupled_weight_decay=True)


def test_recorded_radam():
    recorded = load_file(GOLDEN / "radam.safetensors")
    parameter = torch.nn.Parameter(recorded["p0"].clone())
    radam = optimizer([parameter], 1e-2)
    for step, (gradient, expected) in enumerate(
        zip(recorded["grads"], recorded["params_after_each_step"], strict=True)
    ):
        if step == 6:
            radam.param_groups[0]["lr"] *= 0.5
        parameter.grad = gradient.clone()
        radam.step()
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:load_checkpoint. these weights have the official names")
@pytest.mark.parametrize(("case", "name", "horizontal"), [
    ("train_small_quirk", "ifan", "vertical"),
    ("train_dual_small_quirk", "ifan_dual", "vertical"),
    ("train_dual_small_fixed", "ifan_dual", "own"),
])  # fmt: skip
def test_eight_recorded_steps(case, name, horizontal):
    recorded = load_file(GOLDEN / f"{case}.safetensors")

    def weights(prefix):
        return {key.removeprefix(prefix): t for key, t in recorded.items() if key.startswith(prefix)}

    config = {"base_channels": 4, "num_steps": 3, "num_res_blocks": 1, "horizontal": horizontal}
    network = models.load_checkpoint(models.create_model(name, **config), weights("state_dict0."))
    reblur = models.create_model("ifan_reblur", **config)
    models.load_checkpoint(reblur, weights("state_dict0."))
    networks = (network, reblur)
    parameters = [p for module in networks for p in module.parameters()]
    radam = optimizer(parameters, 1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(radam, [4, 6], 0.5)
    center, right, left, sharp = (recorded[f"input.{view}"] for view in ("C", "R", "L", "GT"))
    for step in range(8):
        assert radam.param_groups[0]["lr"] == recorded["lr_used"][step]
        out = network.forward_train(center, right, left)
        terms = {
            "image": F.mse_loss(out.result, sharp),
            "dme": losses.disparity_loss(out.warped_right, out.left_small),
            "reblur": losses.reblur_loss(reblur(sharp, out.filters), center),
        }
        terms["total"] = sum(terms.values())
        for key, value in terms.items():
            torch.testing.assert_close(value.detach(), recorded[f"loss.{key}"][step], atol=1e-6, rtol=0)
        radam.zero_grad()
        terms["total"].backward()
        if step == 0:
            _check_gradients(networks, weights("grad1."))
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        if step == 0:
            torch.testing.assert_close(norm, recorded["grad1_total_norm"][0], rtol=1e-5, atol=0)
        radam.step()
        schedule.step()
    for module in networks:
        expected = module.convert_state_dict(weights("state_dict8."))
        assert expected.keys() == module.state_dict().keys()
        for key, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, expected[key], atol=1e-6, rtol=0, msg=lambda text, key=key: key + text)


def _check_gradients(networks, recorded):
    for module in networks:
        expected = module.convert_state_dict(recorded)
        for key, parameter in module.named_parameters():
            error = (parameter.grad - expected[key]).norm() / expected[key].norm().clamp(min=1e-6)
            assert error < 2e-5, f"{key}: {error}"
    head, taps = networks[0].adaptive, 3 * 16
    if head.horizontal == "vertical":  # what is never read is trained by the reblurring network alone
        assert head.weight.grad[taps : 2 * taps].any()
