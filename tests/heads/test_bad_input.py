"""What no head can do is refused in one line, before anything is trained or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from mhr.data import Example, Task
from mhr.data.labels import check_answers, number_of, task_head
from mhr.errors import CheckpointError, DataError
from mhr.runs import RunFolder
from mhr.task_heads import TaskHead, TaskHeads, join_heads
from tests.cli.running import refuse, succeed

Backbone = Callable[..., str]


def task_of(*answers: tuple[str, tuple[str, ...]], choices: tuple[str, ...] = ()) -> Task:
    train = [Example("t", f"text {i}", (target,), offered, f"t:{i}") for i, (target, offered) in enumerate(answers)]
    return Task("t", train=train, choices=choices)


YES_NO = ("no", "yes")


@pytest.mark.parametrize(
    ("task", "wanted", "expected"),
    [
        (task_of(("yes", YES_NO), ("no", YES_NO)), "auto", TaskHead("classify", YES_NO)),
        (task_of(("yes", ("yes", "no")), ("no", YES_NO), choices=YES_NO), "auto", TaskHead("classify", YES_NO)),
        (task_of(("3", ("1", "2", "3"))), "auto", TaskHead("classify", ("1", "2", "3"))),
        (task_of(("3", tuple(map(str, range(11))))), "auto", TaskHead("regress")),
        (task_of(("0.5", ("0", "0.5", "1"))), "auto", TaskHead("regress")),
        (task_of(("3.5", ()), ("-1e2", ())), "auto", TaskHead("regress")),
        (task_of(("a", ("a", "b")), ("c", ("c", "d"))), "auto", TaskHead("rank")),
        (task_of(("b", ()), ("a", ()), ("b", ())), "classify", TaskHead("classify", ("a", "b"))),
        (task_of(("1", ("0", "1"))), "regress", TaskHead("regress")),
        (task_of(("yes", YES_NO)), "rank", TaskHead("rank")),
    ],
)
def test_the_head_of_a_task(task: Task, wanted: str, expected: TaskHead) -> None:
    assert task_head(task, wanted) == expected


@pytest.mark.parametrize(
    ("task", "wanted", "message"),
    [
        (task_of(("3", ()), ("good", ())), "auto", "targets that are numbers .'3'. and others that are not .'good'."),
        (
            task_of(("good", ()), ("bad", ())),
            "auto",
            "no choices to rank.*: give its rows choices, or pretrain with --head classify, which takes its 2 distinct targets",
        ),
        (
            task_of(("yes", YES_NO)),
            "regress",
            "has target 'yes' in example 't:0', expected a number for head 'regress'",
        ),
        (task_of(("a", ("a",)), ("a", ("a",))), "auto", "has one class only, 'a': expected at least 2"),
        (task_of(("a", ()), ("a", ())), "classify", "has one class only, 'a': expected at least 2"),
        (task_of(("a", ()), ("a", ())), "auto", "has one class only, 'a': expected at least 2"),
        (task_of(("a", ("a", "b")), ("c", ("c", "d"))), "classify", "choices that vary by example"),
        (task_of(("a", ())), "rank", "no choices to rank"),
        (task_of(("a", ("a", "b")), ("c", ())), "auto", "no choices to rank"),
    ],
)
def test_labels_that_go_with_no_head(task: Task, wanted: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        task_head(task, wanted)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3.0),
        (" -0.5 ", -0.5),
        (".5", 0.5),
        ("1e-3", 1e-3),
        ("1_000", None),
        ("nan", None),
        ("1e999", None),
        ("", None),
    ],
)
def test_what_is_a_number(text: str, number: float | None) -> None:
    assert number_of(text) == number


def test_classes_that_training_lacks_are_named() -> None:
    task = task_of(("yes", ()), ("no", ()))
    with pytest.raises(
        DataError, match="'t' has classes in its test examples that training lacks: 'maybe'; it was trained"
    ):
        check_answers(task, TaskHead("classify", YES_NO), [Example("t", "x", ("maybe",))], "test")
    with pytest.raises(DataError, match="test example 'x' of task 't' has target 'many', expected a number"):
        check_answers(task, TaskHead("regress"), [Example("t", "x", ("many",), (), "x")], "test")


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps({"task": "t", "split": "train", **row}) + "\n" for row in rows))
    return path


def text_rows(*targets: str, split: str = "train") -> list[dict[str, Any]]:
    return [{"input": f"text {i}", "targets": target, "split": split} for i, target in enumerate(targets)]


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        (text_rows("3", "good", "4"), (), "targets that are numbers ('3') and others that are not ('good')"),
        (text_rows("good", "bad"), ("--head", "regress"), "expected a number for head 'regress'"),
        (text_rows("good", "good"), ("--head", "classify"), "one class only, 'good'"),
        (text_rows("good", "good"), (), "one class only, 'good'"),
        (
            [
                *text_rows(*("good", "bad") * 12),
                *text_rows(*("good", "odd") * 8, split="test"),
            ],  # whose targets are choices
            (),
            "classes in its test examples that training lacks: 'odd'; it was trained on 'bad', 'good'",
        ),
        (
            [
                *text_rows(*("good", "bad") * 12),
                *text_rows("good", "odd", split="validation"),
                *text_rows("good", "bad", split="test"),
            ],
            (),
            "classes in its validation examples that training lacks: 'odd'",
        ),
        (
            [*text_rows("good", "bad"), *text_rows("odd", split="test")],
            ("--head", "classify"),
            "classes in its test examples that training lacks: 'odd'",
        ),
        (text_rows("1", "2"), ("--head", "regress", "--share-heads"), "share_heads is true, but head is 'regress'"),
    ],
)
def test_the_command_refuses_in_one_line(
    rows: list[dict[str, Any]], flags: tuple[str, ...], said: str, backbone: Backbone, tmp_path: Path
) -> None:
    tasks = write(tmp_path / "tasks.jsonl", *rows)
    line = refuse("pretrain", "--model", backbone("bert"), "--tasks", tasks, *flags, "--output", tmp_path / "run")
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [("--head", "rank"), ("--share-heads",), ("--head", "classify", "--kind", "seq2seq")])
def test_a_model_that_generates_has_no_head(flags: tuple[str, ...], backbone: Backbone, tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", *text_rows("good", "bad"))
    line = refuse("pretrain", "--model", backbone("t5"), "--tasks", tasks, *flags, "--output", tmp_path / "run")
    assert "but a seq2seq model answers in words of its own" in line


@pytest.fixture
def run(recipe: Callable[..., Any], tmp_path: Path) -> Path:
    from mhr.training import pretrain

    return pretrain(recipe("two", "three", steps=1), str(tmp_path / "run"), progress=False).path


def test_a_head_of_another_size_in_a_checkpoint(run: Path) -> None:
    file = run / "adapter" / "mhr_config.json"
    said = json.loads(file.read_text())
    said["heads"]["heads"][1]["labels"].append("d")
    file.write_text(json.dumps(said))
    line = refuse("evaluate", run, "--part", "training")
    assert (
        "has 5 outputs in 'modules.classifier.weight', but its heads have 6 (classify 'no', 'yes'; classify 'a'" in line
    )


@pytest.mark.parametrize(
    ("choices", "said"),
    [(["a", "b", "c", "d"], "three: classify 'a', 'b', 'c', 'd'"), (["a", "b", "x"], "three: classify 'a', 'b', 'x'")],
)
def test_a_run_is_not_resumed_with_another_head(
    choices: list[str], said: str, run: Path, recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """Neither of another size nor of other classes, which a head of that size would take for its own."""
    RunFolder.open(run).write(status="running")
    before = (run / "run.json").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    changed = [row | {"choices": choices, "targets": "a"} if row["task"] == "three" else row for row in rows]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    line = refuse("pretrain", "--output", run, "--resume")
    assert "was begun with the heads two: classify 'no', 'yes', three: classify 'a', 'b', 'c', and " in line
    assert f"tasks.jsonl now gives two: classify 'no', 'yes', {said}: make the collection what it was" in line
    assert (run / "run.json").read_bytes() == before


def test_a_checkpoint_that_lacks_its_heads_tensor(run: Path) -> None:
    from mhr.adapters import read_adapter
    from mhr.adapters.checkpoint import write_adapter

    checkpoint = read_adapter(run / "adapter")
    tensors = {name: t for name, t in checkpoint.tensors.items() if name != "modules.classifier.weight"}
    checkpoint.tensors = tensors
    write_adapter(checkpoint, run / "adapter")
    assert "modules.classifier.weight" not in safetensors.torch.load_file(run / "adapter" / "mhr_adapter.safetensors")
    assert "describes heads, but lacks their tensor 'modules.classifier.weight'" in refuse("evaluate", run)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "does not describe heads"),
        ({"layer": "x", "heads": [], "tasks": {}, "shared": False}, "among its 0"),
        ({"layer": "x", "heads": [{"kind": "say", "labels": []}], "tasks": {}, "shared": False}, "kind 'say'"),
        ({"layer": "x", "heads": [{"kind": "rank", "labels": []}], "tasks": {"t": 1}, "shared": False}, "among its 1"),
    ],
)
def test_heads_that_were_not_written_here(said: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        TaskHeads.from_json(said, "the file")


def test_heads_are_read_as_they_were_written() -> None:
    heads = join_heads({"a": TaskHead("classify", YES_NO), "b": TaskHead("classify", ("yes", "no"))})
    assert len(heads.heads) == 2
    assert TaskHeads.from_json(json.loads(json.dumps(heads.to_json())), "x") == heads
    shared = join_heads(
        {"a": TaskHead("classify", YES_NO), "b": TaskHead("classify", ("yes", "no")), "n": TaskHead("regress")}, True
    )
    assert shared.tasks == {"a": 0, "b": 0, "n": 1}


def test_a_task_without_a_head_is_skipped_or_refused_with_the_way_on(run: Path, tmp_path: Path) -> None:
    rows = [{"input": f"text {i}", "targets": "yes", "choices": ["no", "yes"], "split": "test"} for i in range(2)]
    other = write(tmp_path / "other.jsonl", *rows)
    assert "the model has no head for it: adapt the model to it" in refuse("evaluate", run, "--tasks", other)


def test_the_classes_of_a_test_set_are_those_of_training(run: Path, tmp_path: Path) -> None:
    rows = [{"task": "two", "input": "x", "targets": "yes", "choices": ["no", "yes", "maybe"], "split": "test"}]
    other = write(tmp_path / "other.jsonl", *rows)
    assert "has the choice 'maybe', which is none of the classes" in refuse("evaluate", run, "--tasks", other)
    rows = [{"task": "two", "input": "x", "targets": "maybe", "split": "test"}]
    other = write(tmp_path / "other.jsonl", *rows)
    assert "'two' has classes in its test examples that training lacks: 'maybe'" in refuse(
        "evaluate", run, "--tasks", other
    )


def test_the_flags_stand_in_the_help() -> None:
    said = succeed("pretrain", "--help-all").output
    assert "--head" in said
    assert "--share-heads" in said
