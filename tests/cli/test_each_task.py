"""`mhr merge --each-task` from the command line: what it prints, what reads the folder, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mhr
from mhr.adapters.index import read_index
from mhr.errors import CheckpointError
from mhr.merging import each_task
from tests.cli.running import SMALL, invoke, refuse, succeed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on two tasks; tests only read it."""
    folder = tmp_path_factory.mktemp("runs")
    lines = [
        {"task": task, "input": f"{task} {i}", "targets": ["yes" if i % 2 else "no"], "choices": ["yes", "no"]}
        | {"split": split, "category": "parity"}
        for task in ("even", "odd")
        for split, n in (("train", 8), ("test", 4))
        for i in range(n)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    succeed("pretrain", *SMALL, "--tasks", folder / "rows.jsonl", "--steps", "3", "--output", folder / "mhr")
    return folder / "mhr"


def test_a_folder_for_each_task_and_the_lines_that_serve_them(run: Path, tmp_path: Path) -> None:
    shown = succeed("merge", run, "--each-task", "--to", "peft-lora", "--output", tmp_path / "loras")
    assert "2/2" in shown.stderr
    assert f"Merged: 2 folders in {tmp_path / 'loras'}" in shown.stderr
    assert shown.stdout.index("even") < shown.stdout.index("PEFT") < shown.stdout.index("model.load_adapter(")
    assert "vllm serve" not in shown.stdout  # which serves no encoder-decoder
    assert (tmp_path / "loras" / "odd" / "README.md").is_file()
    again = succeed("merge", run, "--each-task", "--to", "peft-lora", "--output", tmp_path / "loras", "--json")
    told = json.loads(again.stdout)
    assert told["output"] == str(tmp_path / "loras")
    assert told["tasks"] == read_index(tmp_path / "loras").tasks
    assert {task: (entry["folder"], entry["category"]) for task, entry in told["tasks"].items()} == {
        "even": ("even", "parity"),
        "odd": ("odd", "parity"),
    }
    assert list(told["serving"])[-1] == "PEFT"


def test_scores_are_those_of_the_run_or_of_what_was_written(run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run, tmp_path / "mhr")
    measured = json.loads(succeed("evaluate", run, "--part", "all", "--json").stdout)["tasks"]
    merged = json.loads(
        succeed(
            "merge", run, "--each-task", "--evaluate", "--to", "peft-lora", "--output", tmp_path / "a", "--json"
        ).stdout
    )
    for task, entry in merged["tasks"].items():
        assert {name: entry[name] for name in ("score", "metric", "n", "category")} == {
            name: measured[task][name] for name in ("score", "metric", "n", "category")
        }
        assert (entry["of"], entry["limit"]) == ("merged", None)
        assert json.loads((tmp_path / "a" / task / "merge_report.json").read_text())["scores"]["merged"]["tasks"] == {
            task: entry["score"]
        }
    assert (
        "score"
        in succeed("merge", run, "--each-task", "--evaluate", "--to", "peft-lora", "--output", tmp_path / "a").stdout
    )
    succeed("evaluate", run, "--part", "all", "--limit", "2", "--output", run / "evaluation")
    succeed("evaluate", run, "--part", "all", "--route-as", "odd", "--output", run / "evaluation-as-odd")
    succeed("evaluate", run, "--part", "all", "--shots", "1", "--output", run / "evaluation-with-shots")
    found = json.loads(succeed("merge", run, "--each-task", "--output", tmp_path / "b", "--json").stdout)
    assert {(entry["n"], entry["limit"], entry["of"]) for entry in found["tasks"].values()} == {(2, 2, "run")}


def test_a_task_of_the_folder_is_asked_by_its_name(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    succeed("merge", run, "--each-task", "--with-average", "--output", folder)
    texts = ["even 1", "odd 2", "even 5"]
    choices = ["--choices", "yes,no"]
    routed, one = (
        json.loads(succeed("predict", path, "--task", "odd", *choices, "--json", *texts).stdout)
        for path in (run, folder)
    )
    assert [a["scores"] for a in one] == [pytest.approx(a["scores"], rel=1e-4) for a in routed]
    other = json.loads(succeed("predict", folder, "--task", "even", *choices, "--json", *texts).stdout)
    assert [a["scores"] for a in other] != [a["scores"] for a in one]
    assert mhr.load(folder, task="odd").predict(texts, choices=["yes", "no"]) == [a["answer"] for a in one]
    named = f"{folder} holds 3 adapters, one for each task: name the folder of one, such as {folder / 'even'}"
    assert named in refuse("predict", folder, *texts)
    assert named in refuse("evaluate", folder, "--tasks", "builtin:skills")
    assert "unknown task 'od' of" in refuse("predict", folder, "--task", "od", *texts)
    with pytest.raises(CheckpointError, match="leave task out"):
        mhr.load(run, task="odd")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"task": "even", "input": "even 1", "choices": ["yes", "no"]}) + "\n")
    assert "even" in refuse("predict", folder, "--task", "odd", "--input", rows)


def test_what_does_not_go_with_each_task_is_refused(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "all"
    for arguments, said in (
        ((run, run), "--each-task takes one bank, but 2 inputs are given"),
        ((run, "--task", "odd"), "--task has no effect with --each-task"),
        ((run, "--method", "ties"), "--method has no effect with --each-task"),
        ((run, "--density", "0.3"), "--density has no effect with --each-task"),
        ((run, "--weights", "even=1,odd=2"), "--weights has no effect with --each-task"),
        ((run, "--space", "delta"), "--space has no effect with --each-task"),
        ((run, "--patterns", "--to", "peft-lora"), "--patterns has no effect with --each-task"),
        ((run, "--split", "test"), "--split has no effect with --each-task"),
        ((run, "--to", "model"), "to is 'model', expected mhr or peft-lora"),
        ((run, "--limit", "2"), "--limit is given, but nothing is scored"),
        ((run, "--push", "me/loras"), "push is 'me/loras'"),
    ):
        assert said in refuse("merge", *arguments, "--each-task", "--output", output)
        assert not output.exists()
    assert "--with-average is for --each-task" in refuse("merge", run, "--with-average", "--output", output)


def test_a_folder_that_is_not_this_merges_is_refused(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "all"
    succeed("merge", run, "--each-task", "--output", output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert "holds the adapters of another merge (with to 'mhr', not 'peft-lora')" in refuse(
        "merge", run, "--each-task", "--to", "peft-lora", "--output", output
    )
    assert f"output folder {output} is not empty" in refuse("merge", run, "--output", output)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("")
    assert "is not empty" in refuse("merge", run, "--each-task", "--output", tmp_path / "photos")


def test_ctrl_c_keeps_whole_folders_and_says_how_to_go_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = each_task.finish_folder, iter(range(9))

    def interrupted(*arguments):
        if next(calls):
            raise KeyboardInterrupt
        return write(*arguments)

    command = ["merge", str(run), "--each-task", "--output", str(tmp_path / "all")]
    monkeypatch.setattr("sys.argv", ["mhr", *command])
    with monkeypatch.context() as patch:
        patch.setattr(each_task, "finish_folder", interrupted)
        result = invoke(*command)
    assert result.exit_code == 130
    assert f"Interrupted. 1 of 2 folders are written in {tmp_path / 'all'}." in result.stderr
    assert f"Go on with: mhr {' '.join(command)}" in result.stderr
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["even", "index.json"]
    succeed(*command)
    assert read_index(tmp_path / "all").status == "done"
