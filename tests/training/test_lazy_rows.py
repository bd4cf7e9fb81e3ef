"""Rows of tasks that are trained lazily: the rule itself, their gradients, whole runs, and what it takes in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import read_adapter
from mhr.errors import ConfigError, TaskError, TrainingError
from mhr.methods import METHODS, ROUTING_METHODS
from mhr.runs import RunFolder
from mhr.runs.config import assignments
from mhr.runs.settings import RunConfig
from mhr.runs.train_settings import LAZY_OPTIMIZERS
from mhr.runs.unused import refuse_unused
from mhr.training import pretrain
from mhr.training.lazy_rows import ROWS_DRAWN, LazyRows
from mhr.training.signals import Interrupted
from mhr.training.trainer import RoutedTrainer
from tests.forked import pretrained_by_two
from tests.models import random_batch, randomise, tiny_model
from tests.routing.test_contract import Block
from tests.training.test_trainer import trainer_for

Make = Callable[..., RunConfig]

TASKS = [f"task{i}" for i in range(7)]
CASES: dict[str, dict[str, Any]] = {
    "mhr": {"n_heads": 4},
    "mhr, noise": {"n_heads": 4, "noise": "per_example"},
    "mhr, straight through": {"n_heads": 4, "straight_through": True},
    "poly": {"method": "poly", "granularity": "coarse"},
    "hydra": {"method": "hydra"},
    "mtl-lora": {"method": "mtl-lora"},
    "shared-heads": {"method": "shared-heads", "n_heads": 4},
    "context-mhr": {"method": "context-mhr", "n_heads": 4, "router": {"context": "learnt", "size": 5}},
    "hyperformer": {"method": "hyperformer", "adapter": "bottleneck", "n_skills": 6},
    "hyperformer++": {"method": "hyperformer++", "adapter": "bottleneck", "n_skills": 6},
    "private": {"method": "private"},
    "film": {"method": "private", "adapter": "film"},
    "hra": {"method": "private", "adapter": "recurrent"},
}
OWN_SKILLS = [
    name
    for name, row in METHODS.items()
    if row.routing and ROUTING_METHODS[row.routing].skill_per_task and ROUTING_METHODS[row.routing].needs_tasks
]
"""Methods with a skill for each task, by which it is routed."""


def adapted(case: str, model: Any = None) -> tuple[Any, AdapterBank]:
    model = tiny_model("bert-encoder") if model is None else model
    torch.manual_seed(0)
    bank = mhr.attach(model, AdapterConfig(**CASES[case]), TASKS)
    randomise(bank)
    return model.train(), bank


def values(bank: AdapterBank) -> list[Tensor]:
    return [parameter.detach().clone() for parameter, _ in bank.row_parameters()]


def as_rows(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, 0)


# ---- the rule -----------------------------------------------------------------------------------------------------------


def draw(steps: int, seed: int = 0) -> list[list[int]]:
    """Rows of 1 to 3 tasks for each step."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 4, (steps,), generator=g).tolist()
    return [torch.randperm(len(TASKS), generator=g)[:n].tolist() for n in sizes]


