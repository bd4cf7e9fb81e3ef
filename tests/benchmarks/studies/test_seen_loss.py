"""Loss on unseen examples of seen tasks, and the arithmetic of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mhr import AdapterConfig, attach
from mhr.backbones import load_backbone
from mhr.data import load_tasks
from mhr.evaluation import load_model
from mhr.objectives import make_objective
from mhr.runs import load_config
from mhr.training import pretrain
from mhr_benchmarks.studies.flops import flops_of_run, flops_of_step
from mhr_benchmarks.studies.seen_loss import at_budget, seen_losses

NAMES = ["rev-last", "next-first"]


def test_losses_are_those_of_the_model_at_each_checkpoint(tmp_path: Path) -> None:
    few = {"steps": 2, "batch_size": 4, "save_every": 1, "keep_checkpoints": 2, "n_heads": 2, "n_skills": 2, "rank": 2}
    run = pretrain(load_config(preset="demo", **few), str(tmp_path / "run"), progress=False)
    seen = load_tasks("builtin:skills", max_train=8, limit_test=3).select(NAMES)
    found = seen_losses(run, seen)
    assert list(found) == [1, 2]
    assert seen_losses(run, seen, at_end=True) == {2: found[2]}
    assert found[2].keys() == set(NAMES)
    loaded = load_model(run.path)
    collate = make_objective("seq2seq").collator(loaded.tokenizer, 32, 16)
    loaded.model.eval()
    with torch.no_grad():
        expected = loaded.model(**collate(seen["rev-last"].test)).loss  # the mean over its tokens
    assert found[2]["rev-last"] == pytest.approx(float(expected), rel=1e-5)
    counted = flops_of_run(run, seen, 4)
    assert counted == flops_of_run(run, seen, 4)
    assert counted["tokens"] > 4 * 5


@pytest.mark.parametrize(("method", "skills", "distinct"), [("shared", 1, 1), ("poly", 3, 2), ("uniform", 3, 1)])
def test_products_are_counted(method: str, skills: int, distinct: int) -> None:
    suite = load_tasks("builtin:skills", max_train=2, limit_test=1)
    objective, counted = make_objective("seq2seq"), {}
    for rank in (2, 4):
        model, tokenizer = load_backbone("builtin:t5-tiny")
        batch = objective.collator(tokenizer, 32, 16)([*suite["rev-last"].train, *suite["next-first"].train])
        n_skills = {"n_skills": skills} if skills > 1 else {}
        bank = attach(
            model, AdapterConfig(method=method, rank=rank, targets=r"encoder\.block\.0\..*\.q", **n_skills), NAMES
        )
        counted[rank] = flops_of_step(model, bank, objective, batch)
    (layer,) = bank.layers.values()
    tokens, sides = batch["input_ids"].numel(), layer.in_features + layer.out_features
    mixing = distinct * skills if skills > 1 else 0
    assert counted[4] - counted[2] == 6 * 2 * sides * (tokens + mixing)
    # The objective asks for the logits of one position beside those that have a label.
    assert 2 * counted[2] - counted[4] == pytest.approx(_frozen(batch), rel=2e-3)


def _frozen(batch: dict) -> float:
    """Two products over every Linear, by the shapes of what it is called with."""
    plain, total = load_backbone("builtin:t5-tiny")[0], 0.0

    def count(module: torch.nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += 4 * output.numel() * module.in_features

    for module in plain.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    known = {name: value for name, value in batch.items() if name != "task_ids"}
    with torch.no_grad():
        plain(**known)
    return total


def test_a_budget_is_spent_between_two_checkpoints() -> None:
    losses = {"10": {"a": 2.0}, "20": {"a": 1.0}, "100": {"a": 0.5}}
    assert at_budget(losses, 2.0, 30.0) == {"a": 1.5}
    assert at_budget(losses, 2.0, 200.0) == {"a": 0.5}
    assert at_budget(losses, 2.0, 999.0) == {"a": 0.5}
    assert at_budget(losses, 2.0, 40.0) == {"a": 1.0}
