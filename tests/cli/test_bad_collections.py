"""Collections of tasks that cannot be read, end to end: one clear line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import SMALL, invoke, refuse, succeed

Collection = Callable[..., Path]


@pytest.fixture
def superni(tmp_path: Path) -> Collection:
    """Writes a Super-NaturalInstructions folder with the tasks `one` and `two`; `change` may edit each file's content."""

    def write(change: Callable[[str, dict[str, Any]], None] = lambda name, content: None) -> Path:
        root = tmp_path / "tasks"
        (root / "tasks").mkdir(parents=True)
        (root / "splits" / "default").mkdir(parents=True)
        for name in ("one", "two"):
            answers = ("yes", "no")
            instances = [{"id": f"{name}-{i}", "input": f"is it {i}?", "output": [answers[i % 2]]} for i in range(120)]
            content = {"Definition": ["Say yes or no."], "Categories": ["Test"], "Instances": instances}
            change(name, content)
            (root / "tasks" / f"{name}.json").write_text(json.dumps(content, indent=1))
        (root / "splits" / "default" / "train_tasks.txt").write_text("one\ntwo\n")
        (root / "splits" / "default" / "test_tasks.txt").write_text("")
        return root

    return write


def test_a_missing_folder(output: Path, tmp_path: Path) -> None:
    line = refuse("pretrain", "--tasks", tmp_path / "absent", "--output", output)
    assert f"{tmp_path / 'absent'}: no such file or folder" in line


def test_an_empty_folder(output: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = refuse("pretrain", "--tasks", tmp_path / "empty", "--output", output)
    assert f"{tmp_path / 'empty'}: is an empty folder" in line


def test_a_json_file_that_is_cut(output: Path, superni: Collection) -> None:
    root = superni()
    file = root / "tasks" / "two.json"
    file.write_text(file.read_text()[:-200])
    line = refuse("pretrain", "--tasks", root, "--output", output)
    assert str(file) in line
    assert "not valid JSON" in line
    assert "cut" in line


def test_an_instance_without_output(output: Path, superni: Collection) -> None:
    def change(name: str, content: dict[str, Any]) -> None:
        if name == "two":
            content["Instances"][7]["output"] = []

    root = superni(change)
    line = refuse("pretrain", "--tasks", root, "--output", output)
    number = (root / "tasks" / "two.json").read_text().split('"two-7"')[0].count("\n")
    assert f"two.json:{number}: instance 'two-7' has no output" in line


def test_a_listed_task_without_a_file(output: Path, superni: Collection) -> None:
    root = superni()
    (root / "tasks" / "two.json").unlink()
    line = refuse("pretrain", "--tasks", root, "--output", output)
    assert "train_tasks.txt:2: task 'two' has no file" in line


def test_a_task_that_is_listed_twice(output: Path, superni: Collection) -> None:
    root = superni()
    (root / "splits" / "default" / "test_tasks.txt").write_text("one\n")
    line = refuse("pretrain", "--tasks", root, "--output", output)
    assert "test_tasks.txt:1: task 'one' is listed twice, first at train_tasks.txt:1" in line


def test_a_label_that_is_not_among_the_choices(output: Path, rows: Path) -> None:
    lines = rows.read_text().splitlines()
    lines[3] = lines[3].replace('["yes"]', '["maybe"]')
    rows.write_text("\n".join(lines) + "\n")
    line = refuse("pretrain", "--tasks", rows, "--output", output)
    assert f"{rows}:4: " in line
    assert "'maybe'" in line


def test_a_column_that_is_mapped_twice_or_by_half(rows: Path) -> None:
    for columns in ("input=task,input=targets", "input=", "input"):
        assert f"--columns: data.column_map is {columns!r}" in refuse("data", "check", rows, "--columns", columns)


def test_data_check_tells_every_fault_and_exits_with_2(superni: Collection) -> None:
    def change(name: str, content: dict[str, Any]) -> None:
        content["Instances"][7]["output"] = []

    result = invoke("data", "check", superni(change), "--json")
    assert result.exit_code == 2
    assert [line.partition("instance ")[2][:7] for line in result.stderr.splitlines()] == ["'one-7'", "'two-7'"]
    assert json.loads(result.stdout)["totals"]["faults"] == 2


def test_long_inputs_are_truncated_and_counted(run: Path, rows: Path, tmp_path: Path) -> None:
    rows.write_text(rows.read_text().replace('"input": "even', '"input": "' + "long " * 20 + "even"))
    judged = json.loads(succeed("evaluate", run, "--tasks", rows, "--json").stdout)
    cut = {"inputs": 4, "choices": 0, "targets": 0}
    assert judged["truncated"] == {"examples": 8, **cut, "tasks": {"even": cut}}
    trained = tmp_path / "run"
    succeed("pretrain", *SMALL, "--tasks", rows, "--steps", "2", "--output", trained)
    info = json.loads((trained / "run.json").read_text())
    assert 0 < info["truncated"]["cut"] <= info["truncated"]["of"] == 2 * 8  # inputs and targets


def test_a_collection_whose_tasks_are_all_held_out(output: Path, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    rows = [{"task": "sst", "input": f"{i}", "targets": "yes", "split": "train", "held_out": True} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refuse("pretrain", *SMALL, "--tasks", file, "--output", output)
    assert f"{file}: all of its 1 tasks are held out, as 'sst' is" in line
    assert not output.exists()
