"""The training benchmark on a very small model: its peers agree, its result can be written, and it refuses what disagrees."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mhr_benchmarks import train


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INPUT": 6, "TARGET": 3, "VOCABULARY": 64, "TASKS": 8}.items():
        monkeypatch.setattr(train, name, value)
    interleave = train.interleave
    monkeypatch.setattr(train, "interleave", lambda functions, budget, least: interleave(functions, 0.0, least=2))


def test_every_implementation_computes_the_same() -> None:
    apart = train.Peers(train.small(32)).disagreement()
    assert set(apart) == {"loss", "logits", "A", "B", "Z"}
    assert max(apart.values()) < 1e-5


def test_the_result_is_json_with_ratios_and_a_table() -> None:
    result = train.run(quick=True, widths=[32])
    assert json.loads(json.dumps(result))["machine"]["torch"] == torch.__version__
    (measured,) = result["results"]
    assert measured["agrees"]
    assert set(measured["of_frozen"]) == {"ours", "ours_with_noise", "peft_lora", "peft_poly", "eager"}
    assert measured["trained"]["ours"] == measured["trained"]["peft_poly"] == measured["trained"]["eager"]
    (table,) = result["tables"]
    assert [len(row) for row in table["rows"]] == [len(table["columns"])]


def test_no_ratio_is_given_for_outputs_that_do_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    share = train.Peers._share_weights

    def spoil(peers: Any) -> None:
        share(peers)
        with torch.no_grad():
            next(iter(peers.models["ours"].mhr.layers.values())).bank_b.mul_(1.01)

    monkeypatch.setattr(train.Peers, "_share_weights", spoil)
    result = train.run(quick=True, widths=[32])
    (measured,) = result["results"]
    assert not measured["agrees"]
    assert "ms" not in measured
    assert "of_frozen" not in measured
    (row,) = result["tables"][0]["rows"]
    assert row[1:] == ["outputs disagree"] * (len(result["tables"][0]["columns"]) - 1)
