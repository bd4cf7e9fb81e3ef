"""Studies in stages: nothing is done twice, and what is found is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhr.data import load_tasks
from mhr_benchmarks.studies.stages import Stages


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(tmp_path / "study", {"plan": {"seeds": (1, 2)}})


def test_the_time_of_a_stage_is_kept_once(stages: Stages) -> None:
    assert stages.timed("count", lambda: 7) == 7
    first = stages.state["seconds"]["count"]
    assert stages.timed("count", lambda: sum(range(10**6))) == 499999500000
    assert stages.state["seconds"]["count"] == first


def test_a_study_is_taken_up_and_another_is_refused(stages: Stages) -> None:
    stages.timed("count", lambda: 7)
    again = Stages(stages.output, {"plan": {"seeds": (1, 2)}})
    assert again.state == stages.state
    with pytest.raises(SystemExit, match="holds another study"):
        Stages(stages.output, {"plan": {"seeds": (1, 3)}})


def test_tasks_that_are_scored_are_not_scored_again(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_tasks("builtin:skills")
    stages.score("bare", "builtin:t5-tiny", suite.select(["rev-first"]), 13, limit=2)
    kept = stages.state["scores"]["bare"]["rev-first"]["13"]
    assert kept["n"] == 2
    stages.score("bare", "builtin:t5-tiny", suite.select(["rev-first", "rev-last"]), 13, limit=3)
    assert stages.state["scores"]["bare"]["rev-first"]["13"] is kept
    assert stages.state["scores"]["bare"]["rev-last"]["13"]["n"] == 3
    monkeypatch.setattr("mhr_benchmarks.studies.stages.load_model", None)
    stages.score("bare", "builtin:t5-tiny", suite.select(["rev-first", "rev-last"]), 13, limit=3)


def test_a_record_is_published_with_its_page(stages: Stages, tmp_path: Path) -> None:
    stages.timed("count", lambda: 7)
    text = stages.publish(tmp_path / "results", "count", "python -m count", lambda r: f"# {r['command']}\n", shots=32)
    assert text == (tmp_path / "results" / "count.md").read_text() == "# python -m count\n"
    record = json.loads((tmp_path / "results" / "count.json").read_text())
    assert record["shots"] == 32
    assert record["plan"] == {"seeds": [1, 2]}
    assert {"machine", "versions", "seconds", "scores", "runs"} <= record.keys()
