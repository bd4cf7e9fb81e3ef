"""`mhr merge`: make one plain adapter, or one plain model, of a bank or of several adapters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table
from typer.main import get_command

from mhr.errors import ConfigError

from .frame import options
from .frame.command import Command
from .frame.console import note, out, print_json, working
from .frame.options import SETTINGS, WHERE
from .frame.settings import Given, takes

if TYPE_CHECKING:
    from mhr.merging import MergeReport

EXAMPLES = """**Examples**

mhr merge runs/mhr --output runs/mhr-mu

mhr merge runs/mhr --method task --task rev-last-upper --to peft-lora --output lora

mhr merge runs/adapted/rev-last-upper --method soup-greedy --evaluate --output soup

mhr merge lora-a lora-b --method ties --density 0.3 --rank 16 --to peft-lora --output merged
"""

OF_METHODS = "mhr.merging.settings"
"""Where a call's context keeps the settings of merge methods."""

MOST_INPUTS = 6  # a wider table of distances does not fit a terminal; the report has it

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUT...",
        help="Runs, adapted checkpoints, adapter folders (ours or PEFT's), or folders of them, such as the seeds that "
        "`mhr adapt` wrote for a task. A single bank is merged within itself.",
        show_default=False,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="uniform (the average; of one bank MHR-mu), weighted (by --weights), task (the mixture of one task of one bank, "
        "exactly); over several inputs also soup-uniform, soup-greedy (adds what improves the dev score), fisher, ties, dare, "
        "mera (aligns hidden units first). Unset: task for a bank with one task, otherwise uniform.",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]
Task = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="Task of an input: whose mixture is taken from a bank, or that an adapter was trained for. Once for "
        "all inputs, or once for each; several for one bank merge its mixtures.",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=W,...",
        help="Weights of the inputs in their order, as in 0.7,0.3, or by their names or tasks, as in a=0.7,b=0.3; of one bank "
        "those of its tasks, or of all its skills in order. Divided by their sum.",
        rich_help_panel=SETTINGS,
    ),
]
Space = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="factor (merge the low-rank factors as they are) or delta (merge their products, and factor the result again). "
        "Unset: delta for ties and dare, otherwise factor.",
        rich_help_panel=SETTINGS,
    ),
]
Rank = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Rank of the factors after --space delta. Unset: the largest of the inputs.",
        rich_help_panel=SETTINGS,
    ),
]
Evaluate = Annotated[
    bool,
    typer.Option(
        "--evaluate", help="Score the inputs and the merged adapter on the test examples.", rich_help_panel=SETTINGS
    ),
]
DevTasks = Annotated[
    list[str] | None,
    typer.Option(
        "--dev-task",
        metavar="NAME",
        help="A task of the collection to score on, for soup-greedy, fisher and --evaluate. Unset: the tasks that the inputs "
        "stand for, otherwise the held-out ones.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
Split = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Validation examples of soup-greedy: train, without those that a run adapted on, or test.",
        rich_help_panel=SETTINGS,
    ),
]
To = Annotated[
    str,
    typer.Option(
        metavar="FORM",
        help="mhr (an adapter for this library), peft-lora (a folder that PEFT loads) or model (folded into the "
        "base weights: a plain transformers model).",
        rich_help_panel=SETTINGS,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Store float32, bfloat16 or float16. Unset: as the adapter is; with --to model as the base model is.",
        rich_help_panel=SETTINGS,
    ),
]


class MethodSettings(Command):
    """A command with a flag for every setting that a merge method declares, beside those of its function."""

    _whole = False

    @property
    def params(self) -> list[Any]:
        """Those of the function, and, when they are asked for, those of the methods, which import torch."""
        if not self._whole:
            self._whole = True
            self._params += _of_methods()
        return self._params

    @params.setter
    def params(self, params: list[Any]) -> None:
        self._params = params

    def invoke(self, ctx: Any) -> Any:
        ctx.meta[OF_METHODS] = {option.name: ctx.params.pop(option.name) for option in _of_methods()}
        return super().invoke(ctx)


@cache
def _of_methods() -> list[Any]:
    from mhr.merging import all_settings

    def function(**settings: Any) -> None: ...

    annotations = {
        name: Annotated[
            declared.type | None,
            typer.Option(
                metavar="N" if declared.type is int else "X",
                help=f"With {' and '.join(methods)}: {declared.setting.help}. Unset: {declared.default}.",
                rich_help_panel=SETTINGS,
            ),
        ]
        for name, (declared, methods) in all_settings().items()
    }
    parameters = [Parameter(n, Parameter.KEYWORD_ONLY, default=None, annotation=a) for n, a in annotations.items()]
    function.__signature__, function.__annotations__ = Signature(parameters), annotations  # type: ignore[attr-defined]
    alone = typer.Typer(add_completion=False)
    alone.command()(function)
    return list(get_command(alone).params)


