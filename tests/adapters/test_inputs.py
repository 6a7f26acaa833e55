"""Frames and further inputs of models: by position, for each image, of other kinds than numbers on a device."""

import copy

import pytest
import torch
from adapters.body import Body, conv
from adapters.styles import METHODS, build
from torch import nn

from tta_restore.adapters import Adapter, DegradationPairs, SelfDenoise, SelfEnsemble, SiamCTTA, recommended

frame = torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(0))


class Scaled(Body):
    def forward(self, x, gain, *, offset=0.0):
        gain = gain.view(-1, 1, 1, 1) if isinstance(gain, torch.Tensor) else gain
        return gain * super().forward(x) + offset


def test_inputs_by_position_are_those_by_name():
    net = Scaled()
    adapters = SiamCTTA(net), SiamCTTA(net)
    for call in ("__call__", "restore", "predict"):
        found = getattr(adapters[0], call)(frame, 0.5, offset=0.1)
        assert torch.equal(found, getattr(adapters[1], call)(frame, gain=0.5, offset=0.1))
    assert adapters[0].adapt(frame, 0.5).updated
    with pytest.raises(TypeError, match="SiamCTTA: got gain by position and by keyword"):
        adapters[0](frame, 0.5, gain=0.5)
    with pytest.raises(TypeError, match="SiamCTTA: expected at most 1 inputs after the frame.*got 2"):
        adapters[0](frame, 0.5, 0.1)
    with pytest.raises(TypeError, match="at most 0 inputs"):
        SelfEnsemble(build("plain"))(frame, 0.5)


@pytest.mark.thorough
def test_one_value_for_each_image_of_a_batch():
    net, pair, gains = Scaled(), torch.cat([frame, frame.flip(-1)]), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        expected = net(pair, gains)
    torch.testing.assert_close(Adapter(net)(pair, gains), expected)
    found = SelfEnsemble(net)(pair, gains)
    torch.testing.assert_close(found[1:], SelfEnsemble(net)(pair[1:], 2.0))
    adapter = METHODS["DegradationPairs"](net)
    with pytest.raises(ValueError, match=r"gain has a value for each image of the batch \(2\), and this method runs"):
        adapter(pair, gains)
    assert adapter.state.frames == 0


@pytest.mark.parametrize("x", [frame.to("meta"), frame.to_sparse()], ids=["meta", "sparse"])
def test_frames_without_values_are_named(x):
    for call in (SiamCTTA(build("plain")), SiamCTTA(build("plain")).predict):
        with pytest.raises(ValueError, match="expected x to be a dense tensor with values, got"):
            call(x)


@pytest.mark.parametrize("method", [SelfDenoise, DegradationPairs])
@pytest.mark.parametrize("channels", [(3, 1), (1, 3)])
def test_models_of_other_output_channels_are_refused_where_the_frame_is_the_target(channels, method):
    torch.manual_seed(0)
    net = nn.Sequential(conv(channels[0], 6), nn.GELU(), conv(6, channels[1]))
    x, start = frame[:, : channels[0]], copy.deepcopy(net.state_dict())
    adapter = METHODS[method.__name__](net)
    with pytest.raises(ValueError, match=f"returns as many channels as it takes, {channels[0]}, got {channels[1]}"):
        adapter(x)
    assert adapter.state.frames == 0
    assert all(torch.equal(start[name], value) for name, value in net.state_dict().items())
    assert SiamCTTA(net)(x).shape == (1, channels[1], 24, 20)


def test_an_adapter_is_no_model():
    with pytest.raises(TypeError, match="SiamCTTA: expected a model, got an adapter; pass its export"):
        SiamCTTA(SelfEnsemble(build("plain")))
    with pytest.raises(TypeError, match="DegradationPairs: expected a model, got an adapter; pass its export"):
        recommended(SelfEnsemble(build("plain")))
    with pytest.raises(TypeError, match="as_restorer: expected a module, got the class Conv2d; pass an instance of it"):
        recommended(torch.nn.Conv2d)


def test_a_second_input_and_injection_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"Scaled takes no frame by itself.*missing.*gain.*wrap it in a module"):
        METHODS["CauSiam"](Scaled())
