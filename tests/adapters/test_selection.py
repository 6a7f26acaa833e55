import pytest
import torch
from adapters.styles import build as build_style
from adapters.zoo import Tied, Tokens, UNet, build
from torch import nn

from tta_restore import adapters
from tta_restore.adapters import select_parameters


def names(net):
    return tuple(name for name, _ in net.named_parameters())


@pytest.mark.parametrize(("select", "expected"), [
    ("all", lambda name: True),
    ("decoder.*", lambda name: name.startswith("decoder.")),
    ("decoder", lambda name: name.startswith("decoder.")),
    ("decoder.1", lambda name: name.startswith("decoder.1.")),
    ("*.weight", lambda name: name.endswith(".weight")),
    (["head.bias", "encoder.0"], lambda name: name == "head.bias" or name.startswith("encoder.0.")),
    (r"re:(en|de)coder\.[02]\.bias", lambda name: name.split(".")[1] in "02" and name.endswith(".bias")),
    ("bias", lambda name: name.endswith("bias")),
    (["all", "!*.bias", "!head"], lambda name: name.endswith("weight") and not name.startswith("head")),
    (["!encoder"], lambda name: not name.startswith("encoder")),
    (nn.Conv2d, lambda name: True),
    ("_orig_mod.decoder.*", lambda name: name.startswith("decoder.")),
    ("module.decoder", lambda name: name.startswith("decoder.")),
    ("last_stage", lambda name: name.startswith("head")),
])  # fmt: skip
def test_what_is_selected_comes_in_the_models_order(select, expected):
    net = UNet()
    if select == "re:(en|de)coder\\.[02]\\.bias":
        assert len(select_parameters(net, select)) == 4
    else:
        assert select_parameters(net, select) == tuple(name for name in names(net) if expected(name))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_presets_know_strange_layers():
    tokens = Tokens()
    assert select_parameters(tokens, "norm") == ("norm.weight", "norm.bias")
    assert "attention.in_proj_bias" in select_parameters(tokens, "bias")
    assert select_parameters(tokens, nn.MultiheadAttention) == tuple(
        name for name in names(tokens) if name.startswith("attention.")
    )
    assert "intro.weight" not in select_parameters(build("nafnet"), "norm")
    assert all(".norm" in name for name in select_parameters(build("nafnet"), "norm"))
    assert "body.0.parametrizations.weight.original0" in select_parameters(build("new_weight_norm"), "all")
    assert select_parameters(build("old_weight_norm"), "*_g") == ("body.0.weight_g", "body.2.weight_g")
    with pytest.raises(ValueError, match="preset 'norm' finds nothing"):
        select_parameters(build("new_weight_norm"), "norm")


def test_the_last_stage_is_the_end_of_the_network_however_it_is_nested():
    flat = nn.Sequential(*(nn.Linear(10, 10) for _ in range(30)))
    assert select_parameters(flat, "last_stage") == ("28.weight", "28.bias", "29.weight", "29.bias")
    nested = nn.ModuleDict({"inner": nn.ModuleDict({"body": flat, "tail": nn.Linear(10, 1)})})
    assert select_parameters(nested, "last_stage")[0] == "inner.body.28.weight"
    assert select_parameters(nested, "last_stage")[-1] == "inner.tail.bias"
    assert select_parameters(nn.Linear(2, 2), "last_stage") == ("weight", "bias")


def test_weights_under_two_names_count_once():
    net = Tied()
    assert select_parameters(net, "all") == ("body.0.weight", "body.0.bias", "body.2.bias")
    assert select_parameters(net, "body.2.weight") == ("body.0.weight",)


@pytest.mark.parametrize(("select", "message"), [
    ("decodr.*", r"'decodr\.\*' matches no weight of UNet; did you mean decoder"),
    ("encoder.0.wieght", "did you mean encoder.0.weight"),
    (["all", "!tail"], "'tail' matches no weight"),
    ("zzz", "its parts are encoder, decoder, head; presets are injected, norm, bias, last_stage, gains, low_rank, all"),
    ("injected", "preset 'injected' finds nothing in UNet"),
    (nn.LayerNorm, "UNet holds no LayerNorm with weights"),
    (["head", "!head"], "leaves no weight of UNet"),
    ([], "leaves no weight of UNet"),
    ("biass", "did you mean.* bias"),
])  # fmt: skip
def test_a_selection_that_hits_nothing_says_what_is_there(select, message):
    with pytest.raises(ValueError, match=message):
        select_parameters(UNet(), select)


def test_other_refusals():
    with pytest.raises(TypeError, match="got 3"):
        select_parameters(UNet(), [3])
    with pytest.raises(ValueError, match="Identity has no floating-point or complex weights"):
        select_parameters(nn.Identity(), "all")
    quantized = nn.Module()
    quantized.weight = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    quantized.scale = nn.Parameter(torch.zeros(2))
    assert select_parameters(quantized, "all") == ("scale",)


def test_presets_leave_out_frozen_weights_where_the_model_has_others():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3))
    net[0].requires_grad_(False)
    rest = ("1.weight", "1.bias", "2.weight", "2.bias")
    assert select_parameters(net, "all") == select_parameters(net, ["!0.*"]) == rest
    assert select_parameters(net, ["0", "norm"]) == ("0.weight", "0.bias", "1.weight", "1.bias")
    net[1].requires_grad_(False)
    with pytest.raises(ValueError, match="preset 'norm' finds nothing that requires gradients in Sequential"):
        select_parameters(net, "norm")
    net.requires_grad_(False)
    assert len(select_parameters(net, "all")) == 6


def test_weights_that_hold_other_tensors_are_named():
    net = build_style("weights hold tensors")
    with pytest.raises(TypeError, match=r'a.weight is a Holding, which holds other tensors.*"!a.weight"'):
        select_parameters(net, ["a", "b"])


def _changes(select: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 3, 3, padding=1)).eval()
    adapter = adapters.SelfDenoise(net, select=select, steps=3, lr=1e-2)
    adapter.adapt(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert set(adapter.adapted) == {"0.weight", "2.weight"}
    return [
        ((tensor - adapter.source[name]).flatten(1), adapter.source[name]) for name, tensor in adapter.student.items()
    ]


def test_gains_change_one_factor_per_output_channel():
    for change, source in _changes("gains"):
        factor = change / source.flatten(1)
        assert change.abs().max() > 1e-5
        torch.testing.assert_close(factor, factor.mean(1, keepdim=True).expand_as(factor), rtol=1e-3, atol=1e-5)


def test_low_rank_changes_have_rank_4():
    change, _ = _changes("low_rank")[0]
    values = torch.linalg.svdvals(change)
    assert len(values) == 12
    assert values[3] > 1e-6
    assert values[4] < 1e-5 * values[0]


def test_gains_and_low_rank_exclude_each_other():
    with pytest.raises(ValueError, match="'gains' or 'low_rank', got both"):
        adapters.SelfDenoise(nn.Conv2d(3, 3, 3, padding=1), select=["gains", "low_rank"])
