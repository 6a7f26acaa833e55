"""Critics: VGG19 as recorded with formula weights, torchvision's weights, and the small one."""

from pathlib import Path

import pytest
import torch
from _base import ModuleTests, random
from safetensors.torch import load_file

from tta_restore import models
from tta_restore.models.discriminators import PatchDiscriminator, VGG19Discriminator

GOLDEN = Path(__file__).parents[1] / "golden/meta"


def fill(parameter, number):
    """Weights in closed form: file README of the recorded tensors."""
    flat, total = parameter.detach().flatten(), parameter.numel()
    fan_in = parameter[0].numel()
    for start in range(0, total, 1 << 22):
        i = torch.arange(start, min(start + (1 << 22), total), dtype=torch.float64)
        if parameter.ndim > 1:
            values = (2 / fan_in) ** 0.5 * 2**0.5 * torch.sin(0.7 * i * (1 + i % 13) + 0.3 * number)
        else:
            values = 0.01 * torch.sin(0.5 * i + 0.1 * number)
        flat[start : start + len(i)] = values.float()


@pytest.mark.slow
def test_vgg19_is_the_recorded_one():
    recorded = load_file(GOLDEN / "vgg19_disc_formula.safetensors")
    with torch.no_grad():
        model = VGG19Discriminator(device="meta").to_empty(device="cpu").eval()
        for number, parameter in enumerate(model.parameters()):
            fill(parameter, number)
        features = model.features(recorded["x_64"])
        torch.testing.assert_close(features.mean(), recorded["feat_mean"], rtol=1e-4, atol=0)
        torch.testing.assert_close(features.std(), recorded["feat_std"], rtol=1e-4, atol=0)
        torch.testing.assert_close(model(recorded["x_64"]), recorded["y_64"], rtol=1e-4, atol=0)
        seed = int(recorded["x_256_seed"])
        x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(model(x), recorded["y_256"], rtol=1e-4, atol=0)


def test_vgg19_has_torchvisions_names_and_leaves_its_classes_out():
    model = models.create_model("vgg19_critic", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 139_574_337
    names = model.state_dict()
    convolutions = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    owners = [f"features.{i}" for i in convolutions] + [f"classifier.{i}" for i in (0, 3, 6)]
    assert list(names) == [f"{owner}.{leaf}" for owner in owners for leaf in ("weight", "bias")]
    shapes = {name: torch.empty_like(value) for name, value in names.items()}
    classes = {"classifier.6.weight": torch.empty(1000, 4096, device="meta"), "classifier.6.bias": torch.empty(1000)}
    assert model.convert_state_dict(shapes | classes)["classifier.6.weight"].shape == (1, 4096)
    assert model.convert_state_dict(shapes)["classifier.6.weight"] is shapes["classifier.6.weight"]
    assert models.list_models("discriminator") == ["patch_critic", "vgg19_critic"]


class TestPatchCritic(ModuleTests):
    dtypes = (torch.float32, torch.float64, torch.bfloat16)

    def module(self, **factory):
        return PatchDiscriminator(base_channels=3, **factory)

    def inputs(self, generator):
        return (random(2, 3, 17, 24, generator=generator),), {}


def test_patch_critic_sees_as_far_as_it_says():
    torch.manual_seed(0)
    model = models.create_model("patch_critic", base_channels=4)
    x = torch.rand(1, 3, 128, 120, requires_grad=True)
    scores = model(x)
    assert scores.shape == (1, 1, 16, 15)
    (seen,) = torch.autograd.grad(scores[0, 0, 8, 7], x)
    rows, columns = seen[0].abs().sum(0).nonzero().unbind(1)
    assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == (45, 45)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"patch_critic: expected H and W of at least 8, got \(1, 3, 7, 20\)"):
        PatchDiscriminator()(torch.rand(1, 3, 7, 20))
    with pytest.raises(ValueError, match=r"vgg19_critic: expected x of shape \(B, 3, H, W\)"):
        VGG19Discriminator(device="meta")(torch.rand(1, 5, 3, 32, 32, device="meta"))
