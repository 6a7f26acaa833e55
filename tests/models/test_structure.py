import collections
import dataclasses
from collections import OrderedDict

import pytest
import torch

from tta_restore.models.restorer import outputs

Pair = collections.namedtuple("Pair", ["image", "score"])


@dataclasses.dataclass(frozen=True)
class Result:
    image: torch.Tensor
    notes: dict


class Output(OrderedDict):
    """As transformers.ModelOutput: an ordered dict whose keys are attributes too."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


A, B = torch.zeros(1), torch.ones(2)
OUTPUTS = [
    A,
    [A, B],
    (A, [B, "text", None]),
    {"image": A, "all": [B]},
    Pair(A, B),
    Result(A, {"b": B}),
    Output(reconstruction=A, hidden=(B,)),
]


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: type(output).__name__)
def test_one_leaf_is_replaced_and_the_original_stays(output):
    paths = dict(outputs.leaves(output))
    first = next(iter(paths))
    assert paths[first] is A
    changed = outputs.transform(output, lambda path, leaf: leaf + 7 if path == first else leaf)
    assert type(changed) is type(output)
    assert outputs.at(changed, first).item() == 7
    assert outputs.at(output, first) is A
    rest = [(path, leaf) for path, leaf in outputs.leaves(changed) if path != first]
    assert all(leaf is B for _, leaf in rest)
    assert len(rest) == len(paths) - 1


def test_attributes_of_a_model_output_follow_its_keys():
    changed = outputs.transform(Output(reconstruction=A), lambda path, leaf: leaf + 1)
    assert changed.reconstruction.item() == changed["reconstruction"].item() == 1


def test_at_takes_negative_positions_and_refuses_what_is_not_there():
    assert outputs.at([A, (B, A)], (-1, -2)) is B
    for path in [(2,), ("image",), (0, 0)]:
        with pytest.raises(LookupError):
            outputs.at([A, (B, A)], path)


def test_single_images_are_joined_to_a_batch():
    single = [{"image": torch.full((1, 3), float(i)), "scale": torch.tensor(2.0), "name": "x"} for i in range(3)]
    joined = outputs.concatenate(single)
    assert joined["image"][:, 0].tolist() == [0, 1, 2]
    assert joined["scale"].item() == 2
    assert joined["name"] == "x"
