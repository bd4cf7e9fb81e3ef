"""Files of rows in every format and place that people have: the same rows come out, or one line says what is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mhr.data import load_tasks
from mhr.errors import DataError

ROWS = [{"input": f'question {i}, "quoted"', "targets": f"answer\u2028 {i} \U0001f600"} for i in range(10)]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows: list[dict[str, Any]], delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


FILES: dict[str, bytes] = {
    "rows.jsonl": lines(ROWS).encode(),
    "ROWS.JSONL": lines(ROWS).encode(),
    "rows.ndjson": lines(ROWS).encode(),
    "lines.json": lines(ROWS).encode(),
    "list.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "list.jsonl": json.dumps(ROWS).encode(),
    "data.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "data2.json": json.dumps({"about": {"data": [1]}, "data": ROWS}, indent=1).encode(),
    "objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "bom.jsonl": lines(ROWS).encode("utf-8-sig"),
    "crlf.jsonl": lines(ROWS).replace("\n", "\r\n").encode(),
    "utf16.jsonl": lines(ROWS).encode("utf-16"),
    "utf32.json": lines(ROWS).encode("utf-32"),
    "utf16.csv": table(ROWS, ",").encode("utf-16"),
    "rows.csv": table(ROWS, ",").encode(),
    "bom.csv": table(ROWS, ",").encode("utf-8-sig"),
    "semicolons.csv": table(ROWS, ";").encode(),
    "rows.tsv": table(ROWS, "\t").encode(),
    "raw.tsv": ("input\ttargets\n" + "".join(f"{r['input']}\t{r['targets']}\n" for r in ROWS)).encode(),
    "rows.parquet": parquet(ROWS),
    "rows.jsonl.gz": gzip.compress(lines(ROWS).encode()),
    "rows.JSON.GZ": gzip.compress(json.dumps(ROWS).encode()),
    "rows.jsonl.zst": zst(lines(ROWS).encode()),
    "rows.csv.zst": zst(table(ROWS, ",").encode()),
    "rows.parquet.gz": gzip.compress(parquet(ROWS)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    tasks = load_tasks(tmp_path / name)
    (task,) = tasks.values()
    assert task.name == name.split(".")[0]
    found = sorted((e.input, e.targets) for e in [*task.train, *task.test])
    assert found == sorted((r["input"], (r["targets"],)) for r in ROWS)
    (told,) = tasks.recognised
    assert told.startswith(f"{tmp_path / name}: ")
    assert told.endswith(f", input and targets, no split of {task.name}")


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_row_that_holds_a_list_is_a_row(tmp_path: Path, n: int, indent: int | None) -> None:
    for row in (
        {"question": "q", "targets": "a", "data": [{"x": 1}]},
        {"prompt": "q", "completion": "a", "rows": [{}]},
    ):
        if n == 1 and "question" in row:
            continue  # alone it may be either
        (tmp_path / "x.json").write_text("\n".join(json.dumps(row, indent=indent) for _ in range(n)))
        columns = {"input": "question"} if "question" in row else {}
        task = load_tasks(tmp_path / "x.json", column_map=columns)["x"]
        assert [e.input for e in task.train] == ["q"] * n


def test_quotes_of_a_table_without_quoting_are_text(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('input\ttargets\n"open\tgood\n"Yes" she said\tgood\n')
    task = load_tasks(tmp_path / "x.tsv")["x"]
    assert [(e.input, e.targets[0]) for e in task.train] == [('"open', "good"), ('"Yes" she said', "good")]


def test_quotes_that_may_be_text_or_quoting_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('input\ttargets\na\tb\n"open\tgood\nclosed"\tbad\n')
    with pytest.raises(DataError, match=r"x.tsv:4: a quoted cell may span lines, or its quotes be text"):
        load_tasks(tmp_path / "x.tsv")


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        text = lines([{"input": f"{name} {i}", "targets": f"a{i}"} for i in range(2)])
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"], {"root": (4, 2)}),
        (["my_train.jsonl", "my_test.jsonl", "my_dev.jsonl"], {"my": (2, 2)}),
        (["train_r1.jsonl", "train_r2.jsonl", "dev_r1.jsonl", "test_r1.jsonl"], {"root": (4, 2)}),
        (["train_sst2.jsonl", "test_sst2.jsonl", "train_qqp.jsonl"], {"qqp": (2, 0), "sst2": (2, 2)}),
        (["train.jsonl", "eval.jsonl"], {"root": (2, 2)}),
        (["train.jsonl", "test_final.jsonl"], {"root": (2, 2)}),
        (["train.jsonl", "test_unheard.jsonl"], {"root": (2, 2)}),
        (["a/train.jsonl", "a/test.jsonl", "b/train.jsonl"], {"a": (2, 2), "b": (2, 0)}),
        (["a/rows.jsonl", "b/rows.jsonl"], {"a": (2, 0), "b": (2, 0)}),
        (["a/x.jsonl", "b/x.jsonl", "b/y.jsonl"], {"a-x": (2, 0), "b-x": (2, 0), "y": (2, 0)}),
        (["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"], {"a": (2, 2), "b": (2, 0)}),
        (["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"], {"root": (2, 2)}),
        (["default/train/0000.jsonl", "default/test/0000.jsonl"], {"root": (2, 2)}),
        (["one.jsonl", "two.jsonl", "config.json", ".hidden.jsonl"], {"one": (2, 0), "two": (2, 0)}),
    ],
)
def test_files_are_tasks_and_splits_by_their_names_and_folders(
    tmp_path: Path, names: list[str], expected: dict[str, tuple[int, int]]
) -> None:
    tasks = load_tasks(tree(tmp_path / "root", *names))
    assert {t.name: (len(t.train), len(t.test)) for t in tasks.values()} == expected
    for task in tasks.values():
        for part, examples in (("train", task.train), ("test", task.test)):
            other = {"train": ("test", "dev", "eval"), "test": ("train",)}[part]
            assert not any(word in e.input for e in examples for word in other)


def test_a_name_of_two_splits_is_told_unless_rows_know_better(tmp_path: Path) -> None:
    tree(tmp_path / "root", "train_val.jsonl")
    with pytest.raises(DataError, match=r"train_val.jsonl:1: .*unknown split 'train_val'"):
        load_tasks(tmp_path / "root")
    (tmp_path / "root" / "train_val.jsonl").write_text(lines([{"input": "a", "targets": "b", "split": "train"}]))
    assert len(load_tasks(tmp_path / "root")["root"].train) == 1


def test_what_was_not_read_is_noted(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "a.jsonl", "inner/b.jsonl")
    (root / "empty.jsonl").touch()
    (root / "folder.jsonl").mkdir()
    notes = load_tasks(root).notes
    assert notes[0] == "folders beside the files of rows were left out: inner"
    assert notes[1] == f"{root / 'empty.jsonl'} holds no rows"


def test_labels_of_a_parquet_file_have_the_names_that_datasets_wrote(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"input": datasets.Value("string"), "targets": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"input": ["a", "b"], "targets": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    task = load_tasks(tmp_path / "x.parquet")["x"]
    assert [(e.targets, e.choices) for e in task.train] == [(("yes",), ("no", "yes")), (("no",), ("no", "yes"))]


GOOD = '{"input": "a", "targets": "b"}\n'

FAULTY: dict[str, tuple[bytes, str]] = {
    "cut.jsonl.gz": (gzip.compress(GOOD.encode() * 99)[:-12], "cut.jsonl.gz: the gzip file is truncated or damaged"),
    "not.jsonl.gz": (GOOD.encode(), "not.jsonl.gz: is not a gzip file"),
    "cut.jsonl.zst": (zst(os.urandom(999))[:-300], "cut.jsonl.zst: the zstd file is truncated or damaged"),
    "not.jsonl.zst": (GOOD.encode(), "not.jsonl.zst: the zstd file is truncated or damaged"),
    "cut.json": (
        json.dumps(ROWS, indent=1)[:-40].encode(),
        r"cut.json:\d+: is not valid JSON: .*seems to be truncated",
    ),
    "late.json": (b'[{"input": "a", "targets": "b"}] x', "late.json:1: is not valid JSON: more behind the list"),
    "gap.json": (f"[{GOOD}{GOOD}]".encode(), "gap.json:2: is not valid JSON: expected a comma"),
    "latin.jsonl": (
        GOOD.encode() + "é".encode("latin-1"),
        "latin.jsonl:2: byte 31 is not UTF-8: save the file as UTF-8",
    ),
    "zero.jsonl": (GOOD.encode("utf-16-le"), "zero.jsonl:1: holds a zero character"),
    "deep.jsonl": (
        (GOOD + "[" * 5000 + "]" * 5000).encode(),
        "deep.jsonl:2: is not valid JSON: it is nested too deeply",
    ),
    "digits.jsonl": (
        (GOOD + '{"input": ' + "9" * 5000 + "}").encode(),
        "digits.jsonl:2: is not valid JSON: Exceeds the limit",
    ),
    "nan.jsonl": (b'{"input": "a", "targets": NaN}', "nan.jsonl:1: is not valid JSON: NaN is not JSON"),
    "twice.jsonl": (b'{"input": "a", "input": "b"}', "twice.jsonl:1: is not valid JSON: key 'input' appears twice"),
    "two.jsonl": ((GOOD + GOOD.strip() * 2).encode(), "two.jsonl:2: is not valid JSON: more than one value"),
    "surrogate.jsonl": (
        b'{"input": "a \\ud83d", "targets": "b"}',
        "surrogate.jsonl:1: .*holds half of a surrogate pair",
    ),
    "task.jsonl": (b'{"input": "a", "targets": "b", "task": "\\ud83d"}', "task.jsonl:1: .*half of a surrogate pair"),
    "mixed.jsonl": ((GOOD + "input,targets\na,b\n").encode(), "mixed.jsonl:2: is not valid JSON"),
    "forms.jsonl": (
        (GOOD + '{"prompt": "a", "completion": "b"}').encode(),
        "forms.jsonl:2: .*has prompt and completion, and rows before it input and targets: one file holds rows of one form",
    ),
    "headless.csv": (b"question 1,answer 1\nquestion 2,answer 2\n", "headless.csv:2: .*no column 'input'.*first line"),
    "ragged.csv": (b"input,targets\na,b\na,b,c\n", "ragged.csv:3: the row has 3 cells, and the first line names 2"),
    "twice.csv": (b"input,input\na,b\n", "twice.csv:1: the first line names column 'input' twice"),
    "blank.csv": (b"input,,\na,b,c\n", "blank.csv:1: the first line leaves the name of a column empty"),
    "open.csv": (b'input,targets\n"a,b\n', "open.csv:2: cannot be read as a table"),
    "cut.parquet": (parquet(ROWS)[:-20], "cut.parquet: is not a readable Parquet file"),
    "empty.jsonl": (b"", "no task was found"),
    "empty.csv": (b"input,targets\n", "no task was found"),
    "empty.json": (b"[]", "no task was found"),
    "object.json": (b'{"a": 1}', "object.json:1: .*has no column 'input': it has a; .*messages, or conversations, or"),
    "near.jsonl": (b'{"inputs": "a", "targets": "b"}', "near.jsonl:1: .*it has inputs, targets; did you mean 'inputs'"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    content, said = FAULTY[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as raised:
        load_tasks(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


def test_very_long_lines_and_cells(tmp_path: Path) -> None:
    long = "word " * 100_000
    for name, write in {"x.jsonl": lines, "y.csv": lambda rows: table(rows, ",")}.items():
        (tmp_path / name).write_text(write([{"input": long, "targets": "b"}]))
        assert load_tasks(tmp_path / name)[name[0]].train[0].input == long.strip()


@pytest.mark.parametrize(
    "name", ["a b.jsonl", "ä\u202e.jsonl", "a\nb.jsonl", "[x]*?.jsonl", "'\".jsonl", ".jsonl.jsonl"]
)
def test_names_with_odd_characters(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(GOOD + "{")
    with pytest.raises(DataError, match=":2: is not valid JSON") as raised:
        load_tasks(tmp_path / name)
    assert str(raised.value).isprintable()
    (tmp_path / name).write_text(GOOD)
    assert list(load_tasks(tmp_path / name)) == [name.removesuffix(".jsonl")]


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    try:
        with open(os.fsencode(tmp_path) + b"/\xff.jsonl", "w") as file:
            file.write(GOOD)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    with pytest.raises(DataError, match=r"udcff.jsonl: its name is not UTF-8: rename the file"):
        load_tasks(tmp_path)


@pytest.fixture
def one_bad(tmp_path: Path) -> Callable[[str], Path]:
    def write(row: str) -> Path:
        path = tmp_path / "x.jsonl"
        path.write_text(GOOD * 3 + row + "\n" + GOOD)
        return path

    return write


@pytest.mark.parametrize("row", ['{"input": "a", "tar', '{"input": 1.5, "targets": "b"}', '{"targets": "b"}', "[1]"])
def test_bad_rows_are_skipped_where_asked_for_and_counted(one_bad: Callable[[str], Path], row: str) -> None:
    path = one_bad(row)
    with pytest.raises(DataError, match=r"x.jsonl:4: "):
        load_tasks(path)
    tasks = load_tasks(path, on_bad_row="skip")
    assert len(tasks["x"].train) + len(tasks["x"].test) == 4
    assert tasks.notes[-1].startswith(f"faulty rows skipped: 1 (x 1), the first: {path}:4: ")


def test_a_collection_of_bad_rows_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n' * 3)
    with pytest.raises(DataError, match="no task was found; faulty rows skipped: 3"):
        load_tasks(tmp_path / "x.jsonl", on_bad_row="skip")


def test_a_row_with_an_empty_answer_is_left_out_and_noted(one_bad: Callable[[str], Path]) -> None:
    for row in ('{"input": "a", "targets": ""}', '{"input": "a", "targets": null}'):
        tasks = load_tasks(one_bad(row))
        assert len(tasks["x"].train) + len(tasks["x"].test) == 4
        assert "x (1): rows whose answer is empty were left out" in tasks.notes


def test_rows_without_any_answer_are_refused_in_training_and_withheld_in_tests(tmp_path: Path) -> None:
    for answers in ([""] * 3, [-1] * 3, ["-1"] * 3, [None] * 3):
        rows = [{"input": f"q{i}", "targets": a} for i, a in enumerate(answers)]
        (tmp_path / "x_test.jsonl").write_text(lines(rows))
        (tmp_path / "x_train.jsonl").write_text(GOOD)
        tasks = load_tasks(tmp_path)
        assert tasks["x"].test == []
        assert tasks.notes[0] == "x: the labels of split 'test' are withheld, so it was left out"
        (tmp_path / "x_train.jsonl").write_text(lines(rows))
        with pytest.raises(DataError, match="has no targets|seem to be withheld"):
            load_tasks(tmp_path)
    (tmp_path / "x_train.jsonl").write_text(GOOD)
    (tmp_path / "x_test.jsonl").write_text('{"input": "a"}\n')
    assert load_tasks(tmp_path)["x"].test == []
