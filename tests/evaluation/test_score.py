"""Scoring what lies at a path: what is missing is named, what would be ignored or mean nothing is refused, what is lost is counted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import BertModel

import mhr
from mhr.backbones import load_backbone
from mhr.data import Example, Task, TaskCollection
from mhr.errors import CheckpointError, ConfigError, MhrError
from mhr.evaluation import LoadedModel, evaluate, rank_choices, score
from mhr.evaluation.habits import without_habits
from tests.models import tiny_model
from tests.tokenizers import make_word_tokenizer


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    made = [{"input": f"w{i} w2", "targets": ["w3", "w4"][i % 2], "choices": ["w3", "w4"]} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """An encoder that was saved without any head."""
    folder = tmp_path / "encoder"
    BertModel(tiny_model("bert").config).save_pretrained(folder)
    make_word_tokenizer().save_pretrained(folder)
    return folder


def test_a_random_head_ranks_nothing_and_writes_nothing(encoder: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="encoder does not hold 'classifier', so scores would be those of random weights"
    ):
        score(encoder, tasks=str(rows), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model, tokenizer = load_backbone(encoder)
    loaded = LoadedModel(model, tokenizer, "encoder", "it")
    question = [Example("alpha", "w1", ("w3",), ("w3", "w4"))]
    with pytest.raises(ConfigError, match="it does not hold 'classifier'"):
        rank_choices(loaded, question)
    mhr.attach(model, mhr.AdapterConfig(n_heads=4, n_skills=2, rank=2), ["alpha"])  # the bank brings the head
    assert len(rank_choices(loaded, question)[0].scores) == 2


def test_a_path_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model at NO/SUCH/PATH: there is no such folder"):
        score("NO/SUCH/PATH")
    with pytest.raises(MhrError, match=r"and no/such \(there is no such folder here\) is no run"):
        score("no/such")


@pytest.mark.parametrize("text", ["train.lr=1", "data.sampler=uniform", "data.max_input_length=8", "method=poly"])
def test_settings_that_decide_nothing_are_refused(rows: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="is set, which has no effect here"):
        score("builtin:t5-tiny", tasks=str(rows), overrides=[text])


def test_beams_without_anything_to_generate_are_refused(rows: Path) -> None:
    with pytest.raises(ConfigError, match="n_beams is 3, but all answers are ranked"):
        score("builtin:t5-tiny", tasks=str(rows), n_beams=3, progress=False)


def test_what_is_truncated_is_counted_by_task_and_notes_are_kept() -> None:
    long = " ".join(["w1"] * 12)
    tasks = [
        Task("free", test=[Example("free", "w1", (long, f"{long} w2")), Example("free", long, ("w2", long))]),
        Task(
            "choice",
            test=[Example("choice", long, ("w2",), ("w2", long)), Example("choice", "w1", ("w2",), ("w2", "w3"))],
        ),
    ]
    loaded = LoadedModel(tiny_model("t5"), make_word_tokenizer(), "seq2seq", "it")
    collection = TaskCollection(tasks, "here", ["drawn from all rows"])
    result = evaluate(loaded, collection, max_input_length=8, max_target_length=6, progress=False)
    assert result.truncated == {
        "examples": 4,
        "inputs": 2,
        "choices": 1,
        "targets": 1,
        "tasks": {
            "choice": {"inputs": 1, "choices": 1, "targets": 0},
            "free": {"inputs": 1, "choices": 0, "targets": 1},
        },
    }
    assert result.to_dict()["notes"] == ["drawn from all rows"]


def test_only_special_tokens_of_a_generation_config_count() -> None:
    model = tiny_model("llama")
    model.generation_config.update(
        do_sample=True, temperature=9.0, top_k=3, min_length=7, max_length=2, penalty_alpha=0.5, eos_token_id=[1, 5]
    )
    before = model.generation_config
    with without_habits(model):
        assert model.generation_config.eos_token_id == [1, 5]
        for name in ("do_sample", "temperature", "top_k", "min_length", "max_length", "penalty_alpha"):
            assert not getattr(model.generation_config, name)
    assert model.generation_config is before


def test_every_task_alike_takes_no_task(tmp_path: Path) -> None:
    model = tiny_model("t5")
    bank = mhr.attach(model, mhr.AdapterConfig(method="shared", rank=2), ["alpha"])
    assert not bank.needs_tasks
    loaded = LoadedModel(model, make_word_tokenizer(), "seq2seq", "it")
    assert dataclasses.replace(loaded, task="alpha").task == "alpha"  # by hand it is allowed, for it changes nothing
