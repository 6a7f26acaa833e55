"""Limits on the weights of input and student, from what can be read wrongly on a frame.

Pairs made from a wrong reading favor a student that the frame does not need. The limits depend on the lead on pairs,
the blur radius, JPEG compression, and the correlation of the residual; docs/measurements.md states on which frames they
were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_restore.degradations import Reading
from tta_restore.degradations._haar import haar, quads
from tta_restore.degradations.noise_correlation import haar_energies, unevenness

_MIN_MEASURED = 2.0  # noise in 1/255 from which the error on a frame is measured well
_MIN_QUALITY = 95.0  # JPEG quality below which a frame counts as compressed
# Lead in dB from which a student may have all the weight: one that keeps blur, one that removes it, one that upscales
_FULL_LEAD_KEEPING, _FULL_LEAD, _FULL_LEAD_UPSCALING = 0.2, 0.8, 0.75
_LEAD_UNTRAINED = (1.4, 1.8)  # leads in dB that earn nothing and all where the model was not made to remove noise
_LEAD_COMPRESSED = (0.25, 0.5)  # leads in dB that earn a student that keeps blur nothing, and half of the weight
# Noise in 1/255 that texture is taken for in compressed frames, sometimes and often; for denoisers per unit of quality
_HIDDEN_NOISE, _HIDDEN_NOISE_DENOISING = (7.0, 10.0), (0.4, 0.6)
# Blur radii in pixels up to which the input may have all the weight, and from which none: smaller under compression,
# which lets blur appear smaller
_SHARP, _SHARP_COMPRESSED = (0.8, 1.2), (0.6, 0.85)
_UNKNOWN = (0.8, 1.0)  # standard deviations of the log radius from which it is less and not known
# Blur radii in pixels, as read in compressed frames, between which the weight of a student that removes blur grows, and
# its limits: compression lets blur appear smaller
_SURE_BLUR, _MIN_SHARE, _MAX_SHARE = (1.2, 2.0), 0.3, 0.8
_MAX_SHARE_CLEAN = 0.5  # of that student without noise and compression, where nothing but the pairs speaks for it
_DOUBT = (0.0, -1.0, 1.0)  # standard deviations by which noise and blur may be other than they were read
# The same for blur alone, with probabilities: it is mostly read too large, as content is soft by itself
_DOUBT_BLUR = ((-2.0, 0.35), (-1.0, 0.25), (1.0, 0.15))
_REMOVES_NOISE = (3.0, 8.0)  # noise in 1/255 between which the first counts less, as it is noise that a student removes
_NO_BLUR = 0.2  # pixels, which are not visible
_ODDS_OF_BLUR = 1.0  # log odds that a frame for a restorer that removes blur is blurred
_SOFTEST = (1.5, 2.5)  # radii in pixels that content is softer than rarely, and never
# Log odds that frames without noise are blurred, and not only soft by themselves, from which an upscaler's student gets
# some of the weight, and from which as much as it ever does
_BLURRED_UPSCALING, _MAX_SHARE_UPSCALING = (2.0, 4.0), 0.75
_MAX_BLUR_UPSCALING = 0.9  # radius in pixels that upscalers learn to remove from noisy frames; more is soft content
# Detail of the smoothest tenth of a frame beyond the noise that was read, relative to it and 1.5/255 more
_UNEXPLAINED, _MIN_DETAIL = (0.9, 1.5), 1.5
# That of three tenths relative to it: texture differs from place to place, other degradations hardly
_VARIED, _SMOOTHEST, _SMOOTH, _BLOCK, _MIN_BLOCKS = (1.15, 1.3), 0.1, 0.3, 8, 10
# What the source removes from a frame, relative to pairs, and what noise of 1/255 adds to these limits
_REMOVED, _REMOVED_NOISE = (0.85, 1.05), 0.02
# Correlation of the residual, beyond that on pairs and per dB of lead, that is trusted fully and not any more
_EXCESS, _EXCESS_UPSCALING = (0.05, 0.1), (0.04, 0.07)
# The same on frames without color, and by how much less a student has to correlate than the source to be exempt
_EXCESS_COLORLESS, _GENTLER = (0.01, 0.02), 0.005
# Lead in dB, and explained part of a frame, from which removed content is an error to be weighed, not a limit
_FAR_AHEAD, _WELL_EXPLAINED = 2.0, 0.9
_UNEVEN = (1.15, 1.2)  # and how uneven such a frame may be: content in most blocks is taken for noise


def max_student(lead: float, readings: Sequence[Reading], *, sharpens: bool, scale: int, denoises: bool) -> float:
    """Return the largest weight of a student with a lead on pairs, 0 to 1.

    A small lead is not worth the risk. JPEG compression spoils the estimates of noise and blur: half of the weight
    then, less where small blur was read, and nothing where more noise was read than the compression would have left.

    Args:
        lead: PSNR gain over the source on held-out pairs, dB.
        readings: of the frame, and pooled, which counts for upscalers: all frames of a camera are blurred or none.
        sharpens: whether the student removes blur.
        scale: upscaling factor of the restorer.
        denoises: whether the restorer was made to remove noise.
    """
    compressed = is_compressed(readings)
    if compressed and not sharpens:
        noise = 255 * max(reading.mean["noise_std"] for reading in readings)
        if denoises:
            noise /= min(reading.mean["jpeg_quality"] for reading in readings)
        hidden = _position(noise, _HIDDEN_NOISE_DENOISING if denoises else _HIDDEN_NOISE)
        return _position(lead, _LEAD_COMPRESSED) / 2 * (1 - hidden)
    full = _FULL_LEAD_KEEPING
    if sharpens:
        full = _FULL_LEAD if scale == 1 else _FULL_LEAD_UPSCALING
    share = min(max(lead / full, 0.0), 1.0)
    if not sharpens and not denoises and not is_shown(readings):
        share = _position(lead, _LEAD_UNTRAINED)  # true noise leaves it much to gain
    if sharpens and scale == 1:
        share *= _known(readings)
        if compressed:
            radius = min(reading.mean["blur_radius"] for reading in readings)
            share *= min(max(_position(radius, _SURE_BLUR), _MIN_SHARE), _MAX_SHARE)
        elif not any(is_noisy(reading) for reading in readings):
            share = min(share, _MAX_SHARE_CLEAN)
    elif sharpens and not any(is_noisy(reading) for reading in readings):
        share *= _MAX_SHARE_UPSCALING * _position(float(readings[-1].blurred), _BLURRED_UPSCALING)
    return share / 2 if compressed else share


def hypotheses(reading: Reading, *, deblurs: bool) -> list[Reading]:
    """Return the readings that may be true, the reading itself first, of which the one that suits least counts.

    For restorers that remove the blur of a lens, :func:`other_blur` has more. Here it is what a second estimator reads
    in frames without noise, where that is more: it takes blur to be even, so that it reads less where blur varies.
    """
    if not deblurs:
        return [_moved(reading, steps) for steps in _DOUBT]
    possible = [_moved(reading, 0.0)]
    odds, mean, deviation = reading.even_blur.tolist()
    if not is_noisy(reading) and deviation > 0 and odds > 0 and mean > float(reading.blur[0]):
        possible.append(_with_radius(reading, mean))
    return possible


def other_blur(readings: Sequence[Reading]) -> list[tuple[Reading, float]]:
    """Return estimates of a frame with other blur than was read, and none, and their probabilities.

    Args:
        readings: of the frame, and pooled.
    """
    reading, blurred = readings[-1], probability_of_blur(readings)
    noise = 255 * min(one.mean["noise_std"] for one in readings)
    removes_noise = 0.0 if is_compressed(readings) else _position(noise, _REMOVES_NOISE)
    mean, deviation = reading.blur.tolist()
    other = [(_with_radius(reading, mean + steps * deviation), share * blurred) for steps, share in _DOUBT_BLUR]
    less, share = other[0]
    return [(less, share * (1 - removes_noise)), *other[1:], (_with_radius(reading, math.log(_NO_BLUR)), 1 - blurred)]


def probability_of_blur(readings: Sequence[Reading]) -> float:
    """Return the probability that a frame is blurred, and not only soft by itself.

    Frames for a restorer that removes blur are blurred more often than not, and those of a camera are alike.

    Args:
        readings: of the frame, and pooled.
    """
    frame, camera = readings
    if float(frame.even_blur[2]) == 0:
        return 1.0
    odds = frame.even_blur[0] + (camera.even_blur[0] if camera.frames > 1 else 0.0)
    soft = 1 - float((odds + _ODDS_OF_BLUR).sigmoid())
    return 1 - soft * (1 - _position(camera.mean["blur_radius"], _SOFTEST))


def _with_radius(reading: Reading, log_radius: float) -> Reading:
    return _moved(replace(reading, blur=reading.blur.new_tensor([log_radius, 0.0])), 0.0)


def _moved(reading: Reading, steps: float) -> Reading:
    """Return a reading with strengths that many standard deviations away, and certain of them."""
    noise, blur = (
        torch.stack([mean + steps * deviation, 0 * deviation]) for mean, deviation in (reading.noise, reading.blur)
    )
    probability, quality, deviation = reading.jpeg
    jpeg = torch.stack([probability, (quality - steps * deviation).clamp(2, 100), 0 * deviation])
    return replace(reading, noise=noise, blur=blur, jpeg=jpeg)


def plausible(reading: Reading, *, scale: int) -> Reading:
    """Return the reading that pairs are made from: an upscaler is not to sharpen the soft content of a noisy frame.

    What it gains there is the removal of noise, which does not need the blur to be right.
    """
    if scale == 1 or not is_noisy(reading):
        return reading
    return replace(
        reading, blur=reading.blur.minimum(reading.blur.new_tensor([math.log(_MAX_BLUR_UPSCALING), math.inf]))
    )


def with_filter_of(camera: Reading, reading: Reading, near: float) -> Reading:
    """Return the reading of a frame with the filter of a camera's noise, if the frame does not show which it has.

    Its noise was then read as white, and too weak. If noise with that filter would be as strong as the camera's, within
    a distance of ``near``, it is the camera's; the reading is returned unchanged otherwise.
    """
    pixels = camera.between_pixels
    if not pixels or float(reading.correlation[1]) > 0:
        return reading
    shift = torch.tensor([-0.5 * math.log(float(haar_energies(pixels)[0])), 0.0])
    filtered = replace(reading, noise=reading.noise + shift, correlation=torch.tensor([pixels, 1.0]))
    return filtered if filtered.distance(camera) <= near else reading


def max_input(readings: Sequence[Reading], *, scale: int) -> float:
    """Return the largest weight of the input next to a restorer that removes blur, 0 to 1.

    None if the input is blurred, or if nothing in it shows whether it is. Bicubic upsampling blurs: it only keeps a
    restorer from adding noise or artifacts.
    """
    if scale > 1:
        return float(is_compressed(readings) or all(is_noisy(reading) for reading in readings))
    limits = _SHARP_COMPRESSED if is_compressed(readings) else _SHARP
    sharp = 1 - _position(max(reading.mean["blur_radius"] for reading in readings), limits)
    return sharp * _known(readings)


def is_compressed(readings: Sequence[Reading]) -> bool:
    """Return whether a frame was compressed, so that its noise is not white."""
    return any(reading.mean["jpeg_quality"] < _MIN_QUALITY for reading in readings)


def is_shown(readings: Sequence[Reading]) -> bool:
    """Return whether correlated noise was found that content cannot be: in all channels, or in their differences."""
    return all(reading.between_channels > 0 or reading.between_pixels > 0 for reading in readings)


def is_filtered(readings: Sequence[Reading]) -> bool:
    """Return whether noise that correlates between pixels was found in the differences of channels."""
    return all(reading.between_pixels > 0 for reading in readings)


def excess_over(source: float, student: float) -> float:
    """Return by how much the residual of a student correlates more than that of the source, where noise is filtered.

    Restorers made for white noise leave a part of such noise, so that what they remove correlates with content. A
    source whose residual correlates less than noise counts as one that removes no content.
    """
    return student - max(source, 0.0)


def is_noisy(reading: Reading, doubt: float = 0.0) -> bool:
    """Return whether the noise, or ``doubt`` standard deviations more, suffices to measure errors on a frame."""
    return 255 * reading.mean["noise_std"] * math.exp(doubt * float(reading.noise[1])) >= _MIN_MEASURED


def structure_share(excess: float, lead: float, *, scale: int) -> float:
    """Return the part of the weight that the residual's :func:`structure_excess` leaves, 0 to 1.

    A larger ``lead`` in dB outweighs more content that was taken for noise.
    """
    low, high = (limit * lead for limit in (_EXCESS if scale == 1 else _EXCESS_UPSCALING))
    return 1 - _position(excess, (low, high)) if lead > 0 else 0.0


def weighs_content(reading: Reading, lead: float, explained: float) -> bool:
    """Return whether removed content is weighed against noise that is left, as an error, instead of limiting a weight.

    A student that is far ahead gains more than it removes, even where the noise was read somewhat too large. Next to
    hardly any noise, content decides.

    Args:
        reading: of the camera.
        lead: PSNR gain over the source on held-out pairs, dB.
        explained: how far the estimate explains what is in the frame, 0 to 1.
    """
    return is_noisy(reading) and lead >= _FAR_AHEAD and explained >= _WELL_EXPLAINED


def shared_removal(degraded: Tensor, restored: Sequence[Tensor]) -> Tensor:
    """Return the covariances between channels of what R restorations remove, means over pairs of channels: (R, R).

    White noise is independent between channels, so that this is the removed content, as far as channels share it.

    Shape: degraded and restored (B, C, H, W), C at least 2.
    """
    removed = torch.stack([(degraded - image).float().transpose(0, 1).flatten(1) for image in restored])
    removed = removed - removed.mean(-1, keepdim=True)
    products = torch.einsum("rcn,sdn->rscd", removed, removed) / removed.shape[-1]
    channels = products.shape[-1]
    own = products.diagonal(dim1=-2, dim2=-1).sum(-1)
    return ((products.sum((-2, -1)) - own) / (channels * (channels - 1))).cpu()


def even_share(frame: Tensor) -> float:
    """Return the part of the weight of a student on frames (B, C, H, W) without color that content leaves, 0 to 1."""
    return min(1 - _position(unevenness(image), _UNEVEN) for image in frame)


def colorless_share(student: float, source: float, lead: float) -> float:
    """Return the part of the weight of a student on a frame without color, 0 to 1.

    There noise and content are the same in all channels and differ only in the correlation between neighbors: a student
    has to remove less content than the source, or hardly any for its ``lead`` in dB.

    Args:
        student: :func:`structure_excess` of its restoration.
        source: that of the source's restoration.
        lead: PSNR gain over the source on held-out pairs, dB.
    """
    if student <= source - _GENTLER:
        return 1.0
    low, high = (limit * lead for limit in _EXCESS_COLORLESS)
    return 1 - _position(student, (low, high)) if lead > 0 else 0.0


def explained(reading: Reading, frame: Tensor, removed: tuple[float, float]) -> float:
    """Return how far the estimate explains what is in a frame, 0 to 1.

    Degradations that are not estimated, such as impulses, stripes, film grain or rain, leave detail in the
    smoothest blocks of a frame, the same in all of them, that is not the noise that was read; or the source removes
    more of the frame than of pairs. The frame then looks cleaner than it is, which favors the input.

    Args:
        reading: of the frame.
        frame: (B, C, H, W) in [0, 1].
        removed: root mean square of what the source removes, from the frame and from held-out pairs.
    """
    mean = reading.mean
    variance = mean["noise_std"] ** 2 + mean["noise_shot"] * float(frame.mean())
    noise = 255 * math.sqrt(variance)
    shown = variance * float(haar_energies(reading.between_pixels)[:3].mean())
    smoothest, smooth = (math.sqrt(max(energy - shown, 0.0)) for energy in _smooth_energies(frame))
    unexplained = _position(255 * smoothest / (noise + _MIN_DETAIL), _UNEXPLAINED)
    if unexplained:
        unexplained *= 1 - _position(smooth / smoothest, _VARIED)
    ratio = removed[0] / max(removed[1], 1e-6) - _REMOVED_NOISE * noise
    return 1 - max(unexplained, _position(ratio, _REMOVED))


def _smooth_energies(frame: Tensor) -> tuple[float, float]:
    """Return the Haar energy that a tenth, and three tenths, of the blocks of 16 x 16 pixels do not exceed.

    0 for frames of fewer than 10 blocks, which do not show how much they differ.
    """
    if math.prod(side // (2 * _BLOCK) for side in frame.shape[-2:]) < _MIN_BLOCKS:
        return 0.0, 0.0
    energy = haar(*quads(frame.float())).square().mean((0, 2))
    blocks = F.avg_pool2d(energy[:, None], _BLOCK).flatten()
    tenth, more = blocks.sort().values[[math.ceil(part * len(blocks)) - 1 for part in (_SMOOTHEST, _SMOOTH)]].tolist()
    return tenth, more


def _known(readings: Sequence[Reading]) -> float:
    """Return how far the frames show whether they are blurred, 0 to 1."""
    return 1 - _position(max(float(reading.blur[1]) for reading in readings), _UNKNOWN)


def _position(value: float, between: tuple[float, float]) -> float:
    """Return where a value lies between two others, 0 to 1."""
    low, high = between
    return min(max((value - low) / (high - low), 0.0), 1.0)


def structure_excess(frame: tuple[Tensor, Tensor], expected: tuple[float, float]) -> float:
    """Return how much more the residual of a frame correlates, between channels or neighbors, than that of noise.

    One standard error of the correlation is subtracted: small frames of noise alone correlate by chance.

    Sensor noise is independent between channels and nearly so between pixels, the content of an image is not: a
    restorer that removes fine content, such as text, leaves a correlated residual, and the same content makes the
    estimated noise too large.

    Args:
        frame: degraded frame and its restoration, (B, C, H, W).
        expected: :func:`residual_correlation` of pairs.
    """
    found = residual_correlation(*frame)
    return max(one - other for one, other in zip(found, expected, strict=True)) - frame[0][0, 0].numel() ** -0.5


def residual_correlation(degraded: Tensor, restored: Tensor) -> tuple[float, float]:
    """Return the mean correlation of what was removed between channels, 0 for a single one, and between neighbors."""
    residual = (degraded - restored).float()
    return _channel_correlation(residual) if residual.shape[1] > 1 else 0.0, _neighbor_correlation(residual)


def _channel_correlation(residual: Tensor) -> float:
    # nothing removed from a channel correlates with nothing
    correlation = torch.corrcoef(residual.flatten(2).transpose(0, 1).flatten(1)).nan_to_num(0.0)
    return float((correlation.sum() - correlation.trace()) / (correlation.numel() - len(correlation)))


def _neighbor_correlation(residual: Tensor) -> float:
    """Return the mean correlation of horizontal and vertical neighbors."""
    variance = residual.square().mean().clamp(min=1e-12)
    across = (residual[..., 1:] * residual[..., :-1]).mean()
    down = (residual[..., 1:, :] * residual[..., :-1, :]).mean()
    return float((across + down) / (2 * variance))
