"""Official IFAN checkpoints: their names, what configuration they tell, and the mistake that they were trained with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_NETWORK, _REBLURRING = "Network.", "reblurNet."
_PREFIXES = {
    **{f"conv{s}_{i}.": f"encoder.stage{s}.{i - 1}." for s in (1, 2, 3, 4) for i in (1, 2, 3)},
    **{f"kconv{s}_{i}.": f"filter_encoder.stage{s}.{i - 1}." for s in (1, 2, 3, 4) for i in (1, 2, 3)},
    "DME.": "disparity.",
    "conv_DME.": "disparity_features.",
    "conv4_4.": "filter_trunk.",
    "F.3.": "adaptive.",
    "F.": "filter_features.",
    "conv_res.": "decoder.enter.",
    **{f"upconv{s}_u.": f"decoder.up{s}." for s in (3, 2, 1)},
    **{f"upconv{s}_{i}.": f"decoder.stage{s}.{i - 1}." for s in (3, 2, 1) for i in (1, 2)},
    "out_res.": "decoder.exit.",
}
_REBLURRING_PREFIXES = {"RBF.": "predictor."}


def network(weights: Mapping[str, Tensor], *, warn: bool) -> dict[str, Tensor]:
    """The deblurring network's weights under our names; weights that have our names already as they are.

    ``warn`` of official names, for a model that nobody told which taps its horizontal passes read.
    """
    renamed = _renamed(weights, _NETWORK, _PREFIXES, warn)
    head = renamed.get("adaptive.weight")
    if head is not None and head.ndim == 4:  # a 1x1 convolution there, a matrix here
        renamed["adaptive.weight"] = head.flatten(1)
    return renamed


def reblurring(weights: Mapping[str, Tensor], *, warn: bool) -> dict[str, Tensor]:
    """Like :func:`network`, of the reblurring network."""
    return _renamed(weights, _REBLURRING, _REBLURRING_PREFIXES, warn)


def official_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names to those of the release, without what it puts in front; for the network or the reblurring network."""
    renamed = {}
    for name, tensor in weights.items():
        tables = (*_PREFIXES.items(), *_REBLURRING_PREFIXES.items())
        official, own = next((official, own) for official, own in tables if name.startswith(own))
        renamed[official + name[len(own) :]] = tensor[:, :, None, None] if name == "adaptive.weight" else tensor
    return renamed


def network_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Configuration that the shapes and names tell; K is not among it and taken to be 3.

    Weights with official names are taken to be trained like all released ones, with ``horizontal="vertical"``.
    """
    official = _is_official(weights, _NETWORK, _PREFIXES)
    own = network(weights, warn=False)
    try:
        width = own["encoder.stage1.0.0.weight"].shape[0]
        rows = own["adaptive.bias"].shape[0]
    except KeyError:
        return {}  # not ours: what is missing is told when it is loaded
    config: dict[str, Any] = {
        "base_channels": width,
        "num_steps": max(rows // (4 * width * 7), 1),
        "num_res_blocks": _units(own, "filter_features.1."),
    }
    if "disparity.0.0.weight" not in own:
        config["disparity"] = False
    return config | ({"horizontal": "vertical"} if official else {})


def reblurring_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Like :func:`network_config`, of the reblurring network."""
    official = _is_official(weights, _REBLURRING, _REBLURRING_PREFIXES)
    own = reblurring(weights, warn=False)
    try:
        wide, rows = own["predictor.0.0.weight"].shape[:2]
        steps = own["predictor.3.bias"].shape[0]
    except KeyError:
        return {}
    config: dict[str, Any] = {
        "base_channels": wide // 4,
        "num_steps": max(rows // (wide * 7), 1),
        "num_res_blocks": _units(own, "predictor.1."),
        "reblur_steps": max(steps // 21, 1),
    }
    return config | ({"horizontal": "vertical"} if official else {})


def _units(weights: Mapping[str, Tensor], chain: str) -> int:
    return sum(name.startswith(f"{chain}stem.") and name.endswith(".0.bias") for name in weights)


def _own_name(name: str, prefixes: Mapping[str, str]) -> str | None:
    return next((own + name[len(official) :] for official, own in prefixes.items() if name.startswith(official)), None)


def _chosen(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Weights of one part of a file that holds both networks, or of a file that holds only one, without its name."""
    inside = {name.removeprefix(part): tensor for name, tensor in weights.items() if name.startswith(part)}
    return inside or dict(weights)


def _is_official(weights: Mapping[str, Tensor], part: str, prefixes: Mapping[str, str]) -> bool:
    return any(_own_name(name, prefixes) is not None for name in _chosen(weights, part))


def _renamed(weights: Mapping[str, Tensor], part: str, prefixes: Mapping[str, str], warn: bool) -> dict[str, Tensor]:
    if warn and _is_official(weights, part, prefixes):
        warnings.warn(
            "load_checkpoint: these weights have the official names of IFAN, and all released ones were trained with "
            'horizontal="vertical"; the model, which was not told, has "own". Pass horizontal="vertical", or "own" if '
            "they were trained with the correction.",
            stacklevel=4,
        )
    return {_own_name(name, prefixes) or name: tensor for name, tensor in _chosen(weights, part).items()}
