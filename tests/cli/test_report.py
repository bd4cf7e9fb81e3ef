"""`mhr report`, and what `mhr inspect` computes for it, from the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.cli.running import refuse, succeed
from tests.test_readme import parse


def test_inspect_computes_alignment_and_transfer(run: Path, tmp_path: Path) -> None:
    given = ("--task", "rev-last,rev-second", "--alignment", "--examples", "2", "--transfer", "--limit", "2")
    result = succeed("inspect", run, *given, "--output", tmp_path / "looked")
    for words in (
        "Gradient alignment: mean cosine",
        "all layers",
        "Transfer: score in per cent",
        "Agreement with the skills",
    ):
        assert words in result.stdout
    told = json.loads((tmp_path / "looked" / "inspection.json").read_text())
    assert [point["step"] for point in told["alignment"]] == [3]
    assert told["alignment"][0]["tasks"] == ["rev-last", "rev-second"]
    assert told["transfer"].keys() == {"rev-last", "rev-second"}
    assert all(0 <= value <= 1 for row in told["transfer"].values() for value in row.values())
    assert json.loads(succeed("inspect", run, "--json").stdout)["alignment"] == []


def test_flags_of_what_is_not_computed_are_refused(run: Path) -> None:
    assert "examples says something with alignment only" in refuse("inspect", run, "--examples", "3")
    assert "limit says something with transfer only" in refuse("inspect", run, "--alignment", "--limit", "3")
    assert "task says something with alignment or transfer only" in refuse("inspect", run, "--task", "rev-last")
    assert "name at least two" in refuse("inspect", run, "--alignment", "--task", "rev-last")
    assert "examples is 0" in refuse("inspect", run, "--alignment", "--examples", "0")


@pytest.mark.slow
def test_a_report_over_a_run_and_its_adaptations(run: Path, tmp_path: Path) -> None:
    few = ("--steps", "1", "--shots", "4", "--seeds", "1,2", "--task", "rev-upper,min-box")
    for mode in ("z", "mu"):
        succeed("adapt", run, "--mode", mode, *few, "--output", tmp_path / mode)
        for task in ("rev-upper", "min-box"):
            for seed in "12":
                folder = tmp_path / mode / task / seed
                succeed("evaluate", folder, "--limit", "3", "--output", folder / "evaluation")
    given = (run, tmp_path / "z", tmp_path / "mu", "--title", "Two ways", "--output", tmp_path / "report")
    result = succeed("report", *given)
    assert "2 contestants on 2 tasks of builtin:skills" in result.stdout
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {"standings", "tasks", "routing", "costs", "runs", "settings"} <= told["tables"].keys()
    costs = {row[0]: row[1] for row in told["tables"]["costs"]["rows"]}
    assert costs["MHR-z, 4 shots"] < costs["MHR-mu, 4 shots"] < costs["MHR, pretrained"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<h1>Two ways</h1>" in page
    assert "is not empty" in refuse("report", *given)
    again = succeed("report", *given, "--overwrite", "--json")
    assert json.loads(again.stdout)["tables"].keys() == told["tables"].keys()


def test_what_cannot_be_reported_is_refused_with_one_line(run: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "report")
    assert "no such file or folder" in refuse("report", tmp_path / "nowhere", *output)
    assert "is given twice" in refuse("report", run, run, *output)
    (tmp_path / "notes").mkdir()
    assert "is nothing to report (it holds nothing)" in refuse("report", tmp_path / "notes", *output)
    assert not (tmp_path / "report").exists()


def test_the_page_about_it_names_commands_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text("utf-8")
    lines = [line for line in page.splitlines() if line.startswith("mhr ")]
    assert len(lines) >= 8
    for line in lines:
        parse(shlex.split(line)[1:])
