"""Data to be put into words, with several references for an input.

E2E     mr and ref of its CSV files, meaning_representation and human_reference of its dataset; a row a reference
DART    tripleset and annotations
WebNLG  modifiedtripleset and lexicalisations of its JSON files ({"entries": [{"1": {...}}, ...]}), of which those marked good count

Triples are written "subject : relation : object | ...", the relations of DART in lower case, as in the experiments of LoRA (Hu et al.
2021, arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mhr.data.forms.form import RowFault, Source, has, reads_rows

E2E = (("mr", "ref"), ("meaning_representation", "human_reference"))
OF_A_TRIPLE = ("subject", "property", "object")


def _of_e2e(row: Mapping[str, Any], source: Source) -> bool:
    return any(has(row, question) and (answer in row or len(row) == 1) for question, answer in E2E)


@reads_rows("e2e", "mr and ref", _of_e2e)
def read_e2e(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    question, answer = next(names for names in E2E if names[0] in row)
    # The test file without references stands beside the one that has them.
    return _references(row[question], row.get(answer), ("bleu", "nist", "rouge_l"))


@reads_rows("dart", "tripleset and annotations", lambda row, _: has(row, "tripleset", "annotations"))
def read_dart(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    triples = row["tripleset"]
    if not isinstance(triples, list) or not all(isinstance(t, list) and len(t) == 3 for t in triples):
        raise RowFault(f"has a tripleset that is none: expected lists of three strings, got {triples!r:.60}")
    lowered = [(subject, str(relation).lower(), what) for subject, relation, what in triples]
    given = row["annotations"]
    if isinstance(given, Mapping) and "text" in given:  # as datasets hold a list of objects
        return _references(_written(lowered), given["text"], ("bleu", "rouge_l"))
    return _references(
        _written(lowered), [one["text"] for one in _each(given, "annotations", "text")], ("bleu", "rouge_l")
    )


def _entry(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    inner = next(iter(row.values())) if len(row) == 1 else row
    return inner if isinstance(inner, Mapping) and has(inner, "modifiedtripleset", "lexicalisations") else None


@reads_rows("webnlg", "modifiedtripleset and lexicalisations", lambda row, _: _entry(row) is not None)
def read_webnlg(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    entry = _entry(row)
    assert entry is not None, "it was recognised"
    triples = [
        tuple(one[part] for part in OF_A_TRIPLE)
        for one in _each(entry["modifiedtripleset"], "modifiedtripleset", *OF_A_TRIPLE)
    ]
    found = _each(entry["lexicalisations"], "lexicalisations", "lex")
    good = [one["lex"] for one in found if one.get("comment", "good") in ("good", "")]
    return _references(_written(triples), good, ("bleu", "rouge_l"))


def _each(value: Any, column: str, *keys: str) -> list[Mapping[str, Any]]:
    """A list of objects that have these keys. Raises RowFault."""
    if not isinstance(value, list):
        raise RowFault(f"has {column} that are no list, got {value!r:.60}")
    for one in value:
        missing = [key for key in keys if not isinstance(one, Mapping) or key not in one]
        if missing:
            raise RowFault(f"has {column} without {missing[0]!r}, as in {one!r:.60}")
    return value


def _written(triples: Iterable[tuple[Any, ...]]) -> str:
    return " | ".join(" : ".join(map(str, triple)) for triple in triples)


def _references(question: Any, answers: Any, metrics: tuple[str, ...]) -> dict[str, Any]:
    return {"input": question, "targets": answers or "", "metrics": metrics, "references": True}
