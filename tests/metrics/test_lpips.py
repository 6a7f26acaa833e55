"""LPIPS by torchmetrics with weights from a file, against its definition written out."""

import pytest
import torch
from _alexnet import save_alexnet

from tta_restore.metrics import Lpips


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    return path, save_alexnet(path)


def test_the_definition(weights):
    path, features = weights
    before = torch.get_rng_state()
    lpips = Lpips(path)
    assert torch.equal(torch.get_rng_state(), before)
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, 3, 64, 72, generator=generator) for _ in range(2))
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    x, y = ((2 * image - 1 - shift) / scale for image in (a, b))
    expected, heads = torch.zeros(2), iter(lpips.network.lins)
    with torch.no_grad():
        for layer in features:
            x, y = layer(x.clone()), layer(y.clone())
            if isinstance(layer, torch.nn.ReLU):
                difference = x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)
                weight = next(heads).model[-1].weight  # the learned one per channel
                expected += (difference.square() * weight[:, :, 0, 0].view(1, -1, 1, 1)).sum(1).mean((1, 2))
    assert next(heads, None) is None
    torch.testing.assert_close(lpips(a, b), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lpips(a, a), torch.zeros(2))
    assert not lpips.train().training


@pytest.mark.thorough
def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"expected AlexNet's weights at .*alexnet-owt-7be5be79.pth, found no file"):
        Lpips()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="expected weights of AlexNet in .*other.pth"):
        Lpips(tmp_path / "other.pth")
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="expected weights of AlexNet in .*bad.pth"):
        Lpips(tmp_path / "bad.pth")


@pytest.mark.thorough
def test_the_distance_is_a_training_loss(weights):
    lpips = Lpips(weights[0])
    a, b = torch.rand(2, 1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lpips.distance(a, b), lpips(a, b))
    lpips.distance(a.requires_grad_(), b).sum().backward()
    assert a.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in lpips.parameters())
