"""The Markdown table of a study on real tasks: categories x methods, mean and spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Task -> seed ("None" where nothing is drawn) -> measures."""


def study_table(record: Mapping[str, Any]) -> str:
    """Scores in per cent: a row for each category of held-out tasks and for their mean, a column for each method.

    A category's score is the mean over its tasks, the last row the mean over categories; each is taken seed by seed, and the
    table shows its mean and, after ±, the standard deviation over seeds.
    """
    # What is not adapted comes first.
    rows: dict[str, Scores] = dict(sorted(record["scores"].items(), key=lambda item: item[0][0].isdigit()))
    first: Scores = next(iter(rows.values()))
    category = {task: next(iter(seeds.values()))["category"] for task, seeds in first.items()}
    majority = {t: {"None": {"score": next(iter(s.values()))["majority"]}} for t, s in first.items()}
    columns: dict[str, Scores] = {"majority": majority, **rows}
    names = sorted(set(category.values()))
    lines = [
        f"# Real tasks, {record['backbone']}",
        "",
        f"`{record['command']}`",
        "",
        f"{record['machine']['cpu']}, {record['machine']['threads']} thread, commit {record['machine']['commit']}, "
        f"{sum(record['seconds'].values()) / 60:.0f} minutes. Score: accuracy by ranking choices, exact match where a task has "
        f"none; per cent, mean over {len(record['plan']['seeds'])} seeds ± standard deviation.",
        "",
        "| category (tasks) | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in [*names, None]:
        inside = names if name is None else [name]
        size = len(category) if name is None else sum(c == name for c in category.values())
        cells = [_cell(scores, category, inside) for scores in columns.values()]
        lines.append(f"| {name or 'mean over categories'} ({size}) | " + " | ".join(cells) + " |")
    trained = [
        str(record["runs"].get(run_of(column), {}).get("parameters", {}).get("trained", "")) for column in columns
    ]
    lines.append("| trained parameters | " + " | ".join(trained) + " |")
    return "\n".join(lines) + "\n"


def _cell(scores: Scores, category: Mapping[str, str], categories: list[str]) -> str:
    """Mean and spread over seeds of the mean over categories of the mean over their tasks."""
    seeds = list(next(iter(scores.values())))
    found = []
    for seed in seeds:
        means = [
            statistics.mean(own[seed]["score"] for task, own in scores.items() if category[task] == name)
            for name in categories
        ]
        found.append(100 * statistics.mean(means))
    return spread(found)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, after ±, standard deviation; of one value that alone."""
    after = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{after}"


def run_of(column: str) -> str:
    """The run that a column's results come from: "32-shot mhr-z" -> "adapted mhr-z"."""
    return column.replace("zero-shot", "pretrained").replace("32-shot", "adapted")


def short(task: str) -> str:
    """ "task429_senteval_tense" -> "429 senteval tense"."""
    return task.removeprefix("task").replace("_", " ").removesuffix(" classification")


def paragraphs(doc: str | None) -> list[str]:
    """A module's docstring without its first line."""
    return (doc or "").strip().split("\n\n", 1)[1].splitlines()
