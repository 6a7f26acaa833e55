"""Plots of a stream result as SVG, drawn by matplotlib without touching its global state."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tta_restore.engine.evaluate.results import FrameRecord, Interval, StreamResult

__all__ = ["PALETTE", "gain_after_switch", "gain_against_cost", "gain_over_stream", "psnr_over_stream"]

#: Okabe and Ito's palette: distinguishable with every kind of color blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5C6470", "#000000")
#: Line and marker of the first, second, ... method of one color, where there are more methods than colors.
_LINES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
_INK, _SOFT, _GRID = "#1c2430", "#5c6470", "#dfe4ea"
_LETTER = 0.1  # width of a letter above a band, in inches, with some room
_STYLE = {
    "svg.fonttype": "none",  # text stays text and takes the page's font
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


def psnr_over_stream(result: StreamResult, methods: Sequence[str], colors: Mapping[str, str]) -> str:
    """PSNR of every frame in the order of the stream, a band for each lens."""

    def draw(figure: Any, axes: Any) -> None:
        _bands(axes, result)
        for method, style in _styles(methods, colors).items():
            records = sorted(result.of(method), key=lambda r: (r.stream, r.index))
            _plot_lenses(axes, [(r, r.psnr) for r in records], **style)
        axes.set_ylabel("PSNR (dB)")
        _legend(figure, axes)

    return _svg("stream", 10, 3.4, draw)


def gain_over_stream(result: StreamResult, baseline: str, methods: Sequence[str], colors: Mapping[str, str]) -> str:
    """PSNR gain of every frame over the baseline, a band for each lens."""

    def draw(figure: Any, axes: Any) -> None:
        _bands(axes, result)
        axes.axhline(0, color=_INK, linewidth=1)
        for method, style in _styles(methods, colors).items():
            pairs = sorted(result.gains(method, baseline), key=lambda p: (p[0].stream, p[0].index))
            _plot_lenses(axes, pairs, **style)
        axes.set_ylabel("gain (dB)")
        _legend(figure, axes)

    return _svg("gain", 10, 4.0, draw)


def gain_after_switch(
    result: StreamResult, baseline: str, methods: Sequence[str], colors: Mapping[str, str], group: str = "lens"
) -> str:
    """Return the mean PSNR gain by the number of frames since the group changed, with 95 % intervals over frames."""

    def draw(figure: Any, axes: Any) -> None:
        axes.axhline(0, color=_INK, linewidth=1)
        for order, (method, style) in enumerate(_styles(methods, colors).items()):
            points = result.gain_by_position(method, baseline)
            # Beside each other, so that the bars of different methods do not cover each other.
            places = [position + 1 + 0.06 * (order - (len(methods) - 1) / 2) for position, _ in points]
            means = [interval.mean for _, interval in points]
            reach = _reach([interval for _, interval in points])
            axes.errorbar(places, means, yerr=reach, capsize=2.5, elinewidth=1, **style)
        axes.set_xticks(sorted({record.position + 1 for record in result.records}))
        axes.set_xlabel(f"frame after the {group} changed")
        axes.set_ylabel("gain (dB)")
        axes.grid(visible=False, axis="x")
        _legend(figure, axes)

    return _svg("switch", 6.2, 4.2, draw)


def gain_against_cost(result: StreamResult, baseline: str, colors: Mapping[str, str]) -> str:
    """Plot the gain of each method against seconds of processor time per frame, on a logarithmic axis."""

    def draw(figure: Any, axes: Any) -> None:
        axes.axhline(0, color=_INK, linewidth=1)
        for method in result.methods:
            seconds = max(result.cost(method)["cpu_seconds"], 1e-3)
            gain = result.gain(method, baseline)
            reach = _reach([gain])
            style = {"color": colors[method], "marker": "o", "markersize": 7, "capsize": 2.5, "elinewidth": 1}
            axes.errorbar([seconds], [gain.mean], yerr=reach, label=method, linestyle="none", **style)
        axes.set_xscale("log")
        axes.set_xlabel("processor seconds per frame")
        axes.set_ylabel("gain (dB)")
        _legend(figure, axes)

    return _svg("cost", 6.2, 4.2, draw)


def _styles(methods: Sequence[str], colors: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return color, label, line and marker of each method; methods of one color differ in line and marker."""
    styles: dict[str, dict[str, Any]] = {}
    for method in methods:
        color = colors[method]
        before = sum(style["color"] == color for style in styles.values())
        line, marker = _LINES[before % len(_LINES)]
        styles[method] = {"color": color, "label": method, "linestyle": line, "marker": marker}
    return styles


def _plot_lenses(axes: Any, points: Sequence[tuple[FrameRecord, float]], **style: Any) -> None:
    """Return a line for each lens, not across their borders: nothing goes on from one lens to the next."""
    places: list[float] = []
    values: list[float] = []
    for place, (record, value) in enumerate(points):
        if record.position == 0 and place:
            places.append(place - 0.5)
            values.append(float("nan"))
        places.append(place)
        values.append(value)
    axes.plot(places, values, markersize=3.5, **style)


def _reach(intervals: Sequence[Interval]) -> list[list[float]]:
    """How far the ends lie from the means. A percentile interval of few values may leave its mean out by a hair."""
    return [[max(i.mean - i.low, 0.0) for i in intervals], [max(i.high - i.mean, 0.0) for i in intervals]]


def _bands(axes: Any, result: StreamResult) -> None:
    """Shade every second lens and name each of them above."""
    records = sorted(result.of(result.methods[0]), key=lambda r: (r.stream, r.index))
    starts = [i for i, r in enumerate(records) if i == 0 or r.position == 0]
    for order, start in enumerate(starts):
        end = starts[order + 1] if order + 1 < len(starts) else len(records)
        if order % 2 == 0:
            axes.axvspan(start - 0.5, end - 0.5, color="#f1f4f8", linewidth=0)
        place = ((start + end - 1) / 2, 1.02)
        label = {"ha": "center", "va": "bottom", "color": _SOFT, "fontsize": 10.5, "linespacing": 1.1}
        name = records[start].family.replace("_", " ")
        letters = int(axes.figure.get_figwidth() * (end - start) / len(records) / _LETTER)
        if letters < max(map(len, name.split())):
            label["rotation"] = 90
        else:
            name = textwrap.fill(name, letters)
        axes.text(*place, name, transform=axes.get_xaxis_transform(), **label)
    axes.set_xlim(-0.5, len(records) - 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("frame of the stream")
    axes.grid(visible=False, axis="x")


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3 if figure.get_figwidth() > 8 else 2, fontsize=10)


def _svg(name: str, width: float, height: float, draw: Callable[[Any, Any], None]) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The salt keeps the identifiers of several drawings in one page apart, and the same from run to run.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure, figure.subplots())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    content = stream.getvalue()
    return content[content.index("<svg") :]
