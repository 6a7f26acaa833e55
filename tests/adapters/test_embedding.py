"""Adapters inside other programs: threads, forks, parents, serialization, ambient defaults, checkpointing, keywords."""

import contextlib
import copy
import io
import os
import pickle
import signal
import threading
import time
import warnings
from typing import ClassVar

import pytest
import torch
from _fresh import in_new_process
from safetensors.torch import load_model, save_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from tta_restore.adapters import (
    EATA,
    ROID,
    SAR,
    SRTTA,
    CauSiam,
    CoTTA,
    MetaTransfer,
    ReblurConsistency,
    RoTTA,
    SelfEnsemble,
    Semantic,
    SiamCTTA,
    Tent,
)
from tta_restore.models import RestorerSpec


def network(channels=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, channels, 3, padding=1)
        ).eval()


def frame(channels=3, seed=0, size=24):
    return torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(seed))


def siam(net, **options):
    return SiamCTTA(net, **{"lr": 1e-2, "spec": RestorerSpec()} | options)


def plain_loop(net, frames, lr=1e-2):
    """SiamCTTA's rule on deep copies of a network: the expected weights of the student."""
    teacher, student = copy.deepcopy(net), copy.deepcopy(net)
    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    for number, x in enumerate(frames):
        with torch.no_grad():
            views = [torch.rot90(teacher(torch.rot90(x, k, (-2, -1))), -k, (-2, -1)) for k in range(4)]
            target = torch.stack(views).mean(0)
        optimizer.param_groups[0]["lr"] = lr * 0.95**number
        optimizer.zero_grad()
        (student(x) - target).abs().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
    return dict(student.named_parameters())


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.body, self.reentrant = network(), reentrant

    def forward(self, x):
        y = self.body[0](x)
        if not y.requires_grad:
            return self.body[2](self.body[1](y))
        return checkpoint(lambda z: self.body[2](self.body[1](z)), y, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_recomputes_with_the_adapted_weights(reentrant):
    net, frames = Checkpointed(reentrant), [frame(seed=seed) for seed in range(3)]
    expected = plain_loop(net, frames)
    adapter = siam(net, restore=0.0)
    for x in frames:
        adapter(x)
    for name, tensor in adapter.student.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5)


