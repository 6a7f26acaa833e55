"""The likely mistakes, at every entry point that takes frames, are answered in the caller's words."""

import pytest
import torch

from tta_restore import adapters, losses, models, nn, ops

FRAME = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MAP, WEIGHTS = torch.rand(1, 35, 32, 32), torch.rand(1, 8, 32, 32)
REBLUR = models.create_model("jdrl_reblur", width=2)
ENTRANCES = {
    "ifan": models.create_model("ifan", base_channels=2, num_steps=2),
    "dpdnet_s": models.create_model("dpdnet_s", width=2),
    "jdrl_unet": models.create_model("jdrl_unet", width=2),
    "jdrl_reblur": lambda x: REBLUR(x, FRAME),
    "the observation of jdrl_reblur": lambda x: REBLUR(FRAME, x),
    "patch_critic": models.create_model("patch_critic", base_channels=2),
    "IsotropicKernelPredictor": lambda x: nn.IsotropicKernelPredictor(width=2)(x, FRAME),
    "BlurMapEstimator": nn.BlurMapEstimator(width=2),
    "BlurMapFusion": lambda x: nn.BlurMapFusion()(x, MAP),
    "DisparityEstimator": nn.DisparityEstimator(3),
    "isotropic_reblur": lambda x: ops.isotropic_reblur(x, MAP, WEIGHTS),
    "self_shift_score": ops.self_shift_score,
    "flow_warp": lambda x: ops.flow_warp(x, torch.zeros(1, 2, 32, 32)),
    "as_restorer": models.as_restorer(torch.nn.Conv2d(3, 3, 3, padding=1)),
    "Adapter": adapters.Adapter(torch.nn.Conv2d(3, 3, 3, padding=1)),
    "predict": adapters.SiamCTTA(torch.nn.Conv2d(3, 3, 3, padding=1), select="all").predict,
    "charbonnier": lambda x: losses.charbonnier_loss(x, FRAME),
    "reblur": lambda x: losses.reblur_loss(x, FRAME),
}


@pytest.mark.parametrize("entrance", ENTRANCES.values(), ids=ENTRANCES)
def test_wrong_kinds_and_ranks_are_named(entrance):
    with pytest.raises(TypeError, match=r": expected .* to be a torch.Tensor, got ndarray"):
        entrance(FRAME.numpy())
    with pytest.raises(TypeError, match=r"torch.uint8 \(frames are floats in \[0, 1\]: divide by 255 first\)"):
        entrance((255 * FRAME).byte())
    with pytest.raises(ValueError, match=r": expected .*\(3, 32, 32\)"):
        entrance(FRAME[0])
    with pytest.raises(ValueError, match=r": expected .*\(32, 32, 3\)"):
        entrance(FRAME[0].permute(1, 2, 0))


@pytest.mark.parametrize("name", ["ifan", "dpdnet_s", "jdrl_unet", "jdrl_reblur", "BlurMapEstimator", "BlurMapFusion"])
def test_wrong_channels_are_named(name):
    with pytest.raises(
        ValueError, match=r": expected .* of shape \(B, .*, H, W\) = \(any, 3, any, any\), got \(1, 1, 32"
    ):
        ENTRANCES[name](FRAME[:, :1])


@pytest.mark.parametrize(("name", "multiple"), [("ifan", 8), ("dpdnet_s", 16), ("jdrl_unet", 16)])
def test_wrong_sides_are_named_and_restorers_pad_them(name, multiple):
    with pytest.raises(
        ValueError, match=rf"{name}: expected H and W to be multiples of {multiple}, got \(1, 3, 30, 32\)"
    ):
        ENTRANCES[name](FRAME[..., :30, :])
    assert models.as_restorer(ENTRANCES[name])(FRAME[..., :5, :3]).shape == (1, 3, 5, 3)


def test_a_map_of_other_channels_is_named():
    unet = models.create_model("jdrl_unet", width=2, prior=True)
    with pytest.raises(
        ValueError, match=r"blur_map of shape \(B, sum\(\(K\+1\)/2\), H, W\) = \(1, 35, 32, 32\), got \(1, 8"
    ):
        unet(FRAME, WEIGHTS)
    with pytest.raises(
        ValueError, match=r"blur_map of shape \(B, M, h, w\) = \(1, 35, any, any\), got \(1, 8, 32, 32\)"
    ):
        nn.BlurMapFusion()(FRAME, WEIGHTS)
    with pytest.raises(TypeError, match="SemanticCrossAttention: expected x to be a torch.Tensor, got ndarray"):
        nn.SemanticCrossAttention(3, 12)(FRAME.numpy(), torch.rand(1, 12))
