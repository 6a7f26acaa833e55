"""Invariants of every adapter around every model: all methods on a demanding network, all networks with one or two."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from adapters.recipes import RECIPES
from adapters.zoo import LARGE, SCALES, ZOO, build, declared, frames
from torch import nn

from tta_restore.adapters import Adapter
from tta_restore.models import as_restorer
from tta_restore.models.restorer import outputs as structure


def table(
    methods: tuple[str, ...] = ("siam_ctta",), networks: tuple[str, ...] = ("demanding",), *, large: bool = False
) -> Any:
    """Run a test with every method on ``networks`` and with ``methods`` on every network, where they suit.

    The hooks of ``pairs`` meet one network of each kind, and only tests with ``large`` run the large networks. What
    is thorough repeats what others find at a higher price.
    """
    return pytest.mark.parametrize(
        ("recipe", "network"),
        [
            pytest.param(
                recipe,
                network,
                id=f"{recipe}-{network}",
                marks=[pytest.mark.thorough] * _repeats(recipe, network),
            )
            for recipe, kind in RECIPES.items()
            for network in ZOO
            if (recipe in methods or network in networks)
            and kind.suits(network)
            and (network in KINDS or recipe != "pairs")
            and (network not in LARGE or (large and recipe in LARGE[network]))
        ],
    )


def _repeats(recipe: str, network: str) -> bool:
    return (
        network in (*LARGE, "nafnet", "rcan")
        or recipe == "reblur_pairs"
        or (network == "bfloat16" and recipe not in (*BOTH, "degradation_pairs"))
        or (recipe == "pairs" and network not in TYPES)
    )


KINDS = ("demanding", "bfloat16", "dict", "tied", "old_weight_norm", "one_at_a_time", "super_resolution", "compiled")
"""Networks that differ in dtypes, outputs, names of weights, batches, sizes or what can be copied."""
BOTH = ("siam_ctta", "pairs")
"""One method that compares views of a frame, and one that uses every hook."""
TYPES = ("demanding", "bfloat16")
"""Networks for what the code of a method has a part in: sizes, dtypes and buffers."""


def leaves(output: Any) -> dict[tuple, torch.Tensor]:
    return dict(structure.leaves(output))


def same_bits(a: Any, b: Any) -> bool:
    """Whether two outputs, states or lists of them are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_bits, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and same_bits(vars(a), vars(b))
    return a == b


