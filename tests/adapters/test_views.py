import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from tta_restore.adapters import Adapter, SelfEnsemble, resolve_views
from tta_restore.adapters.views import NAMED

SIZES = {"identity": 1, "rot4": 4, "rot4_flip": 5, "d4": 8}


@pytest.mark.parametrize("group", NAMED)
@hypothesis.given(height=st.integers(1, 9), width=st.integers(1, 9), batch=st.integers(1, 2), scale=st.integers(1, 3))
def test_the_way_back_undoes_the_view_at_any_scale(group, height, width, batch, scale):
    x = torch.rand(batch, 3, height, width)
    views = resolve_views(group)
    assert len(views) == SIZES[group]
    for there, back in views:
        seen = there(x)
        assert sorted(seen.shape[-2:]) == sorted((height, width))
        assert torch.equal(back(seen), x)
        larger = seen.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        assert torch.equal(back(larger), x.repeat_interleave(scale, -1).repeat_interleave(scale, -2))


@pytest.mark.parametrize("group", NAMED)
def test_views_differ_and_begin_with_the_frame_itself(group):
    x = torch.arange(2 * 3 * 5 * 4.0).view(2, 3, 5, 4)
    seen = [there(x) for there, _ in resolve_views(group)]
    assert torch.equal(seen[0], x)
    assert len({tuple(view.flatten().tolist()) + tuple(view.shape) for view in seen}) == len(seen)
    clip = torch.rand(1, 5, 3, 4, 6)
    assert all(torch.equal(back(there(clip)), clip) for there, back in resolve_views(group))


def test_quarter_turns_are_counter_clockwise():
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, None]
    assert resolve_views("rot4")[1][0](x)[0, 0].tolist() == [[1, 3], [0, 2]]


def test_own_views_and_refusals():
    pair = (lambda x: 1 - x, lambda y: 1 - y)
    assert resolve_views([pair]) == (pair,)
    for wrong, error in [("rot5", ValueError), ([], ValueError), ([pair[0]], TypeError), ([(1, 2)], TypeError)]:
        with pytest.raises(error, match="views: expected"):
            resolve_views(wrong)


def test_the_self_ensemble_is_the_mean_of_what_comes_back():
    def brighter_at_the_top(x):
        return x + torch.linspace(0.4, 0, x.shape[-2])[:, None]

    x = torch.rand(1, 3, 6, 6)
    expected = torch.stack([
        torch.rot90(brighter_at_the_top(torch.rot90(x, k, (2, 3))), -k, (2, 3)) for k in range(4)
    ]).mean(0)  # fmt: skip
    torch.testing.assert_close(SelfEnsemble(brighter_at_the_top)(x), expected)
    assert not torch.allclose(expected, brighter_at_the_top(x))
    negative = [(lambda x: x, lambda y: y), (lambda x: 1 - x, lambda y: 1 - y)]
    torch.testing.assert_close(
        SelfEnsemble(brighter_at_the_top, views=negative)(x), x, msg="brighter and darker cancel"
    )
    assert torch.equal(Adapter(brighter_at_the_top)(x), brighter_at_the_top(x))