@pytest.mark.parametrize("case", ["mhr", "mtl-lora", "film"])
def test_a_row_moves_by_its_own_gradients_alone(case: str) -> None:
    """Against AdamW as it is written, in float64, for every row by itself but for the number of steps."""
    lr, decay, (b1, b2), eps = 0.1, 0.3, (0.9, 0.999), 1e-8
    _, bank = adapted(case, tiny_model("bert-encoder").double())
    axes = [axis for _, axis in bank.row_parameters()]
    expected = [as_rows(t, axis).clone() for t, axis in zip(values(bank), axes, strict=True)]
    m, v = ([torch.zeros_like(t) for t in expected] for _ in range(2))
    rows = LazyRows(bank, 3)
    optimizer = torch.optim.AdamW([p for p, _ in bank.row_parameters()], lr=lr, weight_decay=decay)
    rows.follow(optimizer)
    torch.manual_seed(1)
    for step, drawn in enumerate(draw(20), 1):
        rows.load(drawn)
        for i, table in enumerate(rows.tables):
            table.parameter.grad = grad = torch.zeros_like(table.parameter)
            for slot, t in enumerate(sorted(drawn)):
                g = torch.randn_like(expected[i][t])
                as_rows(grad, table.axis)[slot] = g
                m[i][t] = b1 * m[i][t] + (1 - b1) * g
                v[i][t] = b2 * v[i][t] + (1 - b2) * g * g
                corrected = (v[i][t] / (1 - b2**step)).sqrt() + eps
                expected[i][t] = (1 - lr * decay) * expected[i][t] - lr * m[i][t] / (1 - b1**step) / corrected
        optimizer.step()
    rows.close()
    for found, axis, truth in zip(values(bank), axes, expected, strict=True):
        torch.testing.assert_close(as_rows(found, axis), truth, rtol=1e-12, atol=1e-12)


def test_without_weight_decay_it_is_torchs_own_sparse_adam() -> None:
    _, bank = adapted("mhr", tiny_model("bert-encoder").double())
    copies = [torch.nn.Parameter(t.flatten(1)) for t in values(bank)]
    theirs = torch.optim.SparseAdam(copies, lr=0.1, eps=1e-300)  # whose eps is no part of the bias correction
    rows = LazyRows(bank, 3)
    ours = torch.optim.AdamW([p for p, _ in bank.row_parameters()], lr=0.1, eps=1e-300, weight_decay=0.0)
    rows.follow(ours)
    torch.manual_seed(1)
    for drawn in draw(20):
        rows.load(drawn)
        for table, copy in zip(rows.tables, copies, strict=True):
            grad = torch.zeros_like(table.parameter)
            grad[: len(drawn)] = torch.randn_like(grad[: len(drawn)])
            table.parameter.grad = grad
            copy.grad = torch.sparse_coo_tensor(
                torch.tensor([sorted(drawn)]), grad[: len(drawn)].flatten(1), copy.shape, check_invariants=True
            )
        ours.step()
        theirs.step()
    rows.close()
    for found, copy in zip(values(bank), copies, strict=True):
        torch.testing.assert_close(found.flatten(1), copy.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAZY_OPTIMIZERS)
def test_where_every_step_draws_every_task_nothing_differs(name: str, settings: Make, tmp_path: Path) -> None:
    found = []
    for lazy in (True, False):
        config = settings(optimizer=name, batch_size=16, steps=3, lazy_rows=lazy, router_weight_decay=0.1)
        trainer = trainer_for(config, tmp_path / str(lazy))
        seen = [set(batch["task_ids"]) for batch in trainer.get_train_dataloader()]
        assert all(len(tasks) == 3 for tasks in seen)
        trainer.fit()
        found.append((trainer.run.metrics(), trainer.bank.tensors()))
    (one, a), (two, b) = found
    assert [r["loss"] for r in one] == [r["loss"] for r in two]
    assert a.keys() == b.keys()
    for tensor_name, tensor in a.items():
        torch.testing.assert_close(tensor, b[tensor_name], rtol=1e-6, atol=1e-7, msg=tensor_name)


# ---- gradients ----------------------------------------------------------------------------------------------------------


