"""Runs of the baselines: resumed, in two processes, and ranked by their shared caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhr
from mhr import AdapterConfig
from mhr.evaluation.likelihood import with_cache, without_cache
from mhr.evaluation.loaded import LoadedModel
from mhr.runs import RunConfig
from tests.forked import Gradients, gradients_of_half, in_two_processes
from tests.models import random_batch, randomise, tiny_model
from tests.resuming import resumed_after_a_break
from tests.tokenizers import make_word_tokenizer

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
CASES = [
    ("houlsby", "t5"),
    ("bitfit", "bart"),
    ("prompt-tuning", "t5"),
    ("prefix-tuning", "llama"),
    ("unipelt", "t5"),
    ("unipelt", "llama"),
    ("unipelt", "bert"),
]
VIRTUAL = [(kind, name) for kind in ("prompt", "prefix") for name in ("t5", "bart", "gpt2", "llama")]


@pytest.mark.parametrize(("method", "model"), CASES)
def test_a_resumed_run_ends_where_one_without_a_break_does(
    method: str, model: str, settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    resumed_after_a_break(settings(model, method=method, steps=4, save_every=2), tmp_path)


def adapted(kind: str, name: str) -> nn.Module:
    model = tiny_model(name)
    randomise(mhr.attach(model, AdapterConfig(method="private", adapter=kind, virtual_tokens=3), TASKS))
    return model


def squares(output: Any) -> Tensor:
    found: Tensor = output.logits.square().sum()
    return found


def half(rank: int) -> Gradients:
    found = {}
    for kind, name in VIRTUAL[::3]:
        model = adapted(kind, name)
        found[f"{kind} {name}"] = gradients_of_half(model, random_batch(tiny_model(name)), IDS, rank, squares)
    return found


def test_two_processes_find_the_gradients_of_one(tmp_path: Path) -> None:
    found = in_two_processes(half, tmp_path)
    assert len(found) == 3
    for kind, name in VIRTUAL[::3]:
        model = adapted(kind, name)
        squares(model(**random_batch(tiny_model(name)), task_ids=IDS)).backward()
        ((key, own),) = [(key, p.grad) for key, p in model.named_parameters() if p.grad is not None]
        assert own is not None
        assert own.any()
        torch.testing.assert_close(found[f"{kind} {name}"], {key: own}, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "name"), [*VIRTUAL, *(("gated", name) for name in ("t5", "bart", "llama"))])
def test_answers_are_as_likely_on_a_shared_cache_as_one_by_one(kind: str, name: str) -> None:
    model = adapted(kind, name).double()
    loaded = LoadedModel(model, make_word_tokenizer(), "seq2seq" if model.config.is_encoder_decoder else "causal", name)
    inputs = [[5, 6, 7, 8, 9], [10, 11]]
    answers = [[[12, 13, 14], [15]], [[16, 17], [18, 19, 20]]]
    with torch.no_grad():
        shared = with_cache(loaded, inputs, answers, ["rte", "copa"])
        alone = [
            without_cache(loaded, [row], [[one]], [task])[0]
            for row, own, task in zip(inputs, answers, ["rte", "copa"], strict=True)
            for one in own
        ]
    assert len(shared) == 4
    torch.testing.assert_close(torch.tensor(shared), torch.tensor(alone), rtol=1e-5, atol=1e-5)
