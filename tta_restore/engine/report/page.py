"""Self-contained HTML page of a stream result: images, numbers with intervals, plots, costs, and limits."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tta_restore.data.io.atomic import atomic_file
from tta_restore.engine.evaluate.results import Interval, Quantity, StreamResult, written
from tta_restore.engine.report import plots as report_plots
from tta_restore.engine.report.images import kernel_overlap, kernel_sheet, png_uri
from tta_restore.engine.report.table import plural
from tta_restore.engine.run.usage import UsageError

__all__ = [
    "KernelSample",
    "MethodNote",
    "Report",
    "Sample",
    "environment",
    "lens_name",
    "render_report",
    "require_packages",
    "sample_context",
    "worst_frame_rule",
    "write_report",
]

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class MethodNote:
    """Description of a method for the reader of a report.

    Args:
        description: one or two sentences.
        plan: what it adapts and where, as text from `adapter.plan()`; empty for methods that adapt nothing.
        color: CSS color in plots and tables; empty takes the next one of the palette.
    """

    description: str
    plan: str = ""
    color: str = ""


@dataclass(frozen=True)
class Sample:
    """A frame with the output of every method.

    Shape: each image (3, H, W), uint8 or float in [0, 1].

    Args:
        title: what is seen.
        rule: by which rule this frame was chosen.
        pictures: output of each method, in the order of choice.
        sharp: the original; None without one.
        psnr: method -> dB on this frame.
        before: method shown on the left.
        after: method shown on the right.
        failure: the frame was chosen because a method does badly on it.
    """

    title: str
    rule: str
    pictures: Mapping[str, Tensor]
    sharp: Tensor | None
    psnr: Mapping[str, float]
    before: str
    after: str
    failure: bool = False


@dataclass(frozen=True)
class KernelSample:
    """Point spread functions of one frame. Shape: true, estimated (G, G, K, K), each summing to 1."""

    title: str
    true: Tensor
    estimated: Tensor


@dataclass(frozen=True)
class Report:
    """Everything the page shows.

    Args:
        title: of the page.
        result: all the records.
        baseline: method that gains are measured against in tables and plots.
        contrasts: pairs (method, baseline of its own) whose gains the page opens with, next to the sample on which the
            method of the first pair gains most.
        curves: methods drawn in the plots over the stream.
        notes: method -> note; methods without one are shown all the same.
        samples: frames that are displayed.
        kernels: frames whose estimated kernels are shown.
        facts: what was run, on what, with which seed.
        limits: sentences on how the numbers must be read, added to those that follow from the numbers.
        group: what a family is called, in the singular.
        stream: whether the order of frames means something, so that it is worth plotting.
        beside: rows of a table of measured and published values, its header first.
    """

    title: str
    result: StreamResult
    baseline: str
    contrasts: Sequence[tuple[str, str]]
    curves: Sequence[str]
    notes: Mapping[str, MethodNote] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    kernels: Sequence[KernelSample] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    limits: Sequence[str] = ()
    group: str = "lens"
    stream: bool = True
    beside: Sequence[Sequence[str]] = ()


def write_report(path: str | Path, report: Report) -> None:
    """Write the page: completely, or not at all. It refers to nothing outside itself.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
        ValueError: the report names a method without records.
    """
    html = render_report(report)
    with atomic_file(path) as partial:
        partial.write_text(html, encoding="utf-8")


def render_report(report: Report) -> str:
    """Return the page as text; the arguments and errors are those of :func:`write_report`."""
    require_packages("jinja2", "matplotlib")
    return environment().get_template("report.html.jinja").render(_context(report))


def environment() -> Any:
    """Return the jinja2 environment of the package's pages."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"signed": _signed, "bracketed": _bracketed, "lens": lens_name, "coded": _coded}
    return found


def require_packages(*names: str, load: bool = True) -> None:
    """Raise UsageError with the command that installs what is missing of these packages; import them, or only look."""
    extras = {"jinja2": "report", "matplotlib": "report", "torchmetrics": "metrics"} | dict.fromkeys(
        ("skimage", "sklearn"), "demo"
    )
    for name in names:
        try:
            if load or importlib.util.find_spec(name) is None:
                importlib.import_module(name)
        except ImportError:
            raise UsageError(f"needs {name}: pip install 'tta-restore[{extras[name]}]'") from None


