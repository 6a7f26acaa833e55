"""What the adapted tensors do not reach is run once per frame, and nobody can tell from the results."""

import pytest
import torch
import torch.nn.functional as F
from adapters._base import same_bits
from adapters.recipes import look
from torch import nn

from tta_restore import models
from tta_restore.adapters import CauSiam, CenterCrop, Semantic, SiamCTTA, Tiles
from tta_restore.models import RestorerSpec, SizeRequirements

PREFIX = (
    *("conv1", "conv2", "conv3", "conv4", "conv5", "up6", "conv6"),
    *("conv7.0.first_part", "conv8.0.first_part", "conv9.0.first_part"),  # of what was skipped
)


def counted(net):
    """How often each module's forward really runs."""
    counts = {}
    for name, module in net.named_modules():
        if name:
            forward = module.forward

            def run(*inputs, name=name, forward=forward):
                counts[name] = counts.get(name, 0) + 1
                return forward(*inputs)

            module.forward = run
    return counts


def causiam(net, **options):
    return CauSiam(net, semantic=Semantic(look, "auto"), **{"views": "rot4", "lr": 1e-2} | options)


def dpdnet():
    torch.manual_seed(0)
    return models.create_model("dpdnet_s", width=4)


def stream(count=4, height=32, width=48):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, height, width, generator=generator) for _ in range(count)]


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{}, {"steps": 3}, {"region": CenterCrop(32)}, {"tiles": Tiles(32, overlap=8)}])
def test_the_same_bits_with_and_without(options):
    net = dpdnet()
    shared, plain = causiam(net, **options), causiam(net, share_prefix=False, **options)
    assert same_bits(list(shared.stream(stream())), list(plain.stream(stream())))
    assert same_bits(shared.state_dict(), plain.state_dict())
    assert shared._backbone.prefix.names == PREFIX
    x = stream()[0]
    assert same_bits(shared.predict(x), plain.predict(x))


def test_the_prefix_runs_once_for_source_student_and_identity_view():
    net = dpdnet()
    adapter, counts = causiam(net), counted(net)
    first, second = stream(2)
    adapter(first)
    counts.clear()
    adapter(second)
    assert counts["conv1"] == counts["conv6"] == 1 + 3  # once for three roles, and for three turned views
    assert counts["conv7"] == counts["conv10"] == 6


def test_nothing_is_kept_between_frames():
    adapter = causiam(dpdnet())
    adapter(stream(1)[0])
    assert adapter._backbone.prefix.frame is None
    assert adapter._backbone.prefix._records == {}


class Detaching(nn.Module):
    """Looks frozen behind the adapted layer, because it detaches; it is not."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        h = self.first(x)
        return x + 0.1 * self.last(h) + 0.1 * self.second(h.detach())


class InPlace(nn.Module):
    """Writes into what a frozen module put out, and calls another one twice."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        h = self.first(x)
        h = F.relu_(h)
        h = self.twice(self.twice(h)).add_(x)
        return x + 0.1 * self.last(h)


@pytest.mark.parametrize(
    ("module", "select", "names"),
    [(Detaching, "first", ()), (Detaching, "last", ("first", "second")), (InPlace, "last", ()), (InPlace, "all", ())],
)
def test_models_that_only_look_frozen_are_not_shared(module, select, names):
    torch.manual_seed(0)
    net = module()
    shared, plain = (
        SiamCTTA(net, select=select, lr=1e-2, share_prefix=share, spec=RestorerSpec()) for share in (True, False)
    )
    assert same_bits(list(shared.stream(stream())), list(plain.stream(stream())))
    assert shared._backbone.prefix.names == names


@pytest.mark.thorough
def test_batches_given_one_by_one_and_forks():
    torch.manual_seed(0)
    net = models.create_model("dpdnet_s", width=4)
    spec = RestorerSpec(size=SizeRequirements(16, 16), batched=False)
    shared, plain = (causiam(net, spec=spec, share_prefix=share) for share in (True, False))
    x = stream(1)[0]
    for batch in (x, torch.cat([x, x.flip(-1)]), x):
        assert same_bits(shared(batch), plain(batch))
    assert same_bits(shared.fork()(x), plain.fork()(x))
    assert shared.fork()._backbone.prefix is not None
    assert plain.fork()._backbone.prefix is None


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.skip = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), 0.0

    def forward(self, x, keep):
        self.skip = self.first(x)
        return self.second(self.skip)


class Sometimes(nn.Module):
    """Uses what the encoder left in an attribute on some frames only."""

    wanted = False

    def __init__(self):
        super().__init__()
        self.encoder, self.last = Encoder(), nn.Conv2d(4, 3, 3, padding=1)

    def uses_skip(self, x, keep):
        return keep or self.wanted

    def forward(self, x, keep=False):
        y = self.encoder(x, keep)
        return self.last(y + self.encoder.skip if self.uses_skip(x, keep) else y)


class OnBrightFrames(Sometimes):
    def uses_skip(self, x, keep):
        return x.mean() > 0.6


class OnWideFrames(Sometimes):
    def uses_skip(self, x, keep):
        return x.shape[-1] > 48


@pytest.mark.parametrize(
    ("kind", "change", "keywords"),
    [
        (OnBrightFrames, lambda net, x: 0.3 * x + 0.7, {}),
        (OnWideFrames, lambda net, x: torch.cat([x, x], -1), {}),
        (Sometimes, lambda net, x: x, {"keep": True}),
        (Sometimes, lambda net, x: setattr(net, "wanted", True) or x, {}),
    ],
    ids=["value", "size", "keyword", "setting"],
)
def test_what_was_proven_on_one_kind_of_frame_holds_for_that_kind_only(kind, change, keywords):
    results = []
    for share in (True, False):
        torch.manual_seed(0)
        net = kind()
        adapter = SiamCTTA(net, select="last", lr=1e-2, share_prefix=share, spec=RestorerSpec())
        first, *later = stream(3)
        adapter(0.2 * first)
        results.append([adapter(change(net, x), **keywords) for x in later] + [*adapter.student.values()])
    assert same_bits(*results)


@pytest.mark.thorough
def test_calls_of_many_kinds_are_not_examined_for_ever():
    adapter = causiam(dpdnet(), spec=RestorerSpec(size=SizeRequirements(16, 16)))
    x = stream(1)[0]
    for width in range(1, 10):
        adapter(x[..., : 16 + width])
        assert bool(adapter._backbone.prefix.names) == (width <= 8)


def test_frames_without_anything_to_share_skip_the_cache_until_the_model_changes():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)), torch.rand(1, 3, 16, 16)
    adapter = SiamCTTA(net, select="all", spec=RestorerSpec())
    adapter(x)
    prefix = adapter._backbone.prefix
    assert prefix.nothing == {x.shape}
    adapter(x)
    assert prefix.frame is None
    prefix.forget()
    assert prefix.nothing == set()
