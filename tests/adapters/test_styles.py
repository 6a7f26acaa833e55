"""Networks in many styles: each method is right on each, or refuses it before anything changes."""

import pytest
import torch
from adapters.styles import ARGUMENTS, COMPARED, METHODS, STYLES, build, frames, outcome, plain_loop

from tta_restore.adapters import SiamCTTA

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
WORKS = ("SelfEnsemble", "SiamCTTA")
REFUSED = {"TorchScript": "TorchScript", "lazy": "lazy weights"}


@pytest.mark.parametrize("style", STYLES)
def test_every_method_is_right_or_refuses_in_words(style):
    for method in METHODS:
        said = outcome(method, style)
        if style in REFUSED:
            assert said == "yes" or REFUSED[style] in said, (method, said)
        elif method in WORKS:
            assert said == "yes", (method, said)


@pytest.mark.parametrize("style", COMPARED)
def test_adapted_weights_are_those_of_a_plain_loop(style):
    if style == "non-deterministic":
        pytest.skip("no two runs of it agree")
    adapter = SiamCTTA(build(style), lr=1e-2, restore=0.0)
    for x in frames(style):
        adapter(x, **ARGUMENTS.get(style, {}))
    expected = plain_loop(style)
    assert adapter.student.keys() == expected.keys()
    for name, weight in adapter.student.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-5)
