"""The page of the study on a real decoder: rank accuracy and Rouge-L of every way to use it, and how the learning rates were chosen."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from .tables import Scores, run_of, spread

MEASURES = {"accuracy": "rank accuracy", "rouge_l": "Rouge-L"}


def page(record: Mapping[str, Any]) -> str:
    """Two tables in Markdown. Scores in per cent: the mean over categories of the mean over their tasks, taken seed by seed; mean
    and, after ±, standard deviation over the seeds."""
    plan, rows = record["plan"], record["scores"]
    base: Scores = rows["base"]
    counts = {measure: sum(measure in next(iter(s.values())) for s in base.values()) for measure in MEASURES}
    steps = ", ".join(f"{name} {seconds / 60:.0f}" for name, seconds in record["core_seconds"].items())
    lines = [
        f"# Real tasks, {record['backbone']}",
        "",
        f"`{record['command']}`",
        "",
        f"{record['machine']['cpu']}, commit {record['machine']['commit']}. {plan['pretrain_steps']} optimizer steps of "
        f"{plan['batch']} examples (packed), {plan['adapt_steps']} on the {record['shots']} examples of each held-out task; "
        f"rank {plan['rank']}; inputs of at most {record['max_length']} tokens; the first {plan['limit']} test examples of each of "
        f"{counts['rouge_l']} held-out tasks, {counts['accuracy']} of them with answer choices; {len(plan['seeds'])} seeds. "
        f"Core-minutes: {steps}.",
        "",
        "| | "
        + " | ".join(f"{title} ({counts[m]} tasks)" for m, title in MEASURES.items())
        + " | trained parameters |",
        "|---" * (len(MEASURES) + 2) + "|",
    ]
    # What is not adapted comes first.
    ordered = sorted(rows, key=lambda row: row[0].isdigit())
    for name in ordered:
        trained = record["runs"].get(run_of(name), {}).get("parameters", {}).get("trained", "")
        lines.append(f"| {name} | " + " | ".join(_cell(rows[name], m) for m in MEASURES) + f" | {trained} |")
    lines += [
        "",
        "Learning rate of each method: that with the lowest loss per token on test examples of the training tasks, after "
        f"{plan['trial_steps']} steps.",
        "",
        "| | " + " | ".join(f"{float(rate):g}" for rate in next(iter(record["rates"].values()))) + " |",
        "|---" * (len(next(iter(record["rates"].values()))) + 1) + "|",
    ]
    for method, losses in record["rates"].items():
        least = min(losses.values())
        cells = [f"**{loss:.3f}**" if loss == least else f"{loss:.3f}" for loss in losses.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(scores: Scores, measure: str) -> str:
    found = []
    for seed in next(iter(scores.values())):
        categories: dict[str, list[float]] = {}
        for own in scores.values():
            if measure in own[seed]:
                categories.setdefault(own[seed]["category"], []).append(own[seed][measure])
        found.append(100 * statistics.mean(map(statistics.mean, categories.values())))
    return spread(found)
