"""Alignment on a report: of the mixed factors, and at equal loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mhr.analysis import equal_loss
from mhr.report.blocks import Looked
from mhr.report.material import Material
from mhr.report.sections_learnt import alignment
from mhr.report.tables import Table


def tables(runs: dict[str, list[dict[str, Any]]]) -> tuple[dict[str, Table], list[str]]:
    material = Material()
    for label, points in runs.items():
        material.group(label, Path(label)).inspections = [{"alignment": points}]
    blocks = list(alignment(Looked(material, {}, {})))
    return {b.key: b for b in blocks if isinstance(b, Table)}, [b for b in blocks if isinstance(b, str)]


def points(*found: tuple[float, float], **more: Any) -> list[dict[str, Any]]:
    """(loss, cosine of the mixed factors) at steps 10, 20, ..."""
    fixed = {"layers": {"q": 0.1}, "tasks": ["a", "b"], "cosines": [[1.0, 0.1], [0.1, 1.0]], "mean": 0.05, **more}
    return [fixed | {"step": 10 * (i + 1), "loss": loss, "mixed": mixed} for i, (loss, mixed) in enumerate(found)]


def test_runs_stand_side_by_side_at_the_same_loss() -> None:
    made, told = tables(
        {"fast": points((2.0, 0.4), (1.0, 0.2), (0.2, 0.0)), "slow": points((2.2, 0.5), (1.6, 0.3), (1.2, 0.2))}
    )
    assert told == []
    assert made["alignment"].to_json()["rows"][0] == ["fast", 10, 2.0, 0.05, 0.4]
    compared = made["alignment_at_equal_loss"].to_json()
    assert compared["columns"] == ["loss", "fast", "slow"]
    assert "about -1 / (T - 1)" in compared["note"]
    assert [round(value, 3) for value in compared["rows"][-1]] == [1.6, 0.32, 0.3]


def test_what_is_said_of_a_stationary_point_is_so() -> None:
    """Gradients of equal length that sum to 0 have a mean cosine of -1 / (T - 1)."""
    gradients = torch.randn(5, 4096, generator=torch.Generator().manual_seed(0))
    gradients = gradients - gradients.mean(0)
    units = gradients / gradients.norm(dim=1, keepdim=True)
    cosines = units @ units.T
    assert (cosines.sum() - 5) / 20 == pytest.approx(-1 / 4, abs=0.01)
    assert "-1 / (T - 1)" in (equal_loss.__doc__ or "")


def test_runs_without_a_loss_in_common_are_not_compared() -> None:
    made, told = tables({"a": points((2.0, 0.4), (1.0, 0.2)), "b": points((9.0, 0.5), (8.0, 0.3))})
    assert "alignment_at_equal_loss" not in made
    assert "cannot be compared" in told[0]


def test_a_run_without_mixed_factors_leaves_the_others_comparable() -> None:
    runs = {name: points((2.0, 0.4), (1.0, 0.2), (0.2, 0.0)) for name in "ab"}
    other = [one | {"mixed": None} for one in points((2.0, 0.0), (1.0, 0.0))]
    made, told = tables(runs | {"summed": other})
    assert made["alignment_at_equal_loss"].to_json()["columns"] == ["loss", "a", "b"]
    assert told == [
        "Without mixed factors, for their weights do not sum to 1, or an earlier version inspected them: summed."
    ]


def test_inspections_of_earlier_versions_are_shown() -> None:
    old = [{k: v for k, v in one.items() if k not in ("mixed", "loss")} for one in points((2.0, 0.4), (1.0, 0.2))]
    made, told = tables({"old": old})
    assert made["alignment"].to_json()["rows"] == [["old", 10, None, 0.05, None], ["old", 20, None, 0.05, None]]
    assert told == []
