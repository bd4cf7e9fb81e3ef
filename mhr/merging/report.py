"""What a merge has to tell: inputs, weights, distances, errors and scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mhr.errors import CheckpointError
from mhr.files import read_json, write_json_atomically

REPORT_FILE = "merge_report.json"


@dataclass
class MergeReport:
    """Written beside every merged adapter as REPORT_FILE.

    method      its name; `settings` those that it was given
    space       "factor" or "delta"; "bank" where whole banks were averaged, skill by skill
    to, dtype   the form that was written
    inputs      of each, in the order given: name, task, base model, ranks, scalings, and the weight that it got
    distance    Frobenius distance between the inputs' weight updates, [K][K]; of whole banks between their tensors
    cosine      and the cosine between them
    layers      how many layers were merged; `rank` the ranks that they have now
    error       of re-factoring, `||D - A B||_F / ||D||_F`: "overall" and by layer; {} where nothing was re-factored
    notes       notes of the method
    scores      with --evaluate: "tasks" -> name of the input or "merged" -> score by task and their "mean"
    """

    method: str
    space: str
    to: str
    dtype: str | None
    settings: dict[str, Any]
    inputs: list[dict[str, Any]]
    distance: list[list[float]] = field(default_factory=list)
    cosine: list[list[float]] = field(default_factory=list)
    layers: int = 0
    rank: list[int] = field(default_factory=list)
    error: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        write_json_atomically(folder / REPORT_FILE, asdict(self))


def read_report(folder: str | Path) -> MergeReport:
    """The report beside a merged adapter. Raises CheckpointError where there is none."""
    return MergeReport(**read_json(Path(folder) / REPORT_FILE, CheckpointError))