def test_every_method_with_rows_is_a_case() -> None:
    tried = {flags.get("method", "mhr") for flags in CASES.values()}
    given = {"generative-adapter"}  # whose tasks have shots, and nothing that trains
    assert tried | given == {name for name, row in ROUTING_METHODS.items() if "lazy_rows" not in row.idle}


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_the_rows_in_use_are_those_of_the_whole_table(case: str, share: float) -> None:
    """Also on the way to the average of the skills, where a step holds the skills."""
    model, bank = adapted(case)
    bank.toward_average = share
    if share and bank.config.routing.skill_per_task:
        LazyRows(bank, 4).load([0])
        with pytest.raises(
            TaskError, match="1 of 7 skills are loaded for this step, and the batch is routed by their average"
        ):
            bank.for_batch(["task0"])
        return
    ids = ["task5", "task2", "task5", "task0"]
    batch = random_batch(model)

    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        torch.manual_seed(3)
        found = model(**batch, task_ids=ids)[0]
        (found * torch.linspace(-1, 1, found.shape[-1])).sum().backward()
        return found.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    names = {id(p): name for name, p in model.named_parameters()}
    tables = {names[id(p)]: axis for p, axis in bank.row_parameters()}
    output, dense = gradients()
    rows = LazyRows(bank, 4)
    rows.load([bank.row(task) for task in ids])
    again, lazy = gradients()
    torch.testing.assert_close(again, output, rtol=1e-6, atol=1e-6)
    assert tables.keys() <= dense.keys() == lazy.keys()
    for name, gradient in dense.items():
        if name in tables:
            every, some = as_rows(gradient, tables[name]), as_rows(lazy[name], tables[name])
            assert len(some) == 4
            assert some[:3].any()
            assert not some[3].any()
            assert not every[[1, 3, 4, 6]].any()
            torch.testing.assert_close(some[:3], every[[0, 2, 5]], rtol=1e-5, atol=1e-6, msg=name)
        else:
            torch.testing.assert_close(lazy[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    with pytest.raises(TaskError, match=r"task 'task1' is none of the 3 whose rows are loaded"):
        bank.for_batch(["task1"])
    rows.close()
    assert all(p.grad is None and p.shape[axis] == len(TASKS) for p, axis in bank.row_parameters())
    torch.manual_seed(3)
    torch.testing.assert_close(model(**batch, task_ids=ids)[0], output, rtol=1e-6, atol=1e-6)


def test_a_step_that_is_skipped_changes_nothing() -> None:
    """As a gradient scaler skips one whose gradients overflow."""
    _, bank = adapted("mhr")
    before = values(bank)
    rows = LazyRows(bank, 3)
    optimizer = torch.optim.AdamW([p for p, _ in bank.row_parameters()], lr=0.1)
    rows.follow(optimizer)
    rows.load([1, 2])
    rows.load([3, 4])
    with rows.whole(), rows.whole():
        assert all(torch.equal(a, b) for a, b in zip(values(bank), before, strict=True))
    for p, _ in bank.row_parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    with rows.whole():
        for a, b in zip(values(bank), before, strict=True):
            assert torch.equal(a[[0, 1, 2, 5, 6]], b[[0, 1, 2, 5, 6]])
            assert (a[[3, 4]] != b[[3, 4]]).all()
    assert rows.drawn == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="draws 4 tasks, expected at most 3"):
        rows.load([0, 1, 2, 3])


def test_a_compiled_model_reads_the_rows_of_its_step() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Block()
    bank = mhr.attach(model, AdapterConfig(n_heads=4, targets=["first", "second"], rank=2), TASKS)
    randomise(bank)
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(4, 3, 8)
    rows = LazyRows(bank, 3)

    def both(ids: list[str]) -> list[list[Tensor]]:
        found = []
        for called in (compiled, model):
            model.zero_grad()
            y = called(x, task_ids=bank.for_batch(ids))
            y.sum().backward()
            found.append([y.detach(), *(p.grad.clone() for p, _ in bank.row_parameters())])
        return found

    outputs = []
    for ids in (["task1", "task2", "task1", "task2"], ["task6", "task0", "task3", "task0"]):
        rows.load([bank.row(task) for task in ids])
        one, two = both(ids)
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b)
        outputs.append(one[0])
    rows.close()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, task_ids=bank.for_batch(ids)), outputs[1])
    assert not torch.allclose(outputs[0], outputs[1])


