"""A method of the user's own with a mistake in it is one line that names the mistake and its place."""

from __future__ import annotations

import sys

import pytest
import torch
from torchvision.utils import save_image

from tta_restore.cli.main import main

METHODS = """
import torch
from tta_restore.adapters import Adapter


class Plain(Adapter):
    def __init__(self, model, *, sigma=0.1, count=1, select="all", **options):
        super().__init__(model, select=select, **options)
        self.sigma = sigma

    def objective(self, frame):
        return self.run("student", frame.region).image.mean()


class Closed(Adapter):
    def __init__(self, model):
        super().__init__(model)


class Bare(Adapter):
    def __init__(self, model, **options):
        pass


class NoAdapter:
    pass


class Number(Plain):
    def objective(self, frame):
        return 0.5


class Map(Plain):
    def objective(self, frame):
        return self.run("student", frame.region).image


class Tensors(Plain):
    def emit(self, frame):
        return frame.image


class NoOptimizer(Plain):
    def make_optimizer(self, tensors):
        return None


class Texts(Plain):
    def begin_frame(self, frame):
        frame.steps = "many"


class Raises(Plain):
    def begin_frame(self, frame):
        {}["scale"]


class NotFinite(Plain):
    def objective(self, frame):
        return super().objective(frame) * float("nan")


class Cropped(Plain):
    def emit(self, frame):
        restored = self.run("student", frame.image)
        return restored.with_image(restored.image[..., 1:, 1:])


class Gray(Plain):
    def emit(self, frame):
        restored = self.run("student", frame.image)
        return restored.with_image(restored.image.mean(1, keepdim=True))


class NoBatch(Plain):
    def emit(self, frame):
        restored = self.run("student", frame.image)
        return restored.with_image(restored.image[0])


class Bytes(Plain):
    def emit(self, frame):
        restored = self.run("student", frame.image)
        return restored.with_image(255 * restored.image.clamp(0.9, 1))


class Integers(Plain):
    def emit(self, frame):
        restored = self.run("student", frame.image)
        return restored.with_image((255 * restored.image).byte())


class Array(Plain):
    def emit(self, frame):
        restored = self.run("student", frame.image)
        return restored.with_image(restored.image.numpy())
"""

SHAPE = "expected emit to return an image (1, 3, 16, 16), as the model does for this frame, got"

OF_THE_COMMAND = {
    "Closed": "method '{}': it takes no 'seed', as every method does: end its arguments with **options and pass them",
    "Bare": "method '{}': its constructor does not call super().__init__(model, ...)",
    "NoAdapter": "method {}: expected a subclass of adapters.Adapter, got class NoAdapter",
    "Plain --method.sigmo 1": "method '{}': there is no setting 'sigmo'; did you mean sigma?",
    "Plain --method.sigma big": "method '{}': sigma: expected float or none, got big",
    "Plain --method.count 1e": "method '{}': count: expected int, float or none, got 1e",
}
OF_A_FRAME = {
    "Number": "Number: expected objective to return a loss of one value or None, got float",
    "Map": "Map: expected objective to return a loss of one value or None, got (1, 3, 16, 16)",
    "Tensors": "Tensors: expected emit to return a Restoration, as self.run and self.ensemble do, got Tensor",
    "Cropped": f"Cropped: {SHAPE} (1, 3, 15, 15)",
    "Gray": f"Gray: {SHAPE} (1, 1, 16, 16)",
    "NoBatch": f"NoBatch: {SHAPE} (3, 16, 16)",
    "Bytes": "Bytes: expected emit to return an image in [0, 1], got values up to 2",
    "Integers": "Integers: expected emit to return an image of floats in [0, 1], got torch.uint8",
    "Array": "Array: expected emit to return an image of floats in [0, 1], got ndarray",
    "NoOptimizer": "NoOptimizer: make_optimizer returned none",
    "Texts": "Texts: expected frame.steps to be an integer >= 0, got str 'many'",
    "Raises": "KeyError: 'scale' (own_methods.py, line 56, in Raises.begin_frame)",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_methods.py").write_text(METHODS)
    monkeypatch.delitem(sys.modules, "own_methods", raising=False)
    save_image(torch.rand(3, 16, 16), tmp_path / "a.png")
    yield tmp_path
    sys.modules.pop("own_methods", None)


def restore(method: str, *options: str) -> int:
    name, *more = f"own_methods:{method}".split()
    return main(["restore", "a.png", "-o", "out/", "--model", "torch.nn:Conv2d", "--model.in_channels=3",
                 "--model.out_channels=3", "--model.kernel_size=1", "--method", name, *more, *options])  # fmt: skip


@pytest.mark.parametrize("method", OF_THE_COMMAND)
def test_what_can_be_seen_before_the_first_frame(method, capsys):
    assert restore(method) == 2
    message = OF_THE_COMMAND[method].format(f"own_methods:{method.split()[0]}")
    line = capsys.readouterr().err
    assert line.startswith(f"tta-restore restore: {message}")
    assert line.count("\n") == 1


@pytest.mark.parametrize("method", OF_A_FRAME)
def test_what_a_frame_shows(method, capsys):
    assert restore(method) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert OF_A_FRAME[method] in first
    assert first.startswith("error: a.png: ")
    assert last.startswith("0 restored, 1 failed")


@pytest.mark.filterwarnings("default:NotFinite")
def test_a_loss_that_is_not_finite_is_a_warning(capsys):
    assert restore("NotFinite") == 0
    assert "warning: NotFinite: no step was taken on a frame: loss is nan; reported once\n" in capsys.readouterr().err


def test_tracebacks_are_shown_for_errors_of_one_input_too(capsys):
    assert restore("Raises", "-v") == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "KeyError: 'scale'\n" in shown


def test_a_comparison_names_the_place_as_well(capsys):
    words = ["--model", "torch.nn:Identity", "--degradations", "noise:30", "--frames", "1", "--seeds", "1"]
    assert main(["evaluate", *words, "--methods", "own_methods:Raises[select=null]"]) != 0
    assert "(own_methods.py, line 56, in Raises.begin_frame) (-v shows the traceback)\n" in capsys.readouterr().err


def test_options_of_a_method_are_numbers(capsys):
    assert restore("Plain", "--method.sigma", "0.2", "--method.count=3", "--method.steps", "2") == 0
