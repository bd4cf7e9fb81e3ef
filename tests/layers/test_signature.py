"""Trainers read the signature of a model's forward: they find task_ids in it, and pass the column on."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments, default_data_collator

import mhr
from mhr import AdapterConfig
from mhr.errors import TaskError
from tests.models import MODELS, random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]


@pytest.mark.parametrize("name", MODELS)
def test_task_ids_are_named_until_the_bank_is_taken_off(name: str) -> None:
    model = tiny_model(name)
    before = inspect.signature(model.forward)
    mhr.attach(model, AdapterConfig(n_heads=4), TASKS)
    signature = inspect.signature(model.forward)
    assert signature.parameters["task_ids"].kind is inspect.Parameter.KEYWORD_ONLY
    assert [p for p in signature.parameters if p != "task_ids"] == list(before.parameters)
    mhr.detach(model)
    assert inspect.signature(model.forward) == before
    assert "forward" not in vars(model)


def test_forward_called_past_the_hooks_is_routed_too() -> None:
    model = tiny_model("bert")
    batch = random_batch(model)
    randomise(mhr.attach(model, AdapterConfig(n_heads=4), TASKS))
    assert torch.equal(model.forward(**batch, task_ids=IDS).logits, model(**batch, task_ids=IDS).logits)
    with pytest.raises(TaskError, match="without task ids"):
        model.forward(**batch)


def with_names(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = [row.pop("task_ids") for row in rows]
    return {**default_data_collator(rows), "task_ids": names}


@pytest.mark.parametrize("ids", [IDS, [2, 0, 2, 1]], ids=["names", "integers"])
def test_a_plain_trainer_keeps_the_column(ids: list[Any], tmp_path: Path) -> None:
    """Integer ids go through the default collator; names need one that leaves strings alone."""
    model = tiny_model("bert")
    bank = mhr.attach(model, AdapterConfig(n_heads=4), TASKS)
    randomise(bank)
    inputs = random_batch(model)
    rows = [{**{k: v[i] for k, v in inputs.items()}, "task_ids": ids[i], "unused": "text"} for i in range(4)]
    seen: list[Tensor] = []
    whole = model.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    settings = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to=[], use_cpu=True, save_strategy="no",
        learning_rate=0.1, disable_tqdm=True,
    )  # fmt: skip
    collator = with_names if isinstance(ids[0], str) else default_data_collator
    before = [p.clone() for p in bank.adapter_parameters()]
    model(**inputs, task_ids=IDS)
    trainer = Trainer(model, settings, data_collator=collator, train_dataset=rows)
    trainer.train()
    assert any(not torch.equal(p, q) for p, q in zip(bank.adapter_parameters(), before, strict=True))
    first, trained = (x[x[:, 0].argsort()] for x in seen[:2])  # the trainer shuffles
    torch.testing.assert_close(trained, first)
    whole.remove()
    assert trainer.predict(rows).predictions.shape[0] == 4
