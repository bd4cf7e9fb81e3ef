"""Plots of an inspected adapter as PNG and SVG, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mhr.files import make_folder, write_bytes_atomically
from mhr.report.inspect import Inspection

# White is the neutral value: 1/S for weights, 0 for cosines.
DIVERGING = "RdBu_r"
MAX_TICKS = 48
MAX_NAME = 40


def save_plots(inspection: Inspection, folder: str | Path) -> list[Path]:
    """Write routing, layers, similarity and entropy, each as .png and .svg, into `folder`; returns the files.

    Without a bank whose routing tells tasks apart there is nothing to draw, and the list is empty.
    """
    if not inspection.routed:
        return []
    folder = make_folder(folder)
    drawn = {
        "routing": plot_skills(inspection),
        "layers": plot_layers(inspection),
        "similarity": plot_similarity(inspection),
        "entropy": plot_entropy(inspection),
    }
    return [_save(figure, folder / f"{name}.{kind}") for name, figure in drawn.items() for kind in ("png", "svg")]


def plot_skills(inspection: Inspection) -> Figure:
    """Tasks x skills, averaged over layers and heads."""
    values = inspection.by_skill
    n_tasks, n_skills = values.shape
    figure, axes = _figure(2.2 + 0.45 * n_skills, n_tasks)
    reach = _heat_map(axes, values, 1 / n_skills, "routing weight")
    axes.set_xlabel("skill", fontsize=8)
    _ticks(axes, [str(s) for s in range(n_skills)], inspection.tasks)
    axes.set_title("Routing, mean over layers and heads", fontsize=10)
    if n_tasks * n_skills <= 240:
        for t, row in enumerate(values.tolist()):
            for s, value in enumerate(row):
                colour = "white" if abs(value - 1 / n_skills) > 0.65 * reach else "black"
                axes.text(s, t, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    return figure


def plot_layers(inspection: Inspection) -> Figure:
    """Tasks x (layer, skill), averaged over heads; the skills of a layer stand side by side."""
    values = inspection.by_layer
    n_tasks, n_groups, n_skills = values.shape
    figure, axes = _figure(4 + 0.05 * n_groups * n_skills, n_tasks)
    _heat_map(axes, values.flatten(1), 1 / n_skills, "routing weight")
    names = _short(list(inspection.weights))
    _ticks(axes, names, inspection.tasks, step=n_skills)
    if n_groups <= MAX_TICKS:
        for g in range(1, n_groups):
            axes.axvline(g * n_skills - 0.5, color="0.3", linewidth=0.8)
    axes.set_xlabel(f"layer, with its {n_skills} skills from left to right", fontsize=8)
    axes.set_title("Routing by layer, mean over heads", fontsize=10)
    return figure


def plot_similarity(inspection: Inspection) -> Figure:
    """Tasks x tasks: which are routed alike."""
    n_tasks = len(inspection.tasks)
    figure, axes = _figure(2.6 + 0.22 * n_tasks, n_tasks, extra=1.2)
    _heat_map(axes, inspection.similarity, 0.0, "cosine", reach=1.0)
    _ticks(axes, inspection.tasks, inspection.tasks)
    axes.set_title("Which tasks are routed alike", fontsize=10)
    return figure


def plot_entropy(inspection: Inspection) -> Figure:
    """How evenly each layer uses its skills: 1 is uniform, 0 one skill."""
    names, values = _short(list(inspection.entropy)), list(inspection.entropy.values())
    figure = Figure(figsize=(min(16.0, 4 + 0.16 * len(names)), 3.6), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.plot(range(len(values)), values, "o", color="#3b6ea8", markersize=4)
    axes.set_xlim(-0.7, len(values) - 0.3)
    axes.grid(axis="y", color="0.9")
    axes.axhline(1.0, color="0.5", linewidth=0.8, linestyle="--")
    shown = _spread(len(names))
    axes.set_xticks(shown, [names[i] for i in shown], rotation=90, fontsize=6)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylabel("entropy / log S", fontsize=8)
    axes.set_title("Entropy of the routing by layer (1: every skill alike)", fontsize=10)
    return figure


def _figure(width: float, n_tasks: int, extra: float = 0.0) -> tuple[Figure, Axes]:
    height = 1.8 + extra + 0.22 * n_tasks
    size = (min(max(width + 2.0, 4.5), 24.0), min(height, 36.0))
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    return figure, figure.add_subplot()


def _heat_map(axes: Axes, values: Tensor, neutral: float, label: str, reach: float | None = None) -> float:
    """Colours from `neutral - reach` to `neutral + reach`, white between them. Returns the reach, by default that of the
    values, except that a range of almost nothing is not blown up."""
    if reach is None:
        reach = max(float((values - neutral).abs().max()), 1e-3)
    image = axes.imshow(
        values.double().numpy(),
        cmap=DIVERGING,
        vmin=neutral - reach,
        vmax=neutral + reach,
        aspect="auto",
        interpolation="nearest",
    )
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=6)
    return reach


def _ticks(axes: Axes, columns: Sequence[str], rows: Sequence[str], step: int = 1) -> None:
    """Names at columns (each `step` wide) and rows, thinned where they would overlap."""
    across, down = _spread(len(columns)), _spread(len(rows), 4 * MAX_TICKS)
    turn = 0 if max(map(len, columns)) <= 2 else 90
    places = [i * step + (step - 1) / 2 for i in across]
    axes.set_xticks(places, [_cut(columns[i]) for i in across], rotation=turn, fontsize=6)
    axes.set_yticks(down, [_cut(rows[i]) for i in down], fontsize=6)


def _spread(n: int, most: int = MAX_TICKS) -> list[int]:
    """At most about `most` of the positions 0 .. n - 1, evenly spread."""
    return list(range(0, n, -(-n // most)))


def _cut(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def _short(names: Sequence[str]) -> list[str]:
    """Layer names without the parts that all of them have."""
    common = set.intersection(*(set(name.split(".")) for name in names)) if len(names) > 1 else set()
    return [".".join(part for part in name.split(".") if part not in common) or name or "all layers" for name in names]


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    # Text in an SVG stays text, and equal plots are equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mhr"}):
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(buffer, format=path.suffix[1:], metadata=metadata)
    return write_bytes_atomically(path, buffer.getvalue())
