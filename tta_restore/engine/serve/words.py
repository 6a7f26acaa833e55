"""Reports on restored photos, in words for people who do not program."""

from __future__ import annotations

from collections.abc import Sequence

from tta_restore.engine.run.names import SHIPPED_MODELS
from tta_restore.engine.serve.photos import PhotoRecord

__all__ = [
    "MODELS",
    "TASKS",
    "describe_checkpoint",
    "describe_photo",
    "escape_text",
    "label_photo",
    "summarize_photos",
]

#: Shipped weights -> what they were trained to remove.
MODELS = {
    "generalist": "blur of many lenses",
    "specialist": "blur of one lens",
    "conditioned": "blur, estimated first",
    "denoiser": "noise of sigma 15",
    "jpeg_cleaner": "JPEG of quality 30",
    "upscaler": "enlarges 2 times",
}
#: What the page offers as the model's task -> the name of the task, None to measure it.
TASKS = {
    "recommended: measured": None,
    "lens blur": "defocus",
    "motion blur": "motion",
    "noise": "denoise",
    "JPEG artifacts": "jpeg",
    "enlargement": "sr",
    "several of these": "any",
}
_ESCAPED = {ord(character): f"&#{ord(character)};" for character in "&\\`*_[]<>#|~$"}
_UNTRUSTED, _TRUSTED = 0.05, 0.5
_CLEAN_QUALITY = 95  # JPEG quality from which compression is not mentioned


def label_photo(record: PhotoRecord) -> str:
    """Return a short label of a photo for a list to choose from."""
    if record.error is not None:
        return f"{record.name}: not restored"
    trust = "" if record.trust is None else f", trust {record.trust:.2f}"
    return f"{record.name}: {record.seconds:.1f} s{trust}"


def summarize_photos(records: Sequence[PhotoRecord]) -> str:
    """Return one sentence on all photos of a run."""
    restored = [record for record in records if record.error is None]
    adapted = sum((record.trust or 0.0) >= _UNTRUSTED for record in restored)
    parts = [f"{len(restored)} of {_count(len(records))} restored in {sum(r.seconds for r in restored):.1f} s"]
    if restored and all(record.trust is None for record in restored):
        parts.append("the model has nothing to adapt: these are its self-ensembles")
    elif restored:
        parts.append(f"adaptation is part of {adapted} of the results")
    if lost := [f"{record.name} ({record.error})" for record in records if record.error is not None]:
        parts.append(f"not restored: {', '.join(map(escape_text, lost))}")
    return "; ".join(parts) + "."


def describe_photo(record: PhotoRecord) -> str:
    """Return trust, cost and messages of a photo as Markdown."""
    if record.error is not None:
        return f"**{escape_text(record.name)}** was not restored: {escape_text(record.error)}"
    lines = [f"**{escape_text(record.name)}**, {record.size[1]} x {record.size[0]} pixels", ""]
    lines.append(f"- {_trust(record)}")
    if record.gain:  # 0 where no step was taken
        lines.append(f"- Gain: {record.gain:+.2f} dB over the unadapted model, on held-out pairs degraded alike.")
    if record.degradation:
        lines.append(f"- Found in the photo: {_degradation(record)}.")
    lines.append(f"- Cost: {_cost(record)}.")
    lines += [f"- {_sentence(message)}" for message in record.messages]
    if record.detail is not None:
        _, _, height, width = record.detail
        lines.append(f"- The comparison shows {width} x {height} pixels of it, where adaptation changed most.")
    return "\n".join(lines)


def describe_checkpoint(model: str, changed: bool, *, own_file: bool) -> str:
    """Return what the offered checkpoint holds, and how to use it, as Markdown.

    Args:
        model: shipped weights, or the file name of the model.
        changed: whether the weights differ from the original ones.
        own_file: whether the model is a file of the user's.
    """
    held = "the weights after the last photo" if changed else "the original weights: nothing was gained on these photos"
    if not own_file and model in SHIPPED_MODELS:
        options = f"--model {SHIPPED_MODELS[model]} --checkpoint adapted.safetensors"
        command = f"tta-restore restore photos/ -o out/ {options} --method source"
        return f"The checkpoint holds {held}. To use it:\n\n```\n{command}\n```"
    return f"The checkpoint holds {held}. Its keys are the model's own: it loads wherever the model's file does."


def _trust(record: PhotoRecord) -> str:
    if record.trust is None:
        return "The result is the mean over four turned copies of the photo (self-ensemble); nothing was adapted."
    share = f"{100 * record.trust:.0f} % of the result is the adapted model's"
    if record.trust < _UNTRUSTED:
        text = f"Not trusted ({record.trust:.2f}): the result is that of the unadapted model"
        return f"{text}, or of the photo itself." if record.input_weight else f"{text}."
    mixed = f", {100 * record.input_weight:.0f} % the photo as it was" if record.input_weight >= _UNTRUSTED else ""
    word = "Trusted" if record.trust >= _TRUSTED else "Partly trusted"
    return f"{word} ({record.trust:.2f}): {share}{mixed}."


def _degradation(record: PhotoRecord) -> str:
    found = record.degradation
    parts = []
    if "noise" in found:
        pixels = found.get("noise_filter")
        correlated = f", correlated over {pixels:.1f} pixels" if pixels else ""
        parts.append(f"noise of {found['noise']:.1f} / 255{correlated}")
    if "blur" in found:
        parts.append(f"blur of radius {found['blur']:.1f} pixels")
    if "jpeg_quality" in found:
        quality = found["jpeg_quality"]
        parts.append(f"JPEG quality {quality:.0f}" if quality < _CLEAN_QUALITY else "no JPEG artifacts")
    return ", ".join(parts)


def _cost(record: PhotoRecord) -> str:
    steps = f", {record.steps} steps" if record.steps else ""
    return f"{record.seconds:.1f} s{steps}; without adaptation {record.baseline_seconds:.1f} s"


def _sentence(message: str) -> str:
    text = escape_text(message[:1].upper() + message[1:])
    return text if text.endswith(".") else f"{text}."


def escape_text(text: str) -> str:
    """Return a text that Markdown and HTML show as it is."""
    return " ".join(text.split()).translate(_ESCAPED)


def _count(number: int) -> str:
    return f"{number} photo{'' if number == 1 else 's'}"