def worst_frame_rule(method: str, baseline: str) -> str:
    """Return a sentence with the reason why a failure case is on the page."""
    return f"Failure case: of all frames of the stream, the one on which {method} compares worst with {baseline}."


def lens_name(family: str) -> str:
    """Return a lens family as it is written for people."""
    return family.replace("_", " ")


def _context(report: Report) -> dict[str, Any]:
    result, baseline = report.result, report.baseline
    colors: dict[str, str] = {}
    for order, method in enumerate(result.methods):
        note = report.notes.get(method, MethodNote(""))
        colors[method] = note.color or report_plots.PALETTE[order % len(report_plots.PALETTE)]
    curves = [method for method in report.curves if method != baseline]
    lead = _lead(report)
    return {
        "title": report.title,
        "group": report.group,
        "groups": plural(report.group),
        "stream": report.stream,
        "beside": report.beside,
        "baseline": baseline,
        "families": result.families,
        "frames": len(result.of(baseline)),
        "colors": colors,
        "contrasts": [_contrast(result, method, other) for method, other in report.contrasts],
        "tables": [_table(result, quantity) for quantity in result.quantities],
        "gain_rows": [_gain_row(result, method, baseline) for method in result.methods if method != baseline],
        "costs": {method: result.cost(method) for method in result.methods},
        "plots": {
            "psnr": report_plots.psnr_over_stream(result, report.curves, colors),
            "gain": report_plots.gain_over_stream(result, baseline, curves, colors),
            "switch": report_plots.gain_after_switch(result, baseline, curves, colors, report.group),
            "cost": report_plots.gain_against_cost(result, baseline, colors),
        },
        "lead": None if lead is None else sample_context(lead),
        "samples": [sample_context(sample) for sample in report.samples if not (lead and sample.title == lead.title)],
        "kernels": [
            {
                "title": kernels.title,
                "true": png_uri(kernel_sheet(kernels.true)),
                "estimated": png_uri(kernel_sheet(kernels.estimated)),
                "overlap": kernel_overlap(kernels.estimated, kernels.true),
            }
            for kernels in report.kernels
        ],
        "methods": [_method(result, method, report.notes.get(method)) for method in result.methods],
        "facts": report.facts,
        "limits": [*_verdicts(result, baseline, report.group), *report.limits],
    }


def _lead(report: Report) -> Sample | None:
    """Return the sample on which the method of the first contrast gains most, shown next to the contrast's baseline."""
    if not report.contrasts:
        return None
    after, before = report.contrasts[0]
    there = [sample for sample in report.samples if not sample.failure and {after, before} <= set(sample.psnr)]
    if not there:
        return None
    best = max(there, key=lambda sample: sample.psnr[after] - sample.psnr[before])
    return replace(best, before=before, after=after)


def _contrast(result: StreamResult, method: str, baseline: str) -> dict[str, Any]:
    gains = {family: result.gain(method, baseline, family=family) for family in result.families}
    return {
        "method": method,
        "baseline": baseline,
        "frames": result.gain(method, baseline),
        "blocks": result.gain(method, baseline, over="blocks"),
        "ssim": result.gain(method, baseline, "ssim"),
        "worst": min(gains.items(), key=lambda item: item[1].mean),
        "above": result.share_above(method, baseline),
    }


def _table(result: StreamResult, quantity: Quantity) -> dict[str, Any]:
    name, unit, digits, more_is_better = written(quantity)
    better = max if more_is_better else min
    columns = [*result.families, None]
    means = {method: [result.value(method, quantity, family) for family in columns] for method in result.methods}
    best = [better(means[method][c].mean for method in means) for c in range(len(columns))]
    return {"name": name, "unit": unit, "digits": digits, "rows": means, "best": best}


def _gain_row(result: StreamResult, method: str, baseline: str) -> dict[str, Any]:
    return {
        "method": method,
        "families": [result.gain(method, baseline, family=family) for family in result.families],
        "frames": result.gain(method, baseline),
        "blocks": result.gain(method, baseline, over="blocks"),
        "above": result.share_above(method, baseline),
    }


