import copy
import json
import os
import signal
import time

import pytest
import torch
from _fresh import in_new_process
from adapters._base import same_bits
from adapters.recipes import make_pairs, make_siam_ctta
from adapters.zoo import Residual, build, frames
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tta_restore.adapters import Adapter, SelfEnsemble, SiamCTTA, checkpoint
from tta_restore.adapters.checkpoint import _FORMAT_VERSION


@pytest.fixture
def learned():
    adapter = make_pairs(build("plain"))
    for x in frames("plain", 3):
        adapter(x)
    return adapter


def test_the_file_is_small_holds_no_pickle_and_reads_back(learned, tmp_path):
    path = tmp_path / "state.safetensors"
    learned.save(path)
    weights = sum(parameter.numel() for parameter in learned.restorer.parameters())
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["tta_restore.adapter"])
        kept = sum(file.get_tensor(key).numel() for key in file.keys() if key.startswith(("sets", "optimizer")))  # noqa: SIM118
    assert header["format_version"] == _FORMAT_VERSION
    assert header["method"] == "Pairs"
    assert list(header["adapted"]) == list(learned.adapted)
    assert kept < 4.1 * weights  # student, teacher, two moments, step counters
    read, held = checkpoint.read(path), learned.state_dict()
    assert read.keys() == held.keys()
    assert read["tensors"].keys() == held["tensors"].keys()
    assert all(same_bits(tensor, held["tensors"][key]) for key, tensor in read["tensors"].items())
    assert all(read[key] == held[key] for key in held if key not in ("tensors", "config"))
    assert not list(tmp_path.glob(".*"))


def test_a_state_dict_goes_through_torch_save(learned, tmp_path):
    torch.save(learned.state_dict(), tmp_path / "state.pt")
    fresh = make_pairs(build("plain"))
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same_bits(fresh.state_dict(), learned.state_dict())


def damages():
    yield "cut", lambda path: path.write_bytes(path.read_bytes()[:-100])
    yield "empty", lambda path: path.write_bytes(b"")
    yield "text", lambda path: path.write_text("not a state")
    yield "absent", lambda path: path.unlink()

    def flip(path):
        content = bytearray(path.read_bytes())
        content[-17] ^= 64
        path.write_bytes(content)

    yield "bit flipped", flip
    yield "other safetensors", lambda path: save_file({"x": torch.zeros(1)}, path)

    def header(change):
        def damage(path):
            with safe_open(path, framework="pt") as file:
                content = json.loads(file.metadata()["tta_restore.adapter"])
            tensors = load_file(path)
            change(content, tensors)
            content["checksum"] = checkpoint._checksum(tensors)
            save_file(tensors, path, metadata={"tta_restore.adapter": json.dumps(content)})

        return damage

    yield "newer format", header(lambda content, tensors: content.update(format_version=_FORMAT_VERSION + 1))
    yield "no structure", header(lambda content, tensors: content.pop("structure"))
    yield "role missing", header(lambda content, tensors: content["structure"]["dict"]["sets"]["dict"].pop("teacher"))
    yield "tensor missing", header(lambda content, tensors: tensors.pop("sets/student/body.0.bias"))
    yield "counter missing", header(lambda content, tensors: content["structure"]["dict"].pop("frames"))

    def spoil(content, tensors):
        tensors["sets/teacher/body.0.bias"][2] = float("nan")

    yield "NaN inside", header(spoil)


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in damages()])
def test_a_bad_file_is_explained_and_the_last_good_state_kept(damage, learned, tmp_path):
    path = tmp_path / "state.safetensors"
    learned.save(path)
    learned(frames("plain", 1)[0])
    kept = copy.deepcopy(learned.state_dict())
    damage(path)
    with pytest.raises(ValueError, match="^load: "):
        learned.load(path)
    assert same_bits(learned.state_dict(), kept)


