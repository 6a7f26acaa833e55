"""Official IFAN checkpoints: key conversion and inferred configuration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["network", "network_config", "official_names", "reblurring", "reblurring_config"]

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
    """Return the weights of the deblurring network under this package's keys; own keys pass unchanged.

    With ``warn``, official keys raise a warning, for a model whose ``horizontal`` was not set.
    """
    renamed = _renamed(weights, _NETWORK, _PREFIXES, warn)
    head = renamed.get("adaptive.weight")
    if head is not None and head.ndim == 4:  # official files hold a 1x1 convolution, the block holds a matrix
        renamed["adaptive.weight"] = head.flatten(1)
    return renamed


def reblurring(weights: Mapping[str, Tensor], *, warn: bool) -> dict[str, Tensor]:
    """Return the weights of the reblurring network under this package's keys, see :func:`network`."""
    return _renamed(weights, _REBLURRING, _REBLURRING_PREFIXES, warn)


def official_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return own weights under official keys, without their common prefix, for either network."""
    renamed = {}
    for name, tensor in weights.items():
        tables = (*_PREFIXES.items(), *_REBLURRING_PREFIXES.items())
        official, own = next((official, own) for official, own in tables if name.startswith(own))
        renamed[official + name[len(own) :]] = tensor[:, :, None, None] if name == "adaptive.weight" else tensor
    return renamed


def network_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration implied by keys and shapes; K cannot be inferred and is taken to be 3.

    Official keys imply ``horizontal="vertical"``, with which all released weights were trained.
    """
    official = _is_official(weights, _NETWORK, _PREFIXES)
    own = network(weights, warn=False)
    first, rows = own.get("encoder.stage1.0.0.weight"), own.get("adaptive.bias")
    if first is None or "decoder.enter.0.0.weight" not in own:
        return {}  # another network: loading reports what is missing
    config: dict[str, Any] = {"base_channels": first.shape[0]}
    if "disparity.0.0.weight" not in own:
        config["disparity"] = False
    if rows is None:
        config["filters"] = False
        return config if "disparity" in config else config | {"num_res_blocks": _units(own, "disparity.1.")}
    config["num_steps"] = max(rows.shape[0] // (4 * first.shape[0] * 7), 1)
    config["num_res_blocks"] = _units(own, "filter_features.1.")
    return config | ({"horizontal": "vertical"} if official else {})


def reblurring_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the configuration of a reblurring network, see :func:`network_config`."""
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
    """Return the weights of one network of a file that holds one or both, without its prefix."""
    inside = {name.removeprefix(part): tensor for name, tensor in weights.items() if name.startswith(part)}
    return inside or dict(weights)


def _is_official(weights: Mapping[str, Tensor], part: str, prefixes: Mapping[str, str]) -> bool:
    return any(_own_name(name, prefixes) is not None for name in _chosen(weights, part))


def _renamed(weights: Mapping[str, Tensor], part: str, prefixes: Mapping[str, str], warn: bool) -> dict[str, Tensor]:
    if warn and _is_official(weights, part, prefixes):
        warnings.warn(
            "load_checkpoint: these weights have official IFAN keys, and all released ones were trained with "
            'horizontal="vertical", but the model has the default "own". Pass horizontal="vertical", or "own" if '
            "they were trained with separate horizontal filters.",
            stacklevel=4,
        )
    return {_own_name(name, prefixes) or name: tensor for name, tensor in _chosen(weights, part).items()}