def sample_context(sample: Sample) -> dict[str, Any]:
    """Return a sample as the templates take it."""
    pictures: list[dict[str, Any]] = [
        {"name": name, "uri": png_uri(picture), "psnr": sample.psnr.get(name)}
        for name, picture in sample.pictures.items()
    ]
    if sample.sharp is not None:
        pictures.append({"name": "sharp original", "uri": png_uri(sample.sharp), "psnr": None})
    height, width = sample.pictures[sample.before].shape[-2:]
    return {"sample": sample, "pictures": pictures, "width": width, "height": height}


def _method(result: StreamResult, method: str, note: MethodNote | None) -> dict[str, Any]:
    # A method without a loss learns nothing, and there is nothing to count.
    reports = [record.report for record in result.of(method) if record.report.get("loss") is not None]
    counts: dict[str, int] = {}
    if reports:
        counts["frames adapted on"] = sum(bool(report.get("updated")) for report in reports)
    for name, label in (("steps", "optimizer steps"), ("lens_changed", "changes of lens noticed")):
        numbers = [int(report[name]) for report in reports if isinstance(report.get(name), (bool, int, float))]
        if numbers:
            counts[label] = sum(numbers)
    skipped = [str(report["skipped_because"]) for report in reports if report.get("skipped_because")]
    for reason in dict.fromkeys(skipped):
        counts[f"skipped because {reason}"] = skipped.count(reason)
    return {"name": method, "note": note or MethodNote(""), "counts": counts, "cost": result.cost(method)}


def _verdicts(result: StreamResult, baseline: str, group: str) -> list[str]:
    """Return a sentence per method that follows from the intervals alone."""
    idle, harmful, few_lenses = [], [], []
    for method in result.methods:
        if method == baseline:
            continue
        interval = result.gain(method, baseline)
        if interval.high < 0:
            harmful.append(f"{method} ({interval.mean:+.2f} dB)")
        elif interval.low <= 0 or interval.mean < 0.01:
            idle.append(f"{method} ({interval.mean:+.2f} dB)")
        elif not result.gain(method, baseline, over="blocks").low > 0:
            few_lenses.append(f"{method} ({interval.mean:+.2f} dB)")
    sentences = []
    if idle:
        sentences.append(
            f"Not distinguishable from {baseline} on this stream, or ahead by less than 0.01 dB: {', '.join(idle)}."
        )
    if harmful:
        sentences.append(f"Below {baseline} on this stream: {', '.join(harmful)}.")
    if few_lenses:
        sentences.append(
            f"Ahead of {baseline} over frames, but the interval over whole {plural(group)} does not exclude zero: "
            f"{', '.join(few_lenses)}."
        )
    blocks = len({(r.stream, r.family) for r in result.of(baseline)})
    sentences.append(
        f"Intervals over frames treat {len(result.of(baseline))} frames as independent and are too narrow, since "
        f"frames share {group}, photographs and the state of an adapter; intervals over {plural(group)} draw {blocks} "
        f"whole {plural(group)} (stream x family)."
    )
    return sentences


def _coded(text: str) -> Any:
    """Return a sentence as HTML, with what stands between backticks, and options of the command line, as code."""
    from markupsafe import Markup, escape

    parts = re.split(r"`([^`]+)`|((?<![\w-])--[a-z][\w.-]*\w)", text)
    plain, quoted, options = parts[::3], parts[1::3], parts[2::3]
    codes = (Markup("<code>{}</code>").format(code or option) for code, option in zip(quoted, options, strict=True))
    pieces = [escape(plain[0])]
    for code, after in zip(codes, plain[1:], strict=True):
        pieces += [code, escape(after)]
    return Markup("").join(pieces)


def _signed(value: float, digits: int = 2) -> str:
    if math.isnan(value):
        return "n/a"
    if round(value, digits) == 0:
        return f"{0:.{digits}f}"
    # A true minus sign is as wide as the plus, so columns line up.
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _bracketed(interval: Interval, digits: int = 2, signed: bool = True) -> str:
    if math.isnan(interval.low):
        return "one value, no interval"
    show: Callable[[float], str] = (lambda v: _signed(v, digits)) if signed else (lambda v: f"{v:.{digits}f}")
    return f"{show(interval.low)} to {show(interval.high)}"
