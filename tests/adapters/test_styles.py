"""Networks in many styles: each method is right on each, or refuses it before anything changes."""

import re

import pytest
import torch
from adapters.plain_loops import LOOPS, Plain
from adapters.styles import ARGUMENTS, COMPARED, METHODS, REFUSED, STYLES, build, frames, outcome

from tta_restore.adapters import SelfEnsemble

pytestmark = [
    pytest.mark.usefixtures("one_examination"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
WORKS = ("SelfEnsemble", "SiamCTTA", "SelfDenoise")
OF_EACH_KIND = ("plain", "second input", "depends on earlier calls", "TorchScript inside")
"""Styles on which every method is tried; the others with one method that adapts on views and one that makes pairs."""

ON_ALL = ("SiamCTTA", "SelfDenoise", "DegradationPairs")
TYPICAL = ("plain", "tied weights", "weight norm", "dict output", "eats its border", "second input", "multiple of 64")
"""Styles on which the other methods are compared with a plain loop."""
NOT_TAKEN = {"DegradationPairs": "[246] channels|24x32", "CauSiam": "second input"}
"""Styles that a method refuses, or trains on in tiles, which tests of restorers compare."""


@pytest.mark.parametrize("style", STYLES)
def test_methods_are_right_or_refuse_in_words(style):
    few = ("SelfEnsemble", "SiamCTTA") if style in COMPARED else ("SelfEnsemble", "SiamCTTA", "DegradationPairs")
    for method in METHODS if style in OF_EACH_KIND else few:  # a plain loop is compared with the pairs' steps below
        said = outcome(method, style)
        if style in REFUSED:
            assert said == "yes" or re.search(REFUSED[style], said), (method, said)
            assert said != "yes" or method in ("Adapter", "SelfEnsemble"), method
        elif method in WORKS:
            assert said == "yes", (method, said)


@pytest.mark.parametrize(
    ("style", "method"),
    [
        pytest.param(
            style,
            method,
            marks=[pytest.mark.thorough] * (method in ("DegradationPairs", "SelfDenoise") and style not in TYPICAL),
        )
        for method in LOOPS
        for style in (COMPARED if method in ON_ALL else TYPICAL)
        if not re.search(NOT_TAKEN.get(method, "$^"), style)
    ],
)
def test_weights_and_outputs_are_those_of_a_plain_loop(style, method):
    make, loop = LOOPS[method]
    adapter = make(build(style))
    plain = loop(style, adapter)
    start = {name: weight.detach().clone() for name, weight in plain.student.weights.items()}
    arguments = ARGUMENTS.get(style, {})
    stream = frames(style, 2, width=20, clip=method == "MetaTransfer")
    stream[1:1] = [stream[0]] if method == "EATA" else []
    for x in stream:
        plain.generator = adapter.state.generator()
        adapter(x, **arguments)
        plain.frame(x)
    moved = 0.0
    for found, expected in plain.compared():
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-5)
            moved = max(moved, float((weight - start[name]).detach().abs().max())) if name in start else moved
    assert moved > 1e-3
    output = plain.output(stream[0])
    if output is not None:
        adapter.freeze()
        torch.testing.assert_close(adapter.restore(stream[0], **arguments), output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("style", COMPARED)
@pytest.mark.parametrize("group", ["rot4_flip", "d4"])
def test_views_are_turned_back(group, style):
    plain, x = Plain(style, group), frames(style, 1, width=20)[0]
    found = SelfEnsemble(build(style), views=group).restore(x, **ARGUMENTS.get(style, {}))
    torch.testing.assert_close(found, plain.mean(x))
    assert not torch.allclose(found, plain.run(x), atol=1e-3)
