"""`mhr evaluate`: how well a run, an adapted checkpoint, a PEFT adapter or a bare model answers a task collection."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from mhr.errors import ConfigError

from .frame import options
from .frame.console import note, out, print_json, print_table, working
from .frame.settings import READING, Given, loading_of, split, takes

if TYPE_CHECKING:
    from mhr.evaluation import EvaluationResult

EXAMPLES = """**Examples**

mhr evaluate runs/mhr

mhr evaluate runs/mhr-z/init-upper/13 --limit 50 --json

mhr evaluate lora --model builtin:t5-tiny --tasks builtin:skills --task init-upper
"""

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, an adapted run, an adapter folder (ours or PEFT's), a transformers folder, a hub id or builtin:t5-tiny.",
        show_default=False,
    ),
]
PANEL = "lm-evaluation-harness"
WIDTH = 8
"""Letters of a column of numbers."""

OF_HARNESS = (
    *("--limit", "--batch-size", "--route-as", "--model", "--kind", "--dtype", "--quantize", "--attn", "--device-map"),
    *("--revision", "--trust-remote-code"),
    *("--shots", "--seed", "--system", "--chat-template", "--n-beams", "--stop", "--cache"),
)
"""Flags of settings that also decide how the harness scores a model."""

Harness = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TASK...",
        help="Tasks of the lm-evaluation-harness (pip install 'mhr[harness]') instead of a collection: --harness boolq rte. The "
        "adapter is folded into the weights: an adapted run's own routing, --route-as, or the average.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
HarnessTasks = Annotated[
    Path | None,
    typer.Option(
        "--harness-tasks",
        metavar="DIR",
        help="Folder of further task files (YAML) for --harness.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]


@takes(
    "scoring",
    "scope",
    "loading",
    "tasks",
    "data.on_bad_row",
    "data.prompt",
    "data.verbalizers",
    "data.chat_template",
    "data.system",
    sets=READING,
    of_run=("tasks", "data.on_bad_row", "data.prompt", "data.verbalizers", "data.chat_template", "data.system"),
    common=(
        *("--tasks", "--task", "--part", "--split", "--limit", "--metrics", "--route-as", "--model", "--batch-size", "--output"),
        *("--overwrite", "--json", "--harness"),
    ),
)  # fmt: skip
def evaluate(
    path: Target,
    output: options.OptionalOutput = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    harness: Harness = None,
    harness_tasks: HarnessTasks = None,
    *,
    given: Given,
) -> None:
    """Score a model on a task collection: by the metrics of each task, per task, per category and on average.

    With --output, DIR/evaluation.json keeps the scores and DIR/predictions.jsonl every answer. With --harness, the tasks are
    those of the lm-evaluation-harness, and DIR/harness.json keeps what it says.
    """
    if harness_tasks is not None and not harness:
        raise ConfigError("--harness-tasks is the place of tasks that --harness names: add that, or leave it out")
    data = given.values("data")
    kept: dict[str, Any] = {"output": output, "overwrite": overwrite, **loading_of(given)}
    kept |= {name: data.get(name) for name in ("chat_template", "system")}
    scoring = given.values("scoring")
    if "stop" in scoring:
        scoring["stop"] = tuple(unescaped(text) for text in scoring["stop"])
    if harness:
        for flag in given.said():
            if flag not in OF_HARNESS:
                raise ConfigError(f"{flag} is for task collections, and --harness has tasks of its own: leave one out")
        with working():
            from mhr.evaluation import score_in_harness

            found = score_in_harness(path, split(harness) or [], include=harness_tasks, **scoring, **kept)
        if json:
            print_json(found)
        else:
            _print_harness(found)
        return
    with working():
        from mhr.evaluation import Inference, score

        how, draws = scoring.pop("inference", "average"), scoring.pop("draws", None)
        inference = Inference(how, draws, None if how == "average" else scoring.get("seed"))
        result = score(
            path,
            **given.values(""),
            **given.values("scope"),
            overrides=given.overrides,
            **{name: data.get(name) for name in ("on_bad_row", "prompt", "verbalizers")},
            inference=inference,
            **scoring,
            **kept,
        )
    if json:
        print_json(result.to_dict())
    else:
        _print(result)
    if output:
        note(f"Written: {output}")


def unescaped(text: str) -> str:
    """What a shell leaves as it is: \\n, \\t and \\\\ as new line, tab and backslash."""
    meant = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda found: meant[found[1]], text)


def _print(result: EvaluationResult) -> None:
    from mhr.evaluation import METRICS
    from mhr.evaluation.result import unusual

    # Where tasks are judged by different metrics, their scores alone have a mean over all of them.
    several = len({scores["metric"] for scores in result.tasks.values()}) > 1
    shown = (*METRICS, *(["score"] if several else []), "majority")
    measures = [m for m in shown if any(m in scores for scores in result.tasks.values())]
    how = "".join(f", {part}" for part in unusual(result.settings))
    out.print(f"{result.model} on {result.source}, {result.split}{how}", style="bold", markup=False, soft_wrap=True)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    for measure in ("n", *measures):
        head = measure.replace("_", "\n" if len(measure) > WIDTH else " ")
        table.add_column(head, justify="right", min_width=WIDTH, no_wrap=True)
    for name, scores in result.tasks.items():
        table.add_row(name, str(scores["n"]), *_cells(scores, measures))
    if len(result.categories) > 1:
        table.add_section()
        for name, scores in result.categories.items():
            table.add_row(f"category {name}", f"{scores['tasks']} tasks", *_cells(scores, measures))
        table.add_section()
        table.add_row("mean over categories", "", *_cells(result.by_category, measures))
    if len(result.tasks) > 1:
        table.add_row("mean over tasks", f"{len(result.tasks)} tasks", *_cells(result.mean, measures), style="bold")
    print_table(table)
    for what in ("inputs", "choices", "targets"):
        if result.truncated[what]:
            own = {task: counts[what] for task, counts in result.truncated["tasks"].items() if counts[what]}
            tasks = ", ".join(f"{task} {n}" for task, n in own.items())
            note(f"{what} truncated: {result.truncated[what]} of {result.truncated['examples']} examples ({tasks})")
    if result.shots.get("dropped"):
        tasks = ", ".join(f"{task} {n}" for task, n in result.shots["tasks"].items())
        note(f"shots that did not fit, left out: {result.shots['dropped']} of {result.shots['of']} ({tasks})")
    for name, why in result.skipped.items():
        note(f"skipped {name}: {why}")
    remarks: dict[str, list[str]] = {}
    for name, scores in result.tasks.items():
        for remark in scores.get("remarks", ()):
            remarks.setdefault(remark, []).append(name)
    for remark, names in remarks.items():
        note(f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {remark}")


def _cells(scores: Mapping[str, Any], measures: Sequence[str]) -> list[str]:
    return [_number(m, scores[m]) if scores.get(m) is not None else "" for m in measures]


def _number(measure: str, value: float) -> str:
    """In per cent, but for a metric that is no share of anything, such as NIST."""
    from mhr.evaluation.metrics import metrics

    return f"{value:.4g}" if measure in metrics and not metrics[measure].scored else f"{100 * value:.1f}"


def _print_harness(found: dict[str, Any]) -> None:
    """What was asked and how, and a row for every metric of every task."""
    from mhr.evaluation.result import unusual

    how = "".join(f", {part}" for part in unusual(found["asked"]))
    name = f"{found['model']} in the lm-evaluation-harness {found['lm_eval']}"
    limit = "all examples" if found["limit"] is None else f"at most {found['limit']} examples a task"
    out.print(f"{name}{how}", style="bold", markup=False, soft_wrap=True)
    out.print(f"routing: {found['routing']}; {found['dtype']}; {limit}", markup=False, soft_wrap=True)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    for column in ("shots", "metric", "value", "stderr"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for task, measures in found["results"].items():
        for key, value in measures.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, float):
                continue
            error = measures.get(f"{metric}_stderr,{kind}")
            spread = f"{error:.4f}" if isinstance(error, float) else ""
            shots = str(found.get("n-shot", {}).get(task, ""))
            table.add_row(task, shots, metric if kind == "none" else f"{metric} ({kind})", f"{value:.4f}", spread)
    out.print(table)
