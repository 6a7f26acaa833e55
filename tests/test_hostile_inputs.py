"""The benchmark of hostile inputs: it makes enough of them, and a sample of each kind is named or restored."""

import json

import pytest
from PIL import Image

from benchmarks.hostile.files import Made
from benchmarks.hostile_inputs import LONGEST, judge, make_inputs, run_child

pytest.importorskip("av")
pytest.importorskip("imagecodecs")


@pytest.mark.thorough
def test_a_sample_of_the_hostile_inputs(tmp_path, capsys):
    made = make_inputs(tmp_path / "in")
    assert len({entry.path for _, entry in made}) == len(made) >= 400
    Image.effect_noise((16, 16), 50).convert("RGB").save(tmp_path / "good.png")
    numbers = {
        *range(0, len(made), 12),
        *(i for i, (_, entry) in enumerate(made) if entry.path.name.startswith("bomb")),
    }
    chosen = sorted(number for number in numbers if made[number][0] != "configurations")
    run_child(tmp_path, chosen, (), made)
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "status" in line]
    assert [result["number"] for result in results] == chosen
    for result in results:
        outcome, why = judge(*made[result["number"]], result)
        assert outcome != "failure", (made[result["number"]], why)


def test_failures_are_told_apart(tmp_path):
    path = tmp_path / "a.png"
    good = {"failure": None, "seconds": 0.1, "lines": [f"error: {path}: damaged", "1 restored, 1 failed"], "status": 1}
    assert judge("images", Made(path), good)[0] == "named"
    assert judge("images", Made(path), good | {"status": 0, "lines": []})[0] == "restored"
    for bad in (
        {"failure": "KeyError: 3"}, {"seconds": LONGEST + 1}, {"lines": ["Traceback (most recent call last):"]},
        {"lines": ["error: something"]},
    ):  # fmt: skip
        assert judge("images", Made(path), good | bad)[0] == "failure"
    assert judge("states", Made(path), good | {"status": 0})[0] == "failure"
    assert judge("states", Made(path, is_whole=True), good | {"status": 0})[0] == "restored"
    assert judge("images", Made(path, is_whole=True), good)[0] == "failure"
    assert judge("images", Made(path), good | {"lines": good["lines"] * 2})[0] == "failure"
    assert judge("images", Made(path), good | {"lines": good["lines"][:1]})[0] == "failure"
