"""Meta-training against what was recorded from the release: where its outer loop starts, and its networks there.

The frames that the recorded outer loop saw were not kept with it, so its steps cannot be repeated from the record. They
are repeated from the description: here on its networks and weights with other frames, in ``test_meta.py`` clip by clip.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tta_restore.engine.train.config import MetaSettings
from tta_restore.engine.train.meta import MetaObjective
from tta_restore.engine.train.windows import MetaTask
from tta_restore.models import create_model

GOLDEN = Path(__file__).parents[1] / "golden" / "meta"
NAMES = {"reblur.": "reblur_model.", "restorer.": "deblur_model."}


class OneConv(nn.Module):
    """The deblurrer of the recording: x + conv3x3(x)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


@pytest.fixture(scope="module")
def objective():
    return MetaObjective(OneConv(), create_model("video_reblur", num_layers=1, base_channels=2)).eval()


def recorded(tensors, prefix, objective):
    found = {}
    for name in objective.weights():
        ours = next(part for part in NAMES if name.startswith(part))
        found[name] = tensors[f"{prefix}.{NAMES[ours]}{name.removeprefix(ours)}"]
    return found


def test_the_release_steps_from_the_adapted_weights(objective):
    """From its second clip on; four Adam steps of 1e-3 (reblurrer) and 2e-3 (restorer) lead from there, and not from
    the start, to where it arrived. So outer_start="adapted" is its repetition and "initial" the repair."""
    inner, outer = (load_file(GOLDEN / f"{name}.safetensors") for name in ("inner_loop_default", "outer_loop_aliased"))
    start, adapted = (recorded(inner, prefix, objective) for prefix in ("init", "final"))
    arrived = recorded(outer, "theta_new", objective)
    from_start = from_adapted = 0.0
    for name, value in arrived.items():
        steps = 4 * (1e-3 if name.startswith("reblur.") else 2e-3)
        from_start = max(from_start, ((value - start[name]).abs().max() / steps).item())
        from_adapted = max(from_adapted, ((value - adapted[name]).abs().max() / steps).item())
    assert from_adapted < 1.01  # Adam's steps exceed its rate a little where gradients change
    assert from_start > 1.2


def test_its_networks_there(objective):
    """Both networks run on sets of weights, as the outer loop runs them, give what was recorded."""
    outer = load_file(GOLDEN / "outer_loop_aliased.safetensors")
    values, probe = recorded(outer, "theta_new", objective), outer["probe"]
    with torch.no_grad():
        reblurred = objective.reblurred(values, probe)
        ((restored,),) = objective.restored(values, probe)
    torch.testing.assert_close(reblurred, outer["probe_reblur"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(restored, outer["probe_deblur"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("start", ["initial", "adapted"])
def test_its_outer_steps_written_out(objective, start):
    """Four frames, an Adam step for each with the gradient at the adapted weights."""
    inner = load_file(GOLDEN / "inner_loop_default.safetensors")
    initial, adapted = (recorded(inner, prefix, objective) for prefix in ("init", "final"))
    blurry, sharp = torch.rand(2, 4, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    task = MetaTask("clip", (), blurry, sharp)
    started = initial if start == "initial" else adapted
    for name, weight in objective.weights().items():
        weight.data.copy_(started[name])
    settings = MetaSettings(outer_steps="frame", reblur_lr=1e-3, lr=2e-3)
    ours = MetaObjective(objective.restorer, objective.reblur, settings=settings)
    adam, losses_seen = torch.optim.Adam(ours.groups()), []
    for gradients, parts in ours.outer_gradients(task, adapted):
        for name, weight in ours.weights().items():
            weight.grad = gradients.get(name)
        adam.step()
        losses_seen.append([part.item() for part in parts.values()])
    reblur = create_model("video_reblur", num_layers=1, base_channels=2).eval()
    deblur = OneConv()
    networks = {"reblur.": reblur, "restorer.": deblur}
    own = {part + name: weight for part, net in networks.items() for name, weight in net.named_parameters()}
    theirs = {name: started[name].clone().requires_grad_() for name in own}
    groups = [([n for n in own if n.startswith(part)], rate) for part, rate in (("reblur.", 1e-3), ("restorer.", 2e-3))]
    adam = torch.optim.Adam([{"params": [theirs[n] for n in names], "lr": rate} for names, rate in groups])
    for name, weight in own.items():
        weight.data.copy_(adapted[name])
    for frame in range(4):
        for net in networks.values():
            net.zero_grad()
        made, target = reblur(sharp[frame, None]), blurry[frame, None, 2]
        first = 0.5 * (((made - target) ** 2 + 1e-6).sqrt().mean() + 0.05 * edge(made, target)) / 4
        second = 0.5 * (deblur(blurry[frame, None, 2]) - sharp[frame, None, 2]).abs().mean() / 4
        (first + second).backward()
        assert losses_seen[frame] == pytest.approx([first.item(), second.item()], abs=1e-7)
        for name, weight in theirs.items():
            weight.grad = None if own[name].grad is None else own[name].grad.clone()
        adam.step()
    for name, weight in objective.weights().items():
        if not name.endswith((".attn.qkv.bias", "cross_attn.kv.bias")):  # of keys: steps made of rounding noise
            torch.testing.assert_close(weight.detach(), theirs[name].detach(), atol=1e-5, rtol=0, msg=name)


def edge(a, b):
    """Charbonnier distance of what a Laplacian pyramid's first level holds."""
    kernel = torch.tensor([0.05, 0.25, 0.4, 0.25, 0.05])
    kernel = (kernel[:, None] * kernel).expand(3, 1, 5, 5)

    def blurred(x):
        return nn.functional.conv2d(nn.functional.pad(x, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)

    def detail(x):
        even = torch.zeros_like(x)
        even[..., ::2, ::2] = 4 * blurred(x)[..., ::2, ::2]
        return x - blurred(even)

    return ((detail(a) - detail(b)) ** 2 + 1e-6).sqrt().mean()
