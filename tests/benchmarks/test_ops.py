"""The benchmark of one layer: errors against float64 beside every time, and a quick form that ends on any processor."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch

from mhr.errors import ConfigError
from mhr_benchmarks import measure, ops, train


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiny shapes in place of the grid, one round each."""

    def case(dtype: torch.dtype, train: bool) -> ops.Case:
        return ops.Case(4, 8, 32, 32, 8, 4, 4, dtype, train)

    monkeypatch.setattr(ops, "grid", lambda quick: [case(d, t) for d in ops.computed_dtypes() for t in (False, True)])
    monkeypatch.setattr(ops, "growth", lambda quick: [case(torch.float32, True)])
    monkeypatch.setattr(ops, "copy_bandwidth", lambda: 10.0)
    monkeypatch.setattr(ops, "interleave", lambda functions, *_, **__: measure.interleave(functions, 0.0, least=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_against_float64(dtype: torch.dtype) -> None:
    errors = ops.Layers(ops.Case(4, 8, 32, 64, 8, 4, 2, dtype, True)).errors()
    assert set(errors) == {"ours", "peft_poly", "eager"}
    assert max(errors.values()) < ops.AGREEMENT[dtype]
    assert (max(errors.values()) > 1e-4) == (dtype == torch.bfloat16)


def test_every_table_is_filled_and_tells_the_errors(small: None) -> None:
    result = json.loads(json.dumps(ops.run(quick=True)))
    assert all(row["agrees"] for row in result["results"])
    for table in result["tables"]:
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert result["tables"][1]["columns"] == ["", "PEFT Poly", "eager", "ours"]
    assert ops.plots(result)


def test_no_time_is_given_where_ours_is_off(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ops.Layers.ours
    monkeypatch.setattr(ops.Layers, "ours", lambda layers: 1.01 * forward(layers))
    result = ops.run(quick=True)
    off = [row for row in result["results"] if row["dtype"] == "float32"]
    assert off
    assert not any(row["agrees"] or "us" in row for row in off)
    assert "where ours is off" in result["tables"][0]["note"]


def test_what_the_processor_only_emulates_is_left_out_and_said(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for level, emulated in (("avx512", []), ("avx2", ["bfloat16"]), ("portable", ["bfloat16"])):
        monkeypatch.setattr("mhr.ops.build_info", lambda level=level: {"simd": level})
        monkeypatch.setattr(measure.platform, "machine", lambda: "x86_64")
        result = ops.run(quick=True)
        assert result["emulated"] == emulated
        assert ("bfloat16 is left out" in result["tables"][0]["note"]) == bool(emulated)
        assert {row["dtype"] for row in result["results"]} == {"float32", "bfloat16"} - set(emulated)


def test_a_slow_shape_ends_after_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def slow() -> None:
        now[0] += 3.0

    times = measure.interleave({"slow": slow, "other": slow}, budget=0.5, least=30, limit=10.0)
    assert [len(values) for values in times.values()] == [2, 2]


def test_without_peft_it_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    for run in (ops.run, train.run):
        with pytest.raises(ConfigError, match=r"pip install 'mhr\[bench\]'"):
            run(quick=True)
