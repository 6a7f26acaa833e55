"""PWC-Net against recorded tensors, and files with old names."""

from pathlib import Path

import pytest
import torch
from _formula import with_formula_weights
from safetensors.torch import load_file

from tta_restore.models.optical_flow import create_flow, resized_flow
from tta_restore.models.pwc_net import PWCNet, cost_volume

GOLDEN = Path(__file__).parents[1] / "golden/jdrl"


@pytest.mark.thorough
def test_pwc_net_is_the_one_whose_weights_circulate():
    recorded = load_file(GOLDEN / "k_pwcnet_formula.safetensors")
    volume = cost_volume(recorded["corr.first"], recorded["corr.second"])
    torch.testing.assert_close(volume, recorded["corr.out"], atol=1e-6, rtol=1e-5)
    network = with_formula_weights(PWCNet())
    assert sum(p.numel() for p in network.parameters()) == 9_374_274
    assert len(network.state_dict()) == 126
    with torch.no_grad():
        raw = network(recorded["s64x128.first"], recorded["s64x128.second"])
    assert (raw - recorded["s64x128.raw"]).abs().quantile(0.99) < 1e-4
    with torch.no_grad():
        flow = resized_flow(network, recorded["s70x90.first"], recorded["s70x90.second"])
    assert (flow - recorded["s70x90.flow"]).abs().quantile(0.99) < 2e-3


@pytest.mark.thorough
def test_pwc_net_file_with_old_names(tmp_path):
    weights = {name.replace("net", "module"): t for name, t in PWCNet().state_dict().items()}
    torch.save(weights, tmp_path / "pwc.pth")
    flow = create_flow("pwc", checkpoint=tmp_path / "pwc.pth")
    assert flow(torch.rand(1, 3, 70, 65), torch.rand(1, 3, 70, 65)).shape == (1, 2, 70, 65)
    with pytest.raises(ValueError, match="pass checkpoint"):
        create_flow("pwc")
    with pytest.raises(ValueError, match="one of"):
        create_flow("spynet")
