"""Runs of the baselines: resumed, in two processes, and ranked by their shared caches."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mhr
from mhr import AdapterConfig
from mhr.adapters import read_adapter
from mhr.evaluation.likelihood import with_cache, without_cache
from mhr.evaluation.loaded import LoadedModel
from mhr.runs import RunConfig, RunFolder
from mhr.training import pretrain
from tests.models import random_batch, randomise, tiny_model
from tests.tokenizers import make_word_tokenizer

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
CASES = [("houlsby", "t5"), ("bitfit", "bart"), ("prompt-tuning", "t5"), ("prefix-tuning", "llama")]
VIRTUAL = [(kind, name) for kind in ("prompt", "prefix") for name in ("t5", "bart", "gpt2", "llama")]


@pytest.mark.parametrize(("method", "model"), CASES)
def test_a_resumed_run_ends_where_one_without_a_break_does(
    method: str, model: str, settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = settings(model, method=method, steps=4, save_every=2)
    whole = pretrain(config, str(tmp_path / "run"), progress=False)
    expected = read_adapter(whole.adapter).tensors
    (whole.checkpoints / "checkpoint-4").rename(tmp_path / "gone")
    RunFolder.open(whole.path).write(status="interrupted")
    resumed = pretrain(config, str(tmp_path / "run"), resume=True, progress=False)
    assert resumed.info["resumed_from"] == "checkpoint-2"
    found = read_adapter(resumed.adapter).tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def adapted(kind: str, name: str) -> nn.Module:
    model = tiny_model(name)
    randomise(mhr.attach(model, AdapterConfig(method="private", adapter=kind, virtual_tokens=3), TASKS))
    return model


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}


def half(rank: int, folder: Path) -> None:
    """The gradients of every case in one of two processes, each on two of the four examples; the first one writes what it found."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    found = {}
    for kind, name in VIRTUAL[::3]:
        parallel = nn.parallel.DistributedDataParallel(adapted(kind, name))
        part = {key: t[2 * rank : 2 * rank + 2] for key, t in random_batch(tiny_model(name)).items()}
        logits = parallel(**part, task_ids=IDS[2 * rank : 2 * rank + 2]).logits
        found[f"{kind} {name}"] = {
            key: 2 * g for key, g in gradients(parallel, logits.square().sum()).items()
        }  # DDP takes the mean
    if rank == 0:
        torch.save(found, folder / "found")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_find_the_gradients_of_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")  # so that nothing is imported again
    both = [context.Process(target=half, args=(rank, tmp_path)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in both] == [0, 0]
    found = torch.load(tmp_path / "found", weights_only=True)
    assert len(found) == 3
    for kind, name in VIRTUAL[::3]:
        model = adapted(kind, name)
        logits = model(**random_batch(tiny_model(name)), task_ids=IDS).logits
        expected = gradients(model, logits.square().sum())
        (own,) = expected.values()
        assert own.any()
        torch.testing.assert_close(next(iter(found[f"{kind} {name}"].values())), own, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "name"), VIRTUAL)
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
