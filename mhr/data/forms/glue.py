"""The nine tasks of GLUE (Wang et al. 2018, arXiv 1804.07461) by the columns of their Hugging Face datasets, in rows of a task that
is called after one of them: "cola", "glue-sst2", "STS-B".

The input is in T5's words (Raffel et al. 2020, appendix D): the task's name, then each text behind the name of its column. Labels
have the names of the datasets; similarities of STS-B stay numbers, written as "3.8".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mhr.data.forms.form import RowFault, Source, has, reads_rows
from mhr.data.splits import part_of


class GlueTask(NamedTuple):
    """texts: columns in the order in which they are read; labels: names by index, empty for numbers; metrics: the first its score."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)


_PAIR = ("sentence1", "sentence2")

GLUE = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(_PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "stsb": GlueTask(_PAIR, (), ("pearson", "spearman")),
    "mnli": GlueTask(
        ("hypothesis", "premise"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy_matched", "accuracy_mismatched"),
    ),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": GlueTask(_PAIR, ("entailment", "not_entailment")),
    "wnli": GlueTask(_PAIR, ("not_entailment", "entailment")),
}
"""By the names of the datasets' configurations."""

LABEL = "label"
_NAME = re.compile(r"(?<![a-z])(cola|sst-?2|mrpc|qqp|sts-?b|mnli|qnli|rte|wnli)(?![a-z0-9])")


def glue_name(name: str) -> str | None:
    """The task of GLUE that a name holds, as in "SST-2" and "glue-sst2"; None where it holds none, or several."""
    found = {word.replace("-", "") for word in _NAME.findall(name.lower())}
    return found.pop() if len(found) == 1 else None


def _recognises(row: Mapping[str, Any], source: Source) -> bool:
    name = glue_name(source.task)
    return name is not None and has(row, *GLUE[name].texts) and LABEL in row


@reads_rows("glue", "the columns of a task of GLUE, of that name", _recognises)
def read_glue(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    name = glue_name(source.task)
    assert name is not None, "it was recognised"
    task = GLUE[name]
    for column in task.texts:
        if not isinstance(row[column], str) or not row[column].strip():
            raise RowFault(f"has no text in {column!r}, got {row[column]!r:.60}")
    fields: dict[str, Any] = {
        "input": " ".join([name, *(f"{column}: {row[column].strip()}" for column in task.texts)]),
        "metrics": task.metrics,
    }
    if name == "mnli":
        fields["part"] = part_of(source.place, source.task)
    if not task.labels:
        return {**fields, "targets": _number(row[LABEL])}
    labels = source.labels.get(LABEL) or task.labels
    return {**fields, "targets": _label(row[LABEL], labels), "choices": labels}


def _label(value: Any, labels: tuple[str, ...]) -> Any:
    """The name of a label that is given by its index; anything else as it is, "-" (no label that most annotators gave) as none."""
    if isinstance(value, str) and value.strip() == "-":
        return None
    index = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,3}", value.strip()) else value
    known = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(labels)
    return labels[index] if known and value not in labels else value


def _number(value: Any) -> Any:
    """A similarity as text, and -1, which stands for one that is withheld, as it is."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return value
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowFault(f"has the label {value!r:.60}, expected a number")
    return -1 if number == -1 else repr(round(number, 3))
