"""`mhr evaluate`: how well a run, an adapted checkpoint, a PEFT adapter or a bare model answers a task collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table

from mhr.errors import ConfigError

from . import harness as in_harness
from .frame import options
from .frame.console import note, out, print_json, working
from .frame.options import SETTINGS
from .frame.settings import READING, Given, takes

if TYPE_CHECKING:
    from mhr.evaluation import EvaluationResult

MEASURES = ("accuracy", "exact_match", "rouge_l", "majority")

EXAMPLES = """**Examples**

mhr evaluate runs/mhr

mhr evaluate runs/mhr-z/rev-last-upper/13 --limit 50 --json

mhr evaluate lora --model builtin:t5-tiny --tasks builtin:skills --task rev-last-upper
"""

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, an adapted run, an adapter folder (ours or PEFT's), a transformers folder, a hub id or builtin:t5-tiny.",
        show_default=False,
    ),
]
Split = Annotated[
    str, typer.Option(metavar="NAME", help="test, or train to see how well it was learnt.", rich_help_panel=SETTINGS)
]
RouteAs = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Route every example as this task of the bank. Unset: each as its own, unseen ones by the uniform average.",
        rich_help_panel=SETTINGS,
    ),
]
Kind = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="seq2seq, causal or encoder, where the model does not say.",
        rich_help_panel=SETTINGS,
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="NAME",
        help="held-out, training or all tasks of the collection. Unset: an adapted run's own task, otherwise the held-out "
        "ones, or all where none is held out.",
        rich_help_panel=SETTINGS,
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="accuracy (by ranking choices), exact_match, rouge_l (of the generated answer). Unset: accuracy where a task has "
        "choices, otherwise the two others.",
        rich_help_panel=SETTINGS,
    ),
]
Inference = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="AdaMix: the average of its modules, modules drawn for each sentence or token, or an ensemble of several "
        "draws.",
        rich_help_panel=SETTINGS,
    ),
]
Draws = Annotated[
    int | None,
    typer.Option(
        help="With --inference ensemble: number of draws (default 8).", rich_help_panel=SETTINGS, show_default=False
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="With --inference: seed of the draws (default 0).", rich_help_panel=SETTINGS, show_default=False),
]


@takes(
    "scoring",
    sets=READING,
    common=(
        *(
            "--tasks",
            "--task",
            "--part",
            "--split",
            "--limit",
            "--metrics",
            "--route-as",
            "--model",
            "--batch-size",
            "--output",
        ),
        *("--overwrite", "--json", "--harness"),
    ),
)
def evaluate(
    path: Target,
    tasks: options.Tasks = None,
    task: options.TaskNames = None,
    part: Part = None,
    output: options.OptionalOutput = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    split: Split = "test",
    metrics: Metrics = None,
    route_as: RouteAs = None,
    model: options.Base = None,
    kind: Kind = None,
    trust_remote_code: options.TrustRemoteCode = False,
    inference: Inference = "average",
    draws: Draws = None,
    seed: Seed = None,
    harness: in_harness.Harness = None,
    harness_tasks: in_harness.HarnessTasks = None,
    *,
    given: Given,
) -> None:
    """Score a model on a task collection: exact match, Rouge-L and accuracy, per task, per category and on average.

    With --output, DIR/evaluation.json keeps the scores and DIR/predictions.jsonl every answer. With --harness, the tasks are
    those of the lm-evaluation-harness, and DIR/harness.json keeps what it says.
    """
    scoring = given.values("scoring")
    if harness_tasks is not None and not harness:
        raise ConfigError("--harness-tasks is the place of tasks that --harness names: add that, or leave it out")
    if harness:
        in_harness.refuse(
            {
                "--tasks": tasks is not None,
                "--task": task is not None,
                "--part": part is not None,
                "--metrics": metrics is not None,
                "--set": bool(given.overrides),
                "--split": split != "test",
                "--inference": inference != "average",
                "--draws": draws is not None,
                "--seed": seed is not None,
            }
        )
        with working():
            from mhr.evaluation import score_in_harness

            found = score_in_harness(
                path,
                options.split(harness) or [],
                include=harness_tasks,
                limit=scoring.get("limit"),
                batch_size=scoring.get("batch_size"),
                route_as=route_as,
                base=model,
                kind=kind,
                trust_remote_code=trust_remote_code,
                output=output,
                overwrite=overwrite,
            )
        if json:
            print_json(found)
        else:
            in_harness.print_results(path, found)
        return
    with working():
        from mhr.evaluation import Inference, score

        result = score(
            path,
            tasks=tasks,
            names=options.split(task),
            part=part,
            overrides=given.overrides,
            base=model,
            kind=kind,
            route_as=route_as,
            trust_remote_code=trust_remote_code,
            inference=Inference(inference, draws, seed),
            output=output,
            overwrite=overwrite,
            split=split,
            **scoring,
            metrics=options.split([metrics] if metrics else None),
        )
    if json:
        print_json(result.to_dict())
    else:
        _print(result)
    if output:
        note(f"Written: {output}")


def _print(result: EvaluationResult) -> None:
    measures = [m for m in MEASURES if any(m in scores for scores in result.tasks.values())]
    protocol = result.settings.get("protocol")
    how = f", protocol {protocol}" if protocol else ""
    out.print(f"{result.model} on {result.source}, {result.split}{how}", style="bold", markup=False, soft_wrap=True)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    for measure in ("n", *measures):
        table.add_column(measure.replace("_", " "), justify="right", width=8)
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
    out.print(table)
    for what in ("inputs", "choices", "targets"):
        if result.truncated[what]:
            own = {task: counts[what] for task, counts in result.truncated["tasks"].items() if counts[what]}
            tasks = ", ".join(f"{task} {n}" for task, n in own.items())
            note(f"{what} truncated: {result.truncated[what]} of {result.truncated['examples']} examples ({tasks})")
    for name, why in result.skipped.items():
        note(f"skipped {name}: {why}")


def _cells(scores: Mapping[str, Any], measures: Sequence[str]) -> list[str]:
    return [f"{100 * scores[m]:.1f}" if scores.get(m) is not None else "" for m in measures]
