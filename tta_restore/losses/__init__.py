"""Loss functions with ``reduction``, and a module of the same stem for each."""

from tta_restore.losses.adversarial import (
    AdversarialLoss,
    CycleLoss,
    DiscriminatorLoss,
    adversarial_loss,
    cycle_loss,
    discriminator_loss,
)
from tta_restore.losses.alignment import DeformationLoss, calibration_mask, deformation_loss
from tta_restore.losses.consistency import SiameseConsistencyLoss, siamese_consistency_loss
from tta_restore.losses.pixel import (
    CharbonnierEdgeLoss,
    CharbonnierLoss,
    EdgeLoss,
    L1FourierLoss,
    MultiOutputLoss,
    charbonnier_edge_loss,
    charbonnier_loss,
    edge_loss,
    l1_fourier_loss,
    multi_output_loss,
)
from tta_restore.losses.reblur import (
    BlurMapLoss,
    DisparityLoss,
    ReblurLoss,
    blur_map_loss,
    disparity_loss,
    reblur_loss,
)

__all__ = [
    "AdversarialLoss",
    "BlurMapLoss",
    "CharbonnierEdgeLoss",
    "CharbonnierLoss",
    "CycleLoss",
    "DeformationLoss",
    "DiscriminatorLoss",
    "DisparityLoss",
    "EdgeLoss",
    "L1FourierLoss",
    "MultiOutputLoss",
    "ReblurLoss",
    "SiameseConsistencyLoss",
    "adversarial_loss",
    "blur_map_loss",
    "calibration_mask",
    "charbonnier_edge_loss",
    "charbonnier_loss",
    "cycle_loss",
    "deformation_loss",
    "discriminator_loss",
    "disparity_loss",
    "edge_loss",
    "l1_fourier_loss",
    "multi_output_loss",
    "reblur_loss",
    "siamese_consistency_loss",
]
