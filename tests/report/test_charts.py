"""Charts and heat maps: any name as it is, and any value where it stands."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.figure import Figure

from mhr.analysis.curves import Curve
from mhr.analysis.routing import Routing
from mhr.analysis.scores import Standing
from mhr.report import charts, plots
from mhr.report.figures import UNKNOWN_GREY, to_inline_svg

OTHER = "another"
NAMES = ["$x$ for $y$", r"$\nomacro$", r"_runs\new\1", '<b> & "{quoted}" 100 %']


def standing(name: str, mean: float, spread: float | None = 0.01) -> Standing:
    return Standing(name, mean, spread, mean, 2, 0, None, None)


def curve(*values: float) -> Curve:
    return Curve(list(range(len(values))), list(values), [v - 0.01 for v in values], [v + 0.01 for v in values], 2)


def routing(*tasks: str) -> Routing:
    weights = torch.rand(len(tasks), 2, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    return Routing(list(tasks), {"layer": weights})


DRAWN: dict[str, Callable[[str], Figure]] = {
    "standings": lambda name: charts.plot_standings([standing(name, 0.5), standing(OTHER, 0.4)], None),
    "curves": lambda name: charts.plot_curves({name: curve(0.5, 0.4), OTHER: curve(0.5, 0.3)}),
    "alignment": lambda name: charts.plot_alignment({name: [(1, 0.1)], OTHER: [(1, 0.2)]}),
    "costs": lambda name: charts.plot_costs({name: (10, 0.5, None), OTHER: (20, 0.4, 0.1)}),
    "transfer": lambda name: charts.plot_transfer({name: {name: 0.5}, OTHER: {OTHER: 0.5}}),
    "cosines": lambda name: charts.plot_cosines([name, OTHER], torch.eye(2)),
    "skills": lambda name: plots.plot_skills(routing(name, OTHER)),
    "layers": lambda name: plots.plot_layers(routing(name, OTHER)),
    "similarity": lambda name: plots.plot_similarity(routing(name, OTHER)),
    "entropy": lambda name: plots.plot_entropy({name: routing("a", "b"), OTHER: routing("a", "b")}),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("drawn", DRAWN)
def test_a_name_stands_in_a_figure_as_it_is(drawn: str, name: str) -> None:
    svg = to_inline_svg(DRAWN[drawn](name), f"Chart of {name}")
    page = ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="http://www.w3.org/1999/xlink"', 1))
    texts = {"".join(element.itertext()).strip() for element in page.iter() if element.tag.endswith("text")}
    assert {name, OTHER} <= texts
    assert page.get("aria-label") == f"Chart of {name}"


@pytest.mark.parametrize("low", [-0.5, -0.001, 0.0, 0.2])
@pytest.mark.parametrize("high", [-0.3, 0.0, 0.5])
def test_scores_below_zero_are_drawn_where_they_are(low: float, high: float) -> None:
    """Correlations may be negative."""
    bars = charts.plot_standings([standing("a", high), standing("b", low)], None).axes[0].get_xlim()
    lines = charts.plot_curves({"a": curve(low, high)}, "validation score").axes[0].get_ylim()
    for left, right in (bars, lines):
        assert left <= min(low, high, 0.0 if min(low, high) >= 0.01 else low - 0.01)
        assert left < right
        assert right >= max(low, high)
    values = charts.plot_transfer({"a": {"a": low, "b": high}}).axes[0].images[0]
    assert values.norm.vmin <= min(low, high)


def test_what_was_not_judged_is_no_score_of_zero() -> None:
    image = charts.plot_transfer({"a": {"a": 0.0, "b": 0.5}, "b": {"b": 0.0}}).axes[0].images[0]
    drawn = image.to_rgba(image.get_array())
    assert tuple(drawn[1, 0]) == pytest.approx(UNKNOWN_GREY, abs=0.01)
    assert tuple(drawn[0, 0]) == tuple(drawn[1, 1]) != tuple(drawn[1, 0])