# ---- memory -------------------------------------------------------------------------------------------------------------


def test_states_are_those_of_the_tasks_drawn() -> None:
    """2 states of 4 bytes for H S logits in G tables, of K rows at work and of 2^n K drawn, at most T."""
    model = tiny_model("bert-encoder")
    bank = mhr.attach(model, AdapterConfig(n_heads=4, n_skills=8), [f"task{i}" for i in range(1000)])
    rows = LazyRows(bank, 8)
    optimizer = torch.optim.AdamW(bank.router_parameters(), lr=0.1)
    rows.follow(optimizer)
    row = 2 * 4 * 4 * 8 * len(bank.groups)
    for first, drawn, room in ((0, 8, 8), (0, 8, 8), (8, 16, 16), (500, 24, 32), (992, 32, 32), (700, 40, 64)):
        rows.load(range(first, first + 8))
        for p in bank.router_parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        at_work = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
        assert sum(t.nbytes for t in at_work) == 8 * row
        assert (len(rows.drawn), rows.state_bytes()) == (drawn, room * row)
        assert sum(p.grad.nbytes for p in bank.router_parameters()) == 8 * row // 2
    stored = [t for s in optimizer.state_dict()["state"].values() for t in s.values() if t.dim()]
    assert sum(t.untyped_storage().nbytes() for t in stored) == 40 * row
    rows.close()


# ---- runs ---------------------------------------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "mhr": {"method": "mhr", "n_heads": 4, "noise": "per_example", "router_weight_decay": 0.1, "precision": "bf16"},
    "mtl-lora": {"method": "mtl-lora", "batch_size": 1, "accumulation": 2},
    "film": {"method": "film"},
    "annealed": {"method": "poly", "anneal_to_mu": 2},
}


def same(a: RunFolder, b: RunFolder) -> None:
    kept = ("step", "loss", "grad_norm", "tasks", "validation")
    assert [{k: r.get(k) for k in kept} for r in a.metrics()] == [{k: r.get(k) for k in kept} for r in b.metrics()]
    one, two = read_adapter(a.adapter).tensors, read_adapter(b.adapter).tensors
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("case", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(
    case: str, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(
        **{
            "batch_size": 2,
            "steps": 4,
            "lazy_rows": True,
            "eval_every": 2,
            "keep_best": case != "annealed",
            **RUNS[case],
        }
    )
    whole = pretrain(config, str(tmp_path / "whole"), progress=False)
    step = RoutedTrainer.training_step

    def interrupted(self: RoutedTrainer, *args: Any, **kwargs: Any) -> Any:
        self.stop.asked |= self.state.global_step == 1
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RoutedTrainer, "training_step", interrupted)
        with pytest.raises(Interrupted):
            pretrain(config, str(tmp_path / "cut"), progress=False)
    again = pretrain(config, str(tmp_path / "cut"), resume=True, progress=False)
    assert again.info["resumed_from"] == "checkpoint-2"
    same(again, whole)


def test_validation_and_the_split_of_a_batch_change_nothing(settings: Make, tmp_path: Path) -> None:
    found = []
    for size, accumulation in ((4, 1), (2, 2)):
        config = settings(batch_size=size, accumulation=accumulation, steps=6, lazy_rows=True, n_heads=4)
        trainer = trainer_for(config, tmp_path / str(size))
        trainer.fit()
        found.append((trainer.run.metrics(), trainer.bank.tensors()))
    (one, a), (two, b) = found
    for r, s in zip(one, two, strict=True):
        assert r["loss"] == pytest.approx(s["loss"], rel=1e-5)
        assert r["grad_norm"] == pytest.approx(s["grad_norm"], rel=1e-4)
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-3, atol=1e-4)


