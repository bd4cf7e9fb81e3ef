"""Plots of how an inspected adapter routes its tasks, as figures and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mhr.analysis.clusters import Join, average_linkage, leaf_order
from mhr.analysis.inspection import Inspection
from mhr.analysis.routing import Routing
from mhr.files import make_folder
from mhr.report.figures import (
    FAINT,
    MAX_TICKS,
    colour,
    heat_map,
    legend,
    name_ticks,
    new_figure,
    save,
    spread,
    styled,
    without_common_parts,
)

MOST_TASKS = 1000
"""Tasks of a figure, at most: a tree of n takes n^3 operations, and no screen has more lines."""


def save_plots(inspection: Inspection, folder: str | Path) -> list[Path]:
    """Write routing, layers, similarity and entropy, each as .png and .svg, into `folder`; returns the files.

    Without a bank that routes tasks differently there is nothing to draw, and the list is empty.
    """
    if not inspection.routed:
        return []
    folder = make_folder(folder)
    routing = inspection.routing
    drawn = {
        "routing": plot_skills(routing),
        "layers": plot_layers(routing),
        "similarity": plot_similarity(routing),
        "entropy": plot_entropy({inspection.method: routing}),
    }
    return [save(figure, folder / f"{name}.{kind}") for name, figure in drawn.items() for kind in ("png", "svg")]


@styled
def plot_skills(routing: Routing) -> Figure:
    """Tasks x skills, averaged over layers and heads."""
    routing, shown = _drawn(routing)
    values = routing.by_skill
    n_tasks, n_skills = values.shape
    figure = _tall_figure(2.2 + 0.45 * n_skills, n_tasks)
    axes = figure.add_subplot()
    reach = heat_map(axes, values, routing.even, "routing weight")
    axes.set_xlabel("skill")
    name_ticks(axes, [str(s) for s in range(n_skills)], routing.tasks)
    axes.set_title(f"Routing, mean over layers and heads{shown}")
    if n_tasks * n_skills <= 240:
        for t, row in enumerate(values.tolist()):
            for s, value in enumerate(row):
                strong: dict[str, Any] = {"color": "white"} if abs(value - routing.even) > 0.65 * reach else {}
                axes.text(s, t, f"{value:.2f}", ha="center", va="center", fontsize=7, **strong)
    return figure


@styled
def plot_layers(routing: Routing) -> Figure:
    """Tasks x (layer, skill), averaged over heads; the skills of a layer stand side by side."""
    routing, shown = _drawn(routing)
    values = routing.by_layer
    n_tasks, n_groups, n_skills = values.shape
    figure = _tall_figure(4 + 0.05 * n_groups * n_skills, n_tasks)
    axes = figure.add_subplot()
    heat_map(axes, values.flatten(1), routing.even, "routing weight")
    name_ticks(axes, without_common_parts(list(routing.weights)), routing.tasks, step=n_skills)
    if n_groups <= MAX_TICKS:
        for g in range(1, n_groups):
            axes.axvline(g * n_skills - 0.5, color=FAINT, linewidth=0.6)
    axes.set_xlabel(f"layer, with its {n_skills} skills from left to right")
    axes.set_title(f"Routing by layer, mean over heads{shown}")
    return figure


@styled
def plot_similarity(routing: Routing) -> Figure:
    """Tasks x tasks: which are routed alike, ordered by a tree of average linkage (distance 1 - cosine) on the left."""
    routing, shown = _drawn(routing)
    n_tasks = len(routing.tasks)
    figure = _tall_figure(3.6 + 0.22 * n_tasks, n_tasks, extra=1.2)
    axes, tree = figure.subplots(1, 2, sharey=True, width_ratios=(5, 1))
    joins = average_linkage(1 - routing.similarity)
    order = leaf_order(joins)
    names = [routing.tasks[i] for i in order]
    heat_map(axes, routing.similarity[order][:, order], 0.0, "cosine", reach=1.0)
    name_ticks(axes, names, names)
    axes.set_title(f"Which tasks are routed alike{shown}")
    _draw_tree(tree, joins, order)
    return figure


@styled
def plot_entropy(routings: dict[str, Routing]) -> Figure:
    """How evenly each layer uses its skills, for each of several adapters of one model: 1 is uniform, 0 one skill."""
    layers = list(dict.fromkeys(group for routing in routings.values() for group in routing.weights))
    names = without_common_parts(layers)
    figure = new_figure(min(16.0, 4 + 0.16 * len(names)), 3.6)
    axes = figure.add_subplot()
    for i, routing in enumerate(routings.values()):
        entropy = routing.entropy
        places = [layers.index(group) for group in entropy]
        axes.plot(places, list(entropy.values()), "o", color=colour(i), markersize=4, label=i)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.grid(axis="y")
    axes.axhline(1.0, color=FAINT, linewidth=0.8, linestyle="--")
    shown = spread(len(names))
    axes.set_xticks(shown, [names[i] for i in shown], rotation=90, fontsize=7)
    lowest = min(value for routing in routings.values() for value in routing.entropy.values())
    axes.set_ylim(min(lowest - 0.01, 0.94), 1.0 + 0.02 * (1.02 - min(lowest, 0.94)))
    axes.set_ylabel("entropy / log S")
    axes.set_title("Entropy of the routing by layer (1: uniform)")
    legend(axes, list(routings))
    return figure


def _drawn(routing: Routing) -> tuple[Routing, str]:
    """The routing of the tasks that a figure shows, and what its title says of those that it leaves out."""
    every, some = len(routing.tasks), routing.spread(MOST_TASKS)
    return some, "" if some is routing else f", {MOST_TASKS:,} of {every:,} tasks"


def _draw_tree(axes: Axes, joins: list[Join], order: list[int]) -> None:
    """A dendrogram whose leaves are the rows on its left."""
    row = {leaf: float(place) for place, leaf in enumerate(order)}
    height = dict.fromkeys(row, 0.0)
    for k, join in enumerate(joins, len(order)):
        a, b = join.left, join.right
        axes.plot(
            [height[a], join.height, join.height, height[b]],
            [row[a], row[a], row[b], row[b]],
            color=FAINT,
            linewidth=0.9,
        )
        row[k], height[k] = (row[a] + row[b]) / 2, join.height
    axes.set_xlim(left=0.0)
    axes.tick_params(left=False, labelleft=False, labelsize=7)
    axes.set_xlabel("1 - cosine", fontsize=7)
    for spine in ("left", "right", "top"):
        axes.spines[spine].set_visible(False)


def _tall_figure(width: float, n_tasks: int, extra: float = 0.0) -> Figure:
    """A figure with a line for each task."""
    return new_figure(min(max(width + 2.0, 4.5), 24.0), min(1.8 + extra + 0.22 * n_tasks, 36.0))
