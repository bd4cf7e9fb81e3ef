"""What the card of a merged adapter tells of where it comes from."""

from __future__ import annotations

from collections.abc import Sequence

from mhr.adapters.model_card import Origin
from mhr.evaluation import EvaluationResult
from mhr.merging.methods import MERGE_METHODS
from mhr.merging.report import MergeReport
from mhr.runs.run import RunFolder


def origin_of(
    report: MergeReport, runs: Sequence[RunFolder] = (), name: str = "", result: EvaluationResult | None = None
) -> Origin:
    """The origin of an adapter: of a merge with this report, of inputs that these runs trained, which scored so.

    name: what its folder is called, or OWNER/NAME on the hub.
    """
    tasks = list(dict.fromkeys(found["task"] for found in report.inputs if found["task"]))
    if not tasks:  # the average of a bank is for all that it was trained on
        tasks = list(dict.fromkeys(task for run in runs for task in run.info.get("tasks", [])))
    n = len(report.inputs)
    how = f"{report.method} ({MERGE_METHODS[report.method].summary})"
    if n > 1:
        how += f" of {n} adapters, in {report.space} space"
    return Origin(
        tasks=tasks,
        how=how,
        runs=runs,
        scores=result.tasks if result is not None else {},
        collection=result.source if result is not None else "",
        split=result.split if result is not None else "",
        name=name,
    )
