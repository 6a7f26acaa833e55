"""Optical flow: the recorded resizing of a network, RAFT's weights, and Lucas-Kanade on known motion."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tta_restore.models.optical_flow import LucasKanade, create_flow, resized_flow

GOLDEN = Path(__file__).parents[1] / "golden/jdrl"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of RAFT's weights, and the network that they were saved from; nothing is downloaded."""
    from torchvision.models.optical_flow import raft_small

    path = tmp_path_factory.mktemp("hub") / "checkpoints" / "raft_small_C_T_V2-01064c6d.pth"
    path.parent.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = raft_small().eval()
    torch.save(network.state_dict(), path)
    return path, network


def images(height, width):
    return torch.rand(2, 1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.thorough
def test_raft_from_a_file_is_the_network_that_was_saved(weights):
    path, network = weights
    first, second = images(136, 128)
    flow = create_flow("raft", checkpoint=path)
    with torch.no_grad():
        expected = network(2 * first - 1, 2 * second - 1)[-1]
    torch.testing.assert_close(flow(first, second), expected)
    assert expected.abs().max() > 0.01
    assert not any(parameter.requires_grad for parameter in flow.parameters())


@pytest.mark.thorough
def test_raft_takes_images_that_are_small_or_of_odd_sides(weights):
    flow = create_flow("raft", checkpoint=weights[0])
    for size in ((50, 61), (131, 40)):
        found = flow(*images(*size))
        assert found.shape == (1, 2, *size)
        assert found.isfinite().all()


def test_raft_is_taken_where_torchvision_keeps_its_weights(weights, monkeypatch, tmp_path):
    path, network = weights
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(path.parents[1]))
    found = create_flow()
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), network.parameters(), strict=True))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert isinstance(create_flow(), LucasKanade)
    with pytest.raises(ValueError, match="expected weights of torchvision's RAFT, found none"):
        create_flow("raft")


def test_other_weights_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit RAFT"):
        create_flow("raft", checkpoint=tmp_path / "other.pth")


def stub(first, second):
    """The flow network of the recorded wrapper."""
    return 0.5 * torch.nn.functional.avg_pool2d(first - second, 4)[:, :2]


@pytest.mark.parametrize("size", ["64x128", "50x70", "37x65"])
def test_recorded_flow_wrapper(size):
    recorded = load_file(GOLDEN / "d_estimate_wrapper.safetensors")
    flow = resized_flow(stub, recorded[f"s{size}.first"], recorded[f"s{size}.second"])
    torch.testing.assert_close(flow, recorded[f"s{size}.flow"], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("motion", ["shift", "zoom", "rotation"])
def test_lucas_kanade_finds_known_motion_between_a_blurry_and_a_sharp_photograph(motion):
    from tta_restore import ops
    from tta_restore.data.synthetic import photos
    from tta_restore.models.optical_flow import _blur

    sharp = photos.load("motorcycle_left")[None, :, 150:342, 200:392]
    y, x = torch.meshgrid(torch.arange(192.0) - 96, torch.arange(192.0) - 96, indexing="ij")
    flow = {
        "shift": torch.stack([torch.full_like(x, 6.3), torch.full_like(x, -4.2)]),
        "zoom": torch.stack([x, y]) * 0.04,
        "rotation": torch.stack([-y, x]) * 0.04,
    }[motion][None]
    # `first` shows at p what `sharp` shows at p + flow
    first = _blur(ops.flow_warp(sharp, flow, padding_mode="border"), 1.5)
    error = (LucasKanade()(first, sharp) - flow).square().sum(1).sqrt()[:, 24:-24, 24:-24]
    assert error.median() < 0.15
    assert error.mean() < 0.2
