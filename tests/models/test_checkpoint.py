import collections
import math
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tta_restore import models
from tta_restore.models import checkpoint


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


def test_files_are_read_by_content_whatever_their_suffix(tmp_path):
    trained = small()
    save_file(trained.state_dict(), tmp_path / "weights.pth")
    torch.save(trained.state_dict(), tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        assert_same_weights(models.load_checkpoint(small(), tmp_path / name), trained)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a pointer of Git LFS .* git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html>Not found</html>", "is a web page and no checkpoint"),
        (b"<HTML>", "is a web page"),
    ],
)
def test_what_downloads_leave_in_place_of_a_checkpoint_is_named(content, message, tmp_path):
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(ValueError, match=f"net.pth {message}"):
        models.load_checkpoint(small(), tmp_path / "net.pth")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file"):
        checkpoint.read(tmp_path / "pipe")


def test_weights_of_another_kind_of_number_are_refused(tmp_path):
    weights = small().state_dict()
    name = next(iter(weights))
    for dtype in (torch.int32, torch.bool, torch.complex64):
        changed = {key: value.to(dtype) for key, value in weights.items()}
        with pytest.raises(ValueError, match=f"{name} of Sequential is of type torch.float32, .* brings {dtype}"):
            models.load_checkpoint(small(), changed)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        models.load_checkpoint(small(), {key: value.to(dtype) for key, value in weights.items()})
    counting = nn.BatchNorm2d(3)
    models.load_checkpoint(counting, {key: value.half() for key, value in counting.state_dict().items()})
    torch.save({key: value.to_sparse() for key, value in weights.items()}, tmp_path / "sparse.pth")
    loaded = models.load_checkpoint(small(), tmp_path / "sparse.pth")
    torch.testing.assert_close(loaded.state_dict(), weights)


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


def _under(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def _pair():
    nets = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        nets.append(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)))
    return nets


FRAMEWORKS = {
    "lightning": lambda w, raw: {"state_dict": _under("model.", w), "epoch": 1, "pytorch-lightning_version": "2.4"},
    "beside a loss": lambda w, raw: {"state_dict": _under("net.", w) | {"lpips.lin.weight": torch.zeros(3)}},
    "mmagic": lambda w, raw: _under("generator.", raw) | _under("generator_ema.", w) | {"step": torch.zeros(1)},
    "netG": lambda w, raw: {"netG": w, "netD": {}},
    "ema": lambda w, raw: {"ema": w, "model": raw},
    "EMA": lambda w, raw: {"EMA": w, "model": raw},
    "modelEma": lambda w, raw: {"modelEma": w, "model": raw},
    "avg_model": lambda w, raw: {"model": raw, "avg_model": w},
    "shadow": lambda w, raw: {"model": raw, "shadow": w},
    "twice": lambda w, raw: {"best": w, "model": w},
    "AveragedModel": lambda w, raw: {"n_averaged": torch.tensor(5)} | _under("module.", w),
    "any prefix": lambda w, raw: _under("a.b.c.", w),
    "decay next to it": lambda w, raw: _under("net.", raw) | _under("net_ema.", w | {"decay": torch.tensor(0.9)}),
    "deep": lambda w, raw: {"checkpoint": {"weights": {"best": w}}, "optimizer": {"state": {}}},
}


@pytest.mark.filterwarnings("ignore:load_checkpoint. takes the averaged weights")
@pytest.mark.parametrize("content", FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_weights_are_found_by_fit_averaged_before_raw(content, tmp_path):
    wanted, raw, net = _pair()
    torch.save(content(wanted.state_dict(), raw.state_dict()), tmp_path / "c.pth")
    models.load_checkpoint(net, tmp_path / "c.pth")
    for name, value in wanted.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)


def test_averaged_weights_are_reported_and_several_raw_ones_refused():
    wanted, raw, net = _pair()
    with pytest.warns(UserWarning, match="takes the averaged weights ema of the given state dict, not model"):
        models.load_checkpoint(net, {"ema": wanted.state_dict(), "model": raw.state_dict()})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="holds several sets of weights that fit, at netG, netF"):
        models.load_checkpoint(net, {"netG": wanted.state_dict(), "netF": raw.state_dict()})
    with pytest.raises(ValueError, match="holds several sets of weights that fit, at polished, model"):
        models.load_checkpoint(net, {"polished": wanted.state_dict(), "model": raw.state_dict()})
    weights = dict(wanted.named_parameters())
    for part in (weights, {"decay": 0.999, "shadow_params": list(weights.values())}):
        with pytest.raises(ValueError, match=r"holds raw weights at model, and averaged ones at ema.* that lack names"):
            models.load_checkpoint(net, {"ema": part, "model": raw.state_dict()})
    flat = _under("net.", raw.state_dict()) | {f"ema.{name.replace('.', '')}": value for name, value in weights.items()}
    with pytest.raises(ValueError, match="holds raw weights at state_dict.net, and averaged ones at state_dict.ema"):
        models.load_checkpoint(net, {"state_dict": flat})
    several = {"ema_0.99": wanted.state_dict(), "ema_0.999": raw.state_dict(), "model": raw.state_dict()}
    with pytest.raises(ValueError, match="holds several sets of weights that fit, at ema_0.99, ema_0.999"):
        models.load_checkpoint(net, several)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_averaged_weights_of_a_module_that_converts_keys():
    class Converts(torch.nn.Conv2d):
        def convert_state_dict(self, weights):
            return {name.removesuffix("_old"): value for name, value in weights.items()}

    wanted, raw, net = (Converts(3, 3, 1) for _ in range(3))
    with pytest.warns(UserWarning, match="takes the averaged weights ema"):
        models.load_checkpoint(net, {"ema": wanted.state_dict(), "model": raw.state_dict()})
    assert torch.equal(net.weight, wanted.weight)
    old = {f"{name}_old": value for name, value in raw.state_dict().items()}
    models.load_checkpoint(net, {"model": old, "ema_decay": 0.9})
    assert torch.equal(net.weight, raw.weight)
    with pytest.raises(ValueError, match="holds raw weights at model, and averaged ones at ema; pass"):
        models.load_checkpoint(net, {"ema": old, "model": old})


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch, on TorchScript
def test_a_torchscript_program_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 3, 1)), tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c.pt is a TorchScript program: load it by torch.jit.load"):
        models.load_checkpoint(torch.nn.Conv2d(3, 3, 1), tmp_path / "c.pt")


def test_parameters_that_are_nan_are_refused_and_buffers_are_not():
    net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1))
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    weights["1.running_var"].fill_(math.nan)
    assert models.load_checkpoint(net, weights) is net
    assert net[1].running_var.isnan().all()
    kept = net[0].weight.clone()
    weights["0.weight"][0, 0, 1, 2] = math.nan
    weights["1.running_var"].fill_(1)
    with pytest.raises(ValueError, match="holds NaN in 1 of 4 parameters of Sequential, first in 0.weight"):
        models.load_checkpoint(net, weights)
    assert torch.equal(net[0].weight, kept)
    assert net[1].running_var.isnan().all()


@pytest.mark.parametrize("convert", [Tensor.to_sparse, lambda weight: weight.to(torch.float8_e4m3fn)])
def test_sparse_and_float8_parameters_are_searched_for_nan(convert):
    net = nn.Linear(2, 2, bias=False)
    values = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    models.load_checkpoint(net, {"weight": convert(values)})
    assert torch.equal(net.weight, values)
    values[1, 0] = math.nan
    with pytest.raises(ValueError, match="holds NaN"):
        models.load_checkpoint(net, {"weight": convert(values)})
