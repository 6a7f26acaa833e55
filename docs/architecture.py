"""Draw the architecture: the packages with what imports what, and what flows through an adapter on a frame.

    python docs/architecture.py

writes docs/architecture-light.svg and docs/architecture-dark.svg. The packages are read from the contract in
pyproject.toml.
"""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs"
COLORS = {
    "light": {
        "ink": "#1c2430",
        "soft": "#5c6470",
        "line": "#b9c2cd",
        "box": "#f1f4f8",
        "mark": "#0072b2",
        "on": "#d9ebf7",
    },
    "dark": {
        "ink": "#e6eaf0",
        "soft": "#a2abb8",
        "line": "#4a5462",
        "box": "#1d232c",
        "mark": "#6cb8ea",
        "on": "#173449",
    },
}
HOLDS = {
    "cli": "the command line",
    "engine": "runs: files, training, evaluation, reports, the page",
    "adapters": "adapt a restorer at test time",
    "data": "images, videos, data sets",
    "degradations": "what a camera does",
    "models": "restorers, any of them",
    "metrics": "image quality",
    "losses": "a function and a module each",
    "nn": "layers that call operators",
    "ops": "differentiable operators",
    "_core": "dispatch, checks, the op library",
}
WIDTH, HEIGHT, ROW, LEFT = 760, 800, 48, 20
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, 'DejaVu Sans', sans-serif"


def floors() -> list[list[str]]:
    """Return the packages, the highest first; those of a row do not import each other freely."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["name"].startswith("floors"))["layers"]
    return [[name.strip().removeprefix("tta_restore.") for name in layer.split(":")] for layer in layers]


def box(
    x: float, y: float, width: float, height: float, title: str, note: str, colors: dict[str, str], on: bool = False
) -> str:
    """Return a rectangle with a name and a line below it."""
    fill, stroke = (colors["on"], colors["mark"]) if on else (colors["box"], colors["line"])
    middle = x + width / 2
    text = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{fill}" stroke="{stroke}"/>'
    text += f'<text x="{middle}" y="{y + 20}" class="name">{escape(title)}</text>'
    return text + f'<text x="{middle}" y="{y + 36}" class="note" text-anchor="middle">{escape(note)}</text>'


def arrow(points: str, label: str = "", at: tuple[float, float] = (0, 0), anchor: str = "middle") -> str:
    """Return a line with a head, and a word next to it."""
    line = f'<polyline points="{points}" class="arrow" marker-end="url(#head)"/>'
    return line + (
        f'<text x="{at[0]}" y="{at[1]}" class="note" text-anchor="{anchor}">{escape(label)}</text>' if label else ""
    )


def draw(colors: dict[str, str]) -> str:
    """Return the picture as SVG."""
    parts = [f'<text x="{LEFT}" y="28" class="head">A frame through an adapter</text>', *flow(colors)]
    top = 360
    parts.append(f'<text x="{LEFT}" y="{top}" class="head">Packages: each imports those below it, never above</text>')
    for number, names in enumerate(floors()):
        gap = 10
        width = (WIDTH - 2 * LEFT - gap * (len(names) - 1)) / len(names)
        for place, name in enumerate(names):
            x, y = LEFT + place * (width + gap), top + 16 + number * (ROW + 4)
            parts.append(box(x, y, width, ROW - 4, name, HOLDS[name], colors, on=name == "adapters"))
    style = (
        f".name {{ font: 600 14px {MONO}; fill: {colors['ink']}; text-anchor: middle }}"
        f".note {{ font: 12px {SANS}; fill: {colors['soft']} }}"
        f".head {{ font: 600 16px {SANS}; fill: {colors['ink']} }}"
        f".arrow {{ fill: none; stroke: {colors['mark']}; stroke-width: 1.6 }}"
    )
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{colors["mark"]}"/></marker>'
    )
    label = "What happens to a frame in an adapter, and the packages in the order of their imports"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"<style>{style}</style><defs>{head}</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def flow(colors: dict[str, str]) -> list[str]:
    """Return what happens to a frame: estimate, pairs, steps, trust, output."""
    wide, high = 200, 46
    columns, rows = (20, 280, 540), (50, 156, 262)

    def at(column: int, row: int, title: str, note: str, on: bool = False) -> str:
        return box(columns[column], rows[row], wide, high, title, note, colors, on)

    right, left, middle = (lambda c: columns[c] + wide), (lambda c: columns[c]), (lambda c: columns[c] + wide / 2)
    line, below, above = (lambda r: rows[r] + high / 2), (lambda r: rows[r] + high), (lambda r: rows[r])
    return [
        at(0, 0, "frame", "(B, C, H, W), RGB in [0, 1]"),
        at(1, 0, "Estimator", "blur, noise, JPEG quality"),
        at(2, 0, "Degradation", "draws what fits the frame"),
        at(2, 1, "pairs", "sharp material, degraded alike"),
        at(1, 1, "loss and step", "on a copy of some weights", on=True),
        at(0, 1, "your model", "never edited"),
        at(0, 2, "restored frame", "in your model's structure"),
        at(1, 2, "trust", "by held-out pairs and the frame", on=True),
        at(2, 2, "report", "trust, gain, cost, messages"),
        arrow(f"{right(0)},{line(0)} {left(1)},{line(0)}"),
        arrow(f"{right(1)},{line(0)} {left(2)},{line(0)}"),
        arrow(f"{middle(2)},{below(0)} {middle(2)},{above(1)}"),
        arrow(f"{left(2)},{line(1)} {right(1)},{line(1)}"),
        arrow(f"{right(0)},{line(1)} {left(1)},{line(1)}", "weights", ((right(0) + left(1)) / 2, line(1) - 6)),
        arrow(f"{middle(0)},{below(0)} {middle(0)},{above(1)}"),
        arrow(
            f"{middle(1)},{below(1)} {middle(1)},{above(2)}", "adapted weights", (middle(1) + 8, below(1) + 34), "start"
        ),
        arrow(f"{middle(0)},{below(1)} {middle(0)},{above(2)}", "as trained", (middle(0) + 8, below(1) + 34), "start"),
        arrow(f"{left(1)},{line(2)} {right(0)},{line(2)}"),
        arrow(f"{right(1)},{line(2)} {left(2)},{line(2)}"),
    ]


def main() -> None:
    """Write both pictures."""
    for name, colors in COLORS.items():
        (FOLDER / f"architecture-{name}.svg").write_text(draw(colors), encoding="utf-8")


if __name__ == "__main__":
    main()
