import pytest
import torch

from tta_restore.data.synthetic.soften import soften


def _edges(pictures):
    return (pictures[..., 1:] - pictures[..., :-1]).abs().mean((1, 2, 3))


def test_soft_pictures_keep_their_brightness_and_lose_edges_and_the_others_stay_as_they_were():
    pictures = torch.rand(40, 3, 24, 31, generator=torch.Generator().manual_seed(0))
    found = soften(pictures, torch.Generator().manual_seed(1))
    same = (found == pictures).flatten(1).all(1)
    assert 10 < same.sum() < 30
    assert (_edges(found[~same]) < _edges(pictures[~same])).all()
    # what is cut off at 0 and 1 changes the mean a little
    torch.testing.assert_close(found.mean((2, 3)), pictures.mean((2, 3)), rtol=0, atol=2e-3)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize(("share", "changed"), [(0.0, 0), (1.0, 20)])
def test_share_says_how_many_are_softened(share, changed):
    pictures = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = soften(pictures, torch.Generator().manual_seed(1), share=share)
    assert (found != pictures).flatten(1).any(1).sum() == changed


def test_opposite_borders_do_not_mix():
    picture = torch.zeros(30, 1, 64, 64)
    picture[..., :4] = 1
    found = soften(picture, torch.Generator().manual_seed(0), share=1.0)
    bell = (found[..., 28].abs() < 1e-4).flatten(1).all(1)
    assert bell.any()  # a bell of at most 4 pixels has no weight 24 pixels away, nor at the other border
    assert (found[bell][..., 60:].abs() < 1e-4).all()


def test_the_same_seed_softens_the_same():
    pictures = torch.rand(6, 3, 16, 16)
    first, second = (soften(pictures, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("pictures", "share"),
    [(torch.rand(3, 8, 8), 0.5), (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 0.5), (torch.rand(1, 3, 8, 8), 1.5)],
)
def test_bad_input(pictures, share):
    with pytest.raises(ValueError, match="soften: expected"):
        soften(pictures, torch.Generator(), share=share)
