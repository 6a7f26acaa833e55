import math
import warnings

import pytest
import torch
from adapters.zoo import Residual, build, frames
from torch import nn

from tta_restore.adapters import Adapter, Guards, SiamCTTA


class Scripted(Adapter):
    """Takes the losses it is told, as a multiple of something that depends on the weights."""

    def __init__(self, model, losses, lr=1e-3, **options):
        super().__init__(model, select="all", **options)
        self.losses, self.lr = iter(losses), lr

    def make_optimizer(self, parameters):
        return torch.optim.SGD(parameters, lr=self.lr)

    def objective(self, frame):
        image = self.run("student", frame.region).image
        return image.mean() * 0 + image.square().mean() / image.square().mean().detach() * next(self.losses)

    def after_step(self, frame):
        self.update_teacher(0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_not_followed(value):
    adapter, x = Scripted(Residual(), [1.0, value, 1.0]), frames("plain", 1)[0]
    adapter(x)
    kept = adapter.state_dict()["tensors"]
    with pytest.warns(UserWarning, match=f"Scripted: no step was taken on a frame: loss is {value}"):
        report = adapter.adapt(x)
    assert not report.updated
    assert report.skipped_because == f"loss is {value}"
    after = adapter.state_dict()["tensors"]
    assert all(torch.equal(after[key], kept[key]) for key in kept)
    assert adapter.adapt(x).updated


def test_a_gradient_that_is_not_finite_is_not_followed():
    class Root(Adapter):
        def objective(self, frame):
            return (self.run("student", frame.region).image * 0).sum().sqrt()  # loss 0, gradient 0 * infinity

    adapter = Root(Residual(), select="all")
    with pytest.warns(UserWarning, match="no step was taken on a frame: gradient holds NaN or infinity"):
        report = adapter.adapt(frames("plain", 1)[0])
    assert report.skipped_because == "gradient holds NaN or infinity"
    assert report.drift == 0
    assert adapter.state.updates == 0


def test_a_fused_optimizer_gets_gradients_in_the_order_of_the_weights():
    class Strided(Scripted):
        fused = False

        def make_optimizer(self, parameters):
            return torch.optim.Adam(parameters, lr=self.lr, fused=self.fused)

        def gradients(self, loss):  # as some backends of convolutions give them
            return [
                g.contiguous(memory_format=torch.channels_last if g.ndim == 4 else torch.contiguous_format)
                for g in super().gradients(loss)
            ]

    class Fused(Strided):
        fused = True

    net, x = nn.Conv2d(3, 3, 3, padding=1), frames("plain", 1)[0]
    one, other = (kind(net, [1.0] * 3) for kind in (Strided, Fused))
    for adapter in (one, other):
        for _ in range(3):
            adapter.adapt(x)
    for name, tensor in one.student.items():
        torch.testing.assert_close(other.student[name], tensor, atol=1e-7, rtol=0)
    assert one.report.drift > 1e-3


def test_a_spike_is_skipped_and_a_level_that_lasts_is_not():
    adapter, x = Scripted(Residual(), [1.0] * 8 + [50.0] + [1.0] + [50.0] * 40), frames("plain", 1)[0]
    assert all(adapter.adapt(x).updated for _ in range(8))
    report = adapter.adapt(x)
    assert not report.updated
    assert report.skipped_because == "loss 50 is more than 10 times the usual 1"
    assert adapter.adapt(x).updated
    lasting = [adapter.adapt(x).updated for _ in range(40)]
    assert not lasting[0]
    assert lasting[-1]
    unguarded = Scripted(Residual(), [1.0] * 8 + [50.0], guards=Guards(max_loss_ratio=None))
    assert all(unguarded.adapt(x).updated for _ in range(9))


def test_drift_is_pulled_back_onto_the_ball():
    x = frames("plain", 1)[0]
    free = Scripted(build("plain"), [1.0] * 3, lr=1.0, guards=Guards(max_drift=None))
    held = Scripted(build("plain"), [1.0] * 3, lr=1.0, guards=Guards(max_drift=0.05))
    for _ in range(3):
        far, near = free.adapt(x).drift, held.adapt(x).drift
    assert far > 0.1
    assert near == pytest.approx(0.05, rel=1e-4)


def test_divergence_gives_the_source_undoes_the_frame_and_then_starts_afresh():
    net, x = build("plain"), frames("plain", 1)[0]
    adapter = Scripted(
        net,
        [0.0, 1e-6, 1e3, 1e3, 0.0],
        lr=1.0,
        guards=Guards(max_drift=None, max_loss_ratio=None, min_source_psnr=20.0),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two steps of nothing
        assert adapter.adapt(x).skipped_because is None
        adapter(x)
    good = adapter.state_dict()
    with torch.no_grad():
        source = net(x)
    assert torch.equal(adapter(x), source)
    assert adapter.report.skipped_because.endswith("dB from the source's, the limit is 20 dB")
    assert not adapter.report.updated
    kept = adapter.state_dict()
    assert all(torch.equal(kept["tensors"][key], good["tensors"][key]) for key in good["tensors"])
    assert adapter.state.frames == 3
    assert adapter.state.diverged == 1
    adapter(x)
    assert adapter.state.diverged == 0
    assert adapter.state.updates == 0
    assert all(torch.equal(tensor, adapter.source[name]) for name, tensor in adapter.student.items())
    assert adapter.state.frames == 4


def test_two_steps_that_change_nothing_warn_once():
    adapter = SiamCTTA(Residual(), select="all", lr=0.0)
    stream = frames("plain", 4)
    adapter(stream[0])
    with pytest.warns(UserWarning, match=r"two steps changed none of the adapted tensors \(body.0.weight"):
        adapter(stream[1])
    adapter(stream[2])  # warnings are errors here


def test_a_loss_that_no_weight_reaches_is_an_error_and_changes_nothing():
    class Detached(Residual):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    class Unused(Residual):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)

    x = frames("plain", 1)[0]
    for adapter in (SiamCTTA(Detached(), select="all"), SiamCTTA(Unused(), select="unused")):
        before = adapter.state_dict()
        with pytest.raises(RuntimeError, match="depends on none of the . adapted tensors"):
            adapter(x)
        after = adapter.state_dict()
        assert all(torch.equal(after["tensors"][key], before["tensors"][key]) for key in before["tensors"])
        assert adapter.state.frames == 0
    partly = SiamCTTA(Unused(), select="all", lr=1e-2)
    assert partly.adapt(x).updated
    assert torch.equal(partly.student["unused.weight"], partly.source["unused.weight"])


def test_memory_of_a_method_may_not_be_written_into():
    class Careless(Adapter):
        def initial_memory(self):
            return {"count": torch.zeros(1)}

        def begin_frame(self, frame):
            self.memory["count"] += 1

    with pytest.raises(RuntimeError, match=r"a tensor in self.memory was written into"):
        Careless(Residual())(frames("plain", 1)[0])


def test_settings_are_checked():
    for name in ("max_loss_ratio", "max_drift", "min_source_psnr"):
        with pytest.raises(ValueError, match=f"Guards: expected {name} to be a number > 0 or None, got 0"):
            Guards(**{name: 0})
