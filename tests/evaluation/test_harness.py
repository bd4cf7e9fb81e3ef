"""Our models in the lm-evaluation-harness, on a task file of our own; skipped where lm-eval is not installed."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from transformers import ByT5Tokenizer

import mhr
from mhr.data.chat_format import ChatFormat
from mhr.errors import ConfigError
from mhr.evaluation import LoadedModel
from mhr.evaluation.harness import Asking, evaluate_in_harness
from tests.chat_templates import CHATML, make_chat_tokenizer
from tests.cli.running import invoke, refuse
from tests.models import tiny_model

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one task of the harness, with four questions."""
    rows = tmp_path / "rows.jsonl"
    with open(rows, "w", encoding="utf-8") as file:
        for i in range(4):
            file.write(json.dumps({"question": f"first: b{i}", "choices": ["a", "b", "c"], "label": i % 3}) + "\n")
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "tiny.yaml").write_text(TASK.format(rows=rows))
    return tmp_path / "harness"


def loaded(name: str = "t5", kind: str = "seq2seq", routed: bool = False) -> LoadedModel:
    model = tiny_model(name, vocab_size=384)
    if routed:
        mhr.attach(model, mhr.AdapterConfig(method="mhr", n_heads=2, n_skills=3, rank=2), ["a", "b"])
    return LoadedModel(model, ByT5Tokenizer(), kind, "tiny")


@pytest.mark.slow
def test_the_harness_asks_our_models(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="the lm-evaluation-harness is not installed (pip install 'mhr[harness]')")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = evaluate_in_harness(loaded(), ["tiny_choice"], include=folder, limit=3, batch_size=2)
    measures = found["results"]["tiny_choice"]
    assert measures["acc,none"] in (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
    assert found["n-shot"] == {"tiny_choice": 0}
    about = {key: found[key] for key in ("model", "routing", "dtype", "limit")}
    assert about == {"model": "tiny", "routing": "none: it has no bank", "dtype": "float32", "limit": 3}
    assert found["lm_eval"] == metadata.version("lm_eval")
    with pytest.raises(ConfigError, match="unknown harness task 'tiny_choise': did you mean 'tiny_choice'"):
        evaluate_in_harness(loaded(), ["tiny_choise"], include=folder)
    with pytest.raises(ConfigError, match="no folder of harness tasks at"):
        evaluate_in_harness(loaded(), ["tiny_choice"], include=folder / "none")
    with pytest.raises(ConfigError, match="tiny is an encoder"):
        evaluate_in_harness(loaded("bert", "encoder"), ["tiny_choice"], include=folder)
    with pytest.raises(ConfigError, match="tiny has a bank: fold it into the base weights first"):
        evaluate_in_harness(loaded(routed=True), ["tiny_choice"], include=folder)
    shown = invoke(
        "evaluate",
        "builtin:t5-tiny",
        "--harness",
        "tiny_choice",
        "--harness-tasks",
        folder,
        "--output",
        tmp_path / "out",
    )
    assert shown.exit_code == 0, shown.stderr
    said = f"builtin:t5-tiny in the lm-evaluation-harness {metadata.version('lm_eval')}\nrouting: none: it has no bank; float32; all examples"
    for word in (said, "tiny_choice", "acc", "stderr"):
        assert word in shown.stdout
    kept: dict[str, Any] = json.loads((tmp_path / "out" / "harness.json").read_text())
    assert kept["results"]["tiny_choice"]["sample_len"] == 4


UNRENDERED = [ChatFormat(), ChatFormat("none"), ChatFormat(None, system="Be short.")]
"""Formats of which none renders a question that is no conversation."""

WORDS = """
task: tiny_words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
fewshot_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 6
metric_list:
  - metric: exact_match
"""


@pytest.mark.slow
def test_how_it_asks_is_passed_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="the lm-evaluation-harness is not installed (pip install 'mhr[harness]')")
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "words.yaml").write_text(WORDS.format(rows=tmp_path / "rows.jsonl"))
    requests: list[Any] = []
    answered = HFLM.generate_until

    def spy(self: Any, asked: Any, **kwargs: Any) -> Any:
        requests.extend(request.args for request in asked)
        return answered(self, asked, **kwargs)

    monkeypatch.setattr(HFLM, "generate_until", spy)
    asking = Asking(shots=2, seed=4, stop=("x", "y z"), n_beams=3, cache="static")
    model = loaded("llama", "causal")
    model.chat = ChatFormat("chatml", system="Be short.")
    model.model.generation_config.repetition_penalty = 9.0
    generated: list[Any] = []
    generate = model.model.generate

    def generate_spy(**kwargs: Any) -> Any:
        generated.append((kwargs, model.model.generation_config.repetition_penalty))
        return generate(**kwargs)

    model.model.generate = generate_spy
    found = evaluate_in_harness(model, ["tiny_words"], include=folder, limit=2, how=asking)
    assert found["n-shot"] == {"tiny_words": 2}
    assert found["asked"]["shots"] == 2
    text, settings = requests[0]
    assert text.startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nfirst: b")
    assert text.endswith("<|im_start|>user\nfirst: b0<|im_end|>\n<|im_start|>assistant\n")
    assert found["asked"]["template"] == "chatml"
    assert model.tokenizer.chat_template is None
    assert text.count("first: b") == 3
    assert settings["until"] == ["x", "y z"]
    for kwargs, penalty in generated:
        assert kwargs["num_beams"] == 3
        assert kwargs["cache_implementation"] == "static"
        assert kwargs["do_sample"] is False
        assert penalty in (None, 1.0)
    assert model.model.generation_config.repetition_penalty == 9.0
    for chat in UNRENDERED:
        model.chat = chat
        plain = evaluate_in_harness(model, ["tiny_words"], include=folder, limit=1)
        assert requests[-1][0] == "first: b0"
        assert requests[-1][1]["until"] == ["."]
        assert plain["n-shot"] == {"tiny_words": 0}
        assert (plain["asked"]["template"], plain["asked"]["system"]) == (None, None)


