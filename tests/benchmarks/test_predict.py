"""The benchmark of answers on a tiny decoder: its result can be written, and it refuses to time what disagrees."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mhr.evaluation import LoadedModel
from mhr_benchmarks import predict
from tests.chat_templates import make_chat_tokenizer
from tests.models import tiny_model


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PROMPT": 6, "NEW_TOKENS": 8, "TASKS": 8, "HEADS": 4, "SKILLS": 2}.items():
        monkeypatch.setattr(predict, name, value)
    interleave = predict.interleave
    monkeypatch.setattr(predict, "interleave", lambda functions, budget, **_: interleave(functions, 0.0, least=2))


def load() -> tuple[Any, Any]:
    model = tiny_model("llama", vocab_size=400, bos_token_id=1, eos_token_id=2, max_position_embeddings=128)
    return model, make_chat_tokenizer()


def test_the_result_is_json_with_ratios_and_a_table() -> None:
    result = predict.run(quick=True, batches=[1, 4], load=load)
    assert json.loads(json.dumps(result))["benchmark"] == "predict"
    assert [r["batch"] for r in result["results"]] == [1, 4]
    for measured in result["results"]:
        assert measured["agrees"]
        assert measured["new_tokens"] == 2
        assert set(measured["ms"]) == {"bare", "one task", "mixed"}
        assert measured["of_one_task"] > 0
    (table,) = result["tables"]
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}


def test_a_mixed_batch_asks_each_row_by_another_task() -> None:
    peers = predict.Peers.make(load, 4)
    assert [example.task for example in peers.mixed] == ["task0", "task2", "task4", "task6"]
    assert {example.task for example in peers.one} == {"task0"}
    assert [e.input for e in peers.one] == [e.input for e in peers.mixed]
    assert len(peers.mixed[0].input.split()) > 1


def test_no_time_is_given_where_rows_of_a_mixed_batch_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    routing = LoadedModel.routing

    def first_for_all(self: LoadedModel, tasks: Any, unseen: str = "uniform") -> Any:
        return routing(self, [tasks[0]] * len(tasks), unseen)

    monkeypatch.setattr(LoadedModel, "routing", first_for_all)
    (measured,) = predict.run(quick=True, batches=[4], load=load)["results"]
    assert not measured["agrees"]
    assert "ms" not in measured
