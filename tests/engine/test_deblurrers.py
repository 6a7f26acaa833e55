"""The deblurrers that Meta Transferring was published with, from checkpoints as their authors wrap them."""

import json
from pathlib import Path

import pytest
import torch
from _meta_networks import Reblur, seeded, task

from tta_restore.adapters.methods.inner_loop import InnerLoopSettings
from tta_restore.engine.run.models import load_restorer
from tta_restore.engine.train.config import MetaSettings
from tta_restore.engine.train.meta import MetaObjective

TABLE = json.loads((Path(__file__).parents[1] / "conformance/architectures.json").read_text())
SMALL = {entry["key"]: entry["config"] for entry in TABLE}


def build(key):
    extra = pytest.importorskip("spandrel_extra_arches.architectures." + key)
    return seeded(lambda: getattr(extra, key)(**SMALL[key]))


@pytest.mark.filterwarnings("ignore")  # strangers' code
@pytest.mark.parametrize(("key", "wrapped"), [("Restormer", "params"), ("MPRNet", "state_dict")])
def test_official_checkpoints_load_and_adapt(tmp_path, key, wrapped):
    """Restormer's are {"params": ...}; MPRNet's {"state_dict": ..., "epoch": ...} with the prefix of DataParallel."""
    model = build(key)
    prefix = "module." if key == "MPRNet" else ""
    content = {wrapped: {prefix + name: value for name, value in model.state_dict().items()}}
    torch.save(content | ({"epoch": 3} if key == "MPRNet" else {}), tmp_path / "official.pth")
    restorer = load_restorer(str(tmp_path / "official.pth"))
    picture = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = model.eval()(picture)
        expected = raw if key == "Restormer" else raw[0]
        torch.testing.assert_close(restorer(picture), expected, atol=1e-5, rtol=1e-4)
    adaptable = restorer.module.requires_grad_(True)
    settings = MetaSettings(InnerLoopSettings(1e-4, 1e-4))
    objective = MetaObjective(adaptable, seeded(Reblur), settings=settings, outputs="all").eval()
    cut = task(patches=1, queries=1, size=16, dtype=torch.float32)
    weights = dict(objective.weights())
    moved, _ = objective.adapt(weights, cut, torch.Generator().manual_seed(0))
    reached = [not torch.equal(value, weights[name]) for name, value in moved.items() if name.startswith("restorer.")]
    assert sum(reached) / len(reached) > 0.85  # units of channel attention that are dead at random weights
