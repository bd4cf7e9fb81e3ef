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
    monkeypatch.setattr(train, "interleave", lambda functions, budget, **_: interleave(functions, 0.0, least=2))


def test_every_implementation_computes_the_same() -> None:
    errors = train.Peers(train.small(32)).errors()
    assert set(errors) == {"ours", "peft_poly", "eager"}
    for found in errors.values():
        assert set(found) == {"loss", "logits", "A", "B", "Z"}
        assert max(found.values()) < 1e-5


def test_the_result_is_json_with_ratios_and_a_table() -> None:
    result = train.run(quick=True, widths=[32])
    assert json.loads(json.dumps(result))["machine"]["torch"] == torch.__version__
    (measured,) = result["results"]
    assert measured["agrees"]
    assert set(measured["of_frozen"]) == {"ours", "ours_with_noise", "peft_lora", "peft_poly", "eager"}
    assert measured["trained"]["ours"] == measured["trained"]["peft_poly"] == measured["trained"]["eager"]
    for table in result["tables"]:
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert [row[0] for row in result["tables"][1]["rows"]] == ["MHR", "eager MHR", "PEFT Poly"]


def spoil(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes the gradients of one implementation wrong by a per cent."""
    values = train.Peers._values

    def off(peers: Any, which: str, model: Any) -> Any:
        found = values(peers, which, model)
        if model is peers.models[name]:
            found["A"] = [1.01 * gradient for gradient in found["A"]]
        return found

    monkeypatch.setattr(train.Peers, "_values", off)


def test_no_time_is_given_where_ours_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "ours")
    result = train.run(quick=True, widths=[32])
    (measured,) = result["results"]
    assert not measured["agrees"]
    assert "ms" not in measured
    assert "of_frozen" not in measured
    (row,) = result["tables"][0]["rows"]
    assert row[1:] == ["ours is off"] * (len(result["tables"][0]["columns"]) - 1)


@pytest.mark.parametrize("peer", ["eager", "peft_poly"])
def test_a_peer_that_is_off_is_told_and_everything_is_timed(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own products are off by 6e-4 on some processors: what is right is not what eager float32 says."""
    spoil(monkeypatch, peer)
    result = train.run(quick=True, widths=[32])
    (measured,) = result["results"]
    assert measured["agrees"]
    assert measured["ms"].keys() >= {"ours", peer}
    told = {row[0]: row for row in result["tables"][1]["rows"]}
    assert told[{"eager": "eager MHR", "peft_poly": "PEFT Poly"}[peer]][3] == "1.0e-02"
    assert float(told["MHR"][3]) < 1e-5
