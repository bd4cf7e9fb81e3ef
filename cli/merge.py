"""`mhr merge`: make one plain adapter, or one plain model, of a bank or of several adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from mhr.errors import ConfigError

from .frame import options
from .frame.console import note, out, print_json, working
from .frame.settings import Given, loading_of, takes

if TYPE_CHECKING:
    from mhr.adapters.index import AdapterIndex
    from mhr.merging import MergeReport

EXAMPLES = """**Examples**

mhr merge runs/mhr --output runs/mhr-mu

mhr merge runs/mhr --method task --task init-upper --to peft-lora --output lora

mhr merge runs/mhr --each-task --to peft-lora --output loras

mhr merge runs/adapted/init-upper --method soup-greedy --evaluate --output soup

mhr merge lora-a lora-b --method ties --density 0.3 --rank 16 --to peft-lora --output merged
"""

OF_EACH = ("each_task", "with_average", "to", "dtype", "evaluate", "rank_multiple", "push", "public")
"""Settings of a merge that mean something with --each-task."""

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


@takes(
    "merge",
    "tasks",
    "data.on_bad_row",
    "scoring.limit",
    "scoring.batch_size",
    *("loading.base", "loading.kind", "loading.quantize", "loading.revision", "loading.trust_remote_code"),
    common=(
        *("--output", "--method", "--task", "--each-task", "--weights", "--to", "--rank", "--evaluate", "--tasks", "--dtype"),
        "--overwrite",
    ),
    of_run=("tasks", "data.on_bad_row"),
)  # fmt: skip
def merge(
    paths: Sources,
    output: options.Output,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    *,
    given: Given,
) -> None:
    """Merge a bank, or several adapters, into one plain adapter that needs no routing.

    A bank's average and the mixture of one of its tasks are exactly one LoRA of the same rank: nothing is lost. Inputs are read
    layer by layer. merge_report.json in DIR has weights, distances between inputs, errors and scores. With --each-task, every task
    of a bank gets its adapter in a folder of its own, index.json lists them, and the lines that serve them are printed.
    """
    asked = given.values("merge")
    if asked.pop("each_task", False):
        _merge_each(paths, output, overwrite, json, given, asked)
        return
    if asked.pop("with_average", False):
        raise ConfigError("--with-average is for --each-task, which is not given: add it, or leave --with-average out")
    with working():
        from mhr.merging import merge as make
        from mhr.merging import read_report

        written = make(
            [str(path) for path in paths],
            **asked,
            **given.values(""),
            **given.values("data"),
            **given.values("scoring"),
            **loading_of(given),
            output=str(output),
            overwrite=overwrite,
        )
        report = read_report(written)
    if json:
        print_json({"output": str(written), **vars(report)})
    else:
        _print(report)
    for remark in report.remarks:
        note(remark)
    note(f"Merged: {written}")
    push = given.values("merge").get("push")
    if push:
        note(f"Pushed: https://huggingface.co/{push}")


def _merge_each(
    paths: Sequence[Path], output: Path, overwrite: bool, json: bool, given: Given, asked: dict[str, Any]
) -> None:
    """`mhr merge --each-task`."""
    if len(paths) > 1:
        raise ConfigError(
            f"--each-task takes one bank, but {len(paths)} inputs are given: merge them one after the other"
        )
    for name, flag in ((name, one.origin) for name, one in given.flags.items()):
        own = name.removeprefix("merge.")
        if own != name and own not in OF_EACH:
            raise ConfigError(
                f"{flag} has no effect with --each-task, which writes the mixture of every task as it is: leave one of the two out"
            )
    with working():
        from mhr.merging import merge_each_task, serving_lines

        scoring = given.values("") | given.values("data") | given.values("scoring")
        index = merge_each_task(paths[0], **asked, **scoring, **loading_of(given), output=output, overwrite=overwrite)
        lines = serving_lines(index, output)
    if json:
        print_json({"output": str(output), **index.to_json(), "serving": lines})
    else:
        _print_index(index)
        for name, commands in lines.items():
            out.print(name, style="bold", soft_wrap=True)
            for command in commands:
                out.print(command, markup=False, soft_wrap=True)
    for remark in index.remarks:
        note(remark)
    note(f"Merged: {len(index.folders)} folders in {output}")
    if "push" in asked:
        note(f"Pushed: https://huggingface.co/{asked['push']}")


def _print_index(index: AdapterIndex) -> None:
    scored = any("score" in entry for entry in index.entries)
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("task", "folder"):
        table.add_column(name, overflow="fold")
    for name in ("rank", "alpha", *(["score"] if scored else [])):
        table.add_column(name, justify="right")
    for task, entry in [*index.tasks.items(), *([("(average)", index.average)] if index.average else [])]:
        sizes = ["" if entry[name] is None else f"{entry[name]:g}" for name in ("rank", "alpha")]
        score = [f"{100 * entry['score']:.1f}" if "score" in entry else ""] if scored else []
        table.add_row(Text(task), Text(entry["folder"]), *sizes, *score)
    out.print(table)


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
