"""Weights with which input, source and student are averaged, chosen by estimated risks.

The squared error of an average is a quadratic form in its weights, so that a few candidates determine it for all of
them: on held-out pairs, where the target is known, and on the frame itself by recorruption, which needs no target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_STEP = 20  # weights are multiples of 1 / 20
_HARM = 1.0  # weight of the loss on pairs that the average restores worse than the source
_SIGNIFICANT = 1.0  # standard errors by which the frame must contradict the pairs
_DOUBT = 1.5  # standard deviations by which the noise may be larger than was read
_LIKENESS = 0.5  # difference of the log squared differences of source and student by which pairs count less
_CONTENT = 2.0  # weight of removed content, of which only the part that channels share is measured
_BORDER = 8  # pixels at each side that do not count: models see no neighbors there


@cache
def grid() -> Tensor:
    """Return weights of input, source and student, at least 0 and summing to 1: (M, 3)."""
    return torch.tensor(
        [(i / _STEP, j / _STEP, (_STEP - i - j) / _STEP) for i in range(_STEP + 1) for j in range(_STEP + 1 - i)],
        dtype=torch.float64,
    )


def pair_risk(candidates: tuple[Tensor, Tensor, Tensor], target: Tensor, likeness: Tensor | None = None) -> Tensor:
    """Return the error of every average on every pair, relative to the source's: (M, N).

    Args:
        candidates: restorations (input, source, student) of the pairs.
        target: targets of the pairs.
        likeness: how much each pair is like the frame, (N,), see :func:`likeness`: errors then count as they add up to
            that of the frame, relative to the mean error of the source. None counts pairs alike, whatever their error.

    Shape: candidates and target (N, C, H, W).
    """
    errors = torch.stack([(one.clamp(0, 1) - target).flatten(1) for one in candidates], 1).double()
    gram = (errors @ errors.mT / errors.shape[-1]).cpu()
    if likeness is None:
        gram = gram / gram[:, 1, 1].clamp(min=1e-7)[:, None, None]
    else:
        gram = gram * likeness.double().cpu()[:, None, None]
        gram = gram / gram[:, 1, 1].mean().clamp(min=1e-7)
    return torch.einsum("mi,nij,mj->mn", grid(), gram, grid())


def likeness(frame: Tensor, pairs: Tensor) -> Tensor:
    """Return how much each pair is like the patches of a frame, mean 1: (N,).

    Content decides how much a student gains: smooth material, where errors are small, says little of a frame with
    detail. What is seen of it without a target is how far source and student differ.

    Args:
        frame: mean squared difference of source and student on the patches of the frame, (Q,).
        pairs: the same on the pairs, (N,).
    """
    apart = frame.double().cpu().clamp(min=1e-9).log()[:, None] - pairs.double().cpu().clamp(min=1e-9).log()
    shares = torch.softmax(-0.5 * (apart / _LIKENESS).square(), 1).mean(0)
    return shares * len(shares)


def content_risk(content: Tensor, source_error: float) -> Tensor:
    """Return the error of every average that is due to the content it removes, relative to the source's error: (M,).

    Args:
        content: covariances of the content that source and student remove from a frame, beyond that on pairs, (2, 2).
        source_error: mean squared error of the source on pairs.
    """
    values, vectors = torch.linalg.eigh(content.double().cpu())
    removed = (grid()[:, 1:] @ vectors).square() @ values.clamp(min=0)
    return _CONTENT * removed / max(source_error, 1e-7)


@dataclass(frozen=True)
class FrameRisk:
    """Errors of the averages, estimated on a frame without a reference.

    Attributes:
        difference: error of each average less the source's, (M,).
        tolerance: standard error of ``difference``, (M,).
        source: error of the source; at least what another average gains, and a hundredth of the noise's variance.
        doubt: by how much ``difference`` may be too small if the noise was read too small, (M,).
    """

    difference: Tensor
    tolerance: Tensor
    source: float
    doubt: Tensor

    @property
    def excluded(self) -> Tensor:
        """Mask of the averages that may be significantly worse than the source, (M,)."""
        return self.difference + self.doubt > self.tolerance

    @property
    def relative(self) -> Tensor:
        """Error that each average may have, relative to the source's, (M,)."""
        return (1 + (self.difference + self.doubt) / self.source).clamp(min=0)


