"""The benchmark of many tasks takes steps that train, and counts what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("mhr_benchmarks")

from mhr_benchmarks import many_tasks
from mhr_benchmarks.train import BATCH, Setting


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(many_tasks, "small", lambda width: Setting(width, 1, 4, many_tasks.VOCABULARY, BATCH, 8, 4))


@pytest.mark.parametrize("lazy", [True, False])
def test_what_a_step_holds(lazy: bool) -> None:
    step = many_tasks.Stepping(40, lazy, 32)
    tables = [p for p, _ in step.bank.row_parameters()] if step.rows is None else [t.whole for t in step.rows.tables]
    before = [table.detach().clone() for table in tables]
    step()
    step()
    floats = 4 * sum(router.even.numel() for router in step.bank.groups.values())
    held = {"tables": 40 * floats, "gradients": 40 * floats, "states": 2 * 40 * floats}
    assert step.held == (held | {"gradients": 8 * floats, "states": 2 * (8 + 8) * floats} if lazy else held)
    if step.rows is not None:
        assert 8 < len(step.rows.drawn) <= 16
        assert step.bytes()["states"] == 2 * (8 + 16) * floats
    assert any((a != b).any() for a, b in zip(tables, before, strict=True))


def test_the_result_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_tasks, "SIZES", (8, 12))
    found = many_tasks.measure(32, rounds=4, runs=0, steps=20)
    assert [(row["lazy"], row["tasks"]) for row in found["step"]] == [(True, 8), (True, 12), (False, 8), (False, 12)]
    found["run"] = [{"tasks": 8, "prepare_s": 0.1, "ms": 30.0, "ratio": [1.0, 1.0, 1.0]}]
    lines = many_tasks.table(found)
    assert len([line for line in lines if line.startswith("| ")]) == 4 + 1 + 2
    many_tasks.write_tasks(tmp_path / "tasks.jsonl", 3)
    rows = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == ["task0", "task0", "task1", "task1", "task2", "task2"]