@takes(
    "scoring",
    common=(
        *(
            "--output",
            "--method",
            "--task",
            "--weights",
            "--to",
            "--rank",
            "--evaluate",
            "--tasks",
            "--dtype",
            "--overwrite",
        ),
    ),
)
def merge(
    ctx: typer.Context,
    paths: Sources,
    output: options.Output,
    tasks: options.Tasks = None,
    dev_task: DevTasks = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    method: Method = None,
    task: Task = None,
    weights: Weights = None,
    space: Space = None,
    rank: Rank = None,
    evaluate: Evaluate = False,
    split: Split = "train",
    to: To = "mhr",
    dtype: Dtype = None,
    model: options.Base = None,
    *,
    given: Given,
) -> None:
    """Merge a bank, or several adapters, into one plain adapter that needs no routing.

    A bank's average and the mixture of one of its tasks are exactly one LoRA of the same rank: nothing is lost. Inputs are read
    layer by layer. merge_report.json in DIR has weights, distances between inputs, errors and scores.
    """
    with working():
        from mhr.merging import merge as make
        from mhr.merging import read_report

        written = make(
            [str(path) for path in paths],
            method=method,
            task=options.split(task),
            weights=_weights(weights),
            space=space,
            rank=rank,
            evaluate=evaluate,
            tasks=tasks,
            dev_tasks=options.split(dev_task),
            split=split,
            **given.values("scoring"),
            to=to,
            output=str(output),
            overwrite=overwrite,
            dtype=dtype,
            base=model,
            **ctx.meta[OF_METHODS],
        )
        report = read_report(written)
    if json:
        print_json({"output": str(written), **vars(report)})
    else:
        _print(report)
    note(f"Merged: {written}")


def _print(report: MergeReport) -> None:
    where = "whole banks" if report.space == "bank" else f"{report.space} space"
    out.print(f"{report.method}, {where}, {report.layers} layers", style="bold")
    scores = {name: found["mean"] for name, found in report.scores.items()}
    out.print(_inputs(report, scores))
    if 1 < len(report.inputs) <= MOST_INPUTS:
        out.print("Distance between inputs (cosine)", style="bold")
        out.print(_distances(report))
    for step in report.notes.get("steps", []):
        verb = "kept" if step["kept"] else "left out"
        out.print(f"{verb} {step['input']}: {100 * step['with it']:.1f} with it", markup=False, soft_wrap=True)
    if report.error:
        worst, error = max(report.error["layers"].items(), key=lambda item: item[1])
        out.print(
            f"Re-factored to rank {_span(report.rank)}: relative error {report.error['overall']:.2e}, at most {error:.2e} ({worst})",
            markup=False,
            soft_wrap=True,
        )


def _inputs(report: MergeReport, scores: dict[str, float]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("input", overflow="fold")
    table.add_column("task", overflow="fold")
    for name in ("rank", "weight", *(["score"] if scores else [])):
        table.add_column(name, justify="right")
    for number, found in enumerate(report.inputs):
        cells = [_span(found["rank"]), f"{found['weight']:.3f}"]
        score = [f"{100 * scores[found['name']]:.1f}"] if found["name"] in scores else []
        table.add_row(str(number + 1), found["name"], found["task"] or "", *cells, *score)
    score = [f"{100 * scores['merged']:.1f}"] if scores else []
    table.add_section()
    table.add_row("", "merged", "", _span(report.rank), "", *score, style="bold")
    return table


def _distances(report: MergeReport) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for number in range(len(report.inputs)):
        table.add_column(str(number + 1), justify="right")
    for number, (distances, cosines) in enumerate(zip(report.distance, report.cosine, strict=True)):
        cells = [f"{d:.3g} ({c:.2f})" for d, c in zip(distances, cosines, strict=True)]
        table.add_row(str(number + 1), *cells[: number + 1])
    return table


def _span(ranks: Sequence[int]) -> str:
    return "-".join(str(rank) for rank in sorted({ranks[0], ranks[-1]})) if ranks else ""


def _weights(text: str | None) -> dict[str, float] | list[float] | None:
    """ "a=0.7,b=0.3" -> weights by name; "1,0,0.5" -> weights in order."""
    if text is None:
        return None
    parts = [part.rpartition("=") for part in text.split(",")]
    try:
        if all(equals for _, equals, _ in parts):
            return {name.strip(): float(weight) for name, _, weight in parts}
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--weights: cannot read {text!r}: expected one for each input, as in 0.7,0.3, or by name, as in a=0.7,b=0.3"
        ) from None
