"""Injection by hook into any module: the identity until adapted, in every layout, and gone between calls."""

import pytest
import torch
from adapters._base import picture, same_bits
from adapters.recipes import look
from adapters.zoo import ZOO, build, declared, frames
from torch import nn

from tta_restore import models
from tta_restore.adapters import Adapter, CauSiam, Semantic, SiamCTTA
from tta_restore.adapters.injection import find_site
from tta_restore.models import Restorer, RestorerSpec, SizeRequirements, as_restorer


def vector(restored):
    """One vector per picture."""
    return restored.mean((2, 3))


def siam(net, at, encoder=look, **options):
    return SiamCTTA(net, select="injected", semantic=Semantic(encoder, at, res_scale=1.0), **{"lr": 1e-2} | options)


class ChannelsLast(nn.Module):
    """Features (B, H, W, C) in the middle, several outputs, and a module that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.mix, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 6), nn.Conv2d(6, 3, 1)
        self.twice, self.pair, self.pool = nn.GELU(), Pair(), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        h = self.pair(self.first(x))[0]
        h = self.twice(self.mix(self.twice(h.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return x + 0.1 * self.last(h) * self.pool(h[:, :3])


class Pair(nn.Module):
    def forward(self, x):
        return x, "text"


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated")
@pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated")
@pytest.mark.parametrize("network", [name for name in ZOO if name != "compiled"])
def test_wrapping_changes_nothing_until_something_is_learned(network):
    net = build(network)
    before = picture(net)
    adapter = siam(net, "auto", emit="teacher", spec=declared(network))
    assert same_bits(picture(net), before)
    x = frames(network, 1)[0]
    source = Adapter(net, spec=declared(network))
    assert same_bits(adapter.predict(x), source.predict(x))
    adapter(x)
    adapter(x)
    assert adapter.report.updated
    assert not same_bits(adapter.predict(x), source.predict(x))
    assert adapter.plan().sites == (adapter.injection.sites[0].path,)
    assert all(name.startswith(f"injected.{adapter.plan().sites[0]}.to_") for name in adapter.plan().tensors)
    assert same_bits(picture(net), before)


def test_auto_takes_the_deepest_wide_module_or_what_the_model_says():
    spec = RestorerSpec(size=SizeRequirements(multiple_of=8))
    assert find_site(Restorer(build("multiple_of_8"), spec), "auto").path == "decoder.0"
    net = models.create_model("dpdnet_s", width=4)
    site = find_site(as_restorer(net), "auto")
    assert (site.path, site.channels, site.pixels, site.axis) == ("conv6", 32, 8 * 12, 1)
    net.semantic_site = "auto"
    assert find_site(as_restorer(net), "auto").path == "conv5"


@pytest.mark.parametrize(("path", "axis"), [("first", 1), ("mix", -1), ("last", 1), ("pair", 1), ("twice", -1)])
def test_every_layout_and_several_places(path, axis):
    torch.manual_seed(0)
    net = ChannelsLast()
    assert find_site(Restorer(net, RestorerSpec()), path).axis == axis
    x = torch.rand(2, 3, 12, 20)
    for encoder in (look, vector):
        adapter = siam(net, [path, "last"], encoder, spec=RestorerSpec())
        plain = adapter.predict(x)
        for _ in range(3):
            adapter(x)
        assert adapter.report.updated
        assert not torch.equal(adapter.predict(x), plain)
        assert adapter.plan().sites == (path, "last")


@pytest.mark.thorough
def test_the_context_is_of_the_source_once_a_frame_and_serves_several_if_asked(tmp_path):
    seen = []

    def encoder(restored):
        seen.append(restored)
        return look(restored)

    net = build("plain")
    stream = frames("plain", 5)
    with torch.no_grad():
        sources = [net(x).clamp(0, 1) for x in stream]

    def make():
        seen.clear()
        adapter = siam(net, "body.0", encoder, steps=2, spec=RestorerSpec())
        adapter.semantic.every = 2
        seen.clear()
        return adapter

    adapter = make()
    outputs = list(adapter.stream(stream))
    assert [torch.equal(a, b) for a, b in zip(seen, sources[::2], strict=True)] == [True] * 3
    adapter = make()
    for x in stream[:3]:
        adapter(x)
    adapter.save(tmp_path / "state")
    resumed = make()
    resumed.load(tmp_path / "state")
    assert torch.equal(resumed(stream[3]), outputs[3])
    assert seen == []  # frame 4 is read by what frame 3 gave
    assert torch.equal(resumed(stream[4]), outputs[4])


def test_exported_it_takes_the_context_by_hand():
    net = build("plain")
    adapter = siam(net, "body.0", emit="teacher", spec=RestorerSpec())
    x = frames("plain", 1)[0]
    for _ in range(3):
        adapter(x)
    exported = adapter.export()
    with torch.no_grad():
        context = look(net(x).clamp(0, 1))
        assert torch.equal(exported(x, context), adapter.predict(x))
        assert torch.equal(exported(x), net(x))
        assert torch.equal(adapter.export("source")(x), net(x))
    assert picture(exported.module)[2] == picture(net)[2]  # no hook left behind


def test_clips_and_batches_each_have_their_own_context():
    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return x + 0.1 * self.body(x.flatten(0, 1)).reshape(x.shape)

    torch.manual_seed(0)
    adapter = siam(Clip(), "body", vector, lr=1e-1, emit="teacher", spec=RestorerSpec(frames=2))
    x = torch.rand(2, 2, 3, 8, 8)
    for _ in range(4):
        adapter(x)
    both = adapter.predict(x)
    assert not torch.equal(both, Adapter(adapter.restorer).predict(x))
    torch.testing.assert_close(both, torch.cat([adapter.predict(x[:1]), adapter.predict(x[1:])]))


def test_what_cannot_be_injected_is_said():
    net = build("plain")
    with pytest.raises(ValueError, match="Residual has no module 'body.1x'; did you mean body.1, "):
        siam(net, "body.1x")
    with pytest.raises(TypeError, match="wrap the module that was compiled"):
        siam(torch.compile(net, backend="eager"), "body.0")
    with pytest.raises(TypeError, match="pass the module that was scripted"):
        siam(torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1))), "auto")
    with pytest.raises(TypeError, match="expected a module to inject into, got a function"):
        siam(lambda x: x, "auto")
    with pytest.raises(ValueError, match="either at=<module path> or argument="):
        Semantic(look)
    with pytest.raises(ValueError, match="either at=<module path> or argument="):
        Semantic(look, "body", argument="context")
    with pytest.raises(ValueError, match="puts out no features"):
        siam(ChannelsLast(), "pool", spec=RestorerSpec())
    with pytest.raises(ValueError, match="preset 'injected' finds nothing"):
        SiamCTTA(net, select="injected")
    with pytest.raises(ValueError, match="expected variant to be one of 'official', 'ours'"):
        CauSiam(net, variant="released")
    with pytest.raises(TypeError, match="expected encoder to be callable"):
        Semantic("ViT-B-32", "auto")
