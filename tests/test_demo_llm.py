"""The demo on a language model, with a tiny one in its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from mhr.data import load_tasks
from mhr.demo_llm import ADAPTED, BASE, TASK, UNIFORM, LlmDemoResult, run_demo_llm
from mhr.errors import ConfigError, MhrError
from tests.cli.running import succeed
from tests.models import tiny_model

CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The demo's settings, with a few steps of a tiny model that has a chat template."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama", vocab_size=384, max_position_embeddings=512).save_pretrained(folder)
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    train = ("train.steps=2", "train.batch_size=4", "train.save_every=2")
    return [f"model={folder}", *train, "adapt.steps=1", "adapt.batch_size=4", "adapt.shots=4"]


@pytest.mark.slow
def test_the_demo_shows_scores_and_samples_and_resumes(tmp_path: Path, few: list[str]) -> None:
    said: list[str] = []
    settings: dict[str, Any] = {"overrides": few, "limit": 3, "samples": 2, "progress": False, "say": said.append}
    result = run_demo_llm(tmp_path / "demo", **settings)
    assert list(result.scores) == [BASE, UNIFORM, ADAPTED]
    assert all(0 <= score <= 1 for scores in result.scores.values() for score in scores.values())
    assert [sample["expected"] for sample in result.samples] == [
        example.targets[0] for example in load_tasks("builtin:orders")[TASK].test[:2]
    ]
    assert (tmp_path / "demo" / "peft-lora" / "adapter_model.safetensors").is_file()
    written = json.loads((tmp_path / "demo" / "demo_llm.json").read_text())
    assert (written["status"], written["scores"]) == ("done", result.scores)
    before = len(said)
    assert run_demo_llm(tmp_path / "demo", resume=True, **settings) == result
    assert len(said) == before  # nothing was done twice
    with pytest.raises(MhrError, match="other settings"):
        run_demo_llm(tmp_path / "demo", resume=True, **{**settings, "limit": 2})


def test_a_setting_that_changes_nothing_is_refused_before_anything_is_written(tmp_path: Path, few: list[str]) -> None:
    with pytest.raises(ConfigError, match="full_lr is 0.0001, but mode 'mhr' does not train all weights: leave it out"):
        run_demo_llm(tmp_path / "demo", progress=False, overrides=[*few, "adapt.full_lr=1e-4"])
    assert not (tmp_path / "demo").exists()


def test_the_command_prints_scores_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    scores = {BASE: {"exact_match": 0.0, "rouge_l": 0.125}, ADAPTED: {"exact_match": 0.75, "rouge_l": 0.875}}
    sample = {"input": "Find it [here]", "expected": "[b]it[/b]", "before": "what?\nno", "after": "it"}

    def stand_in(output: Path, **settings: Any) -> LlmDemoResult:
        asked.update(settings)
        return LlmDemoResult(output, 32, scores, [sample], {"pretrain": 7, "adapt": 7})

    monkeypatch.setattr("mhr.demo_llm.run_demo_llm", stand_in)
    result = succeed("demo-llm", "--output", tmp_path, "--set", "train.steps=3")
    for word in ("12.5", "75.0", "87.5", "Find it [here]", "[b]it[/b]", "what? no"):
        assert word in result.stdout
    assert asked["overrides"] == ("train.steps=3",)
    assert json.loads(succeed("demo-llm", "--output", tmp_path, "--json").stdout)["scores"] == scores
