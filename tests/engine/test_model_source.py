"""A restorer by name, by checkpoint file of a known architecture, and by a function in one's own code."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from tta_restore.data.io.tensors import save_tensors
from tta_restore.engine.run.models import build_module, load_restorer, origin_of
from tta_restore.engine.run.names import SHIPPED_MODELS
from tta_restore.models import Restorer, create_model, list_models


@pytest.fixture
def network() -> torch.nn.Module:
    SRVGGNetCompact = importlib.import_module("spandrel.architectures.Compact.__arch.SRVGG").SRVGGNetCompact
    torch.manual_seed(0)
    return SRVGGNetCompact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=2)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors", "net.checkpoint"])
def test_checkpoints_are_recognized_whatever_they_are_called(name, network, tmp_path):
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(network.state_dict(), path)
    else:
        torch.save({"params_ema": network.state_dict()}, path)
    restorer = load_restorer(str(path))
    assert isinstance(restorer, Restorer)
    assert not restorer.module.training
    assert not any(p.requires_grad for p in restorer.parameters())
    x = torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        torch.testing.assert_close(restorer(x), network.eval()(x))


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "trap.pth"
    with open(path, "wb") as file:
        pickle.dump({"weight": Trap()}, file)
    with pytest.raises(ValueError, match="which could run code|cannot be read"):
        load_restorer(str(path))
    torch.save({"weight": Trap()}, path)
    with pytest.raises(ValueError, match="which could run code"):
        load_restorer(str(path))
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_checkpoint_are_one_line(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"nothing of the kind")
    torch.save({"strange.weight": torch.ones(3)}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"a\.pth") as caught:
        load_restorer(str(tmp_path / "a.pth"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="not an architecture that spandrel"):
        load_restorer(str(tmp_path / "b.pth"))


def test_functions_and_modules_of_ones_own_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_restorers.py").write_text(
        textwrap.dedent(
            """
            import torch
            class Half(torch.nn.Module):
                def forward(self, x):
                    return x / 2
            ready = Half()
            def build():
                return Half()
            number = 3
            def wrong():
                return 3
            """
        )
    )
    before = list(sys.path)
    x = torch.rand(1, 3, 8, 8)
    for name in ("build", "ready", "Half"):
        assert torch.equal(load_restorer(f"my_own_restorers:{name}")(x), x / 2)
    assert sys.path == before
    for name, message in {
        "absent": "has no absent",
        "biuld": "has no biuld; did you mean build",
        "number": "expected a module or a function",
        "wrong": "returns no restorer",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_restorer(f"my_own_restorers:{name}")
    with pytest.raises(ValueError, match="No module named 'my_absent_module'"):
        load_restorer("my_absent_module:build")


def test_unknown_names_list_what_can_be_given():
    with pytest.raises(ValueError, match=r"no model 'nonsense': expected one of specialist, .*checkpoint file"):
        load_restorer("nonsense")
    with pytest.raises(ValueError, match=r"no model 'weights/mine.pth' \(there is no such file\): expected one of"):
        load_restorer("weights/mine.pth")
    with pytest.raises(ValueError, match=r"\(name the module, not its file: net:build, from within its folder\)"):
        load_restorer("code/net.py:build")


def test_a_wrong_path_names_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "NAFNet.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no model 'photos' \(this is a folder\): expected one of"):
        load_restorer("photos")
    for wrong in ("nafnet.pth", "NAFNet.pt"):
        with pytest.raises(ValueError, match=r"\(there is no such file; did you mean NAFNet.pth\?\)"):
            load_restorer(wrong)
    with pytest.raises(ValueError, match=r"there is no file nafnet.pth; did you mean NAFNet.pth\?"):
        load_restorer("small_unet", checkpoint="./nafnet.pth")


def test_origins_that_are_written_next_to_weights(tmp_path):
    assert origin_of("specialist") == origin_of("lens_unet", "specialist")
    assert json.loads(origin_of("jdrl_unet", config={"width": 2, "blur_map": True})["config"]) == {"width": 2}
    assert origin_of("jdrl_unet", config={"width": 2, "blur_map": True})["model"] == "jdrl_journal"
    assert origin_of("_meta_networks:Deblur") == {"model": "_meta_networks:Deblur", "config": "{}"}
    torch.save({"weight": torch.ones(1)}, tmp_path / "unknown.pth")
    assert origin_of(str(tmp_path / "unknown.pth")) == {}
    small = create_model("small_unet")
    save_tensors(tmp_path / "known.safetensors", small.state_dict(), {"model": "small_unet", "config": "{}"})
    assert origin_of(str(tmp_path / "known.safetensors")) == {"model": "small_unet", "config": "{}"}


def test_a_blur_map_in_front_of_weights_without_one(tmp_path):
    conditioned = build_module("lens_unet", checkpoint="specialist", config={"blur_map": True})
    plain = build_module("specialist")
    assert all(torch.equal(plain.state_dict()[name], t) for name, t in conditioned.restorer.state_dict().items())
    torch.save({"params": conditioned.state_dict()}, tmp_path / "both.pth")
    again = build_module("lens_unet", checkpoint=tmp_path / "both.pth", config={"blur_map": True})
    assert all(torch.equal(again.state_dict()[name], t) for name, t in conditioned.state_dict().items())


@pytest.mark.parametrize("name", ["dpdnet_s", "_meta_networks:Deblur"])
def test_a_result_with_a_blur_map_has_the_size_that_its_file_names(tmp_path, name):
    options = {"width": 2, "blur_map": True}
    trained = build_module(name, config=options)
    save_tensors(tmp_path / "both.safetensors", trained.state_dict(), origin_of(name, config=options))
    again = build_module(name, checkpoint=tmp_path / "both.safetensors", config={"blur_map": True})
    assert all(torch.equal(again.state_dict()[key], t) for key, t in trained.state_dict().items())


def test_shipped_names_are_registered_models():
    assert set(SHIPPED_MODELS.values()) <= set(list_models("restorer"))


def test_a_missing_spandrel_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ImportError, match=r"pip install 'tta-restore\[restorers\]'"):
        load_restorer(str(tmp_path / "a.pth"))


def test_weights_of_a_failed_training_are_refused(tmp_path):
    weights = create_model("lens_unet", widths=(4, 4, 4), blocks=1).state_dict()
    weights["head.bias"][1] = float("nan")
    torch.save(weights, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net.pth holds NaN in 1 of 32 parameters of \w+, first in head.bias"):
        load_restorer("lens_unet", checkpoint=tmp_path / "net.pth", config={"widths": (4, 4, 4), "blocks": 1})


@pytest.mark.parametrize("content", [[1, 2], 3, "text"])
def test_a_file_without_weights_by_name_is_refused(content, tmp_path):
    pytest.importorskip("spandrel")
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth: expected weights by name, got"):
        load_restorer(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("name", "kind", "config"),
    [
        ("ifan", "restorer", {"base_channels": 10**8}),
        ("small_unet", "restorer", {"widths": (10**4, 10**5, 10**6)}),
        ("patch_critic", "discriminator", {"base_channels": 10**6}),
    ],
)
def test_weights_without_memory_for_them_are_refused_at_once(name, kind, config):
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=rf"model '{name}': its weights need .* memory"):
        build_module(name, config=config, kind=kind)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_code_of_a_user_ends_before_its_weights_fill_the_memory(monkeypatch):
    config = {"in_features": 50, "out_features": 40}  # 8 kB
    monkeypatch.setattr("tta_restore.engine.run.memory.physical_memory", lambda: 5000)
    with pytest.raises(ValueError, match=r"model 'torch.nn:Linear': its weights need more than 8e-06 GB of memory"):
        build_module("torch.nn:Linear", config=config)
    monkeypatch.setattr("tta_restore.engine.run.memory.physical_memory", lambda: 15000)
    for _ in range(3):  # weights of an earlier call are gone
        assert build_module("torch.nn:Linear", config=config).weight.shape == (40, 50)
    with pytest.raises(
        ValueError, match=r"model 'torch.nn:Linear': its weights need more memory than this machine has"
    ):
        build_module("torch.nn:Linear", config={"in_features": 10**7, "out_features": 10**8})
