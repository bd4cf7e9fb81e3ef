"""How every figure is drawn: without a display, the same for files and for a page that may be light or dark.

Ink, grid and series are drawn in the colours below. A file keeps them, on white; inside a page they become the page's CSS
variables, on no background. Heat maps are transparent where a value is neutral, so that they fit both.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from mhr.files import write_bytes_atomically

INK, FAINT, GRID = "#1c2024", "#6b7280", "#e4e6eb"
# Okabe and Ito's colours, which colour-blind readers distinguish, without yellow, which is faint on white.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
DASHES = ("-", "--", ":", "-.")
VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid"} | {c: f"--s{i}" for i, c in enumerate(SERIES, 1)}

_BLUE, _RED = (33 / 255, 102 / 255, 172 / 255), (178 / 255, 24 / 255, 43 / 255)
DIVERGING = LinearSegmentedColormap.from_list(
    "diverging", [(0.0, (*_BLUE, 1.0)), (0.5, (*_BLUE, 0.0)), (0.5, (*_RED, 0.0)), (1.0, (*_RED, 1.0))]
)
SEQUENTIAL = LinearSegmentedColormap.from_list("sequential", [(*_BLUE, 0.0), (*_BLUE, 1.0)])
UNKNOWN_GREY = (0.5, 0.5, 0.5, 0.35)
"""Grey of a heat map's place without a value."""

MAX_TICKS = 48
MAX_NAME = 40

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text in an SVG stays text
    "svg.hashsalt": "mhr",  # equal plots are equal files
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.linewidth": 0.8,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold dollar signs
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 9,
}


styled = matplotlib.rc_context(STYLE)
"""Decorates every function that draws."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def heat_map(axes: Axes, values: Tensor, neutral: float, label: str, reach: float | None = None) -> float:
    """Blue below `neutral`, red above it, up to `reach` away from it, grey where a value is NaN. Returns the reach, by default that of
    the values, except that a range of almost nothing is not blown up."""
    if reach is None:
        reach = max(float((values - neutral).abs().max()), 1e-3)
    _image(axes, values, DIVERGING, (neutral - reach, neutral + reach), label)
    return reach


def stacked_shares(axes: Axes, values: Tensor, label: str) -> None:
    """Values from 0, no colour, to 1, grey where one is NaN."""
    _image(axes, values, SEQUENTIAL, (0.0, 1.0), label)


def _image(
    axes: Axes, values: Tensor, colours: LinearSegmentedColormap, limits: tuple[float, float], label: str
) -> None:
    image = axes.imshow(
        values.double().numpy(),
        cmap=colours.with_extremes(bad=UNKNOWN_GREY),
        vmin=limits[0],
        vmax=limits[1],
        aspect="auto",
        interpolation="none",
    )
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(GRID)
    bar = axes.figure.colorbar(image, ax=axes.figure.axes, shrink=0.8)
    bar.outline.set_edgecolor(GRID)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def name_ticks(axes: Axes, columns: Sequence[str], rows: Sequence[str], step: int = 1) -> None:
    """Names at columns (each `step` wide) and rows, thinned where they would overlap."""
    across, down = spread(len(columns)), spread(len(rows), 4 * MAX_TICKS)
    turn = 0 if max(map(len, columns)) <= 2 else 90
    places = [i * step + (step - 1) / 2 for i in across]
    axes.set_xticks(places, [cut(columns[i]) for i in across], rotation=turn, fontsize=7)
    axes.set_yticks(down, [cut(rows[i]) for i in down], fontsize=7)
    axes.tick_params(length=0)


def colour(i: int) -> str:
    return SERIES[i % len(SERIES)]


def dash(i: int) -> str:
    """Line style of series i: another one each time that the colours begin again."""
    return DASHES[i // len(SERIES) % len(DASHES)]


def marker(i: int) -> str:
    """Marker of series i, for points that no line joins."""
    return "osD^vP"[i % 6]


def per_cent() -> FuncFormatter:
    """Ticks of fractions, in per cent."""
    return FuncFormatter(lambda value, _: f"{100 * value:g}")


def spread(n: int, most: int = MAX_TICKS) -> list[int]:
    """At most about `most` of the positions 0 .. n - 1, evenly spread."""
    return list(range(0, n, -(-n // most)))


def legend(axes: Axes, names: Sequence[str]) -> None:
    """Names of the artists with a label, in their order, under the chart, where they hide nothing and take no width; none of a single one.

    They are put in afterwards, as matplotlib leaves out a label that begins with an underscore.
    """
    if len(names) > 1:
        made = axes.figure.legend(loc="outside lower left", ncols=2)
        for shown, name in zip(made.get_texts(), names, strict=True):
            shown.set_text(cut(name))


def cut(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def without_common_parts(names: Sequence[str]) -> list[str]:
    """Layer names without the parts that all of them have."""
    common = set.intersection(*(set(name.split(".")) for name in names)) if len(names) > 1 else set()
    return [".".join(part for part in name.split(".") if part not in common) or name or "all layers" for name in names]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as .png or .svg."""
    return write_bytes_atomically(path, _drawn(figure, path.suffix[1:]))


def to_inline_svg(figure: Figure, alt: str) -> str:
    """The figure as an <svg> element of a page: its colours are the page's, `alt` is what a screen reader says."""
    text = _drawn(figure, "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    # What no reference points to needs no id, and ids of several figures would clash.
    referred = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in referred else "", text)
    for drawn, variable in VARIABLES.items():
        text = text.replace(drawn, f"var({variable})")
    width, height = (round(float(v) * 96) for v in figure.get_size_inches())
    head = f'<svg role="img" aria-label="{_escape(alt)}" style="--w:{width}px" viewBox='
    text = re.sub(r"<svg[^>]*? viewBox=", lambda _: head, text, count=1)  # in which a name may hold backslashes
    text = re.sub(r'(<svg[^>]*?) width="[^"]*pt"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*pt"', r"\1", text, count=1)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


@styled
def _drawn(figure: Figure, kind: str, transparent: bool = False) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(buffer, format=kind, metadata=metadata, transparent=transparent)
    return buffer.getvalue()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
