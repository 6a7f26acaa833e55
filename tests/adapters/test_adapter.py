"""What is not in the table of invariants: settings, roles, threads, memory, export, the registry."""

import copy
import gc
import inspect
import threading
import warnings
from dataclasses import replace

import pytest
import torch
from adapters._base import leaves, picture, same_bits
from adapters.recipes import RECIPES, make_pairs, make_siam_ctta
from adapters.zoo import Residual, Tied, build, frames
from torch import nn

from tta_restore import adapters
from tta_restore.adapters import Adapter, CalibrationReport, SelfEnsemble, Semantic, SiamCTTA
from tta_restore.models import RestorerSpec


def test_around_a_function_or_a_model_it_is_the_source():
    x = frames("plain", 1)[0]
    assert torch.equal(Adapter(lambda x: x * 0.5)(x), x * 0.5)
    for name in ("plain", "super_resolution", "batch_norm"):
        net = build(name)
        with torch.no_grad():
            expected = copy.deepcopy(net).eval()(x)
        assert torch.equal(Adapter(net)(x), expected)
        assert torch.equal(SiamCTTA(net, select="all", views="identity").predict(x), expected)
    with pytest.raises(TypeError, match="a function has no weights"):
        SiamCTTA(lambda x: x, select="all")


@pytest.mark.parametrize("method", [name for name, recipe in RECIPES.items() if recipe.learns and name != "pairs"])
@pytest.mark.parametrize(("lr", "error"), [(-1.0, ValueError), (float("nan"), ValueError), ("1e-3", TypeError)])
def test_every_method_refuses_a_wrong_rate_before_the_first_frame(method, lr, error):
    with pytest.raises(error, match="expected lr to be a number"):
        RECIPES[method].make(Residual(), lr=lr)


def test_settings_are_checked_in_the_callers_words():
    net = Residual()
    for arguments, message in [
        ({"steps": -1}, "SiamCTTA: expected steps to be an integer >= 0, got -1"),
        ({"mode": "test"}, "SiamCTTA: expected mode to be one of 'eval', 'train', got 'test'"),
        ({"bad_frames": "skip"}, "SiamCTTA: expected bad_frames"),
        ({"views": "rot3"}, "views: expected one of identity"),
        ({"ema": 1.5}, r"SiamCTTA: expected ema to be a number in \[0, 1\], got 1.5"),
        ({"emit": "best"}, "SiamCTTA: expected emit to be one of 'teacher_mean'"),
    ]:
        with pytest.raises(ValueError, match=message):
            SiamCTTA(net, select="all", **arguments)
    for make, message in [
        (lambda: SiamCTTA(net, select="all", learning_rate=1e-3), "SiamCTTA has no learning_rate; "),
        (lambda: SiamCTTA(net, select="all", step=2), "SiamCTTA has no step; did you mean steps"),
        (lambda: adapters.CauSiam(net, sematic=None), "CauSiam has no sematic; did you mean semantic"),
        (lambda: adapters.Tent(net, lr_decay=0.9), "Tent has no lr_decay; "),  # not among EntropyAdapter's either
    ]:
        with pytest.raises(TypeError, match=message):
            make()

    class Own(SiamCTTA):
        def __init__(self, model, **settings):
            mine = settings.pop("mine")
            super().__init__(model, select="all", **settings)
            self.mine = mine

    assert Own(net, mine=3).mine == 3
    shown = {method: list(inspect.signature(method).parameters)[:2] for method in (Adapter, SiamCTTA, Own)}
    assert shown == {Adapter: ["model", "select"], SiamCTTA: ["model", "select"], Own: ["model", "settings"]}
    adapter = SiamCTTA(net, select="all")
    with pytest.raises(TypeError, match="SiamCTTA: expected x with a floating dtype, got torch.uint8"):
        adapter(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="one of the roles source, student, teacher, got 'anchor'"):
        adapter.run("anchor", torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="adapt_every"):
        next(adapter.stream([], adapt_every=0))


