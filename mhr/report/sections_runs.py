"""What the runs cost, and what they were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from mhr.analysis.costs import cost_of
from mhr.report import charts
from mhr.report.blocks import Block, Details, Figure, Looked
from mhr.report.figures import to_inline_svg
from mhr.report.material import Group
from mhr.report.tables import Table, byte_size, text, whole
from mhr.runs.config import flat


def costs(looked: Looked) -> Iterator[Block]:
    """Parameters and bytes."""
    scores = looked.material.scores
    meeting = scores.meeting()
    rows, points = [], {}
    for label, group in looked.material.groups.items():
        inspected = looked.inspections.get(label)
        trained = group.trained if group.trained is not None else inspected.trained if inspected else None
        if trained is None:
            continue
        cost = cost_of(inspected) if inspected else None
        rows.append(
            [
                text(label),
                whole(trained),
                byte_size(cost.bytes if cost else None),
                whole(cost.tasks if cost else None),
                byte_size(cost.bytes_per_task if cost else None),
                whole(cost.another if cost else None),
                byte_size(cost.another_bytes if cost else None),
            ]
        )
        if trained and label in scores.contestants and meeting and not group.pretrained:
            points[label] = (trained, *scores.mean(label, meeting)[:2])
    if not rows:
        return
    yield Table(
        "costs",
        "What is trained, what is stored, and what one more task adds",
        [
            "run",
            "trained",
            "adapter",
            "tasks",
            "bytes per task",
            "parameters for one more task",
            "bytes for one more task",
        ],
        rows,
        note="Adapter: the parameters it stores. One more task: what is not shared with the pretrained run; a routing row after "
        "pretraining, all that was trained after adapting.",
    )
    if len(points) > 1:
        caption = "Mean over tasks against the parameters that one adaptation trains"
        yield Figure(to_inline_svg(charts.plot_costs(points), f"Scatter chart. {caption}"), caption + ".")


def manifest(looked: Looked) -> Iterator[Block]:
    """Runs."""
    groups = {label: group for label, group in looked.material.groups.items() if group.runs}
    if not groups:
        return
    rows = []
    for label, group in groups.items():
        info = group.info
        rows.append(
            [
                text(label),
                text(str(group.path)),
                text(str(info.get("base", ""))),
                text(", ".join(sorted({run.status for run in group.runs}))),
                text(", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items())),
                whole(len(group.runs)),
                whole(len({task for run in group.runs for task in run.info.get("tasks", [])})),
            ]
        )
    yield Table(
        "runs", "What was run", ["run", "folder", "base model", "status", "versions", "runs", "tasks"], rows, names=5
    )
    settings = {label: flat(_config(group)) for label, group in groups.items()}
    keys = list(dict.fromkeys(key for values in settings.values() for key in values))
    differing = [key for key in keys if len({str(values.get(key)) for values in settings.values()}) > 1]
    if differing:
        rows = [[text(key), *(text(_shown(values, key)) for values in settings.values())] for key in differing]
        yield Table("settings", "Settings that differ", ["setting", *settings], rows, names=len(settings) + 1)
    for label, group in groups.items():
        yield Details(f"All settings of {label}", yaml.safe_dump(_config(group), sort_keys=False, allow_unicode=True))


def _config(group: Group) -> dict[str, Any]:
    return group.info.get("config") or {}


def _shown(settings: dict[str, Any], key: str) -> str:
    return "–" if key not in settings else "" if settings[key] is None else str(settings[key])
