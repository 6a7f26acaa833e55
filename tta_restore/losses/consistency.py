"""Consistency loss between a student's and a teacher's restoration of one frame."""

from __future__ import annotations

from torch import Tensor

from tta_restore.losses._base import LossModule, Reduction, expect_pair, expect_reduction, reduce, widen

__all__ = ["SiameseConsistencyLoss", "siamese_consistency_loss"]


def siamese_consistency_loss(student: Tensor, teacher: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the L1 distance between the student's and the teacher's image.

    The teacher's image gets no gradient. It is usually the mean over test-time augmentations after their inverse
    transforms. Half-precision inputs are accumulated in float32.

    Args:
        student: output of the student.
        teacher: output of the teacher.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one value per element.

    Shape:
        - student, teacher: one shape, usually (B, C, H, W), in [0, 1]
        - output: scalar, or the shape of ``student`` with ``reduction="none"``

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes differ, or ``reduction`` is unknown.

    Source: Causal Siamese networks for continual test-time adaptation, arXiv 2501.09052; the loss of SiamCTTA.
    """
    expect_pair("siamese_consistency_loss", None, student=student, teacher=teacher)
    expect_reduction("siamese_consistency_loss", reduction)
    # Only the student is widened: the difference promotes the teacher.
    return reduce((teacher.detach() - widen(student)).abs(), reduction)


class SiameseConsistencyLoss(LossModule):
    """Module form of :func:`siamese_consistency_loss`."""

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the student's image against the teacher's."""
        return siamese_consistency_loss(student, teacher, **self.settings)