@pytest.mark.parametrize(("other", "message"), [
    (lambda: make_siam_ctta(build("plain")), "made by Pairs, this is SiamCTTA"),
    (lambda: make_pairs(build("plain"), select="bias"), "adapts other tensors than this Pairs: 2 differ"),
    (lambda: make_pairs(Residual()), "made on other frozen weights"),
    (lambda: make_pairs(build("plain"), steps=5), "other settings: steps 2 against 5"),
    (lambda: make_pairs(build("plain"), views="d4"), "other settings: views 'rot4' against 'd4'"),
])  # fmt: skip
def test_a_state_of_another_adapter_is_refused(other, message, learned):
    adapter = other()
    kept = adapter.state_dict()
    with pytest.raises(ValueError, match=message):
        adapter.load_state_dict(learned.state_dict())
    assert same_bits(adapter.state_dict(), kept)
    if "frozen" in message or "settings" in message:
        adapter.load_state_dict(learned.state_dict(), strict=False)
        assert same_bits(adapter.state_dict()["tensors"], learned.state_dict()["tensors"])


def test_another_estimator_is_another_frozen_weight(learned):
    adapter = make_pairs(build("plain"))
    with torch.no_grad():
        adapter.estimator[0].bias += 1
    with pytest.raises(ValueError, match="other frozen weights"):
        adapter.load_state_dict(learned.state_dict())


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(learned, tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    learned.save(path)
    old = path.read_bytes()
    learned(frames("plain", 1)[0])

    def fails(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        learned.save(path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_what_a_killed_process_left_of_a_state_is_overwritten(learned, tmp_path):
    path = tmp_path / "state.safetensors"
    (tmp_path / ".state.safetensors.partial").write_bytes(b"half a state" * 100_000)
    learned.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]
    assert checkpoint.read(path)["method"] == "Pairs"


def test_fingerprints_tell_models_apart_and_ignore_what_adapters_do():
    net = build("batch_norm")
    fingerprint = checkpoint._checksum_of([net])
    adapter = SiamCTTA(net, select="all", lr=0.1)
    adapter(frames("batch_norm", 1)[0])
    assert checkpoint._checksum_of([net]) == fingerprint == checkpoint._checksum_of([build("batch_norm")])
    with torch.no_grad():
        net.body[1].running_mean[3] += 1e-3
    assert checkpoint._checksum_of([net]) != fingerprint


def test_methods_without_weights_have_a_state_too(tmp_path):
    x = frames("plain", 1)[0]
    for method in (Adapter, SelfEnsemble):
        adapter = method(lambda x: x * 0.5)
        adapter(x)
        adapter.save(tmp_path / "state.safetensors")
        other = method(lambda x: x * 0.5)
        other.load(tmp_path / "state.safetensors")
        assert other.state.frames == 1


def stream(folder, stop):
    """Restore a stream in a forked process, from the state in the folder on; return the process id."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        adapter, state = make_pairs(build("plain")), folder / "state.safetensors"
        if state.exists():
            adapter.load(state)
        for i, x in enumerate(frames("plain", stop)):
            if i >= adapter.state.frames:
                torch.save(adapter(x), folder / f"{i}.part")
                (folder / f"{i}.part").rename(folder / f"{i}.pt")
                adapter.save(state)
        os._exit(0)
    except BaseException:
        os._exit(1)


def kill_and_resume(folder):
    """Kill a stream in mid-frame, resume it, and compare it with an uninterrupted one."""
    count = 400
    interrupted, whole = folder / "interrupted", folder / "whole"
    interrupted.mkdir()
    whole.mkdir()
    first = stream(interrupted, count)
    while not (interrupted / "4.pt").exists():
        assert os.waitpid(first, os.WNOHANG) == (0, 0)
        time.sleep(0.002)
    time.sleep(0.01)  # somewhere inside a frame
    os.kill(first, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == -signal.SIGKILL
    done = len(list(interrupted.glob("*.pt")))
    assert 5 <= done < count
    for run in (interrupted, whole):
        assert os.waitstatus_to_exitcode(os.waitpid(stream(run, done + 6), 0)[1]) == 0
    for i in range(done + 6):
        assert torch.equal(torch.load(interrupted / f"{i}.pt"), torch.load(whole / f"{i}.pt"))


@pytest.mark.thorough
def test_killed_in_mid_stream_it_resumes_bit_by_bit(tmp_path):
    in_new_process(kill_and_resume, tmp_path)