@pytest.mark.thorough
def test_parameters_are_the_models_own_and_sets_follow_the_model():
    net = build("plain")
    adapter = make_siam_ctta(net)
    x = frames("plain", 1)[0]
    adapter(x)
    assert list(map(id, adapter.parameters())) == list(map(id, net.parameters()))
    adapter.train()
    adapter.eval()
    assert net.training
    adapter.to(torch.float64)
    assert net.body[0].weight.dtype == torch.float64
    assert adapter(x.double()).dtype == torch.float64
    assert adapter.student["body.0.weight"].dtype == torch.float32
    net.to(torch.bfloat16)
    assert adapter(x.bfloat16()).dtype == torch.bfloat16


def test_small_changes_are_not_lost_around_a_half_model():
    adapter = SiamCTTA(build("bfloat16"), select="all", lr=1e-5, restore=0.0, lr_decay=1.0)
    stream = frames("plain", 6)
    drifts = [adapter.adapt(x).drift for x in stream]
    assert adapter.student["body.0.weight"].dtype == torch.float32
    assert drifts == sorted(drifts)
    assert 0 < drifts[0] < drifts[-1]
    teacher = adapter.teacher["body.0.weight"] - adapter.source["body.0.weight"]
    assert teacher.abs().max() > 0


def test_only_the_selected_tensors_change_and_exist_more_than_once():
    net = build("batch_norm")
    adapter = SiamCTTA(net, select="norm", lr=1e-2)
    for x in frames("plain", 2):
        adapter(x)
    assert list(adapter.student) == list(adapter.teacher) == ["body.1.weight", "body.1.bias"]
    exported = adapter.export("student")
    changed = {n for (n, a), b in zip(net.named_parameters(), exported.parameters(), strict=True) if not a.equal(b)}
    assert changed == {"body.1.weight", "body.1.bias"}
    assert all(a.equal(b) for a, b in zip(net.buffers(), exported.buffers(), strict=True))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "tied",
        "old_weight_norm",
        "new_weight_norm",
        pytest.param("compiled", marks=pytest.mark.thorough),
        "bfloat16",
    ],
)
def test_an_exported_model_restores_as_the_role_does(name):
    net = build(name)
    before = picture(net)
    adapter = make_siam_ctta(net)
    x = frames(name, 1)[0]
    adapter(x)
    for role in ("student", "teacher", "source"):
        exported = adapter.export(role).eval()
        assert type(exported) is type(getattr(net, "_orig_mod", net))
        with torch.no_grad():
            image = exported(x.to(next(net.parameters()).dtype)).float()
        with adapter._session(x):
            torch.testing.assert_close(image, adapter.run(role, x).image, atol=1e-6, rtol=0)
    assert same_bits(picture(net), before)
    assert adapter.export().state_dict().keys() == adapter.export("teacher").state_dict().keys()
    assert isinstance(SelfEnsemble(net).export(), nn.Module)
    with pytest.raises(ValueError, match="one of the roles source, student, teacher"):
        adapter.export("anchor")


def test_weights_under_two_names_move_together():
    adapter = make_siam_ctta(Tied())
    x = frames("tied", 1)[0]
    adapter(x)
    exported = adapter.export("student")
    assert exported.body[0].weight is exported.body[2].weight
    assert torch.equal(exported.body[2].weight, adapter.student["body.0.weight"])


@pytest.mark.parametrize("make", [make_siam_ctta, make_pairs])
def test_forks_are_independent_and_their_seeds_their_own(make):
    adapter, stream = make(build("plain")), frames("plain", 4)
    adapter(stream[0])
    same, other = adapter.fork(), adapter.fork(seed=5)
    kept = adapter.state_dict()
    assert same.restorer is adapter.restorer
    outputs = [[twin(x) for x in stream[1:]] for twin in (same, other)]
    assert not same_bits(*outputs)
    assert same_bits(adapter.state_dict(), kept)
    assert same_bits([adapter(x) for x in stream[1:]], outputs[0])
    other.reset()
    assert other.state.seed == 5
    assert other.state.frames == 0


