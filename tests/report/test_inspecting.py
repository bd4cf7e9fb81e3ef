"""All that is found out about a run, in one call."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mhr.errors import ConfigError
from mhr.evaluation import score
from mhr.report.inspecting import inspect_fully
from mhr.report.report import write_report
from mhr.runs import RunFolder


def test_what_is_returned_is_what_is_written(source: Callable[[str], RunFolder], tmp_path: Path) -> None:
    said: list[str] = []
    result = inspect_fully(
        source("mhr").path, alignment=True, examples=2, transfer=True, limit=1, output=tmp_path / "out", say=said.append
    )
    assert json.loads((tmp_path / "out" / "inspection.json").read_text()) == json.loads(json.dumps(result.to_json()))
    assert {path.parent for path in result.plots} == {tmp_path / "out"}
    assert len(result.alignments) == 1
    assert set(result.transfer) == set(result.inspection.tasks)
    assert said


WRITERS: dict[str, Callable[[Path, Path, bool], Any]] = {
    "evaluate": lambda run, out, overwrite: score(run, limit=1, output=out, overwrite=overwrite, progress=False),
    "inspect": lambda run, out, overwrite: inspect_fully(run, output=out, overwrite=overwrite),
    "report": lambda run, out, overwrite: write_report([run], out, overwrite=overwrite),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_an_output_of_which_a_kill_left_the_first_file_can_be_replaced(
    writer: str, source: Callable[[str], RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = os.replace

    def until_killed(*args: Any) -> None:
        if any((tmp_path / "out").glob("[!.]*")):
            raise KeyboardInterrupt
        put(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", until_killed)
        with pytest.raises(KeyboardInterrupt):
            WRITERS[writer](source("mhr").path, tmp_path / "out", False)
    (first,) = (tmp_path / "out").iterdir()
    WRITERS[writer](source("mhr").path, tmp_path / "out", True)
    assert len(list((tmp_path / "out").iterdir())) > 1
    assert first.is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"examples": 3}, "examples says something with alignment only"),
        ({"alignment": True, "limit": 3}, "limit says something with transfer only"),
        ({"names": ["rev-last"]}, "task says something with alignment or transfer only"),
        ({"transfer": True, "limit": 0}, "limit is 0, expected"),
        ({"alignment": True, "examples": 0}, "examples is 0, expected"),
    ],
)
def test_what_would_change_nothing_is_refused(
    arguments: dict[str, Any], said: str, source: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        inspect_fully(source("mhr").path, output=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