class Hooked(nn.Module):
    """The encoder's activation reaches the end through a hook, past the modules between."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)
        self.skip = None
        self.first.register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        self.skip = output

    def forward(self, x):
        return self.last(torch.cat([self.middle(self.first(x)), self.skip], 1))


class Carried(nn.Module):
    """A frozen block leaves its activation in an attribute."""

    def __init__(self):
        super().__init__()
        self.block, self.last = Inner(), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        return self.last(torch.cat([self.block(x), self.block.skip], 1))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        self.skip = self.first(x)
        return self.second(self.skip)


@pytest.mark.parametrize("kind", [Hooked, Carried])
def test_a_prefix_with_side_effects_is_not_replayed(kind):
    torch.manual_seed(0)
    net = kind()
    outputs = []
    for share in (True, False):
        adapter = siam(net, select="last", share_prefix=share)
        outputs.append([adapter(frame(seed=seed)) for seed in range(3)])
    for shared, plain in zip(*outputs, strict=True):
        assert torch.equal(shared, plain)


def test_another_thread_always_gets_the_sources_answers():
    net, x = network(), frame()
    with torch.no_grad():
        wanted = net(x)
    stop, wrong, seen = threading.Event(), [], []

    def preview():
        while not stop.is_set():
            with torch.no_grad():
                seen.append(torch.equal(net(x), wanted))

    adapter = siam(net)
    adapter(x)
    thread = threading.Thread(target=preview)
    thread.start()
    for seed in range(10):
        adapter(frame(seed=seed))
    stop.set()
    thread.join()
    assert seen
    assert all(seen), f"{wrong} of {len(seen)}"


class Long(SiamCTTA):
    """Takes steps until it is stopped."""

    stop = threading.Event()

    def objective(self, frame):
        return None if self.stop.is_set() else super().objective(frame)


def adapt_in_a_child():
    """Fork while a thread adapts; return the exit code of a child that adapts."""
    net, x = network(), frame()
    long = Long(net, steps=3000, spec=RestorerSpec())
    thread = threading.Thread(target=long, args=(x,))
    thread.start()
    time.sleep(0.3)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            siam(net)(x)
            os._exit(0 if long._live is None else 4)
        except BaseException:
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    Long.stop.set()
    thread.join()
    return os.waitstatus_to_exitcode(status)


@pytest.mark.thorough
def test_a_child_forked_while_a_thread_adapts_can_adapt():
    assert in_new_process(adapt_in_a_child) == 0


class Slow(SiamCTTA):
    """Takes long to make its optimizer."""

    making, made = threading.Event(), threading.Event()

    def make_optimizer(self, tensors, role="student"):
        self.making.set()
        time.sleep(0.5)
        self.made.set()
        return super().make_optimizer(tensors, role)


def fork_while_an_optimizer_is_made():
    """Return the exit code of a child: 0 if the optimizer was made before the fork."""
    adapter = Slow(network(), select="all", spec=RestorerSpec())
    thread = threading.Thread(target=adapter, args=(frame(),))
    thread.start()
    Slow.making.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if Slow.made.is_set() else 1)
    status = os.waitpid(child, 0)[1]
    thread.join()
    return os.waitstatus_to_exitcode(status)


@pytest.mark.thorough
def test_a_fork_waits_until_an_optimizer_has_been_made():
    """The first optimizer of a process imports modules, whose locks a child would never get."""
    assert in_new_process(fork_while_an_optimizer_is_made) == 0


@contextlib.contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("around", [float64, lambda: torch.device("meta")])
@pytest.mark.parametrize("method", [SiamCTTA, SRTTA, SAR, EATA])
def test_ambient_defaults_change_nothing(method, around):
    net, x = network(), frame()
    options = {"select": "all", "spec": RestorerSpec()}
    wanted = method(net, **options)(x)
    adapter = method(net, **options)
    with around():
        found = adapter(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, *(lambda a, p=p: pickle.loads(pickle.dumps(a, p)) for p in (2, 4, 5)), "torch.save"],
)
def test_an_adapter_is_copied_and_pickled_with_its_state(copied):
    adapter, x = siam(network()), frame()
    adapter(x)
    if copied == "torch.save":
        buffer = io.BytesIO()
        torch.save(adapter, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    else:
        twin = copied(adapter)
    assert twin.state.frames == 1
    assert torch.equal(twin(x), adapter(x))


@pytest.mark.parametrize("parent", [nn.Sequential, lambda adapter: nn.ModuleList([adapter])])
def test_a_parents_state_dict_holds_weights_and_state(parent):
    adapter, x = siam(network()), frame()
    adapter(x)
    saved = parent(adapter).state_dict()
    assert "0.restorer.module.0.weight" in saved
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    other = siam(network())
    parent(other).load_state_dict(torch.load(buffer))
    assert other.state.frames == 1
    assert torch.equal(other(x), adapter(x))
    with pytest.raises(ValueError, match="other settings: lr"):
        parent(siam(network(), lr=1e-3)).load_state_dict(saved)


def test_a_parents_state_dict_holds_tensors_only_as_safetensors_demands(tmp_path):
    adapter, other, x = siam(network()), siam(network()), frame()
    adapter(x)
    parent = nn.Sequential(nn.Conv2d(3, 3, 1), adapter)
    assert all(isinstance(value, torch.Tensor) for value in parent.state_dict().values())
    save_model(parent, tmp_path / "parent.safetensors")
    load_model(nn.Sequential(nn.Conv2d(3, 3, 1), other), tmp_path / "parent.safetensors")
    assert other.state.frames == 1
    assert torch.equal(other(x), adapter(x))


@pytest.mark.parametrize("damage", [
    lambda numbers: numbers[:-1], lambda numbers: numbers[:5], lambda numbers: numbers[:0], lambda numbers: {},
    lambda numbers: torch.cat([numbers[:-1], 1 + numbers[-1:]]), lambda numbers: torch.zeros(300, dtype=torch.uint8),
])  # fmt: skip
def test_a_damaged_state_in_a_parents_state_dict_is_refused(damage):
    adapter = siam(network())
    adapter(frame())
    saved = nn.Sequential(adapter).state_dict()
    saved["0._extra_state"] = damage(saved["0._extra_state"])
    other = siam(network())
    with pytest.raises(ValueError, match="load: .*damaged"):
        nn.Sequential(other).load_state_dict(saved)
    assert other.state.frames == 0


def test_complex_weights_are_adapted_saved_and_loaded(tmp_path):
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, 24, 13, dtype=torch.complex64))
            self.c = network()

        def forward(self, x):
            return torch.fft.irfft2(torch.fft.rfft2(x) * self.w, s=x.shape[-2:]) + 0.1 * self.c(x)

    net, x = Spectral(), frame()
    adapter = siam(net)
    adapter(x)
    assert not torch.equal(adapter.student["w"], net.w)
    adapter.save(tmp_path / "a.safetensors")
    other = siam(net)
    other.load(tmp_path / "a.safetensors")
    assert torch.equal(other.student["w"], adapter.student["w"])
    assert torch.equal(other(x), adapter(x))


@pytest.mark.filterwarnings("ignore:.*TorchScript|.*torch.jit")
def test_torchscript_restores_and_refuses_to_adapt():
    scripted = torch.jit.trace(network(), frame())
    assert torch.allclose(SelfEnsemble(scripted, spec=RestorerSpec())(frame()), SelfEnsemble(network())(frame()))
    with pytest.raises(TypeError, match="TorchScript hides the weights"):
        siam(scripted)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 31])
@pytest.mark.parametrize("method", [SiamCTTA, SelfEnsemble, SRTTA])
def test_any_number_of_channels(method, channels):
    options = {} if method is SelfEnsemble else {"select": "all"}
    assert method(network(channels), spec=RestorerSpec(), **options)(frame(channels)).shape == (1, channels, 24, 24)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x, sigma):
        sigma = sigma if isinstance(sigma, torch.Tensor) else torch.full_like(x[:, :1], sigma)
        return self.c(torch.cat([x, sigma], 1))


def test_keywords_go_to_every_call_and_maps_are_viewed_and_padded():
    torch.manual_seed(0)
    net, x = Noisy(), frame(size=21)
    spec = RestorerSpec()
    flat = torch.full((1, 1, 21, 21), 0.1)
    for method in (SelfEnsemble, SiamCTTA):
        assert torch.equal(method(net, spec=spec)(x, sigma=0.1), method(net, spec=spec)(x, sigma=flat))
    assert method(net)(x, sigma=0.1).shape == x.shape  # the spec is measured with the keyword
    ramp = torch.linspace(0, 1, 21).expand(1, 1, 21, 21)
    with torch.no_grad():
        views = [
            torch.rot90(net(torch.rot90(x, k, (2, 3)), torch.rot90(ramp, k, (2, 3))), -k, (2, 3)) for k in range(4)
        ]
    torch.testing.assert_close(SelfEnsemble(net, spec=spec)(x, sigma=ramp), torch.stack(views).mean(0))
    with pytest.raises(ValueError, match=r"sigma has a value for each pixel of the frame \(21x21\).*images of 16x16"):
        SRTTA(net, at="c", spec=spec, patch_size=16)(x, sigma=ramp)


class Brightness(nn.Module):
    """Takes a map that has to be the mean over channels of the image, and records by how much it is not."""

    errors: ClassVar[list[float]] = []

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x, sigma):
        self.errors.append(float((sigma - x.mean(1, keepdim=True)).abs().max()))
        return x + 0.1 * self.c(torch.cat([x, sigma], 1))


@pytest.mark.parametrize("width", [24, 20])
@pytest.mark.parametrize("method", [SiamCTTA, CoTTA, Tent, ROID, SAR, EATA, ReblurConsistency])
def test_maps_go_with_every_view(method, width):
    x = torch.rand(1, 3, 24, width, generator=torch.Generator().manual_seed(0))
    options = {"max_similarity": 2.0} if method is EATA else {}
    adapter = method(Brightness(), select="all", spec=RestorerSpec(), **options)
    adapter(x, sigma=x.mean(1, keepdim=True))  # the first frame finds out how the model runs
    Brightness.errors.clear()
    adapter(x, sigma=x.mean(1, keepdim=True))
    assert adapter.report.updated
    assert max(Brightness.errors) < 1e-5


def test_maps_of_one_frame_are_refused_for_a_bank_of_several():
    x = frame()
    with pytest.raises(ValueError, match="RoTTA: sigma has a value for each pixel of the frame, and the bank holds"):
        RoTTA(Brightness(), spec=RestorerSpec())(x, sigma=x.mean(1, keepdim=True))


def test_values_outside_the_range_are_reported_once_or_refused():
    adapter = siam(network())
    bright = frame() * 1.2 - 0.1
    with pytest.warns(UserWarning, match=r"expected values in \[0, 1\], got -0.0\d+ to 1.1; reported once"):
        adapter(bright)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter(bright)
        adapter(frame())
        assert not adapter.report.messages
        assert adapter.adapt(bright).messages[0].startswith("expected values in [0, 1]")
    kept = adapter.state_dict()["tensors"]
    strict = siam(network(), out_of_range="raise")
    for call in (strict, strict.adapt, strict.predict):
        with pytest.raises(ValueError, match="clamp the frame"):
            call(bright)
    assert all(torch.equal(kept[key], value) for key, value in adapter.state_dict()["tensors"].items())


def test_an_empty_batch_is_reported_as_empty():
    adapter = siam(network())
    assert adapter(torch.rand(0, 3, 24, 24)).shape == (0, 3, 24, 24)
    assert adapter.report.skipped_because == "the batch is empty: there is no frame"
    assert adapter.adapt(torch.rand(0, 3, 24, 24)).loss is None


def test_seconds_include_the_restoration():
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            time.sleep(0.02)
            return self.body(x)

    adapter = siam(Slow(), region=None)
    adapter.emit = lambda frame: (time.sleep(0.3), SiamCTTA.emit(adapter, frame))[1]
    assert adapter(frame()).shape == (1, 3, 24, 24)
    assert adapter.report.seconds > 0.3


def test_restore_returns_the_image_alone():
    class Dict(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            return {"image": self.body(x), "score": x.mean()}

    image = siam(Dict()).restore(frame())
    assert isinstance(image, torch.Tensor)
    assert torch.equal(image, siam(Dict())(frame())["image"])


def test_a_clip_may_have_a_batch_axis():
    class Reblur(nn.Module):
        num_frames = 3

        def forward(self, clip):
            return clip[:, 1]

    clip = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"num_patches": 1, "patch_size": 16, "spec": RestorerSpec(), "seed": 1}
    plain, batched = (MetaTransfer(network(), Reblur(), **options) for _ in range(2))
    assert torch.equal(batched(clip[None]), plain(clip)[None])
    assert torch.equal(batched.predict(clip[None]), plain.predict(clip)[None])
    with pytest.raises(ValueError, match=r"expected one clip \(1, T, C, H, W\)"):
        batched(torch.stack([clip, clip]))


def test_settings_are_recorded_from_the_signatures_and_compared():
    def look(restored):
        return restored.mean((2, 3))

    def adapter(**options):
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()
        return CauSiam(net, semantic=Semantic(look, "0", **{"num_heads": 2} | options), spec=RestorerSpec())

    saved = adapter().state_dict()
    adapter().load_state_dict(saved)
    for options, name in (({"res_scale": 0.5}, "semantic.res_scale"), ({"num_heads": 4}, "semantic.num_heads")):
        with pytest.raises(ValueError, match=name):
            adapter(**options).load_state_dict(saved)


def test_the_plan_is_short_and_measures_a_frame():
    net = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(40)))
    adapter = siam(net, steps=3)
    assert len(str(adapter.plan()).splitlines()) <= 20
    kept = adapter.state_dict()
    plan = adapter.plan(frame())
    assert plan.activations > 40 * 3 * 24 * 24 * 4
    assert plan.seconds > 0
    assert "activations" in str(plan)
    assert adapter.state_dict()["tensors"].keys() == kept["tensors"].keys()
    assert adapter.state.frames == 0


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_under_and_around_ddp(process_group):
    x, expected = frame(), siam(network())(frame())
    assert torch.equal(siam(nn.parallel.DistributedDataParallel(network()))(x), expected)
    wrapped = nn.parallel.DistributedDataParallel(siam(network()))
    assert torch.equal(wrapped(x), expected)


@pytest.fixture
def shard(process_group):
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    return lambda module: torch.distributed.fsdp.fully_shard(module, mesh=mesh)


def test_under_fsdp2(shard):
    whole, sharded = siam(network()), siam(network())
    for adapter in (whole, sharded):
        adapter(frame(seed=9))
    shard(sharded)
    for seed in range(3):
        assert torch.equal(sharded(frame(seed=seed)), whole(frame(seed=seed)))
    for use in (sharded.state_dict, sharded.reset, sharded.export, sharded.fork):
        with pytest.raises(TypeError, match="sharded over processes .*FSDP2 gathers weights during a call"):
            use()
    assert torch.equal(sharded(frame()), whole(frame()))


@pytest.mark.parametrize("paths", [[""], ["0"], ["0", ""]])
def test_a_model_that_was_sharded_and_never_run_restores(shard, paths):
    net, x = network(), frame()
    wanted = SelfEnsemble(network())(x)
    for path in paths:
        shard(net.get_submodule(path))
    adapter = SelfEnsemble(net)
    assert torch.equal(adapter(x), wanted)
    with torch.no_grad():
        assert torch.equal(net(x), network()(x))
    for part in net.modules():
        if hasattr(part, "unshard"):
            part.unshard()
    for _ in range(2):
        assert torch.equal(adapter(x), wanted)
        assert torch.equal(SelfEnsemble(net)(x), wanted)


@pytest.mark.filterwarnings("ignore:FSDP is switching|.*FSDP")
def test_sharded_weights_are_refused_with_the_remedy(shard):
    net, x = network(), frame()
    wanted = SelfEnsemble(network())(x)
    for part in (net[0], net[2], net):
        shard(part)
    with pytest.raises(TypeError, match="sharded over processes .*before fully_shard"):
        siam(net)
    assert torch.equal(SelfEnsemble(net)(x), wanted)
    with pytest.raises(TypeError, match="sharded by FullyShardedDataParallel; pass the module that it wraps"):
        siam(torch.distributed.fsdp.FullyShardedDataParallel(network(), device_id=torch.device("cpu")))


def test_lazy_weights_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="lazy weights without a shape; run the model on a frame first"):
        siam(nn.LazyConv2d(3, 3, padding=1))


class Around(nn.Module):
    """A user's module that calls a method of an adapter."""

    def __init__(self, adapter):
        super().__init__()
        self.adapter = adapter

    def forward(self, x):
        return self.adapter.restore(x)


