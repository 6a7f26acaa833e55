"""Siamese consistency: a student follows what its teacher says about the same frame."""

from __future__ import annotations

from torch import Tensor, nn

from tta_restore._core import checks


def siamese_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference between the student's image and the teacher's, which gets no gradient.

    The teacher's image is usually the mean of its views, each turned back. Half types are accumulated in float32.

    Shape: student, teacher of one shape, usually (B, C, H, W) in [0, 1] -> scalar.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: the shapes differ.

    Source: Causal Siamese networks for continual test-time adaptation (arXiv 2501.09052), the loss of SiamCTTA.
    """
    checks.expect_floating("siamese_consistency", student=student, teacher=teacher)
    checks.expect_shape("siamese_consistency", "teacher", teacher, "student.shape", tuple(student.shape))
    if student.dtype.itemsize < 4:
        student = student.float()
    return (teacher.detach() - student).abs().mean()


class SiameseConsistency(nn.Module):
    """Module of :func:`siamese_consistency`."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of the student's image against the teacher's."""
        return siamese_consistency(student, teacher)
