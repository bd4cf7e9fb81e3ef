"""Which examples are for evaluation: every label by its share, none of them trained on, always the same ones."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from mhr.data import Example, load_tasks
from mhr.data.drawing import draw_order, hold_out


def examples(counts: dict[str, int]) -> list[Example]:
    """Sorted by label, as many published sets are."""
    return [Example("t", f"{label} {i}", (label,)) for label, n in counts.items() for i in range(n)]


def test_every_beginning_holds_the_labels_by_their_share() -> None:
    counts = {"a": 600, "b": 300, "c": 100}
    for seed in range(5):
        order = draw_order(examples(counts), "t", seed)
        assert sorted(e.input for e in order) == sorted(e.input for e in examples(counts))
        for m in (10, 50, 99, 500):
            found = Counter(e.targets[0] for e in order[:m])
            assert all(abs(found[label] - m * n / 1000) <= 1 for label, n in counts.items())


def test_the_draw_depends_on_task_and_seed_alone() -> None:
    given = examples({str(i): 1 for i in range(50)})
    assert draw_order(given, "t", 0) == draw_order(given, "t", 0)
    assert draw_order(given, "t", 0) != draw_order(given, "t", 1)
    assert draw_order(given, "t", 0) != draw_order(given, "u", 0)
    assert draw_order(given, "t", 0) != given


def test_examples_that_ask_the_same_stay_on_one_side() -> None:
    given = [Example("t", f"q{i // 3}", (f"a{i}",)) for i in range(60)]
    left, drawn = hold_out(given, 12, "t", 0)
    assert len(drawn) == 12
    assert not {e.input for e in left} & {e.input for e in drawn}
    assert left == [e for e in given if e in left]
    assert hold_out([Example("t", "the same", (str(i),)) for i in range(9)], 0, "t", 0)[1] == []


def write(path: Path, n: int, **more: str) -> Path:
    """n rows sorted by label."""
    rows = [{"input": f"film {i}", "targets": "good" if i < n // 2 else "bad", **more} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_test_split_beyond_the_limit_is_drawn_and_said(tmp_path: Path) -> None:
    write(tmp_path / "x_test.jsonl", 400)
    write(tmp_path / "x_train.jsonl", 10)
    tasks = load_tasks(tmp_path)
    assert Counter(e.targets[0] for e in tasks["x"].test) == {"good": 50, "bad": 50}
    assert Counter(e.targets[0] for e in tasks["x"].test[:20]) == {"good": 10, "bad": 10}
    assert tasks.notes == [
        "x (100 of 400): examples for evaluation were drawn from its test split by seed 0, each label by its share"
    ]
    assert load_tasks(tmp_path, limit_test=400).notes == []


def test_without_a_test_split_a_fifth_of_the_rows_is_drawn_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", 100)
    tasks = load_tasks(path)
    assert Counter(e.targets[0] for e in tasks["x"].test) == {"good": 10, "bad": 10}
    assert not {e.input for e in tasks["x"].train} & {e.input for e in tasks["x"].test}
    numbers = [int(e.input.split()[1]) for e in tasks["x"].train]
    assert numbers == sorted(numbers)
    assert len(numbers) == 80
    assert tasks.notes == [
        "x (20 of 100): there is no test split, so examples for evaluation were drawn from its rows by seed 0"
    ]
    assert len(load_tasks(path, limit_test=3)["x"].train) == 97
    assert load_tasks(path, seed=1)["x"].test != tasks["x"].test


def test_a_note_of_many_tasks_is_one_line(tmp_path: Path) -> None:
    for i in range(9):
        write(tmp_path / f"t{i}.jsonl", 10)
    (note,) = load_tasks(tmp_path).notes
    assert note.startswith("t0 (2 of 10), t1 (2 of 10), t2 (2 of 10), t3 (2 of 10) and 5 more: there is no test split")


def test_inputs_that_repeat_too_often_are_drawn_one_by_one_and_said(tmp_path: Path) -> None:
    rows = [{"input": f"color {i % 4}", "targets": f"c{i % 4}"} for i in range(120)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = load_tasks(tmp_path / "x.jsonl")
    assert (len(tasks["x"].train), len(tasks["x"].test)) == (96, 24)
    assert Counter(e.targets[0] for e in tasks["x"].test) == {f"c{i}": 6 for i in range(4)}
    assert "x (24): inputs repeat, so examples for evaluation have inputs that are trained on" in tasks.notes


def test_whole_test_splits_where_asked_and_what_is_trained_on_stays(tmp_path: Path) -> None:
    """As many as max_test of a test split; of rows without one no more than before, which a finished run was not trained on."""
    lines = [
        {"input": f"{split} {i}", "targets": "ab"[i % 2], "split": split}
        for split, n in (("train", 40), ("test", 230))
        for i in range(n)
    ]
    lines += [{"task": "unsplit", "input": f"q {i}", "targets": "ab"[i % 2]} for i in range(600)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    usual = load_tasks(tmp_path / "x.jsonl")
    assert [len(task.test) for task in usual.values()] == [100, 100]
    for most, n in ((150, 150), (10000, 230)):
        tasks = load_tasks(tmp_path / "x.jsonl", max_test=most)
        assert len(tasks["x"].test) == n
        assert tasks["x"].test[:100] == usual["x"].test
        assert [task.train for task in tasks.values()] == [task.train for task in usual.values()]
        assert tasks["unsplit"].test == usual["unsplit"].test