@pytest.mark.thorough
@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: a.forward, lambda a: nn.Sequential(a, nn.Identity()), Around])
def test_compiled_programs_run_an_adapter_as_it_is(wrap):
    net, x = network(), frame()
    plain = siam(net)
    expected = [plain(x) for _ in range(3)]
    torch._dynamo.reset()
    adapter = siam(net)
    compiled = torch.compile(wrap(adapter), backend="eager")
    assert all(torch.equal(compiled(x), y) for y in expected)
    assert adapter.state.frames == 3
    assert torch.equal(torch.compile(adapter.predict, backend="eager")(x), plain.predict(x))


@pytest.mark.thorough
def test_trial_passes_compile_nothing():
    net, x = network(), frame()
    expected = siam(network())
    expected(x)
    torch._dynamo.reset()
    for layer in (0, 2):
        net[layer] = torch.compile(net[layer], backend="eager")
    adapter = siam(net)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        adapter(x)
        assert adapter(x).shape == net(x).shape
    expected(x)
    for found, wanted in zip(adapter.student.values(), expected.student.values(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    assert str(torch._dynamo.eval_frame._stance.stance) == "default"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch, on TorchScript
@pytest.mark.parametrize(
    "capture",
    [
        lambda adapter, x: torch.jit.trace(lambda x: adapter.restore(x), x),
        torch.jit.trace,
        lambda adapter, x: torch.jit.script(adapter),
        lambda adapter, x: torch.jit.script(nn.Sequential(adapter)),
        lambda adapter, x: torch.fx.symbolic_trace(adapter),
        lambda adapter, x: torch.fx.symbolic_trace(Around(adapter)),
        lambda adapter, x: make_fx(adapter.predict)(x),
        lambda adapter, x: torch.func.vmap(adapter)(x[None]),
        lambda adapter, x: torch.func.grad(lambda z: adapter.predict(z).sum())(x),
        lambda adapter, x: torch.func.jvp(adapter.restore, (x,), (x,)),
        lambda adapter, x: adapter.adapt(FakeTensorMode().from_tensor(x)),
    ],
)
def test_an_adapter_is_not_traced_scripted_or_transformed(capture):
    adapter, x = siam(network()), frame()
    with pytest.raises(TypeError, match=r"SiamCTTA: .* traced, scripted or transformed; pass what adapter.export\(\)"):
        capture(adapter, x)
    assert adapter.state.frames == 0


def test_a_call_within_the_adapters_own_frame_is_refused():
    adapter, x = siam(network()), frame()
    before = adapter.state_dict()
    z = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"SiamCTTA: was called within its own frame, as by .* checkpointing around"):
        checkpoint(lambda z: (adapter(z) * z).sum(), z, use_reentrant=False)
    assert str(adapter.state_dict()) == str(before)
    adapter(x)
    assert adapter.state.frames == 1


def test_attributes_without_a_value_are_told_by_hasattr():
    adapter = SelfEnsemble(network(), spec=RestorerSpec())
    assert not any(hasattr(adapter, name) for name in ("generator", "student", "teacher"))
    for name in dir(adapter):
        hasattr(adapter, name)  # raises nothing
    with pytest.raises(AttributeError, match="SelfEnsemble: random numbers exist only while a frame is worked on"):
        adapter.generator  # noqa: B018
    with pytest.raises(AttributeError, match="SelfEnsemble: has no student"):
        adapter.student  # noqa: B018


def test_an_adapter_is_not_exported():
    adapter, x = siam(network()), frame()
    with pytest.raises(TypeError, match=r"SiamCTTA: an adapter changes from frame .* pass what adapter.export\(\)"):
        torch.export.export(adapter, (x,))
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"SiamCTTA: an adapter changes from frame"):
        torch.export.export(Around(adapter), (x,), strict=True)
    assert adapter.state.frames == 0
    assert torch.equal(torch.export.export(adapter.export("source").eval(), (x,)).module()(x), network()(x))