@pytest.mark.parametrize("chat", UNRENDERED)
def test_a_system_turn_is_for_questions_that_a_template_renders(chat: ChatFormat) -> None:
    model = loaded("llama", "causal")
    model.chat = chat
    assert not {"system_instruction", "apply_chat_template"} & Asking().settings(model).keys()
    model.chat = ChatFormat("chatml", system="Be short.")
    assert Asking().settings(model)["system_instruction"] == "Be short."


@pytest.mark.slow
def test_a_system_turn_that_nothing_renders_is_refused(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the lm-evaluation-harness is not installed (pip install 'mhr[harness]')")
    base = tmp_path / "base"
    tiny_model("llama", vocab_size=400).save_pretrained(base)
    make_chat_tokenizer(CHATML).save_pretrained(base)
    told = refuse("evaluate", base, "--harness", "tiny_choice", "--harness-tasks", folder, "--system", "Be short.")
    assert "system is 'Be short.', but no chat template renders the questions of the harness" in told
    assert "--chat-template auto" in told


def test_without_the_harness_or_with_flags_of_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install 'mhr[harness]'" in refuse("evaluate", "builtin:t5-tiny", "--harness", "boolq", "rte")
    assert "--tasks is for task collections" in refuse(
        "evaluate", "builtin:t5-tiny", "--harness", "boolq", "--tasks", "builtin:skills"
    )
    for flag in (("--split", "train"), ("--inference", "token"), ("--draws", "2")):
        assert f"{flag[0]} is for task collections" in refuse(
            "evaluate", "builtin:t5-tiny", "--harness", "boolq", *flag
        )
    assert "seed is 1, but inference is 'average' and there are no shots" in refuse(
        "evaluate", "builtin:t5-tiny", "--harness", "boolq", "--seed", "1"
    )
    assert "--harness-tasks is the place" in refuse("evaluate", "builtin:t5-tiny", "--harness-tasks", "dir")
