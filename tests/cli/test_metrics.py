"""Metrics on the command line: the table, evaluation.json, the report, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhr.data.forms.glue import GLUE
from mhr.evaluation.result import EvaluationResult
from mhr_cli.evaluate import _print
from tests.cli.running import refuse, succeed
from tests.glue import write_glue


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A collection of one task whose answers are numbers."""
    file = tmp_path / "numbers.jsonl"
    rows = [{"input": f"{i} + 1", "targets": f"{i + 1}.5", "split": ("train", "test")[i % 2]} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_metrics_that_are_asked_for_are_shown_and_kept(run: Path, rows: Path, tmp_path: Path) -> None:
    asked = ("evaluate", run, "--tasks", rows, "--metrics", "f1,matthews,accuracy")
    shown = " ".join(succeed(*asked, "--output", tmp_path / "out").stdout.split())
    assert "task n accuracy f1 matthews majority" in shown
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for scores in kept["tasks"].values():
        assert scores["metric"] == "f1"
        assert scores["score"] == scores["f1"]
    succeed("report", tmp_path / "out", "--output", tmp_path / "report")
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert any("by f1" in line for line in told["text"]["summary"])
    table = told["tables"]["metrics"]
    assert table["columns"][:2] == ["task", "metric"]
    assert [row[:2] for row in table["rows"]] == [
        [t, m] for t in ("even", "odd") for m in ("f1", "accuracy", "matthews")
    ]
    assert table["rows"][0][2] == kept["tasks"]["even"]["f1"]


def test_remarks_are_printed_once(run: Path, numbers: Path) -> None:
    result = succeed("evaluate", run, "--tasks", numbers, "--metrics", "pearson,exact_match")
    assert "numbers: pearson: " in result.stderr
    assert "answers are no numbers, and count as -1" in result.stderr


def test_a_task_of_glue_is_judged_by_its_own_metrics(run: Path, tmp_path: Path) -> None:
    found = succeed("evaluate", run, "--tasks", write_glue(tmp_path / "glue") / "CoLA", "--json")
    scores = json.loads(found.stdout)["tasks"]["cola"]
    assert scores["metric"] == "matthews"
    assert {"matthews", "accuracy"} <= scores.keys()


def test_a_whole_test_split_is_judged_on_where_asked(run: Path, tmp_path: Path) -> None:
    """As published scores are: the hundred that are drawn otherwise, and all others."""
    rows = [{"input": f"{i}", "targets": "ab"[i % 2], "choices": ["a", "b"], "split": "test"} for i in range(130)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("evaluate", run, "--tasks", tmp_path / "many.jsonl", "--json")
    for more, n in (((), 100), (("--set", "data.max_test=1000"), 130)):
        assert json.loads(succeed(*asked, *more).stdout)["tasks"]["many"]["n"] == n


def test_a_task_that_is_left_without_a_score_is_skipped(run: Path, tmp_path: Path) -> None:
    content = [
        {"task": task, "input": f"{i}", "targets": "ab"[i % 2], "split": ("train", "test")[i // 4], **more}
        for task, more in (("labels", {"choices": ["a", "b"]}), ("free", {}))
        for i in range(8)
    ]
    file = tmp_path / "both.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in content))
    told = succeed("evaluate", run, "--tasks", file, "--metrics", "accuracy,nist", "--json")
    found = json.loads(told.stdout)
    assert {name: scores["metric"] for name, scores in found["tasks"].items()} == {"labels": "accuracy"}
    why = "has no choices to rank, and no score can be made of nist: name a share or a correlation too"
    assert found["skipped"] == {"free": why}


def test_metrics_that_do_not_fit_are_refused(run: Path, rows: Path, numbers: Path) -> None:
    asked = ("evaluate", run, "--tasks", rows, "--metrics")
    assert "metric 'pearson' does not fit task 'even' (nor does it fit 1 other tasks): it needs numbers" in refuse(
        *asked, "accuracy,pearson"
    )
    told = "can be evaluated: no score can be made of nist: name a share or a correlation too (2 tasks)"
    assert told in refuse(*asked, "nist")
    assert "metrics has 'mathews', expected one of" in refuse(*asked, "mathews")
    free = ("evaluate", run, "--tasks", numbers, "--metrics")
    assert "it needs a fixed set of labels, and the task is answered in free text" in refuse(*free, "matthews")
    assert "metric 'f1' does not fit task 'numbers'" in refuse(*free, "exact_match,f1")


def test_a_table_of_all_metrics_of_glue_is_whole_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of tasks and metrics are there, and the mean of scores, each by the metric of its task."""
    monkeypatch.setenv("COLUMNS", "60")
    tasks = {
        name: {"category": "", "n": 4, "metric": t.metrics[0], "score": 0.25, **dict.fromkeys(t.metrics, 0.25)}
        for name, t in GLUE.items()
    }
    tasks["a-task-whose-name-is-longer-than-a-table-gives-room-for"] = tasks["rte"]
    settings = {"shots": 0, "template": None, "system": None, "stop": []}
    truncated = dict.fromkeys(("inputs", "choices", "targets"), 0)
    _print(EvaluationResult("m", "encoder", "s", "test", tasks, {}, truncated, settings, {}, 0.0))
    text = capsys.readouterr().out
    words = text.split()
    assert "…" not in text
    assert {*GLUE, "accuracy", "f1", "matthews", "pearson", "spearman", "mismatched", "score"} <= set(words)
    assert "a-task-whose-name-is-lon" in words  # and so on in the next line
    (mean,) = [line for line in text.splitlines() if line.startswith(" mean over tasks")]
    assert mean.split()[-1] == "25.0"
