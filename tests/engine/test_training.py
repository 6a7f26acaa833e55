"""The loop under every training: files, killed and continued, several processes, threads, validation, what diverges."""

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import types
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tta_restore.data.datasets.clips import Clip, ImageSequence
from tta_restore.data.datasets.layouts import PairFiles
from tta_restore.data.datasets.misaligned import GeneratedPairs, Misalignment
from tta_restore.data.datasets.pairs import FolderCrops, LensPairs
from tta_restore.data.io.image import read_image
from tta_restore.degradations import Noise
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.train.build import build_network, described
from tta_restore.engine.train.config import SupervisedSettings, TrainingRun
from tta_restore.engine.train.identity import differences, plain
from tta_restore.engine.train.loop import Objective, StepOutput, moved, run_identity, step_seed, train
from tta_restore.engine.train.meta import MetaObjective
from tta_restore.engine.train.misaligned import MisalignedObjective
from tta_restore.engine.train.reblur import ReblurObjective
from tta_restore.engine.train.supervised import SupervisedObjective
from tta_restore.engine.train.windows import TaskSource
from tta_restore.models import create_model
from tta_restore.models.optical_flow import LucasKanade

RUN = TrainingRun(Path(), batch_size=2, save_every=4, log_every=2, draw_every=6, seed=3, progress=False)
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")


pytestmark = pytest.mark.usefixtures("one_thread")  # as the forked processes need it; and tensors are tiny


class Fit(Objective):
    """A layer behind dropout learns to double; its rate halves after five steps."""

    clip = 2.4  # shorter than some gradients, not all

    def __init__(self, lr=0.05):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 3))
        self.lr = lr

    def forward(self, batch, step):
        x = batch["x"]
        out = self.layer(x)
        return StepOutput.sum_of({"fit": (out - 2 * x).square().mean()}, {"out": out})

    def groups(self):
        return [{"params": list(self.parameters()), "lr": self.lr}]

    def optimizers(self):  # not Adam, which does not care how long gradients are
        return {"optimizer": torch.optim.SGD(self.groups(), momentum=0.9)}

    def rate(self, step):
        return 1.0 if step < 5 else 0.5

    def identity(self):
        return {"lr": self.lr}

    def exports(self):
        return {"layer": self.layer}

    def status(self, step):
        return {"stage": "only"}

    def picture(self, found):
        return found.tensors["out"].sigmoid().expand(3, -1, -1)


def source(count, generator):
    return {"x": torch.randn(count, 3, generator=generator)}


def run_small(out, steps, *, slow=0.0, lr=0.05, validate=None, **options):
    run = replace(RUN, out=Path(out), steps=steps, **options)
    return train(Fit(lr), source, run, validate=validate, on_step=lambda step, found: time.sleep(slow))


def weights_of(out):
    return load_file(Path(out) / "layer.safetensors")


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a | b)


def lines_of(out):
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def start(out, steps, *, slow=0.0, **environment):
    """The run in a process of its own, forked: importing torch again takes longer than everything else here."""

    def child():
        os.environ.update({"OMP_NUM_THREADS": "1", **environment})
        run_small(out, steps, slow=slow)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def test_a_run_writes_what_it_should_and_touches_nothing_global(tmp_path):
    before = torch.get_rng_state()
    objective = run_small(tmp_path, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert not objective.training
    assert [line["step"] for line in lines_of(tmp_path)] == [0, 2, 4, 6, 7]
    assert set(lines_of(tmp_path)[0]) == {"step", "loss", "fit", "seconds"}
    assert lines_of(tmp_path)[-1]["loss"] < 0.9 * lines_of(tmp_path)[0]["loss"]
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.stem for path in pictures] == ["000000", "000006", "000007"]
    assert read_image(pictures[0]).pixels.shape == (3, 2, 3)
    assert same(weights_of(tmp_path), objective.layer.state_dict())


def test_a_step_is_clipped_and_at_its_rate(tmp_path):
    """Eight steps by hand end with the same weights."""
    run_small(tmp_path, 8)
    found = weights_of(tmp_path)
    objective = Fit()
    optimizer = objective.optimizers()["optimizer"]
    norms = []
    with torch.random.fork_rng(devices=[]):
        for step in range(8):
            optimizer.param_groups[0]["lr"] = 0.05 * (1.0 if step < 5 else 0.5)
            seed = step_seed(3, step, 0)
            batch = source(2, torch.Generator().manual_seed(seed))
            torch.manual_seed(seed)
            optimizer.zero_grad()
            objective(batch, step).loss.backward()
            norms.append(nn.utils.clip_grad_norm_(list(objective.parameters()), 2.4))
            optimizer.step()
    assert min(norms) < 2.4 < max(norms)
    torch.testing.assert_close(found, dict(objective.layer.state_dict()))