def test_rows_are_as_they_were_until_their_task_is_drawn(settings: Make, tmp_path: Path) -> None:
    trainer = trainer_for(
        settings(batch_size=1, steps=2, warmup=0.0, lazy_rows=True, n_heads=4, router_weight_decay=0.5), tmp_path
    )
    before = values(trainer.bank)
    drawn = {task for batch in trainer.get_train_dataloader() for task in batch["task_ids"]}
    trainer.fit()
    moved = [trainer.bank.tasks[t] in drawn for t in range(len(trainer.bank.tasks))]
    assert 0 < sum(moved) < len(moved)
    for a, b in zip(values(trainer.bank), before, strict=True):
        assert (a != b).flatten(1).any(1).tolist() == moved


@pytest.mark.slow
def test_two_processes_give_what_one_gives(settings: Make, tmp_path: Path) -> None:
    two = settings(steps=4, batch_size=1, accumulation=2, lazy_rows=True, n_heads=4, router_weight_decay=0.1)
    both = pretrained_by_two(two, tmp_path / "two")
    one = settings(steps=4, batch_size=4, lazy_rows=True, n_heads=4, router_weight_decay=0.1)
    alone = pretrain(one, str(tmp_path / "one"), progress=False)
    for a, b in zip(both.metrics(), alone.metrics(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    found, expected = read_adapter(both.adapter).tensors, read_adapter(alone.adapter).tensors
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    states = [torch.load(run.checkpoints / "checkpoint-4/optimizer.pt", weights_only=True) for run in (both, alone)]
    assert states[0][ROWS_DRAWN].tolist() == states[1][ROWS_DRAWN].tolist()


# ---- what does not go ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"optimizer": "adafactor"},
            "lazy_rows is true, but optimizer is 'adafactor', whose step on a row depends on others",
        ),
        ({"method": "lora"}, "train.lazy_rows has no effect with method 'lora'"),
        ({"method": "adamix"}, "train.lazy_rows has no effect with method 'adamix'"),
        ({"method": "full"}, "train.lazy_rows has no effect with method 'full'"),
        ({"method": "pha"}, "train.lazy_rows is true, but a step of method 'pha' trains what each task has of its own"),
        (
            {"method": "generative-adapter", "adapter.router": {"shots": 8}},
            "train.lazy_rows has no effect on contexts that are no parameters of the run",
        ),
        ({"method": "context-mhr"}, "train.lazy_rows has no effect on contexts that are no parameters of the run"),
    ],
)
def test_what_has_no_rows_is_refused(settings: Make, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        refuse_unused(assignments(["train.lazy_rows=true"]), settings(lazy_rows=True, **flags))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flags", [{"switch_to_mu_at": 0}, {"anneal_to_mu": 2}])
@pytest.mark.parametrize("method", OWN_SKILLS)
def test_an_average_of_skills_that_a_step_does_not_hold_is_refused(
    method: str, flags: dict[str, Any], settings: Make
) -> None:
    settings(method=method, steps=4, lazy_rows=True)
    settings(method=method, steps=4, **flags)
    with pytest.raises(ConfigError) as error:
        settings(method=method, steps=4, lazy_rows=True, **flags)
    assert "train.lazy_rows is true, but the run ends as the average of its skills" in str(error.value)
    assert f"method {method!r}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_without_a_row_is_not_routed_by_the_skills_of_a_step() -> None:
    _, bank = adapted("private")
    LazyRows(bank, 3).load([1, 2])
    with pytest.raises(TaskError, match="2 of 7 skills are loaded"):
        bank.for_batch(["task1", "unknown"], unseen="uniform")


def test_states_of_whole_tables_are_refused() -> None:
    _, bank = adapted("mhr")
    optimizer = torch.optim.AdamW(bank.router_parameters(), lr=0.1)
    state = optimizer.state_dict()
    LazyRows(bank, 3).follow(optimizer)
    with pytest.raises(TrainingError, match="is of a training of whole tables"):
        optimizer.load_state_dict(state)