def test_restores_differ_from_frame_to_frame():
    adapter = SiamCTTA(build("plain"), select="all", lr=1e-2, restore=0.5)
    masks = []
    for x in frames("plain", 2):
        adapter(x)
        masks.append(torch.cat([(adapter.student[n] == adapter.source[n]).flatten() for n in adapter.adapted]))
    share = masks[0].float().mean()
    assert 0.4 < share < 0.6
    assert not torch.equal(*masks)


def test_two_threads_take_turns_on_one_model():
    net, stream = build("batch_norm"), frames("batch_norm", 12)
    alone = [list(make(build("batch_norm")).stream(stream)) for make in (make_siam_ctta, make_pairs)]
    before = picture(net)
    together = [make_siam_ctta(net), make_pairs(net)]
    results: list = [None, None]
    barrier = threading.Barrier(2)

    def work(i):
        barrier.wait()
        results[i] = list(together[i].stream(stream))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same_bits(results, alone)
    assert same_bits(picture(net), before)


@pytest.mark.thorough
@pytest.mark.parametrize("make", [make_siam_ctta, make_pairs])
def test_60_frames_leave_no_memory_behind(make):
    adapter = make(Residual())
    counts = []
    generator = torch.Generator().manual_seed(0)
    for i in range(60):
        y = adapter(torch.rand(1, 3, 8, 8, generator=generator) * (1 + (i // 5) % 2) / 2)
        assert y.isfinite().all()
        if i % 10 == 9:
            gc.collect()
            counts.append(sum(1 for thing in gc.get_objects() if type(thing) is torch.Tensor))
    assert counts[-1] <= counts[2]
    assert adapter.state.frames == 60
    assert adapter.report.drift < 1


@pytest.mark.thorough
def test_resident_memory_stays_where_it_is():
    adapter = make_siam_ctta(Residual())
    sizes = []
    for _ in range(60):
        adapter(torch.rand(1, 3, 128, 128))
        with open("/proc/self/statm") as file:
            sizes.append(int(file.read().split()[1]) * 4096)
    frame = 128 * 128 * 3 * 4
    assert sizes[-1] - sizes[19] < 20 * frame  # a leak of one frame a step would be twice this


def test_the_train_mode_draws_from_the_adapters_own_numbers():
    stream = frames("dropout", 3)
    state = torch.get_rng_state()
    first = make_siam_ctta(build("dropout"), mode="train")
    outputs = list(first.stream(stream))
    torch.manual_seed(99)
    assert same_bits(list(make_siam_ctta(build("dropout"), mode="train").stream(stream)), outputs)
    assert not same_bits(list(make_siam_ctta(build("dropout")).stream(stream)), outputs)
    assert not same_bits(list(make_siam_ctta(build("dropout"), mode="train", seed=1).stream(stream)), outputs)
    torch.set_rng_state(state)
    first(stream[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_that_a_program_draws_change_nothing():
    stream = frames("plain", 3)
    outputs = []
    for seed in (0, 99):
        torch.manual_seed(seed)
        outputs.append(list(make_siam_ctta(build("plain")).stream(stream)))
    assert same_bits(*outputs)
    assert not same_bits(outputs[0], list(make_siam_ctta(build("plain"), seed=1).stream(stream)))


def test_batch_statistics_are_for_those_who_ask():
    net, x = build("batch_norm"), frames("batch_norm", 1, batch=2)[0]
    assert torch.equal(Adapter(net)(x), Adapter(net)(torch.cat([x, x * 0]))[:2])
    assert not torch.allclose(Adapter(net, mode="train")(x), Adapter(net, mode="train")(torch.cat([x, x * 0]))[:2])


def test_adapting_on_every_other_frame_still_restores_all():
    adapter, stream = make_siam_ctta(build("plain")), frames("plain", 5)
    assert len(list(adapter.stream(stream, adapt_every=2))) == 5
    assert adapter.state.frames == 3


def test_what_is_emitted_is_what_was_asked_for():
    net, x = build("plain"), frames("plain", 1)[0]
    for emitted in ("source", "student", "teacher", "teacher_mean"):
        adapter = SiamCTTA(net, select="all", lr=1e-1, emit=emitted)
        before, output = adapter.predict(x), adapter(x)
        after = adapter.predict(x)
        with adapter._session(x):
            role = "teacher" if emitted == "teacher_mean" else emitted
            restored = adapter.ensemble(role, x) if emitted == "teacher_mean" else adapter.run(role, x)
        assert torch.equal(after, restored.image)
        assert torch.equal(output, before if emitted in ("teacher_mean", "source") else after)
        assert torch.equal(before, after) == (emitted == "source")


def test_context_reaches_student_and_teacher_but_not_the_source():
    seen = []

    class Conditioned(Residual):
        def forward(self, x, context=None):
            seen.append(None if context is None else tuple(context.shape))
            return super().forward(x) + (0 if context is None else context[:, :, None, None])

    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5))
    adapter = SiamCTTA(Conditioned(), select="all", semantic=Semantic(encoder, argument="context"), spec=RestorerSpec())
    adapter(torch.rand(2, 3, 8, 8))
    seen.clear()  # the first call also tries whether the model can be copied
    adapter(torch.rand(2, 3, 8, 8))
    assert seen == [None, *[(2, 3)] * 5]
    assert encoder.training
    with pytest.raises(ValueError, match="name of a keyword"):
        Semantic(encoder, argument="a b")
    with pytest.raises(TypeError, match="callable"):
        Semantic(None, argument="context")


def test_the_plan_shows_what_is_adapted_and_runs_nothing():
    class Untouchable(Residual):
        def forward(self, x):
            raise AssertionError

    plan = SiamCTTA(Untouchable(), select="body.0").plan()
    assert plan.tensors == {"body.0.weight": (8, 3, 3, 3), "body.0.bias": (8,)}
    assert plan.adapted == 224
    assert plan.bytes == 224 * 4 * 4  # student, teacher, two moments
    text = str(plan)
    assert text.splitlines()[0].split() == ["body.0", "224", "2", "tensors"]
    assert "50.6 % of 443 weights" in text
    assert "SiamCTTA: per frame 1 x (4 forward + 1 forward and backward)" in text
    assert SelfEnsemble(Untouchable()).plan().bytes == 0


def test_methods_are_found_by_name():
    assert {"self_ensemble", "siam_ctta"} <= set(adapters.list_adapters())
    net = Residual()
    assert isinstance(adapters.create_adapter("siam_ctta", net, select="all", lr=0.5), SiamCTTA)
    with pytest.raises(ValueError, match="did you mean siam_ctta"):
        adapters.create_adapter("siamctta", net)

    class Mine(Adapter, method="mine"):
        pass

    assert isinstance(adapters.create_adapter("mine", net), Mine)
    with pytest.raises(ValueError, match=r"'siam_ctta' is defined twice, by .*SiamCTTA and by .*Thief"):

        class Thief(Adapter, method="siam_ctta"):
            pass

    assert isinstance(adapters.create_adapter("siam_ctta", net, select="all"), SiamCTTA)


def test_an_adapter_copies_and_prints():
    adapter = make_siam_ctta(build("plain"))
    x = frames("plain", 1)[0]
    adapter(x)
    twin = copy.deepcopy(adapter)
    assert twin.restorer.module is not adapter.restorer.module
    assert torch.equal(twin(x), adapter(x))
    assert repr(adapter).startswith("SiamCTTA(\n  select='all', lr=0.01")


@pytest.mark.slow
def test_around_a_model_compiled_by_inductor():
    net = build("plain")
    expected = list(make_siam_ctta(net, spec=RestorerSpec()).stream(frames("plain", 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = make_siam_ctta(torch.compile(net), spec=RestorerSpec())
        for x, y in zip(frames("plain", 3), expected, strict=True):
            torch.testing.assert_close(adapter(x), y, atol=1e-5, rtol=1e-4)
    assert leaves(adapter.predict(frames("plain", 1)[0]))


def test_frames_are_laid_out_as_asked():
    seen = []

    class Watching(nn.Conv2d):
        def forward(self, x):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(Watching(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    x = torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(1))
    outputs = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        adapter = SiamCTTA(net, select="all", lr=1e-2, memory_format=memory_format, spec=RestorerSpec())
        seen.clear()
        adapter(x)
        outputs.append(adapter.fork().predict(x))
        Adapter(net, memory_format=memory_format, spec=RestorerSpec()).predict(x)
        assert set(seen) == {memory_format is torch.channels_last}
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="memory_format to be one of torch.contiguous_format, torch.channels_last"):
        Adapter(net, memory_format=torch.preserve_format)


def test_a_frozen_adapter_only_restores_until_it_is_thawed(tmp_path):
    adapter = SiamCTTA(nn.Conv2d(3, 3, 3, padding=1), select="all", lr=1e-2)
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    adapter(x)
    adapter.freeze()
    before = adapter.state_dict()["tensors"]
    assert torch.equal(adapter(x), adapter.predict(x))
    assert "frozen" in adapter.report.skipped_because
    assert "frozen" in adapter.adapt(x).skipped_because
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.state_dict()["tensors"].items())
    adapter.save(tmp_path / "state.safetensors")
    other = adapter.fork()
    other.load(tmp_path / "state.safetensors")
    assert not other.adapt(x).updated
    other.thaw()
    assert other.adapt(x).updated
    assert not adapter.adapt(x).updated


def test_any_adapter_with_weights_calibrates():
    net = nn.Conv2d(3, 3, 3, padding=1)
    adapter = SiamCTTA(net, select="all", lr=1e-2)
    report = adapter.calibrate([torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(3)])
    assert (report.frames, report.steps) == (3, 3)
    assert "not measured" in report.verdict
    assert report.model.state_dict().keys() == net.state_dict().keys()
    assert not torch.equal(report.model.weight, net.weight)


def test_a_calibration_prints_the_degradation_with_units():
    found = {"noise": 32.6, "blur": 0.857, "jpeg_quality": 100.0}
    report = CalibrationReport(nn.Identity(), 1, 9, 2.0, "denoise", found, 1.0, 0.9, 0.003)
    assert (
        "degradation    noise, standard deviation 32.6 / 255; blur, root mean square radius 0.86 pixels; "
        "JPEG quality none found\n" in str(report)
    )
    assert "degradation    not estimated\n" in str(replace(report, degradation={}))


def test_a_method_refuses_unsuitable_models_as_soon_as_the_specification_is_known():
    class SameSize(Adapter):
        keeps_size = True

    with pytest.raises(ValueError, match="SameSize: expected a model of scale 1, got scale 2"):
        SameSize(nn.Upsample(scale_factor=2), spec=RestorerSpec(scale=2))

    class Own(Adapter):
        def __init__(self, model, **options):
            super().__init__(model, **options)
            self.largest = 1

        def expect_suitable(self, spec):
            if spec.scale > self.largest:
                raise ValueError("Own: too large")

    with pytest.raises(ValueError, match="Own: too large"):
        Own(nn.Upsample(scale_factor=2), spec=RestorerSpec(scale=2))(torch.rand(1, 3, 16, 16))
    measured = SameSize(nn.Upsample(scale_factor=2))
    with pytest.raises(ValueError, match="SameSize: expected a model of scale 1, got scale 2"):
        measured(torch.rand(1, 3, 16, 16))


def test_a_method_without_select_is_told_what_to_pass():
    adapter = Adapter(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="roles source, got 'student'; without select .*select=\"all\""):
        adapter.run("student", torch.rand(1, 3, 16, 16))


class Emits(Adapter):
    def __init__(self, model, *, factor=1.0, **options):
        super().__init__(model, **options)
        self.factor = factor

    def emit(self, frame):
        restored = self.run("source", frame.image)
        return restored.with_image(self.factor * restored.image)


def test_values_of_bytes_are_the_methods_where_the_model_returns_none():
    frame = torch.rand(1, 3, 16, 16).clamp(0.5, 1)
    for call in (Emits(nn.Identity(), factor=255.0), Emits(nn.Identity(), factor=255.0).predict):
        with pytest.raises(
            ValueError, match=r"^Emits: expected emit to return an image in \[0, 1\], got values up to 2"
        ):
            call(frame)

    class Bytes(nn.Module):
        def forward(self, x):
            return 255 * x

    assert torch.equal(Emits(Bytes())(frame), 255 * frame)
