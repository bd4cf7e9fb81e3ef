"""What an evaluation found, and how it is written down."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhr.evaluation.metrics import mean
from mhr.evaluation.ranked import in_json
from mhr.files import write_json_atomically, write_text_atomically


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer. scores: of the example's choices where they were ranked, greater is better; shots: ids of the in-context
    examples that stood before its input, in their order; part: see `Example`."""

    task: str
    id: str
    input: str
    targets: tuple[str, ...]
    answer: str
    how: str
    """"ranking", "classification", "regression" or "generation"."""
    choices: tuple[str, ...] = ()
    scores: list[float] = field(default_factory=list)
    shots: tuple[str, ...] = ()
    part: str = ""


@dataclass
class EvaluationResult:
    """Scores of one model on one collection, fractions from 0 to 1, correlations from -1 to 1.

    tasks        task -> its measures. "n" examples; a value for each of its metrics (`mhr.evaluation.metrics`); "score", the one to
                 compare, that of its first metric, which is "metric"; "majority", what always giving the most frequent training
                 answer would score by it (of generated text, by exact match); "category"; "remarks" on values that are undefined
                 and metrics that did not fit, where there are any
    categories   category -> the mean of each measure over its tasks, and "tasks", their number
    mean         the mean of each measure over all tasks that have it
    by_category  the mean of each measure over the categories, each counted once
    skipped      task -> why it was not evaluated
    truncated    see `count_truncated`
    shots        see `count_dropped`
    notes        what the reader of the collection had to tell, such as how its test examples were chosen
    """

    model: str
    kind: str
    source: str
    split: str
    tasks: dict[str, dict[str, Any]]
    skipped: dict[str, str]
    truncated: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    notes: list[str] = field(default_factory=list)
    shots: dict[str, Any] = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list, repr=False)

    @property
    def categories(self) -> dict[str, dict[str, Any]]:
        grouped: dict[str, list[dict[str, Any]]] = {}
        for measures in self.tasks.values():
            grouped.setdefault(measures["category"], []).append(measures)
        return {name: {"tasks": len(grouped[name]), **average(grouped[name])} for name in sorted(grouped)}

    @property
    def mean(self) -> dict[str, float]:
        return average(list(self.tasks.values()))

    @property
    def by_category(self) -> dict[str, float]:
        return average([{k: v for k, v in c.items() if k != "tasks"} for c in self.categories.values()])

    def to_dict(self) -> dict[str, Any]:
        """Everything but the predictions, ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "predictions"}
        return values | {"categories": self.categories, "mean": self.mean, "by_category": self.by_category}

    def to_json(self) -> str:
        """Everything but the predictions, as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def write(self, path: str | Path) -> Path:
        """Write the JSON into a file, as a whole or not at all. Raises MhrError where it cannot be written."""
        return write_json_atomically(path, self.to_dict())

    def write_predictions(self, path: str | Path) -> Path:
        """Write one line of JSON per answer, an infinite score as null. Raises MhrError where the file cannot be written."""
        rows = [dataclasses.asdict(p) | {"scores": in_json(p.scores)} for p in self.predictions]
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        return write_text_atomically(path, "".join(lines))


def average(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each measure over the rows that have it; counts and names are left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                found.setdefault(name, []).append(value)
    return {name: mean(values) for name, values in found.items()}


def unusual(settings: Mapping[str, Any]) -> Iterator[str]:
    """How a model was asked, by the settings of an evaluation, where that is not the usual way."""
    if settings.get("protocol"):
        yield f"protocol {settings['protocol']}"
    if settings.get("task"):
        yield f"routed as {settings['task']}"
    if settings.get("inference") not in (None, "average"):
        yield f"inference {settings['inference']}"
    if settings.get("shots"):
        seed = settings.get("seed")
        yield f"{settings['shots']} shots" + (f" by seed {seed}" if seed is not None else "")
    if settings.get("template"):
        yield f"chat template {settings['template']}"
    if settings.get("system") is not None:
        yield f"system turn {settings['system']!r:.60}"
    if (settings.get("n_beams") or 1) > 1:
        yield f"{settings['n_beams']} beams"
    if settings.get("stop"):
        yield f"stop at {' or '.join(map(repr, settings['stop']))}"
