"""E2E, DART and WebNLG: several references for an input, apart to learn from and together to be judged on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

import mhr
from mhr.errors import DataError

E2E = [
    ("name[Il Forno], eatType[pub]", "Il Forno is a pub."),
    ("name[Zum Hirsch], near[the quay]", 'By the quay, there is "Zum Hirsch".'),
    ("name[Il Forno], eatType[pub]", "There is a pub, Il Forno."),
]


def write_csv(file: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("mr", "ref")) -> None:
    with open(file, "w", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])


def test_e2e(tmp_path: Path) -> None:
    folder = tmp_path / "e2e"
    folder.mkdir()
    write_csv(folder / "trainset.csv", E2E)
    write_csv(folder / "devset.csv", E2E)
    write_csv(folder / "testset_w_refs.csv", E2E)
    write_csv(folder / "testset.csv", [row[:1] for row in E2E], ("mr",))
    tasks = mhr.load_tasks(folder)
    task = tasks["e2e"]
    assert list(tasks) == ["e2e"]
    assert [(e.input, e.targets) for e in task.train] == [(mr, (ref,)) for mr, ref in E2E]
    both = {E2E[0][0]: (E2E[0][1], E2E[2][1]), E2E[1][0]: (E2E[1][1],)}
    assert {e.input: e.targets for e in task.test} == both
    assert {e.input: e.targets for e in task.validation} == both
    assert task.metrics == ("bleu", "nist", "rouge_l")
    assert task.choices == ()
    assert "e2e (3): rows whose answer is empty were left out" in tasks.notes


def test_e2e_as_a_dataset(tmp_path: Path) -> None:
    rows = [{"meaning_representation": mr, "human_reference": ref} for mr, ref in E2E]
    made = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "e2e_nlg")
    task = mhr.load_tasks(tmp_path / "e2e_nlg")["e2e_nlg"]
    assert len(task.train) == 3
    assert sorted(len(e.targets) for e in task.test) == [1, 2]


def test_rows_without_splits_are_judged_with_all_their_references(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "e2e.csv", [(f"name[{i}]", f"{i} is said in way {way}.") for i in range(20) for way in range(3)]
    )
    task = mhr.load_tasks(tmp_path / "e2e.csv")["e2e"]
    assert {len(e.targets) for e in task.test} == {3}
    assert len(task.train) + 3 * len(task.test) == 60
    assert not {e.input for e in task.train} & {e.input for e in task.test}


DART = [
    {
        "tripleset": [["Ada Lovelace", "BORN_IN", "London"], ["London", "PART_OF", "England"]],
        "subtree_was_extended": False,
        "annotations": [
            {"source": "own", "text": "Ada Lovelace was born in London, England."},
            {"source": "own", "text": "London, in England, is where Ada Lovelace was born."},
        ],
    },
    {"tripleset": [["Otter", "EATS", "Fish"]], "annotations": [{"source": "own", "text": "Otters eat fish."}]},
]
WEBNLG = {
    "entries": [
        {
            "1": {
                "category": "Food",
                "lexicalisations": [
                    {"comment": "good", "lex": "Pesto is from Genoa.", "xml_id": "Id1"},
                    {"comment": "good", "lex": "Genoa gave us pesto.", "xml_id": "Id2"},
                    {"comment": "toFix", "lex": "Pesto Genoa.", "xml_id": "Id3"},
                ],
                "modifiedtripleset": [{"subject": "Pesto", "property": "origin", "object": "Genoa"}],
                "size": "1",
            }
        },
        {
            "2": {
                "category": "Food",
                "lexicalisations": [{"comment": "good", "lex": "Bread is made with flour and water."}],
                "modifiedtripleset": [
                    {"subject": "Bread", "property": "madeWith", "object": "Flour"},
                    {"subject": "Bread", "property": "madeWith", "object": "Water"},
                ],
            }
        },
    ]
}


@pytest.mark.parametrize("shape", ["list", "columns"])
def test_dart(shape: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = DART
    if shape == "columns":  # as datasets hold a list of objects
        rows = [{**r, "annotations": {"text": [a["text"] for a in r["annotations"]]}} for r in DART]
    for split in ("train", "dev", "test"):
        (tmp_path / f"dart-v1.1.1-full-{split}.json").write_text(json.dumps(rows, indent=2))
    (task,) = mhr.load_tasks(tmp_path).values()
    triples = "Ada Lovelace : born_in : London | London : part_of : England"
    assert [(e.input, e.targets[0]) for e in task.train] == [
        (triples, "Ada Lovelace was born in London, England."),
        (triples, "London, in England, is where Ada Lovelace was born."),
        ("Otter : eats : Fish", "Otters eat fish."),
    ]
    assert {e.input: len(e.targets) for e in task.test} == {triples: 2, "Otter : eats : Fish": 1}
    assert task.metrics == ("bleu", "rouge_l")


def test_webnlg(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(WEBNLG, indent=1))
    (task,) = mhr.load_tasks(tmp_path).values()
    assert [e.targets for e in task.train] == [
        ("Pesto is from Genoa.",),
        ("Genoa gave us pesto.",),
        ("Bread is made with flour and water.",),
    ]
    assert {e.input: len(e.targets) for e in task.test} == {
        "Pesto : origin : Genoa": 2,
        "Bread : madeWith : Flour | Bread : madeWith : Water": 1,
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tripleset": [["a", "b"]], "annotations": []}, "has a tripleset that is none: expected lists of three strings"),
        ({"tripleset": [["a", "b", "c"]], "annotations": [{"words": "x"}]}, "has annotations without 'text'"),
        ({"tripleset": [["a", "b", "c"]], "annotations": 3}, "has annotations that are no list, got 3"),
        ({"tripleset": "a", "annotations": []}, "has a tripleset that is none"),
        ({"modifiedtripleset": [{"subject": "a"}], "lexicalisations": []}, "has modifiedtripleset without 'property'"),
        ({"modifiedtripleset": [], "lexicalisations": ["x"]}, "has lexicalisations without 'lex', as in 'x'"),
        ({"mr": [3], "ref": "x"}, "has no input"),
    ],
)  # fmt: skip
def test_faults(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"train.jsonl:1: .*{message}"):
        mhr.load_tasks(tmp_path / "train.jsonl")
