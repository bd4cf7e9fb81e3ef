"""The Trainer's own additions: parameter groups, losses over the whole batch, order of examples, faults."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from mhr.backbones import load_backbone
from mhr.data.samplers import ExampleDataset, TaskSampler
from mhr.errors import TrainingError
from mhr.layers import attach
from mhr.objectives import make_objective
from mhr.runs import load_config
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig
from mhr.runs.tasks import read_tasks
from mhr.training.signals import Interrupted, StopRequest
from mhr.training.trainer import RoutedTrainer, WholeRun

Make = Callable[..., RunConfig]


def trainer_for(config: RunConfig, folder: Path, resumable: bool = False) -> RoutedTrainer:
    """A trainer as pretraining makes it, without the files around it."""
    torch.manual_seed(0)
    model, tokenizer = load_backbone(config.model)
    tasks = read_tasks(config.tasks, config.data).training()
    if config.adapter is not None:
        attach(model, config.adapter, list(tasks))
    examples = ExampleDataset(tasks)
    objective = make_objective("seq2seq", config.train)
    return RoutedTrainer(
        model,
        tokenizer,
        objective,
        examples,
        TaskSampler(examples.sizes, seed=config.train.seed),
        objective.collator(tokenizer, config.data.max_input_length, config.data.max_target_length),
        RunFolder.create(folder),
        config.model,
        resumable=resumable,
    )


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_routing_has_its_own_learning_rate_and_no_decay(settings: Make, tmp_path: Path, optimizer: str) -> None:
    config = settings(lr=1e-3, router_lr=0.1, weight_decay=0.01, optimizer=optimizer)
    trainer = trainer_for(config, tmp_path)
    groups = {group["name"]: group for group in trainer.create_optimizer().param_groups}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "adapters": (1e-3, 0.01),
        "routing": (0.1, 0.0),
    }
    bank = trainer.bank
    assert set(map(id, groups["routing"]["params"])) == set(map(id, bank.router_parameters()))
    assert set(map(id, groups["adapters"]["params"])) == set(map(id, bank.adapter_parameters()))


def test_routing_decays_where_that_is_asked_for(settings: Make, tmp_path: Path) -> None:
    """As published for SuperNI and CrossFit; one step of AdamW at rate 0.1 with decay 0.5 and without a gradient keeps 95%."""
    trainer = trainer_for(settings(router_lr=0.1, router_weight_decay=0.5), tmp_path)
    optimizer = trainer.create_optimizer()
    groups = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert groups == {"adapters": 0.0, "routing": 0.5}
    before = [p.detach().clone() for p in trainer.bank.router_parameters()]
    for p in trainer.bank.router_parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, was in zip(trainer.bank.router_parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), 0.95 * was)


@pytest.mark.parametrize(("method", "decayed"), [("ia3", False), ("lora", True)])
def test_vectors_of_scalings_do_not_decay(settings: Make, tmp_path: Path, method: str, decayed: bool) -> None:
    trainer = trainer_for(settings(method=method, weight_decay=0.01), tmp_path)
    assert [g["weight_decay"] > 0 for g in trainer.create_optimizer().param_groups] == [decayed]


def test_full_fine_tuning_decays_neither_norms_nor_biases(settings: Make, tmp_path: Path) -> None:
    trainer = trainer_for(settings(method="full", weight_decay=0.01), tmp_path)
    groups = {g["name"]: set(map(id, g["params"])) for g in trainer.create_optimizer().param_groups}
    named = dict(trainer.model.named_parameters())
    assert {n for n, p in named.items() if id(p) in groups["undecayed"]} == {
        n for n in named if "norm" in n or "bias" in n
    }
    assert sum(map(len, groups.values())) == len(named)


def test_operations_are_counted_as_transformers_does(settings: Make, tmp_path: Path) -> None:
    trainer = trainer_for(settings(), tmp_path)
    for batch in (trainer.data_collator([trainer.examples[i] for i in range(n)]) for n in (2, 5)):
        assert trainer.floating_point_ops(batch) == Trainer.floating_point_ops(trainer, batch) > 0


def test_how_a_global_batch_is_split_changes_nothing(settings: Make, tmp_path: Path) -> None:
    runs = []
    for size, accumulation in ((8, 1), (4, 2), (2, 4)):
        config = settings(batch_size=size, accumulation=accumulation, steps=4, log_every=1)
        trainer = trainer_for(config, tmp_path / str(size))
        trainer.fit()
        runs.append((trainer.run.metrics(), trainer.bank.tensors()))
    (whole, weights), *split = runs
    for metrics, tensors in split:
        for a, b in zip(whole, metrics, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["tasks"] == pytest.approx(b["tasks"], rel=1e-5)
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-5)


def test_the_loss_is_the_mean_over_target_tokens_and_tasks_add_up_to_it(settings: Make, tmp_path: Path) -> None:
    trainer = trainer_for(settings(steps=1, lr=1e-9), tmp_path)
    drawn = [trainer.train_dataset[i] for i in trainer._sampler]
    batch = trainer.data_collator.collator(drawn)
    trainer.fit()
    (record,) = trainer.run.metrics()
    with torch.no_grad():
        logits = trainer.model(**batch).logits
    tokens = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
    assert record["loss"] == pytest.approx((tokens.sum() / batch["labels"].ne(-100).sum()).item(), rel=1e-5)
    for task, loss in record["tasks"].items():
        rows = torch.tensor([name == task for name in batch["task_ids"]])
        assert loss == pytest.approx((tokens[rows].sum() / batch["labels"][rows].ne(-100).sum()).item(), rel=1e-5)


def test_a_run_is_drawn_as_whole_batches_over_epochs() -> None:
    sampler = TaskSampler([5, 3], seed=1)
    order = list(WholeRun(sampler, 20))
    assert len(order) == 20
    assert sorted(order[:8]) == sorted(order[8:16]) == list(range(8))
    assert order[:8] != order[8:16]
    assert order == list(WholeRun(TaskSampler([5, 3], seed=1), 20))


def test_a_loss_that_is_not_finite_stops_with_step_and_tasks(settings: Make, tmp_path: Path) -> None:
    trainer = trainer_for(settings(steps=8, save_every=2), tmp_path, resumable=True)
    whole = trainer.objective.__call__
    spoiled = {"calls": 0}

    def spoil(*args: Any, **kwargs: Any) -> Any:
        told = whole(*args, **kwargs)
        spoiled["calls"] += 1
        if spoiled["calls"] == 4:
            factor = torch.tensor([float("nan") if task == "rev-last" else 1.0 for task in told.tasks])
            told = dataclasses.replace(told, sums=told.sums * factor)
        return told

    trainer.objective = spoil  # type: ignore[assignment]
    spoil.count = lambda batch: batch["labels"].ne(-100).sum()  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match=r"nan at step 4, in a batch with 'rev-last'.*checkpoint-2") as caught:
        trainer.fit()
    assert "rev-first" not in str(caught.value)
    assert all(torch.isfinite(t).all() for t in trainer.bank.tensors().values())


@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_a_second_signal_is_the_usual_one() -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGINT)

    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        twice()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_ends_after_the_update_at_work(settings: Make, tmp_path: Path) -> None:
    trainer = trainer_for(settings(steps=8), tmp_path)
    step = trainer.training_step

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args, **kwargs)

    trainer.training_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="stopped after step 3 of 8.*--resume"):
        trainer.fit()


def test_mixed_precision_keeps_the_adapters_in_float32(settings: Make, tmp_path: Path) -> None:
    trainer = trainer_for(settings(precision="bf16", steps=2), tmp_path)
    trainer.fit()
    assert all(p.dtype == torch.float32 for p in trainer.bank.adapter_parameters())
    assert all(torch.isfinite(p).all() for p in trainer.bank.adapter_parameters())


def test_gradient_checkpointing_gives_the_same_losses(settings: Make, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        trainer = trainer_for(settings(steps=3, gradient_checkpointing=checkpointing), tmp_path / str(checkpointing))
        trainer.fit()
        found.append([record["loss"] for record in trainer.run.metrics()])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_compiled_model_has_the_same_losses(settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []

    def compile_quickly(module: torch.nn.Module) -> None:
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    torch._dynamo.reset()
    found = []
    for compiling in (False, True):
        more: dict[str, Any] = {"method": "adamix", "gradient_checkpointing": True, "torch_compile": compiling}
        config = settings(model_config={"num_layers": 1}, steps=2, **more)
        trainer = trainer_for(config, tmp_path / str(compiling))
        trainer.fit()
        found.append([record["loss"] for record in trainer.run.metrics()])
        assert compiled == [trainer.model] * compiling
        assert trainer.model._compiled_call_impl is None
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_model_s_cache_setting_is_left_as_it_was(settings: Make, tmp_path: Path) -> None:
    trainer = trainer_for(settings(steps=1), tmp_path)
    trainer.fit()
    assert trainer.model.config.use_cache is load_backbone(load_config(model=trainer.base).model)[0].config.use_cache


ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="Accelerate has fp16 on GPUs alone")


@pytest.mark.parametrize("breaks", [False, True], ids=["ends", "breaks"])
@pytest.mark.parametrize("method", ["mhr", "full"])
@pytest.mark.parametrize("precision", ["no", "bf16", pytest.param("fp16", marks=ON_CUDA)])
def test_a_model_is_called_after_training_as_before(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, method: str, breaks: bool
) -> None:
    trainer = trainer_for(settings(method=method, precision=precision, steps=2), tmp_path)
    model = trainer.model
    before, untrained = set_on(model), copy.deepcopy(model)

    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise TrainingError("broken")

    if breaks:
        monkeypatch.setattr(trainer, "training_step", broken)
    with pytest.raises(TrainingError, match="broken") if breaks else nullcontext():
        trainer.fit()
    after = set_on(model)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    untrained.load_state_dict(model.state_dict())
    ids = torch.tensor([[5, 6, 7]], device=model.device)
    tasks = {} if method == "full" else {"task_ids": trainer.bank.tasks[:1]}
    with torch.no_grad():
        one, other = (
            m.eval().to(model.device)(input_ids=ids, decoder_input_ids=ids, **tasks).logits for m in (model, untrained)
        )
    assert torch.equal(one, other)


def set_on(model: Any) -> dict[str, Any]:
    """What is set on a model itself and may be called, or says how it was made ready."""
    return {name: value for name, value in vars(model).items() if callable(value) or "accelerate" in name}