def frame_risk(
    candidates: list[tuple[Tensor, Tensor, Tensor]],
    noises: list[Tensor],
    frame: Tensor,
    *,
    strength: float,
    log_std: float,
) -> FrameRisk:
    """Estimate the errors of averages on a frame by recorruption.

    Candidates that were made from ``y + a z`` are compared with ``y - z / a``, z being noise of the frame's strength:
    the noise of the two is independent, so the difference of two candidates' errors is unbiased. Several z are
    averaged. If the noise is not of the strength of z, the estimate is off by twice the difference of the variances
    times the divergence of a candidate, which its response to z measures: a weaker restoration looks better on frames
    whose noise was read too small. (Content that was read as noise is the matter of ``_trust.structure_excess``.)

    Args:
        candidates: restorations (input, source, student) of the recorrupted frame, for each z.
        noises: z, in pairs of opposite sign.
        frame: y.
        strength: a.
        log_std: standard deviation of the logarithm of the noise that was read.

    Source: Pang et al., "Recorrupted-to-Recorrupted", CVPR 2021.
    """
    inner = [slice(_BORDER, -_BORDER) if side >= 4 * _BORDER else slice(None) for side in frame.shape[-2:]]
    inside = (..., *inner)
    risks, deviations, divergences, variances = [], [], [], []
    for images, noise in zip(candidates, noises, strict=True):
        z = noise[inside]
        stack = torch.stack([one[inside].flatten() for one in images]).double().cpu()
        errors = stack - (frame[inside] - z / strength).flatten().double().cpu()
        z = z.flatten().double().cpu()
        risks.append(torch.einsum("mi,ij,mj->m", grid(), errors @ errors.T / errors.shape[1], grid()))
        deviations.append((errors[2].square() - errors[1].square()).std() / errors.shape[1] ** 0.5)
        divergences.append(grid() @ (stack @ z) / (strength * z.square().sum()))
        variances.append(float(z.square().mean()))
    risk, divergence = torch.stack(risks).mean(0), torch.stack(divergences).mean(0)
    variance = sum(variances) / len(variances)
    reference = grid()[:, 1] == 1
    source = risk[reference]
    deviation = torch.stack(deviations).mean() / len(deviations) ** 0.5
    tolerance = _SIGNIFICANT * deviation * (1 - grid()[:, 1])
    doubt = 2 * variance * (divergence - divergence[reference]).clamp(min=0) * math.expm1(2 * _DOUBT * log_std)
    difference = risk - source
    # less the noise, whose variance is not known exactly; no error is negative
    error = max(float(source) - variance * (1 + 1 / strength**2), -float(difference.min()), 0.01 * variance, 1e-7)
    return FrameRisk(difference, tolerance, error, doubt)


def choose(
    pairs: Tensor,
    frame: FrameRisk | None,
    *,
    others: Sequence[tuple[Tensor, float]] = (),
    measured: bool = False,
    max_student: float = 1.0,
    max_input: float = 1.0,
) -> int:
    """Return the row of :func:`grid` with the smallest error on pairs among those that the frame permits.

    Args:
        pairs: relative errors of :func:`pair_risk`, (M, G, N): of G degradations that are possible, the one that suits
            an average least counts. Losses to the source count twice.
        frame: risk on the frame; averages that may be worse there than the source are excluded.
        others: relative errors on pairs of other degradations, (M, N), and how much each counts of 1 in all.
        measured: whether ``frame`` measures the error itself and not only the part of it that the degradation leaves
            visible; it then counts as much as the pairs.
        max_student: largest weight of the student.
        max_input: largest weight of the input.
    """
    score = (1 - sum(share for _, share in others)) * _score(pairs).amax(1)
    for risk, share in others:
        score = score + share * _score(risk)
    excluded = (grid()[:, 2] > max_student + 1e-6) | (grid()[:, 0] > max_input + 1e-6)
    if frame is not None:
        excluded = excluded | frame.excluded
        score = score + frame.relative if measured else score
    return int(torch.where(excluded, score.new_tensor(float("inf")), score).argmin())


def _score(pairs: Tensor) -> Tensor:
    source = pairs[grid()[:, 1] == 1]
    return pairs.mean(-1) + _HARM * (pairs - source).clamp(min=0).mean(-1)
