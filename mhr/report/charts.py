"""Charts that set several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from mhr.analysis.curves import Curve
from mhr.analysis.scores import Standing
from mhr.report.figures import (
    FAINT,
    SERIES,
    colour,
    cut,
    dash,
    heat_map,
    legend,
    marker,
    name_ticks,
    new_figure,
    per_cent,
    stacked_shares,
    styled,
)

WIDTH = 6.4
"""Inches of a chart that a phone shows whole, its letters getting smaller."""

Points = Sequence[tuple[int, float]]


@styled
def plot_standings(standings: Sequence[Standing], majority: float | None) -> Figure:
    """The mean of each contestant, with its spread over seeds, and what the most frequent answer scores where that is known."""
    rows = [(s.contestant, s.mean, s.spread or 0.0, SERIES[0], 1.0 if i == 0 else 0.5) for i, s in enumerate(standings)]
    if majority is not None:
        rows.append(("majority", majority, 0.0, SERIES[6], 0.6))
    figure = new_figure(WIDTH, 0.7 + 0.34 * len(rows))
    axes = figure.add_subplot()
    for i, (_, mean, deviation, drawn, alpha) in enumerate(rows):
        axes.barh(i, mean, height=0.66, color=drawn, alpha=alpha)
        if deviation:
            axes.errorbar(mean, i, xerr=deviation, color=FAINT, capsize=3, linewidth=1.2)
        place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{100 * mean:.1f}", (max(mean + deviation, 0.0), i), **place)
    axes.set_yticks(range(len(rows)), [cut(row[0]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    low = 1.12 * min(0.0, *(mean - deviation for _, mean, deviation, _, _ in rows))  # of correlations
    high = 1.12 * max(0.0, *(mean + deviation for _, mean, deviation, _, _ in rows))
    axes.set_xlim(low, high or 1.0)
    axes.xaxis.set_major_formatter(per_cent())
    axes.set_xlabel("mean over tasks, per cent")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    return figure


@styled
def plot_curves(curves: Mapping[str, Curve], measure: str = "training loss") -> Figure:
    """A measure against steps; the band reaches from the lowest to the highest of repeated runs."""
    figure = new_figure(WIDTH, 3.8)
    axes = figure.add_subplot()
    for i, curve in enumerate(curves.values()):
        axes.plot(curve.steps, curve.mean, color=colour(i), linestyle=dash(i), linewidth=1.6, label=i)
        if curve.runs > 1:
            axes.fill_between(curve.steps, curve.low, curve.high, color=colour(i), alpha=0.12, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel(measure)
    if all(value >= 0 for curve in curves.values() for value in curve.low):
        axes.set_ylim(bottom=0.0)
    axes.grid(axis="y")
    legend(axes, list(curves))
    return figure


@styled
def plot_alignment(points: Mapping[str, Points]) -> Figure:
    """Mean cosine of the tasks' gradients at several points of training."""
    figure = new_figure(WIDTH, 3.6)
    axes = figure.add_subplot()
    for i, curve in enumerate(points.values()):
        steps, values = zip(*curve, strict=True)
        axes.plot(steps, values, marker="o", markersize=4, color=colour(i), linestyle=dash(i), label=i)
    axes.axhline(0.0, color=FAINT, linewidth=0.8)
    axes.set_xlabel("step")
    axes.set_ylabel("mean cosine between tasks")
    axes.grid(axis="y")
    legend(axes, list(points))
    return figure


@styled
def plot_costs(costs: Mapping[str, tuple[int, float, float | None]]) -> Figure:
    """Score against trained parameters. costs: label -> (trained, mean, spread)."""
    figure = new_figure(WIDTH, 4.8)
    axes = figure.add_subplot()
    for i, (trained, mean, deviation) in enumerate(costs.values()):
        axes.errorbar(trained, mean, yerr=deviation or None, fmt=marker(i), color=colour(i), capsize=3, label=i)
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.15)
    legend(axes, list(costs))
    axes.yaxis.set_major_formatter(per_cent())
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("mean over tasks, per cent")
    axes.grid()
    return figure


@styled
def plot_transfer(matrix: Mapping[str, Mapping[str, float]]) -> Figure:
    """Trained on (rows) x evaluated on (columns), grey where nothing was."""
    rows = list(matrix)
    columns = list(dict.fromkeys(task for row in matrix.values() for task in row))
    values = torch.tensor([[matrix[row].get(column, math.nan) for column in columns] for row in rows])
    figure = new_figure(min(3.4 + 0.24 * len(columns), 20.0), min(2.4 + 0.22 * len(rows), 30.0))
    axes = figure.add_subplot()
    if bool((values < 0).any()):  # of correlations
        heat_map(axes, values, 0.0, "score", reach=1.0)
    else:
        stacked_shares(axes, values, "score")
    name_ticks(axes, columns, rows)
    axes.set_ylabel("trained on")
    axes.set_xlabel("evaluated on")
    return figure


@styled
def plot_cosines(tasks: Sequence[str], cosines: Tensor) -> Figure:
    """Cosine of each pair of tasks' gradients."""
    figure = new_figure(min(3.4 + 0.22 * len(tasks), 20.0), min(2.6 + 0.22 * len(tasks), 20.0))
    axes = figure.add_subplot()
    heat_map(axes, cosines, 0.0, "cosine", reach=1.0)
    name_ticks(axes, tasks, tasks)
    return figure