def picture(net: nn.Module) -> tuple:
    """Everything about a module that somebody could notice."""
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    objects = [(*part.__dict__.items(), *part._parameters.items(), *part._buffers.items()) for part in net.modules()]
    identities = [[(key, id(value)) for key, value in entries if not isinstance(value, dict)] for entries in objects]
    hooks = [[len(value) for value in part.__dict__.values() if isinstance(value, dict)] for part in net.modules()]
    modes = [part.training for part in net.modules()]
    flags = [parameter.requires_grad for parameter in net.parameters()]
    gradients = [parameter.grad is None for parameter in net.parameters()]
    return tensors, identities, hooks, modes, flags, gradients


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated")
@pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated")
class AdapterTests:
    """The invariants; ``recipe`` and ``network`` run over tables of methods and networks."""

    @staticmethod
    def make(recipe: str, network: str, net: nn.Module | None = None, **options: Any) -> Adapter:
        return RECIPES[recipe].make(build(network) if net is None else net, **{"spec": declared(network)} | options)

    @table(BOTH, TYPES, large=True)
    def test_a_stream_leaves_the_model_as_it_was_and_can_be_repeated(self, recipe, network):
        """After a reset and by another adapter, and for callers that switched gradients off."""
        net = build(network)
        before = picture(net)
        adapter = self.make(recipe, network, net)
        start = copy.deepcopy(adapter.state_dict())
        stream = frames(network, 2)
        given = [x.clone() for x in stream]
        outputs = list(adapter.stream(stream))
        assert same_bits(picture(net), before)
        assert same_bits(stream, given)
        learned = adapter.state_dict()
        assert same_bits([adapter.predict(x) for x in stream], [adapter.predict(x) for x in stream])
        adapter.plan()
        assert same_bits(adapter.state_dict(), learned)
        changed = not same_bits(learned["tensors"], start["tensors"])
        assert changed == RECIPES[recipe].learns
        assert adapter.report.updated == RECIPES[recipe].learns
        assert adapter.report.skipped_because is None or not RECIPES[recipe].learns
        adapter.reset()
        assert same_bits(adapter.state_dict(), start)
        for again, context in ((adapter, torch.no_grad), (self.make(recipe, network), torch.inference_mode)):
            with context():
                repeated = [again(x + 0) for x in stream]
            assert same_bits([leaves(y) for y in repeated], [leaves(y) for y in outputs])
        assert adapter.detach() is net
        assert same_bits(picture(net), before)
        with pytest.raises(RuntimeError, match="was detached"):
            adapter(stream[0])

    @table(BOTH, TYPES)
    def test_the_output_has_the_models_own_structure(self, recipe, network):
        net, x = build(network), frames(network, 1)[0]
        path = as_restorer(net, declared(network)).restore(x).path
        bare = build(network).eval()
        with torch.no_grad():
            plain = bare(x.clone().to(next(bare.parameters()).dtype))
        adapter = self.make(recipe, network, net)
        for output in (adapter.predict(x), adapter(x)):
            assert type(output) is type(plain)
            found, expected = leaves(output), leaves(plain)
            assert found.keys() == expected.keys()
            for key, leaf in found.items():
                assert leaf.shape == expected[key].shape
                assert leaf.isfinite().all()
                assert not leaf.requires_grad
                assert not leaf.is_inference()
            assert torch.is_floating_point(found[path])

    @table(BOTH)
    def test_saved_in_mid_stream_and_forked_it_goes_on_bit_by_bit(self, recipe, network, tmp_path):
        stream = frames(network, 3)
        adapter = self.make(recipe, network)
        for x in stream[:2]:
            adapter(x)
        adapter.save(tmp_path / "state.safetensors")
        twin = adapter.fork()
        kept = adapter.state_dict()
        ahead = [twin(x) for x in stream[2:]]
        assert same_bits(adapter.state_dict(), kept)
        uninterrupted = [adapter(x) for x in stream[2:]]
        assert same_bits(ahead, uninterrupted)
        resumed = self.make(recipe, network, seed=99)
        resumed.load(tmp_path / "state.safetensors")
        assert same_bits(resumed.state_dict(), kept)
        assert same_bits([resumed(x) for x in stream[2:]], uninterrupted)
        assert same_bits(resumed.state_dict(), adapter.state_dict())

    @table()
    def test_bad_frames_and_interrupts_leave_the_state_alone(self, recipe, network):
        good = frames(network, 3)
        bad = good[2].clone()
        bad[0, 0, 3, 5] = float("nan")
        adapter = self.make(recipe, network)
        adapter(good[0])
        kept = copy.deepcopy(adapter.state_dict())
        with pytest.raises(ValueError, match=f"NaN or infinity in 1 of {bad.numel()} values"):
            adapter(bad)
        with pytest.raises(ValueError, match="NaN or infinity"):
            adapter.adapt(bad)
        for call in (adapter, adapter.adapt, adapter.predict):
            with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got up to .*; divide bytes by 255"):
                call((good[1] * 255).round())
        adapter.bad_frames = "pass"
        assert leaves(adapter(bad)).keys() == leaves(adapter.predict(bad)).keys()
        report = adapter.adapt(bad)
        assert not report.updated
        assert "NaN" in report.skipped_because
        with interrupted(adapter, "after_step" if RECIPES[recipe].learns else "emit"), pytest.raises(KeyboardInterrupt):
            adapter(good[1])
        with interrupted(adapter, "emit"), pytest.raises(KeyboardInterrupt):
            adapter(good[1])
        assert same_bits(adapter.state_dict(), kept)
        other = self.make(recipe, network)
        other(good[0])
        assert same_bits(adapter(good[1]), other(good[1]))

    @table(networks=("multiple_of_8",))  # without layers whose weights autocast does not cast
    def test_it_learns_inside_one_autocast(self, recipe, network):
        adapter, stream = self.make(recipe, network), frames(network, 2)
        with torch.autocast("cpu", torch.bfloat16):
            first = leaves(adapter.predict(stream[0]))
            for x in stream:
                assert all(leaf.isfinite().all() for leaf in leaves(adapter(x)).values())
            assert adapter.report.updated == RECIPES[recipe].learns
            assert same_bits(leaves(adapter.predict(stream[0])), first) != RECIPES[recipe].learns

    @table(networks=TYPES)
    def test_batches_and_odd_sizes(self, recipe, network):
        adapter = self.make(recipe, network)
        for batch, height, width in [(2, 16, 24), (1, 13, 19), (2, 21, 10)]:
            x = frames(network, 1, batch=batch, height=height, width=width)[0]
            restored = adapter.restorer.restore(x)
            output = adapter(x)
            assert leaves(output)[restored.path].shape == restored.image.shape
            assert restored.image.shape[0] == batch
            scale = SCALES.get(network, 1)
            assert restored.image.shape[-2:] == (scale * height, scale * width)


@contextlib.contextmanager
def interrupted(adapter, hook):
    """Ctrl-C at the end of a hook, after all it does."""
    original = getattr(adapter, hook)

    def stopped(frame):
        original(frame)
        raise KeyboardInterrupt

    setattr(adapter, hook, stopped)
    try:
        yield
    finally:
        delattr(adapter, hook)
