import collections

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tta_restore import models


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def assert_same_weights(loaded: nn.Module, trained: nn.Module) -> None:
    expected = trained.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("wrap", [
    lambda weights: weights,
    lambda weights: {"params": {name: value * 0 for name, value in weights.items()}, "params_ema": weights},
    lambda weights: {"epoch": 3, "state_dict": weights, "optimizer": {"lr": 0.1}},
    lambda weights: {"state_dict": {"params": weights}},
    lambda weights: {f"module.{name}": value for name, value in weights.items()},
    lambda weights: {"model": {f"module._orig_mod.{name}": value for name, value in weights.items()}},
])  # fmt: skip
def test_wrappers_and_prefixes_are_taken_off(wrap, tmp_path):
    trained = small()
    torch.save(wrap(trained.state_dict()), tmp_path / "trained.pth")
    assert_same_weights(models.load_checkpoint(small(), tmp_path / "trained.pth"), trained)
    assert_same_weights(models.load_checkpoint(small(), wrap(trained.state_dict())), trained)


def test_safetensors_and_compiled_targets(tmp_path):
    trained, fresh = small(), small()
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    compiled = torch.compile(fresh, backend="eager")
    assert models.load_checkpoint(compiled, tmp_path / "trained.safetensors") is compiled
    assert_same_weights(fresh, trained)


def test_targets_in_data_parallel():
    net, other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    wrapped = nn.DataParallel(other)
    for content in (net.state_dict(), {f"module.{name}": value for name, value in net.state_dict().items()}):
        nn.init.zeros_(other.weight)
        assert models.load_checkpoint(wrapped, content) is wrapped
        assert torch.equal(other.weight, net.weight)


def test_a_module_with_a_real_prefix_keeps_it():
    trained = nn.ModuleDict({"module": small()})
    fresh = nn.ModuleDict({"module": small()})
    assert_same_weights(models.load_checkpoint(fresh, trained.state_dict()), trained)


def test_a_module_converts_keys_of_other_checkpoints():
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 3, 1)

        def convert_state_dict(self, state_dict):
            return {name.replace("conv_last", "head"): value for name, value in state_dict.items()}

    official = {"conv_last.weight": torch.ones(3, 3, 1, 1), "conv_last.bias": torch.zeros(3)}
    loaded = models.load_checkpoint(Renamed(), {"params": official})
    assert torch.equal(loaded.head.weight, torch.ones(3, 3, 1, 1))


class Payload:
    """What a malicious file would bring: unpickling it runs code."""

    def __reduce__(self):
        return (exec, ("import torch; torch.tta_restore_was_here = True",))


@pytest.mark.parametrize("content", [Payload(), {"state_dict": small().state_dict(), "x": Payload()}, small()])
def test_code_in_a_file_is_refused_and_does_not_run(content, tmp_path):
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="refused"):
        models.load_checkpoint(small(), tmp_path / "evil.pth")
    assert not hasattr(torch, "tta_restore_was_here")


@pytest.mark.parametrize(("content", "message"), [
    ({"0.weight": [1, 2]}, "no tensors: '0.weight' \\(list\\)"),
    ([torch.zeros(3)], "expected a mapping"),
    ({}, "holds no tensors"),
    (collections.OrderedDict(epoch=3), "no tensors: 'epoch' \\(int\\)"),
])  # fmt: skip
def test_anything_but_tensors_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=message):
        models.load_checkpoint(small(), tmp_path / "odd.pth")


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_damaged_files_are_named(name, tmp_path):
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save(small().state_dict(), path)
    else:
        save_file(small().state_dict(), path)
    for content in (path.read_bytes()[:150], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cut"):
            models.load_checkpoint(small(), path)
    with pytest.raises(ValueError, match="there is no file"):
        models.load_checkpoint(small(), tmp_path / "absent.pth")


def test_a_misfit_is_explained_before_anything_is_written():
    fresh = small()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    weights = {name: value + 1 for name, value in small().state_dict().items()}
    weights["0.wieght"] = weights.pop("0.weight")
    with pytest.raises(ValueError, match=r"(?s)1 missing, 1 unknown.*missing 0.weight \(the file has 0.wieght\)"):
        models.load_checkpoint(fresh, weights)
    weights["0.weight"] = weights.pop("0.wieght")[:2]
    with pytest.raises(ValueError, match=r"0.weight of Sequential has shape \(4, 3, 1, 1\).*brings \(2, 3, 1, 1\)"):
        models.load_checkpoint(fresh, weights)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
