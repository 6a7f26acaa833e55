"""Meta-training against what was recorded from the release: where its outer loop starts, and its networks there.

The frames that the recorded outer loop saw were not kept with it, so its steps cannot be repeated from the record; they
are repeated from the description in ``test_meta.py``.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tta_restore.engine.meta import MetaObjective
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
