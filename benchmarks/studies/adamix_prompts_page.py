"""The page of AdaMix from 30 examples and a prompt: accuracy and cost of each method, and the trials."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from .tables import Scores, short, spread

ZERO_SHOT = "zero-shot"


def page(record: Mapping[str, Any]) -> str:
    """Tables in Markdown: accuracy in per cent, mean ± standard deviation over the seeds with which all methods are done."""
    plan, scores, methods = record["plan"], record["scores"], record["methods"]
    tasks, seeds = plan["tasks"], [str(seed) for seed in plan["seeds"]]
    done = [seed for seed in seeds if all(seed in scores[name][task] for name in methods for task in tasks)]
    first: Scores = scores[ZERO_SHOT]
    (judged,) = {first[task]["None"]["n"] for task in tasks}
    unfinished = "" if len(done) == len(seeds) else f" **Not finished: {len(done)} of {len(seeds)} seeds are done.**"
    lines = [
        f"# AdaMix from {plan['shots']} examples and a prompt, {record['backbone']}",
        "",
        f"`{record['command']}`",
        "",
        f"{record['machine']['cpu']}, commit {record['machine']['commit']}. Prompt `{record['prompt']!r}`, answered by the word of a label; the base "
        f"in {record['dtype']}. Each task alone: {plan['shots']} training examples that the seed draws, {plan['steps']} steps of {plan['batch']}, the last "
        f"step; {judged} test examples; {len(seeds)} seeds.{unfinished} Accuracy in per cent, mean over seeds ± standard deviation.",
        "",
        "| | "
        + " | ".join(map(short, tasks))
        + " | mean | learning rate | passes | trained parameters | CPU seconds of a run |",
        "|---" * (len(tasks) + 6) + "|",
        f"| {ZERO_SHOT} | " + " | ".join(_cells(first, tasks, ["None"])) + " | | | | |",
    ]
    for name, method in methods.items():
        taken = [seconds for key, seconds in record["seconds"].items() if key.startswith(f"{name} runs/")]
        cells = [
            *_cells(scores[name], tasks, done),
            method["rate"],
            f"{plan['steps'] * method['passes']:,}",
            f"{record['runs'][name]['parameters']['trained']:,}",
            f"{statistics.mean(taken):.0f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    rates = [f"{rate:g}" for rate in plan["rates"]]
    lines += [
        "",
        "## Learning rates",
        "",
        f"Accuracy on {short(plan['trial_task'])}, which has no part above, seed {plan['trial_seed']}.",
        "",
        "| | " + " | ".join(rates) + " |",
        "|---" * (len(rates) + 1) + "|",
    ]
    for name, method in methods.items():
        tried = {rate: f"{100 * score:.1f}" for rate, score in method["trials"].items()}
        tried[method["rate"]] = f"**{tried[method['rate']]}**"
        lines.append(f"| {name} | " + " | ".join(tried[rate] for rate in rates) + " |")
    return "\n".join(lines) + "\n"


def _cells(scores: Scores, tasks: list[str], seeds: list[str]) -> list[str]:
    """Each task, and the mean over tasks that is taken seed by seed."""
    values = [[100 * scores[task][seed]["accuracy"] for seed in seeds] for task in tasks]
    return [*map(spread, values), spread([statistics.mean(own) for own in zip(*values, strict=True)])]
