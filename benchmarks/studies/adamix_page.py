"""The page of the AdaMix study: accuracy, cost and parameters of each method, how AdaMix is used, longer runs, and the trials."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Task -> seed -> measures."""
BASELINE = "one bottleneck"


def page(record: Mapping[str, Any]) -> str:
    """Tables in Markdown: accuracy in per cent, mean ± standard deviation over the seeds that are done."""
    plan, scores, methods, tasks = record["plan"], record["scores"], record["methods"], record["plan"]["tasks"]
    seeds = _done(scores, [name for name, method in methods.items() if not method["once"]], tasks)
    of = {name: [seed for seed in seeds if _complete(scores[name], tasks, [seed])] for name in methods}
    counts = sorted({measures["n"] for own in scores[BASELINE].values() for measures in own.values()})
    majority = statistics.mean(next(iter(scores[BASELINE][task].values()))["majority"] for task in tasks)
    lines = [
        "# AdaMix on real tasks, MiniLM",
        "",
        f"`{record['command']}`",
        "",
        f"{record['machine']['cpu']}, commit {record['machine']['commit']}. Each task alone: {plan['n_train']} training examples, batches "
        f"of {plan['batch']}, a classification head, {plan['precision']}, the last step; {len(tasks)} tasks of two labels, {counts[0]} to {counts[-1]} test "
        f"examples each, {len(seeds)} of {len(plan['seeds'])} seeds. Accuracy in per cent, mean over tasks, then mean over seeds ± standard "
        f"deviation; the difference to {BASELINE} is taken seed by seed; rows of one seed have the first alone. Always giving the most frequent training answer: "
        f"{100 * majority:.1f}.",
        "",
        "| | seeds | accuracy | difference | learning rate | steps | passes | trained parameters | served parameters | CPU seconds of a run |",
        "|---" * 10 + "|",
    ]
    for name, method in methods.items():
        steps = plan["steps"] * method["longer"]
        served = record["runs"][method["served_as"]]["parameters"]["trained"]
        taken = [v for key, v in record["seconds"].items() if key.startswith(f"{name} runs-{plan['steps']}/")]
        lines.append(
            f"| {name} | {len(of[name])} | {_spread(_means(scores[name], tasks, of[name]))} | "
            f"{_difference(scores, name, tasks, of[name])} | {method['rate']} | "
            f"{steps:,} | {steps * method['passes']:,} | {record['runs'][name]['parameters']['trained']:,} | {served:,} | "
            f"{statistics.mean(taken):.0f} |"
        )
    ways = [row for row in scores if ": " in row and _complete(scores[row], tasks, of[row.split(": ")[0]])]
    if ways:
        lines += ["", "## AdaMix at inference", "", "| | accuracy |", "|---|---|"]
        for name in methods:
            own = [row for row in ways if row.startswith(f"{name}: ")]
            if own:
                rows = {f"{name}: average": name, **{row: row for row in own}}
                lines += [
                    f"| {shown} | {_spread(_means(scores[row], tasks, of[name]))} |" for shown, row in rows.items()
                ]
    lines += [
        "",
        "## Task by task",
        "",
        "| | " + " | ".join(map(_short, tasks)) + " |",
        "|---" * (len(tasks) + 1) + "|",
    ]
    for name in methods:
        cells = [_spread(_means(scores[name], [task], of[name])) for task in tasks]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += _longer(record)
    rates = list(dict.fromkeys(rate for method in methods.values() for rate in method["trials"]))
    lines += [
        "",
        "## Learning rates",
        "",
        f"Mean accuracy on the {len(plan['trial_tasks'])} tasks that have no part above, after {plan['trial_steps']} steps, seed {plan['trial_seed']}.",
        "",
        "| | " + " | ".join(rates) + " |",
        "|---" * (len(rates) + 1) + "|",
    ]
    for name, method in methods.items():
        cells = [_tried(method, rate) for rate in rates]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _longer(record: Mapping[str, Any]) -> list[str]:
    """The table of the longer runs; empty before they are done."""
    plan, scores, methods = record["plan"], record["scores"], record["methods"]
    ending, tasks = f", {plan['long_steps']} steps", plan["long_tasks"]
    shown = [name for name in methods if name + ending in scores]
    seeds = _done(scores, [name + ending for name in shown], tasks) if shown else []
    if not seeds:
        return []
    lines = ["", f"## After {plan['long_steps']:,} steps", "", f"Seed {' and '.join(seeds)}.", ""]
    lines += ["| | " + " | ".join(map(_short, tasks)) + " | mean |", "|---" * (len(tasks) + 2) + "|"]
    for name in shown:
        cells = [_spread(_means(scores[name + ending], part, seeds)) for part in (*([task] for task in tasks), tasks)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _complete(scores: Scores, tasks: Sequence[str], seeds: Sequence[str]) -> bool:
    return all(seed in scores.get(task, {}) for task in tasks for seed in seeds)


def _done(scores: Mapping[str, Scores], rows: Sequence[str] | Mapping[str, Any], tasks: Sequence[str]) -> list[str]:
    """The seeds with which all rows have a score on all tasks."""
    seeds = list(dict.fromkeys(seed for own in scores[next(iter(rows))].values() for seed in own))
    return [seed for seed in seeds if all(_complete(scores[row], tasks, [seed]) for row in rows)]


def _means(scores: Scores, tasks: Sequence[str], seeds: Sequence[str]) -> list[float]:
    """Per cent, the mean over tasks for each seed."""
    return [100 * statistics.mean(scores[task][seed]["accuracy"] for task in tasks) for seed in seeds]


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _difference(scores: Mapping[str, Scores], name: str, tasks: Sequence[str], seeds: Sequence[str]) -> str:
    if name == BASELINE:
        return ""
    own, other = (_means(scores[row], tasks, seeds) for row in (name, BASELINE))
    text = _spread([a - b for a, b in zip(own, other, strict=True)])
    return text if text.startswith("-") else f"+{text}"


def _tried(method: Mapping[str, Any], rate: str) -> str:
    if rate not in method["trials"]:
        return ""
    score = f"{100 * method['trials'][rate]:.1f}"
    return f"**{score}**" if rate == method["rate"] else score


def _short(task: str) -> str:
    """ "task429_senteval_tense" -> "429 senteval tense"."""
    return task.removeprefix("task").replace("_", " ").removesuffix(" classification")
