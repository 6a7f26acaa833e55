"""Private copies of a model: other threads, caches, functions from outside, the model itself is not run."""

import functools
import logging
import random
import threading
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adapters.keeping import CachedWeights, Locked
from adapters.styles import NonBlind, build
from torch import nn

from tta_restore.adapters import SRTTA, Adapter, CauSiam, SelfEnsemble, Semantic, SiamCTTA, backbone
from tta_restore.adapters.replica import Replica, copy_module
from tta_restore.models import RestorerSpec, as_restorer, probe


def frame(seed=0, size=24):
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def siam(net, **options):
    return SiamCTTA(net, **{"lr": 1e-2, "restore": 0.0} | options)


def compiled():
    return torch.compile(build("plain"), backend="eager")


@pytest.mark.parametrize(
    "make",
    [
        compiled,
        lambda: build("skip by a function's hook"),
        lambda: build("forward set from outside"),
        lambda: build("holds a lock"),
    ],
    ids=["compiled", "hook", "forward", "lock"],
)
def test_another_thread_gets_the_sources_answers(make):
    net, x, stop, seen = make(), frame(), threading.Event(), []
    with torch.no_grad():
        wanted = net(x)

    def preview():
        while not stop.is_set():
            with torch.no_grad():
                seen.append(torch.equal(net(x), wanted))

    adapter = siam(net, spec=RestorerSpec())
    adapter(x)
    assert not torch.equal(adapter.predict(x), SelfEnsemble(make(), views="identity")(x))
    thread = threading.Thread(target=preview)
    thread.start()
    for seed in range(5):
        adapter(frame(seed))
    stop.set()
    thread.join()
    assert seen
    assert all(seen)


ran: list[int] = []


