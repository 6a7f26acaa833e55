"""The page of `tta-restore serve` without a browser: restoring, records, words, limits, and a missing gradio."""

import os
import sys
import threading
import zipfile

import pytest
import torch
from _fresh import run_program
from safetensors.torch import load_file
from torch import nn

from tta_restore.data.io.image import read_image
from tta_restore.data.io.image_writer import write_image
from tta_restore.data.io.pixels import Image
from tta_restore.engine.run.names import SHIPPED_MODELS
from tta_restore.engine.run.usage import UsageError
from tta_restore.engine.serve import command, words
from tta_restore.engine.serve.command import serve
from tta_restore.engine.serve.page import PageSettings, Turns, restore_photos
from tta_restore.engine.serve.photos import PhotoLimits, PhotoRecord, PhotoRestorer
from tta_restore.models import create_model

# A step or two on given sharp images, without a search for the learning rate: a few seconds less per test.
QUICK = {"steps": 2, "lr": 1e-4, "sharp_images": torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))}


@pytest.fixture
def photo(tmp_path):
    generator = torch.Generator().manual_seed(0)
    write_image(tmp_path / "in" / "a.png", Image(torch.rand(3, 40, 56, generator=generator)))
    return tmp_path / "in" / "a.png"


@pytest.mark.thorough
def test_a_photo_is_restored_with_and_without_adaptation(photo, tmp_path):
    restorer = PhotoRestorer("denoiser", tmp_path / "out", task="denoise", **QUICK)
    record = restorer.restore(photo)
    assert record.error is None
    assert record.name == "a.png"
    assert record.size == (40, 56)
    assert record.detail is None
    assert 0 <= record.trust <= 1
    assert record.steps > 0
    assert set(record.degradation) == {"noise", "blur", "jpeg_quality"}
    assert 0 < record.baseline_seconds < record.seconds
    assert record.result == tmp_path / "out" / "a-restored.png"
    model = create_model("small_unet", checkpoint="denoiser").eval()
    x = read_image(photo).pixels[None]
    with torch.no_grad():
        views = [torch.rot90(model(torch.rot90(x, k, (2, 3))), -k, (2, 3)) for k in range(4)]
    ensemble = torch.stack(views).mean(0)[0].clamp(0, 1)
    assert (read_image(record.before).pixels - ensemble).abs().max() < 1.5 / 255
    assert torch.equal(read_image(record.after).pixels, read_image(record.result).pixels)
    assert restorer.restore(photo).result == tmp_path / "out" / "a-restored-2.png"


def test_the_checkpoint_has_the_models_own_keys(photo, tmp_path):
    restorer = PhotoRestorer("denoiser", tmp_path / "out", task="denoise", **QUICK)
    path = tmp_path / "adapted.safetensors"
    assert not restorer.save_checkpoint(path)
    original = create_model("small_unet", checkpoint="denoiser").state_dict()
    saved = load_file(path)
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in saved)
    with torch.no_grad():  # as after photos on which much was gained
        adapter = restorer._adapted.adapter
        adapter.memory["weights"] = [0.0, 0.0, 1.0]
        for tensor in adapter.teacher.values():
            tensor.add_(0.01)
    assert restorer.save_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"nothing", "not an image"), (None, "no such file or directory")],
)
def test_a_bad_photo_is_a_line_without_the_folder(content, reason, tmp_path):
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    record = PhotoRestorer("denoiser", tmp_path / "out", task="denoise", **QUICK).restore(path)
    assert reason in record.error
    assert str(tmp_path) not in record.error
    assert "\n" not in record.error
    assert record.result is None
    assert not (tmp_path / "out").exists()


def test_limits(photo, tmp_path):
    small = PhotoRestorer("denoiser", tmp_path / "out", limits=PhotoLimits(max_pixels=1000))
    assert "above the limit" in small.restore(photo).error
    light = PhotoRestorer("denoiser", tmp_path / "out", limits=PhotoLimits(max_bytes=100))
    assert light.restore(photo).error == "0 MB, the limit is 0 MB"
    with pytest.raises(UsageError, match="expected max_files >= 1, got 0"):
        PhotoLimits(max_files=0)