def test_tensorboard_gets_what_the_log_gets(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, *arguments):
            written.append(arguments)

        def add_image(self, name, picture, step):
            written.append((name, tuple(picture.shape), step))

        def close(self):
            written.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run_small(tmp_path, 1, validate=lambda objective: {"score": 1.5})
    loss = lines_of(tmp_path)[0]["loss"]
    assert written[0] == (str(tmp_path / "tensorboard"), 0)
    assert {("loss/loss", loss, 0), ("step", (3, 2, 3), 0), ("validation/score", 1.5, 0)} <= set(written)
    assert written[-1] == "closed"


@pytest.mark.thorough
@forks
def test_kill_minus_nine_and_resume_ends_with_the_same_bits(tmp_path):
    run_small(tmp_path / "whole", 10)
    process = start(tmp_path / "killed", 10, slow=0.3)
    state = tmp_path / "killed/state.pt"
    while not state.exists() and process.is_alive():
        time.sleep(0.05)
    time.sleep(0.4)  # into the next step
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed/layer.safetensors").exists()
    assert 4 <= torch.load(state, weights_only=True)["step"] < 10
    with open(tmp_path / "killed/log.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # as a process leaves it that dies while it writes
    run_small(tmp_path / "killed", 10)
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed"))
    whole, killed = ([(x["step"], x["loss"]) for x in lines_of(tmp_path / n)] for n in ("whole", "killed"))
    assert whole == killed


@forks
def test_two_processes_are_one_with_both_batches(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # by torchrun
    both = [start(tmp_path / "two", 4, RANK=rank, **given) for rank in ("0", "1")]
    for process in both:
        process.join(240)
    assert [process.exitcode for process in both] == [0, 0]
    with pytest.raises(UsageError, match="processes 2 there, 1 here"):
        run_small(tmp_path / "two", 5)
    objective = Fit()
    optimizer = objective.optimizers()["optimizer"]
    with torch.random.fork_rng(devices=[]):
        for step in range(4):
            optimizer.zero_grad()
            for rank in range(2):
                seed = step_seed(3, step, rank)
                batch = source(2, torch.Generator().manual_seed(seed))
                torch.manual_seed(seed)
                (objective(batch, step).loss / 2).backward()
            nn.utils.clip_grad_norm_(list(objective.parameters()), 2.4)
            optimizer.step()
    torch.testing.assert_close(weights_of(tmp_path / "two"), dict(objective.layer.state_dict()))


def test_threads_change_nothing(tmp_path):
    run_small(tmp_path / "none", 6)
    run_small(tmp_path / "some", 6, num_workers=3)
    assert same(weights_of(tmp_path / "none"), weights_of(tmp_path / "some"))

    def broken(count, generator):
        raise ValueError("no such picture")

    with pytest.raises(ValueError, match="no such picture"):
        train(Fit(), broken, replace(RUN, out=tmp_path / "broken", num_workers=2))


@pytest.mark.parametrize("changes", [{"batch_size": 10**10}, {"batch_size": 10**8, "num_workers": 1000}])
def test_a_batch_without_memory_for_it_is_refused(tmp_path, changes):
    with pytest.raises(UsageError, match=r"\[run\] batch_size \d+: a batch.* of memory, and this machine has"):
        run_small(tmp_path, 1, **changes)


def test_the_best_weights_are_kept(tmp_path):
    scores = iter([1.0, 3.0, 2.0])
    seen = {}

    def validate(objective):
        assert not objective.training
        assert not torch.is_grad_enabled()
        score = next(scores)
        seen[score] = {name: tensor.clone() for name, tensor in objective.layer.state_dict().items()}
        return {"score": score, "other": 0.0}

    run_small(tmp_path, 6, validate=validate, validate_every=2)
    assert same(load_file(tmp_path / "best/layer.safetensors"), seen[3.0])
    assert json.loads((tmp_path / "best/score.json").read_text()) == {"step": 3, "score": 3.0, "other": 0.0}
    validations = [line["validation/score"] for line in lines_of(tmp_path) if "validation/score" in line]
    assert validations == [1.0, 3.0, 2.0]


def test_what_diverges_is_said_and_not_saved(tmp_path):
    run_small(tmp_path, 4)

    class Broken(Fit):
        def forward(self, batch, step):
            found = super().forward(batch, step)
            return replace(found, loss=found.loss * float("nan")) if step == 5 else found

    with pytest.raises(FloatingPointError, match=r"loss at step 5 is nan \(fit "):
        train(Broken(), source, replace(RUN, out=tmp_path, steps=6))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4


class Halves:
    """A source that is an object."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, count, generator):
        return source(count, generator)


def test_other_settings_and_damage_are_told(tmp_path, capsys):
    run_small(tmp_path, 4)
    with pytest.raises(UsageError, match=r"another run .*lr 0.05 there, 0.1 here"):
        run_small(tmp_path, 5, lr=0.1)

    class Wide(Halves):
        pass

    run = replace(RUN, out=tmp_path / "data", steps=4)
    train(Fit(), Halves(3), run)
    assert "note" not in capsys.readouterr().err
    train(Fit(), Halves(3), replace(run, steps=5, progress=True))
    assert f"note: {run.out}: continued behind its first 4 steps" in capsys.readouterr().err
    for other in (Wide(3), source):
        with pytest.raises(UsageError, match="another run .*data "):
            train(Fit(), other, replace(run, steps=6))
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"state.pt is damaged"):
        run_small(tmp_path, 5)
    with pytest.raises(ValueError, match="steps to be an integer >= 1"):
        TrainingRun(tmp_path, steps=0)
    with pytest.raises(ValueError, match="workers to be an integer >= 0"):
        TrainingRun(tmp_path, num_workers=-1)
    with pytest.raises(ValueError, match="num_workers <= 1000, got 1000000000"):
        TrainingRun(tmp_path, num_workers=10**9)


def test_seeds_differ():
    seeds = {step_seed(a, b, c) for a in range(5) for b in range(50) for c in range(4)}
    assert len(seeds) == 1000


def test_batches_of_all_kinds_are_moved():
    @dataclass(frozen=True)
    class Pair:
        x: Tensor
        y: Tensor | None
        name: str

    batch = moved({"pair": Pair(torch.zeros(2), None, "a"), "list": [torch.ones(1)], "n": 3}, "meta")
    assert (batch["pair"].x.device.type, batch["pair"].y, batch["pair"].name) == ("meta", None, "a")
    assert (batch["list"][0].device.type, batch["n"]) == ("meta", 3)


@pytest.mark.parametrize("section", [{"name": "specialist"}, {"name": "lens_unet", "checkpoint": "specialist"}])
def test_a_configuration_names_shipped_weights_as_the_command_line_does(section):
    shipped = create_model("lens_unet", checkpoint="specialist").state_dict()
    named = build_network(section, default="jdrl_unet").state_dict()
    assert named.keys() == shipped.keys()
    assert all(torch.equal(named[key], shipped[key]) for key in shipped)
    assert described(section, default="jdrl_unet")[0] == "lens_unet"


@pytest.mark.parametrize(
    ("section", "error", "message"),
    [
        ({"name": 5}, TypeError, "expected the name of a network, got 5"),
        ({"name": ["ifan"]}, TypeError, r"expected the name of a network, got \['ifan'\]"),
        ({"name": "specializ"}, ValueError, "no restorer 'specializ'; there are"),
        ({"name": "no_such_module:net"}, ValueError, "no_such_module:net: No module named"),
        ({"name": "torch.nn:no_such_layer"}, ValueError, "torch.nn has no no_such_layer"),
        ({"name": "torch.nn:Identity", "checkpoint": "x"}, ValueError, "no weights called 'x' are shipped"),
    ],
)
def test_a_configuration_that_names_no_network_is_told_so(section, error, message):
    with pytest.raises(error, match=message):
        build_network(section, default="jdrl_unet")


def test_a_configuration_may_name_a_function():
    layer = build_network(
        {"name": "torch.nn:Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 1}, default=""
    )
    assert isinstance(layer, nn.Conv2d)
    assert layer.weight.shape == (4, 3, 1, 1)


def test_a_run_folder_belongs_to_one_run(tmp_path):
    """A second run in the folder of one that is going on is refused; afterwards the folder is free again."""
    refused = []

    def also(step, found):
        if step == 2:
            with pytest.raises(UsageError, match=r"--run.out .*: another run is using it") as error:
                train(Fit(), source, replace(RUN, out=tmp_path / "run", steps=8))
            refused.append(str(error.value))

    train(Fit(), source, replace(RUN, out=tmp_path / "run", steps=4), on_step=also)
    assert len(refused) == 1
    train(Fit(), source, replace(RUN, out=tmp_path / "run", steps=8))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert not (tmp_path / ".run.lock").exists()


class FakeWandb(types.ModuleType):
    """Stand-in for the part of wandb that the logger calls."""

    def __init__(self):
        super().__init__("wandb")
        self.logged, self.begun = [], []

    def init(self, **options):
        self.begun.append(options)
        return types.SimpleNamespace(
            id="run7", log=lambda values, step: self.logged.append((step, values)), finish=lambda: None
        )

    @staticmethod
    def Image(array):  # noqa: N802 (their name)
        return array.shape


def test_weights_and_biases_get_what_the_log_gets_and_the_run_continues(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = TrainingRun(out=tmp_path, steps=1, batch_size=2, log_every=1, draw_every=1, progress=False, logger="wandb")
    train(Fit(), source, run)
    assert (0, {"loss/loss": lines_of(tmp_path)[0]["loss"]}) in fake.logged
    assert (0, {"step": (2, 3, 3)}) in fake.logged
    train(Fit(), source, dataclasses.replace(run, steps=2))
    assert [options["id"] for options in fake.begun] == [None, "run7"]
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_logger_that_is_asked_for_and_missing_is_told_before_the_first_step(tmp_path, monkeypatch, logger):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = TrainingRun(out=tmp_path, steps=1, batch_size=2, progress=False, logger=logger)
    with pytest.raises(UsageError, match=f"{logger} is not installed: pip install {logger}"):
        train(Fit(), source, run)
    assert not (tmp_path / "log.jsonl").exists()
    train(Fit(), source, dataclasses.replace(run, logger="none"))
    train(Fit(), source, dataclasses.replace(run, logger="auto"))
    with pytest.raises(ValueError, match="logger to be one of"):
        dataclasses.replace(run, logger="mlflow")


def images(*values):
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 160, 160)


def pair_files(folder, names):
    return [PairFiles(Path(folder, "blurry", name), Path(folder, "sharp", name)) for name in names]


NAMES = [f"{number}.png" for number in range(12)]
#: What makes two runs differ, beside settings: a source of each recipe, the same from another folder, and others.
SOURCES = {
    "files": (
        FolderCrops(pair_files("a", NAMES), size=16),
        FolderCrops(pair_files("b/c", NAMES), size=16),
        [
            FolderCrops(pair_files("a", NAMES[1:]), size=16),
            FolderCrops(pair_files("a", NAMES), size=24),
            FolderCrops(pair_files("a", NAMES), size=16, bit_depth=8),
            FolderCrops(pair_files("a", NAMES), size=16, augmentation=None),
        ],
    ),
    "images": (
        LensPairs(images(0.1, 0.2), size=16),
        LensPairs(images(0.1, 0.2), size=16),
        [LensPairs(images(0.1, 0.3), size=16), LensPairs(images(0.1, 0.2), size=16, views=True)],
    ),
    "misaligned": (
        GeneratedPairs(images(0.1, 0.2), size=16),
        GeneratedPairs(images(0.1, 0.2), size=16),
        [
            GeneratedPairs(images(0.1, 0.2), size=16, misalignment=Misalignment(zoom=0.01)),
            GeneratedPairs(images(0.1, 0.2), size=16, degradations=[Noise()]),
        ],
    ),
    "clips": (
        TaskSource([Clip("a", ImageSequence([Path("x/1.png")]))], patch_size=16),
        TaskSource([Clip("a", ImageSequence([Path("y/1.png")]))], patch_size=16),
        [
            TaskSource([Clip("b", ImageSequence([Path("x/1.png")]))], patch_size=16),
            TaskSource([Clip("a", ImageSequence([Path("x/1.png")]))], patch_size=16, num_patches=3),
            TaskSource([Clip("a", ImageSequence([Path("x/1.png")]))], patch_size=16, num_extra_times=1),
        ],
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_data_of_a_run_are_compared_by_content(kind):
    first, same_data, others = ([plain(s) for s in entry] if isinstance(entry, list) else plain(entry)
                                for entry in SOURCES[kind])  # fmt: skip
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(same_data))
    assert not differences(first, same_data)
    assert all(len(differences(first, other, "data")) >= 1 for other in others)


def loss_of_mine(a, b):
    return (a - b).square().mean()


def test_settings_of_every_recipe_are_compared():
    network = build_network({"name": "lens_unet", "widths": [4, 4, 4]}, default="")
    reblur = nn.Conv3d(3, 3, (5, 1, 1))
    lens_clip = TaskSource([Clip("a", images(0.1, 0.2))], patch_size=16)
    of = {
        "meta": [MetaObjective(network, reblur), MetaObjective(network, reblur, distance=loss_of_mine),
                 MetaObjective(network, reblur, outputs="all")],
        "reblur": [ReblurObjective(reblur, network), ReblurObjective(reblur, network, distance=loss_of_mine)],
        "misaligned": [MisalignedObjective(network, flow=LucasKanade()),
                       MisalignedObjective(network, flow=LucasKanade(levels=2))],
        "supervised": [SupervisedObjective(network), SupervisedObjective(network, settings=SupervisedSettings(lr=1))],
    }  # fmt: skip
    for objectives in of.values():
        first, *others = (run_identity(objective, lens_clip, RUN) for objective in objectives)
        json.dumps(first)
        assert not differences(json.loads(json.dumps(first)), run_identity(objectives[0], lens_clip, RUN))
        assert all(len(differences(first, other)) == 1 for other in others)
