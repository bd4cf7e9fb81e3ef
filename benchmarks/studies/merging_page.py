"""The page of the merging study: what was trained, how it was used, and what merging made of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .tables import Scores, short, spread


def page(record: Mapping[str, Any]) -> str:
    """Tables in Markdown: accuracy in per cent, mean ± standard deviation over seeds; the last column averages the tasks."""
    plan, scores, tasks = record["plan"], record["scores"], record["plan"]["tasks"]
    first: Scores = next(iter(scores.values()))
    alone, together = (
        ", ".join(f"{row[0]} {plan['steps'] * row[i][0]:g} at {row[i][1]:g}" for row in plan["updates"]) for i in (1, 2)
    )
    majority = [100 * next(iter(first[task].values()))["majority"] for task in tasks]
    lines = [
        "# AdaMix and merging on real tasks, MiniLM",
        "",
        f"`{record['command']}`",
        "",
        f"{record['machine']['cpu']}, {record['machine']['threads']} thread, commit {record['machine']['commit']}, "
        f"{sum(record['seconds'].values()) / 60:.0f} minutes. {plan['n_train']} training examples of each task, "
        f"batches of {plan['batch']}, {plan['precision']} autocast; optimizer steps and learning rate on one task: {alone}; on all at "
        f"once: {together}. Accuracy by "
        f"ranking choices on {next(iter(first[tasks[0]].values()))['n']} test examples, per cent, mean over "
        f"{len(plan['seeds'])} seeds ± standard deviation.",
        "",
        "Always giving the most frequent training answer: "
        + ", ".join(f"{value:.0f} on {short(task)}" for task, value in zip(tasks, majority, strict=True))
        + ".",
    ]
    sections = {
        "Trained on each task alone": [row for row in scores if row.endswith("each task alone")],
        "Trained on all tasks at once": [row for row in scores if row.endswith("all tasks at once")],
        "AdaMix at inference": [row for row in scores if row.startswith("AdaMix, ") and _is_inference(row)],
        "Merging the seeds of each task": _with_inputs(scores, "of the seeds"),
        "Merging the tasks of each seed": _with_inputs(scores, "over the tasks"),
    }
    for title, rows in sections.items():
        lines += ["", f"## {title}", "", "| | " + " | ".join([*map(short, tasks), "mean"]) + " | trained |"]
        lines.append("|---" * (len(tasks) + 3) + "|")
        for row in rows:
            cells = [_cell(scores[row], [task]) for task in tasks] + [_cell(scores[row], tasks)]
            lines.append(f"| {row} | " + " | ".join(cells) + f" | {_trained(record, row)} |")
    return "\n".join(lines) + "\n"


def _is_inference(row: str) -> bool:
    return ": " in row or row.endswith(("each task alone", "all tasks at once"))


def _with_inputs(scores: Mapping[str, Scores], ending: str) -> list[str]:
    """The rows of merges, those of each method behind what was merged."""
    merges = [row for row in scores if row.endswith(ending)]
    rows: list[str] = []
    for name in dict.fromkeys(row.partition(",")[0] for row in merges):
        rows += [f"{name}, each task alone", *(row for row in merges if row.startswith(f"{name},"))]
    return rows


def _cell(scores: Scores, tasks: Sequence[str]) -> str:
    seeds = list(scores[tasks[0]])
    found = [100 * statistics.mean(scores[task][seed]["score"] for task in tasks) for seed in seeds]
    return spread(found)


def _trained(record: Mapping[str, Any], row: str) -> str:
    """The number of trained parameters; empty where nothing was trained."""
    for how, kept in (("each task alone", "alone"), ("all tasks at once", "together")):
        if row.endswith(how):
            run = record["runs"][f"{row.partition(',')[0]}, {kept}"]
            return f"{run['parameters']['trained']:,}"
    return ""