class Failing(nn.Module):
    """A model that fails on wide frames."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        if x.shape[-1] == 56 or x.shape[-2] == 56:
            raise ArithmeticError("out of order\nwith details")
        return x * self.weight


def test_a_model_that_fails_on_a_photo(photo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "failing", sys.modules[__name__])
    record = PhotoRestorer("failing:Failing", tmp_path / "out", **QUICK).restore(photo)
    assert record.error == "ArithmeticError: out of order"


@pytest.mark.filterwarnings("ignore:recommended. the model has no weights to adapt")
def test_a_model_without_weights_is_not_adapted(photo, tmp_path):
    restorer = PhotoRestorer("torch.nn:Identity", tmp_path / "out")
    record = restorer.restore(photo)
    assert record.trust is None
    assert not restorer.learns
    assert "nothing was adapted" in words.describe_photo(record)
    with pytest.raises(UsageError, match="Identity has no weights to adapt"):
        restorer.save_checkpoint(tmp_path / "adapted.safetensors")


def test_a_constant_photo_teaches_nothing(tmp_path):
    write_image(tmp_path / "gray.png", Image(torch.full((3, 24, 24), 0.5)))
    record = PhotoRestorer("denoiser", tmp_path / "out", task="denoise", **QUICK).restore(tmp_path / "gray.png")
    assert record.error is None
    assert record.steps == 0
    assert "constant" in record.messages[-1]


@pytest.mark.filterwarnings("ignore:recommended. the model has no weights to adapt")
def test_photos_of_one_name_in_two_formats_have_their_own_previews(tmp_path):
    restorer = PhotoRestorer("torch.nn:Identity", tmp_path / "out")
    records = []
    for name, level in (("a.png", 0.2), ("a.jpg", 0.8)):
        write_image(tmp_path / name, Image(torch.full((3, 16, 16), level)))
        records.append(restorer.restore(tmp_path / name))
    for record, level in zip(records, (0.2, 0.8), strict=True):
        for shown in (record.before, record.after, record.result):
            assert read_image(shown).pixels.mean().item() == pytest.approx(level, abs=0.1)


@pytest.mark.filterwarnings("ignore:recommended. the model has no weights to adapt")
def test_large_photos_are_shown_where_adaptation_changed_most(tmp_path, monkeypatch):
    monkeypatch.setattr("tta_restore.engine.serve.photos._DETAIL", 16)
    restorer = PhotoRestorer("torch.nn:Identity", tmp_path / "out")

    class Spotted:
        report = None

        def __call__(self, x):
            return self.predict(x)

        def predict(self, x):
            y = x.clone()
            y[..., 30:34, 44:48] = 1
            return y

        sized = staticmethod(restorer._baseline.sized)

    restorer._adapted = Spotted()
    restorer._adapted.adapter = restorer._baseline.adapter
    write_image(tmp_path / "black.png", Image(torch.zeros(3, 40, 56)))
    record = restorer.restore(tmp_path / "black.png")
    top, left, height, width = record.detail
    assert (height, width) == (16, 16)
    assert top <= 30 <= 34 <= top + 16
    assert left <= 44 <= 48 <= left + 16
    assert read_image(record.after).pixels.mean() == 16 / 256
    assert "16 x 16 pixels" in words.describe_photo(record)


def settings(folder, **options):
    (folder / "results").mkdir(exist_ok=True)
    return PageSettings(folder / "results", options=QUICK, **options)


def run(folder, photos, **options):
    """Return the stages of a run of the denoiser; its task is given, for measuring it takes a second."""
    return list(restore_photos(settings(folder, **options), photos, DENOISER, task="denoise"))


DENOISER = f"denoiser: {words.MODELS['denoiser']}"


@pytest.mark.thorough
def test_a_run_ends_with_results_and_a_checkpoint(photo, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    write_image(tmp_path / "other" / "a.png", read_image(photo))
    photos = [str(photo), str(tmp_path / "broken.png"), str(tmp_path / "other" / "a.png")]
    stages = run(tmp_path, photos)
    seconds = stages[-1].records[0].seconds
    assert [stage.line for stage in stages[:4]] == [
        "Loading the model",
        "Restoring 1 of 3: a.png",
        f"Restoring 2 of 3: broken.png; {seconds:.1f} s per photo so far",
        f"Restoring 3 of 3: a.png; {seconds:.1f} s per photo so far",
    ]
    assert [len(stage.records) for stage in stages] == [0, 0, 1, 2, 3]
    last = stages[-1]
    assert last.line.startswith("2 of 3 photos restored")
    assert "not restored: broken.png (not an image of a known format" in last.line
    assert [path.name for path in last.results] == ["restored.zip", "a-restored.png", "a-restored-2.png"]
    with zipfile.ZipFile(last.results[0]) as archive:
        assert archive.namelist() == ["a-restored.png", "a-restored-2.png"]
    assert last.checkpoint.is_file()
    assert "--model small_unet --checkpoint adapted.safetensors" in last.note


def test_names_of_photos_are_shown_as_they_are(tmp_path):
    (tmp_path / "<b>*x*.png").write_bytes(b"no image")
    lines = [stage.line for stage in run(tmp_path, [str(tmp_path / "<b>*x*.png")])]
    assert lines[1] == "Restoring 1 of 1: &#60;b&#62;&#42;x&#42;.png"


@pytest.mark.thorough
def test_the_command_in_the_note_runs(photo, tmp_path, monkeypatch):
    from tta_restore.cli import main

    last = run(tmp_path, [str(photo)])[-1]
    monkeypatch.chdir(last.checkpoint.parent)
    command = last.note.split("```\n")[1].split("\n")[0].split()
    assert main([{"photos/": str(photo.parent), "out/": "out"}.get(word, word) for word in command[1:]]) == 0
    assert (last.checkpoint.parent / "out" / "a.png").is_file()


@pytest.mark.parametrize(
    ("choice", "file", "message"),
    [
        ("a model file of yours", None, "drop a model file, or choose a shipped model"),
        ("a model file of yours", b"damaged", "load_checkpoint: net.pth is damaged"),
        ("a model file of yours", b"hello\n", "load_checkpoint: net.pth is damaged or no checkpoint"),
        ("os:system", None, "there is no model 'os:system'"),
    ],
)
def test_what_the_page_refuses(choice, file, message, photo, tmp_path):
    path = None
    if file is not None:
        path = tmp_path / "net.pth"
        path.write_bytes(file)
    with pytest.raises(UsageError) as caught:
        list(restore_photos(settings(tmp_path), [str(photo)], choice, path and str(path)))
    assert str(caught.value).startswith(message)
    assert str(tmp_path) not in str(caught.value)


def test_the_number_of_photos_is_limited(photo, tmp_path):
    with pytest.raises(UsageError, match="drop one or more photos first"):
        next(restore_photos(settings(tmp_path), None, DENOISER))
    few = settings(tmp_path, limits=PhotoLimits(max_files=1))
    with pytest.raises(UsageError, match="2 photos, the limit is 1 at a time"):
        next(restore_photos(few, [str(photo)] * 2, DENOISER))


def test_one_photo_at_a_time_and_none_after_the_end(photo, tmp_path):
    own = settings(tmp_path)
    stages = restore_photos(own, [str(photo)], DENOISER)
    next(stages)
    waited = []
    own.turns.close(lambda: waited.append(True))
    assert not waited
    with pytest.raises(UsageError, match="the page has ended"):
        next(stages)
    turns = Turns()
    with turns.take():
        closing = threading.Thread(target=turns.close, args=(lambda: waited.append(True),))
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
    closing.join(10)
    assert not closing.is_alive()
    assert waited == [True]


@pytest.mark.filterwarnings("ignore:recommended. the model has no weights to adapt")
def test_a_model_of_the_command_line_is_offered_first(photo, tmp_path):
    own = settings(tmp_path, model="torch.nn:Identity")
    assert own.choices()[0] == "torch.nn:Identity"
    *_, last = restore_photos(own, [str(photo)], own.choices()[0])
    assert "nothing to adapt" in last.line
    assert last.checkpoint is None


def test_every_shipped_model_and_task_is_offered():
    from tta_restore.adapters import DegradationPairs

    assert set(words.MODELS) == set(SHIPPED_MODELS)
    for task in words.TASKS.values():
        DegradationPairs(create_model("small_unet"), task=task)


@pytest.mark.parametrize(
    ("trust", "text"),
    [
        (0.0, "Not trusted (0.00): the result is that of the unadapted model, or of the photo itself."),
        (0.3, "Partly trusted (0.30): 30 % of the result is the adapted model's, 20 % the photo as it was."),
        (0.8, "Trusted (0.80): 80 % of the result is the adapted model's, 20 % the photo as it was."),
    ],
)
def test_trust_in_words(trust, text):
    record = PhotoRecord("a.png", trust=trust, input_weight=0.2, gain=0.5, degradation={"jpeg_quality": 40.0})
    described = words.describe_photo(record)
    assert text in described
    assert "+0.50 dB" in described
    assert "JPEG quality 40" in described


def test_correlated_noise_in_words():
    plain = {"noise": 20.0, "blur": 1.0}
    for found, text in (
        (plain, "noise of 20.0 / 255, blur"),
        (plain | {"noise_filter": 0.66}, "correlated over 0.7 pixels, blur"),
    ):
        assert text in words.describe_photo(PhotoRecord("a.png", trust=0.8, degradation=found))


def test_text_of_files_and_models_is_shown_as_it_is():
    record = PhotoRecord("<b>*a*</b>.png", error="<script>\n`x`")
    described = words.describe_photo(record)
    assert "<script>" not in described
    assert "\n" not in described
    assert "*a*" not in described
    assert "&#60;script&#62; &#96;x&#96;" in described


@pytest.mark.thorough
def test_without_gradio_the_command_is_one_line():
    program = "import sys; sys.modules['gradio'] = None; from tta_restore.cli import main; sys.exit(main(['serve']))"
    run = run_program(program)
    assert run.returncode == 2
    assert run.stderr == "tta-restore serve: the page needs gradio: pip install 'tta-restore[serve]'\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 70000}, "--port: expected 1 to 65535, got 70000"),
        ({"budget": "soon"}, "--budget: expected budget"),
        ({"max_mb": 0}, "expected max_bytes >= 1, got 0"),
        ({"checkpoint": "a.pth"}, "--checkpoint: goes with --model"),
        ({"model": "absent.pth"}, "no model 'absent.pth'"),
        ({"device": "nowhere"}, "--device nowhere"),
    ],
)
def test_what_the_command_refuses(options, message):
    with pytest.raises(UsageError) as caught:
        serve(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("interrupted", [False, True])
def test_nothing_stays_behind(interrupted, monkeypatch):
    seen = {}

    def launch(settings, port, **_):
        seen.update(folder=settings.folder, uploads=os.environ["GRADIO_TEMP_DIR"])
        (settings.folder / "result.png").write_bytes(b"")
        if interrupted:
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "_launch", launch)
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            serve(say=lambda line: None)
    else:
        serve(say=lambda line: None)
    assert os.path.dirname(seen["uploads"]) == str(seen["folder"].parent)
    assert not seen["folder"].parent.exists()
    assert "GRADIO_TEMP_DIR" not in os.environ