class Noted(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        ran.append(id(self))
        return self.conv(x)


def test_the_model_itself_is_never_run():
    net = Noted().train()
    ran.clear()
    adapter = siam(net)
    adapter(frame())
    assert ran
    assert id(net) not in ran
    assert net.training


def test_a_model_that_cannot_be_copied_is_refused_before_anything_changes():
    class Whole(Noted):
        def __deepcopy__(self, memo):
            raise RuntimeError("one of a kind")

    net, x = Whole(), frame()
    adapter = siam(net)
    with pytest.raises(TypeError, match="Whole cannot be run with other weights.*RuntimeError: one of a kind"):
        adapter(x)
    assert adapter.state.frames == 0
    assert SelfEnsemble(net)(x).shape == x.shape


class Late(Noted):
    """Makes a layer in its first pass."""

    def forward(self, x):
        if not hasattr(self, "late"):
            self.late = nn.Conv2d(3, 3, 1)
        return self.late(super().forward(x))


@pytest.mark.parametrize("method", [Adapter, SiamCTTA, SRTTA])
def test_a_model_that_makes_weights_in_its_first_pass_is_to_be_run_before(method):
    net, x = Late(), frame()
    with pytest.raises(ValueError, match=r"creates weights in its first pass \(late.weight, late.bias\); run it"):
        method(net)(x)
    assert not hasattr(net, "late")
    plain = net(x)
    adapter = method(net)
    assert adapter(x).shape == x.shape
    assert torch.equal(Adapter(net)(x), plain)
    assert ("late.weight" in adapter.adapted) == (method is not Adapter)


class Overwrites(Noted):
    """Has no backward pass, as it writes over what it needs for it."""

    def forward(self, x):
        return x.copy_(super().forward(x))


def test_errors_of_the_backward_pass_are_those_of_the_model():
    adapter, x = SiamCTTA(Overwrites(), select="all"), frame()
    with pytest.raises(RuntimeError, match="SiamCTTA: the backward pass of the model raised: one of the variables"):
        adapter(x)
    assert adapter.state.frames == 0


class Prompted(Noted):
    """Adds rows of a table, whose gradient may be sparse."""

    def __init__(self, sparse):
        super().__init__()
        self.table = nn.Embedding(10, 3, sparse=sparse)

    def forward(self, x):
        return super().forward(x) + self.table(torch.tensor([1, 2])).mean(0)[:, None, None]


def test_sparse_gradients_are_those_of_a_dense_table():
    students = []
    for sparse in (False, True):
        torch.manual_seed(0)
        adapter = siam(Prompted(sparse))
        for seed in range(2):
            adapter(frame(seed))
        students.append(adapter.student)
    assert all(torch.equal(students[1][name], value) for name, value in students[0].items())
    assert not torch.equal(students[0]["table.weight"], adapter.source["table.weight"])


@pytest.mark.filterwarnings("ignore:.*no step was taken on a frame")
def test_weights_that_are_nan_do_not_pass_for_written_ones():
    net, x = Noted(), frame()
    net.conv.weight.data[0, 0, 0, 0] = float("nan")
    version = net.conv.weight._version
    adapter = siam(net)
    assert adapter(x).isnan().any()
    assert "nan" in adapter.report.skipped_because
    assert net.conv.weight._version == version


class Roles(SiamCTTA):
    """Returns the source after passes of the other roles."""

    def emit(self, frame):
        for role in ("student", "teacher"):
            self.run(role, frame.image)
        return self.run("source", frame.image)


class CachedByFunction(CachedWeights):
    def __init__(self):
        super().__init__()
        self.products = functools.lru_cache(lambda factor: self.a.weight.detach() * factor)

    def forward(self, x):
        return x + self.b(F.gelu(F.conv2d(x, self.products(2), self.a.bias, padding=1)))


class CachedByClass(CachedWeights):
    @functools.lru_cache  # noqa: B019 (as users write it)
    def products(self, factor):
        return self.a.weight.detach() * factor

    forward = CachedByFunction.forward


@pytest.mark.parametrize("kind", [CachedWeights, CachedByFunction, CachedByClass])
def test_what_one_role_computed_from_its_weights_does_not_serve_another(kind):
    torch.manual_seed(0)
    net, x = kind(), frame()
    adapter = Roles(net, lr=0.1, restore=0.0)
    with torch.no_grad():
        wanted = net(x)
    for seed in range(3):
        adapter(frame(seed))
    with torch.no_grad():
        assert torch.allclose(adapter(x), wanted, atol=1e-6)
    student = adapter.student["a.weight"]
    assert torch.equal(student, net.a.weight)  # nothing depends on it but what is detached
    assert not torch.equal(adapter.student["b.weight"], net.b.weight)


def test_copies_of_functions_refer_to_the_copy():
    net = build("forward set from outside")
    adapter = siam(net)
    adapter(frame())
    exported = adapter.export("student")
    kept = exported(frame())
    with torch.no_grad():
        net.a.weight.zero_()
        net.b.weight.zero_()
    assert torch.equal(exported(frame()), kept)
    shared = []
    net.a.register_forward_hook(lambda module, inputs, output: shared.append(len(shared)))
    copy_module(net)(frame())
    assert shared == [0]  # what does not lead to the module stays the user's own
    lock = Locked()
    assert copy_module(lock).lock is lock.lock


def test_weights_in_a_replica_count_as_parameters():
    net = build("plain")
    replica = Replica(net)
    with replica.holding({"a.weight": torch.zeros_like(net.a.weight)}):
        assert isinstance(replica.root.a.weight, nn.Parameter)
        assert not replica.root.a.weight.any()
    assert torch.equal(replica.root.a.weight, net.a.weight)


def test_a_model_that_keeps_a_state_is_reported_once():
    adapter = siam(build("depends on earlier calls"))
    with pytest.warns(UserWarning, match="SiamCTTA: the model's output depends on its earlier calls"):
        first = adapter.predict(frame())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(adapter.predict(frame()), first)


@pytest.mark.parametrize("kind", ["FakeQuantize", "FusedMovingAvgObsFakeQuantize"])
@pytest.mark.parametrize("by_hook", [False, True])
def test_a_running_mean_over_calls_is_reported(by_hook, kind):
    net = build("plain")
    observed = getattr(torch.ao.quantization, kind)(  # the fused one does not raise the versions of its buffers
        observer=torch.ao.quantization.MovingAverageMinMaxObserver, averaging_constant=0.5
    )
    if by_hook:
        net.a.register_forward_hook(lambda module, inputs, output: observed(output))
        net.observed = observed
    else:
        net.a = nn.Sequential(net.a, observed)
    with pytest.warns(UserWarning, match="SiamCTTA: the model's output depends on its earlier calls"):
        siam(net).predict(frame())


class Clamps(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        self.conv.weight.data.clamp_(-0.1, 0.1)
        return self.conv(x)


class BoundedEmbedding(Clamps):
    def __init__(self):
        super().__init__()
        self.offsets = nn.Embedding(2, 3, max_norm=0.1)

    def forward(self, x):
        return self.conv(x) + self.offsets(torch.tensor([1]))[..., None, None]


class AveragesItself(Clamps):
    def __init__(self):
        super().__init__()
        self.slow = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        with torch.no_grad():
            self.slow.weight.lerp_(self.conv.weight, 0.1)
        return self.slow(x)


@pytest.mark.parametrize("kind", [Clamps, BoundedEmbedding, AveragesItself])
def test_a_model_that_writes_into_its_weights_is_left_unchanged(kind):
    net, x = kind(), frame()
    before = [weight.detach().clone() for weight in net.parameters()]
    with pytest.raises(TypeError, match="a pass writes into its weights"):
        siam(net)(x)
    assert SelfEnsemble(net)(x).shape == x.shape
    probe(net, x)
    assert all(torch.equal(weight, old) for weight, old in zip(net.parameters(), before, strict=True))


def test_memory_that_two_weights_or_a_weight_and_a_buffer_share_is_refused():
    tied = build("tied weights")
    tied.c.weight = nn.Parameter(tied.a.weight.data)
    with pytest.raises(TypeError, match="the weights a.weight and c.weight share memory and are two parameters"):
        siam(tied)

    class Viewed(Noted):
        def __init__(self):
            super().__init__()
            self.register_buffer("view", self.conv.weight.detach()[:1])

        def forward(self, x):
            return super().forward(x) + F.conv2d(x, self.view, padding=1)

    with pytest.raises(TypeError, match="uses a weight by another reference"):
        siam(Viewed())(frame())


def test_weights_side_by_side_in_one_memory_are_adapted():
    net, plain = build("plain"), siam(build("plain"))
    weights = list(net.parameters())
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    for weight, part in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.data = part.view_as(weight)
    adapter = siam(net)
    assert torch.equal(adapter(frame()), plain(frame()))
    assert all(torch.equal(tensor, plain.student[name]) for name, tensor in adapter.student.items())


def test_floats_of_8_bits_are_stored_values_and_not_adapted():
    class Stored(Noted):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(3, 3, 1, 1, dtype=torch.float8_e4m3fn), requires_grad=False)

        def forward(self, x):
            return super().forward(x) + F.conv2d(x, self.kernel.float())

    adapter = siam(Stored())
    adapter(frame())
    assert list(adapter.student) == ["conv.weight", "conv.bias"]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("keep", ["register_parameter", "register_buffer"])
def test_sparse_values_are_left_as_they_are(keep):
    class Sparse(Noted):
        def __init__(self):
            super().__init__()
            mix = torch.eye(3).to_sparse() if keep == "register_parameter" else torch.eye(3).to_sparse_csr()
            getattr(self, keep)("mix", nn.Parameter(mix) if keep == "register_parameter" else mix)

        def forward(self, x):
            y = super().forward(x)
            return y + torch.stack([(self.mix @ image.flatten(1)).view_as(image) for image in y])

    net = Sparse()
    adapter = siam(net)
    adapter(frame())
    assert list(adapter.student) == ["conv.weight", "conv.bias"]
    assert adapter.plan(frame()).activations > 0
    assert SelfEnsemble(net)(frame()).shape == (1, 3, 24, 24)
    assert probe(net, frame()).spec.scale == 1


@pytest.mark.thorough
def test_a_branch_that_is_compiled_within_the_pass():
    class Branches(Noted):
        def forward(self, x):
            return torch.cond(x.mean() > 0, lambda z: z + self.conv(z), lambda z: z * 1, (x,))

    torch._dynamo.reset()
    assert siam(Branches())(frame()).shape == (1, 3, 24, 24)


def test_masks_in_the_output():
    class Masked(Noted):
        def forward(self, x):
            y = super().forward(x)
            return y > 0.5, y

    mask, image = siam(Masked())(frame())
    assert mask.dtype == torch.bool
    assert image.shape == (1, 3, 24, 24)


def test_a_model_whose_image_depends_on_its_batch_is_run_image_by_image():
    class Normalized(Noted):
        def forward(self, x):
            return self.conv(x) - x.mean((0, 2, 3), keepdim=True)

    torch.manual_seed(0)
    net, pair = Normalized(), torch.cat([frame(0), frame(1)])
    restorer = as_restorer(net)
    assert torch.equal(restorer(pair), torch.cat([net(image) for image in pair.split(1)]))
    assert not restorer.spec.batched
    assert torch.equal(Adapter(net)(pair), restorer(pair))
    assert as_restorer(Noted()).known_spec(pair).batched


def test_a_first_frame_out_of_range_of_a_model_with_a_second_input():
    with pytest.warns(UserWarning, match="expected values in"):
        assert SelfEnsemble(NonBlind())(1.2 * frame(), sigma=0.1).shape == (1, 3, 24, 24)


class Configured(Noted):
    """Reads settings that its user may change."""

    def __init__(self):
        super().__init__()
        self.settings, self.nested, self.pair = types.SimpleNamespace(gain=1.0), {"a": {"gain": 1.0}}, ([1.0],)
        self.array, self.table = np.ones(1, np.float32), torch.ones(1)

    def forward(self, x):
        gains = self.settings.gain * self.nested["a"]["gain"] * self.pair[0][0] * float(self.array[0]) * self.table
        return gains * self.conv(x)


CHANGES = {
    "namespace": lambda net: setattr(net.settings, "gain", 2.0),
    "nested": lambda net: net.nested["a"].update(gain=2.0),
    "list in a tuple": lambda net: net.pair[0].__setitem__(0, 2.0),
    "array": lambda net: net.array.fill(2.0),
    "tensor": lambda net: net.table.fill_(2.0),
    "weight": lambda net: net.conv.weight.data.mul_(2),
    "hook": lambda net: net.conv.register_forward_hook(lambda module, inputs, output: 2 * output),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_the_user_changes_between_frames_counts(change):
    net, x = Configured(), frame()
    adapter = SelfEnsemble(net, views="identity")
    before = adapter(x)
    change(net)
    with torch.no_grad():
        expected = net(x)
    assert not torch.allclose(before, expected)
    assert torch.equal(adapter(x), expected)


@pytest.mark.parametrize(
    ("change", "now"),
    [
        (lambda net: setattr(net, "a", nn.Conv2d(3, 6, 5, padding=2)), r"is \(6, 3, 5, 5\) now"),
        (lambda net: delattr(net, "a"), "is gone"),
        (lambda net: nn.utils.parametrizations.weight_norm(net.a), "is gone"),
    ],
    ids=["replaced", "deleted", "parametrized"],
)
def test_a_model_that_was_rebuilt_is_refused(change, now):
    net = build("plain")
    adapter = siam(net)
    adapter(frame())
    before = {name: tensor.clone() for name, tensor in adapter.student.items()}
    change(net)
    for use in (adapter, adapter.predict, adapter.adapt):
        with pytest.raises(ValueError, match=rf"the model was rebuilt: a.weight, adapted as \(6, 3, 3, 3\), {now}"):
            use(frame())
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.student.items())


class Grainy(Noted):
    def forward(self, x):
        grain = torch.randn_like(x) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return self.conv(x) + 0.01 * grain


def test_a_random_model_draws_from_the_seed_and_leaves_global_random_numbers_alone():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    torch.manual_seed(0)
    net, frames = Grainy(), [frame(seed) for seed in range(3)]
    before = states()
    outputs = [siam(net)(x) for x in frames]
    semantic = Semantic(lambda image: image.mean((2, 3)), at="conv", num_heads=1)
    CauSiam(net, semantic=semantic)(frames[0])
    assert states() == before
    torch.manual_seed(5)
    random.seed(5)
    assert all(torch.equal(siam(net)(x), output) for x, output in zip(frames, outputs, strict=True))
    assert not torch.equal(siam(net, seed=1)(frames[0]), outputs[0])


class OwnGrain(Noted):
    """Adds noise from a generator of its own, of about the difference up to which outputs count as equal."""

    def __init__(self, std):
        super().__init__()
        self.std = std

    def forward(self, x):
        return self.conv(x) + self.std * SYSTEM.gauss(0, 1)


SYSTEM = random.SystemRandom()


@pytest.mark.parametrize("std", [1e-5, 3e-5, 1e-4, 1e-3])
def test_a_model_with_little_randomness_of_its_own_is_adapted(std):
    for _ in range(8):
        siam(OwnGrain(std), spec=RestorerSpec())(frame(size=16))


@pytest.mark.parametrize("source", [np.random.rand, random.random])
def test_numbers_of_numpy_and_python_do_not_pass_for_a_memory(source):
    class Drawing(Noted):
        def forward(self, x):
            return self.conv(x) + 2e-5 * source()

    for _ in range(8):
        siam(Drawing(), spec=RestorerSpec())(frame(size=16))


class Both(nn.Module):
    """Runs a part of its own and one of another model, which has a lock of its own."""

    def __init__(self, other):
        super().__init__()
        self.other, self.conv = other, nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(self.other(x))


def test_models_that_share_weights_are_adapted_apart():
    inner = build("plain")
    outer = Both(inner)
    start = [parameter.detach().clone() for parameter in outer.parameters()]
    adapters = siam(inner), siam(outer)
    for seed in range(2):
        for adapter in adapters:
            adapter(frame(seed))
    assert all(map(torch.equal, start, outer.parameters()))
    assert not torch.equal(adapters[0].student["a.weight"], adapters[1].student["other.a.weight"])


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: lambda x: net(x)], ids=["module", "function"])
def test_models_that_return_the_same_memory_again_are_averaged_over_views(wrap):
    net, x = build("returns its own memory"), frame()
    with torch.no_grad():
        views = [net(x.rot90(k, (2, 3))).clone().rot90(-k, (2, 3)) for k in range(4)]
    found = SelfEnsemble(wrap(net))(x)
    torch.testing.assert_close(found, torch.stack(views).mean(0))
    kept = found.clone()
    SelfEnsemble(wrap(net), views="identity")(frame(1))
    assert torch.equal(found, kept)


def test_a_copy_is_made_again_where_another_thread_sets_attributes_meanwhile(monkeypatch):
    made = []

    class Disturbed(Replica):
        def __init__(self, *arguments):
            made.append(self)
            if len(made) == 1:
                raise RuntimeError("dictionary changed size during iteration")
            super().__init__(*arguments)

    monkeypatch.setattr(backbone, "Replica", Disturbed)
    adapter = siam(build("plain"))
    assert adapter.adapt(frame()).updated
    assert len(made) > 2


class Logged(Noted):
    """Holds objects that are never copied: a logger, and one with a lock."""

    def __init__(self):
        super().__init__()
        self.log, self.counter = logging.getLogger("tta_restore.test"), Counter()

    def forward(self, x):
        self.counter.calls += 1
        self.log.setLevel(logging.WARNING)
        return super().forward(x)


class Counter:
    def __init__(self):
        self.lock, self.calls = threading.Lock(), 0


def test_what_is_not_copied_stays_the_users_own():
    net, x = Logged(), frame()
    net.log.setLevel(logging.DEBUG)
    adapter = siam(net)
    adapter(x)
    assert net.log.level == logging.WARNING
    calls = net.counter.calls
    assert calls > 10
    adapter(x)
    assert net.counter.calls > calls
