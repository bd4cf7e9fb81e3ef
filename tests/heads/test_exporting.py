"""Merging and exporting a run with heads: one task's head leaves with it, and transformers answers in its labels."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    pipeline,
)

from mhr.adapters import read_adapter
from mhr.errors import MergeError
from mhr.evaluation import load_model, score
from mhr.evaluation.result import Prediction
from mhr.merging import merge, merge_each_task, serving_lines
from mhr.training import pretrain
from tests.heads.conftest import Recipe


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> Path:
    config = recipe("two", "three", "number", model="bert-encoder", steps=8, lr=5e-2)
    return pretrain(config, str(tmp_path / "run"), progress=False).path


def predictions(path: Path, task: str, tasks: str) -> list[Prediction]:
    return score(path, tasks=tasks, names=[task], progress=False, batch_size=1).predictions


def outputs(model: PreTrainedModel, said: Sequence[Prediction], tokenizer_of: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    with torch.no_grad():
        return torch.cat([model.eval()(**tokenizer(p.input, return_tensors="pt")).logits for p in said])


@pytest.mark.parametrize(("task", "labels"), [("two", ["no", "yes"]), ("three", ["a", "b", "c"]), ("number", [])])
def test_a_task_s_model_answers_as_the_run(
    task: str, labels: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = read_adapter(run / "adapter").base.name_or_path
    said = predictions(run, task, str(tmp_path / "tasks.jsonl"))
    scores = torch.tensor([p.scores for p in said])

    whole = merge(run, method="task", task=task, to="model", output=tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(whole)
    torch.testing.assert_close(outputs(model, said, whole), scores, rtol=1e-4, atol=1e-4)
    if labels:
        assert model.config.id2label == dict(enumerate(labels))
        assert model.config.label2id == {label: i for i, label in enumerate(labels)}
        answers = pipeline("text-classification", model=str(whole))([p.input for p in said])
        assert [a["label"] for a in answers] == [p.answer for p in said]
    else:
        assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
        answers = pipeline("text-classification", model=str(whole))([p.input for p in said])
        assert [a["score"] for a in answers] == pytest.approx([p.scores[0] for p in said], rel=1e-3, abs=1e-3)
    again = predictions(whole, task, str(tmp_path / "tasks.jsonl"))
    torch.testing.assert_close(torch.tensor([p.scores for p in again]), scores, rtol=1e-4, atol=1e-4)

    plain = merge(run, method="task", task=task, to="peft-lora", output=tmp_path / "peft")
    config = AutoConfig.from_pretrained(plain / "head")
    assert config.num_labels == max(len(labels), 1)
    model = AutoModelForSequenceClassification.from_pretrained(plain, config=config)
    torch.testing.assert_close(outputs(model, said, Path(base)), scores, rtol=1e-4, atol=1e-4)
    if labels:
        monkeypatch.chdir(tmp_path)  # where the folder has the name that its card calls it by
        (code,) = re.findall(r"```python\n(.*?)\n```", (plain / "README.md").read_text(), re.DOTALL)
        found: dict[str, Any] = {}
        exec(code, found)
        assert [a["label"] for a in found["answer"]([p.input for p in said])] == [p.answer for p in said]
    again = predictions(plain, task, str(tmp_path / "tasks.jsonl"))
    torch.testing.assert_close(torch.tensor([p.scores for p in again]), scores, rtol=1e-4, atol=1e-4)

    ours = merge(run, method="task", task=task, to="mhr", output=tmp_path / "ours")
    heads = read_adapter(ours).heads
    assert heads is not None
    assert heads.tasks == {task: 0}
    again = predictions(ours, task, str(tmp_path / "tasks.jsonl"))
    torch.testing.assert_close(torch.tensor([p.scores for p in again]), scores, rtol=1e-4, atol=1e-4)


def test_peft_itself_loads_the_head(run: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = read_adapter(run / "adapter").base.name_or_path
    said = predictions(run, "three", str(tmp_path / "tasks.jsonl"))
    plain = merge(run, method="task", task="three", to="peft-lora", output=tmp_path / "peft")
    config = AutoConfig.from_pretrained(plain / "head")
    model = peft.PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base, config=config), plain
    )
    found = outputs(model, said, Path(base))
    torch.testing.assert_close(found, torch.tensor([p.scores for p in said]), rtol=1e-4, atol=1e-4)


def test_the_average_of_the_skills_keeps_every_head(run: Path, tmp_path: Path) -> None:
    ours = merge(run, method="uniform", to="mhr", output=tmp_path / "ours")
    assert read_adapter(ours).heads == read_adapter(run / "adapter").heads
    assert set(score(ours, tasks=str(tmp_path / "tasks.jsonl"), progress=False).tasks) == {"two", "three", "number"}
    for to in ("model", "peft-lora"):
        with pytest.raises(MergeError, match="has heads for 3 tasks .*name it with --method task --task NAME"):
            merge(run, method="uniform", to=to, output=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_heads_of_different_classes_are_not_averaged(run: Path, tmp_path: Path) -> None:
    """Each task keeps its head, whatever becomes of the adapters; a head of one task is averaged over its adapters."""
    whole = read_adapter(run / "adapter").tensors["modules.classifier.weight"]
    apart = read_adapter(merge([run, run], method="uniform", task=["three", "two"], output=tmp_path / "apart"))
    assert apart.heads is not None
    rows = {"three": [2, 3, 4], "two": [0, 1]}
    assert apart.heads.tasks.keys() == rows.keys()
    # Inputs of a merge come in an order that does not depend on how they were named, so heads do too.
    in_order = sorted(rows, key=apart.heads.tasks.__getitem__)
    torch.testing.assert_close(
        apart.tensors["modules.classifier.weight"], whole[[r for t in in_order for r in rows[t]]]
    )
    said = score(tmp_path / "apart", tasks=str(tmp_path / "tasks.jsonl"), names=["two", "three"], progress=False)
    assert {p.task: len(p.choices) for p in said.predictions} == {"two": 2, "three": 3}
    same = read_adapter(merge([run, run], method="uniform", task=["two", "two"], output=tmp_path / "same"))
    torch.testing.assert_close(same.tensors["modules.classifier.weight"], whole[:2])
    with pytest.raises(MergeError, match="neither for the same tasks and classes nor all for different tasks"):
        merge([run, run, run], method="uniform", task=["two", "three", "two"], output=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_run_that_trains_the_whole_model_keeps_its_heads(recipe: Recipe, tmp_path: Path) -> None:
    run = pretrain(recipe("two", "three", method="full", steps=2), str(tmp_path / "run"), progress=False)
    loaded = load_model(run.path)
    assert loaded.heads is not None
    assert loaded.heads.tasks == {"two": 0, "three": 1}
    said = json.loads((run.model / "config.json").read_text())
    assert list(said["id2label"].values()) == ["two: no", "two: yes", "three: a", "three: b", "three: c"]


def test_mu_and_adamix_runs_keep_their_heads(recipe: Recipe, tmp_path: Path) -> None:
    mu = pretrain(recipe("two", "number", switch_to_mu_at=2), str(tmp_path / "mu"), progress=False)
    adamix = pretrain(recipe("two", "number", method="adamix"), str(tmp_path / "adamix"), progress=False)
    assert adamix.info["consistency"] == {"weight": 1.0, "squared_difference": ["number"]}
    for run in (mu, adamix):
        heads = read_adapter(run.adapter).heads
        assert heads is not None
        assert heads.tasks == {"two": 0, "number": 1}
        assert set(score(run.path, progress=False).tasks) == {"two", "number"}


@pytest.mark.parametrize("method", ["mhr", "adamix-lora"])
def test_each_task_leaves_with_its_own_head(method: str, recipe: Recipe, tmp_path: Path) -> None:
    """Also of AdaMix, which routes all tasks alike."""
    config = recipe(
        "two", "three", model="bert-encoder", method=method, n_heads=1 if method != "mhr" else 2, steps=8, lr=5e-2
    )
    run = pretrain(config, str(tmp_path / "run"), progress=False).path
    with pytest.raises(MergeError, match="heads for 2 tasks"):
        merge_each_task(run, with_average=True, output=tmp_path / "all", progress=False)
    ours = merge_each_task(run, output=tmp_path / "ours", progress=False)
    theirs = merge_each_task(run, to="peft-lora", output=tmp_path / "all", progress=False)
    assert theirs.modules == ours.modules != []
    for task, n_labels in (("two", 2), ("three", 3)):
        said = predictions(run, task, str(tmp_path / "tasks.jsonl"))
        assert {len(p.scores) for p in said} == {n_labels}
        for folder in (tmp_path / "ours" / task, tmp_path / "all" / task):
            found = predictions(folder, task, str(tmp_path / "tasks.jsonl"))
            assert [p.answer for p in found] == [p.answer for p in said]
            torch.testing.assert_close(
                torch.tensor([p.scores for p in found]), torch.tensor([p.scores for p in said]), rtol=1e-4, atol=1e-4
            )
    lines = serving_lines(theirs, tmp_path / "all")
    assert list(lines) == ["PEFT"]
    names: dict[str, Any] = {}
    exec("\n".join(lines["PEFT"]), names)
    said = predictions(run, "two", str(tmp_path / "tasks.jsonl"))
    base = Path(read_adapter(run / "adapter").base.name_or_path)
    scores = torch.tensor([p.scores for p in said])
    torch.testing.assert_close(outputs(names["model"], said, base), scores, rtol=1e-4, atol=1e-4)
